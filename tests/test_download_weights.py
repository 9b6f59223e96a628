"""script/download-weights against a small hub of our own, with a base of a few bytes."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import ModelInfo

from finetuner.bases.base import BASES
from script import download_weights

CONFIGURED = sorted(download_weights.MODELS.keys() - {"granite-vision-4.1-4b", "FLUX.1-Redux-dev"})
PROJECT = Path(__file__).parent.parent
BASE = "FLUX.1-dev"
REPOSITORY = download_weights.MODELS[BASE].repository
REVISION = download_weights.MODELS[BASE].revision

NEEDED = {
    "LICENSE.md": b"licence",
    "model_index.json": b"{}",
    "transformer/diffusion_pytorch_model.safetensors": b"transformer" * 1000,
    "vae/config.json": b'{"latent_channels": 16}',
}
NOT_NEEDED = {"flux1-dev.safetensors": b"the same again", "ae.safetensors": b"and again", "README.md": b"card"}
FILES = NEEDED | NOT_NEEDED


class Hub(ThreadingHTTPServer):
    """Serves FILES to whoever has accepted the licence, and remembers what was fetched."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.accepted = True
        self.listed_sizes = {name: len(content) for name, content in FILES.items()}
        self.fetched: list[str] = []


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == f"/api/models/{REPOSITORY}/revision/{REVISION}":
            self.send_json(self.model_info())
        elif path == f"/api/models/{REPOSITORY}/tree/{REVISION}":
            self.send_json([{"type": "file", "oid": "0", "path": name, "size": len(FILES[name])} for name in FILES])
        else:
            self.send_file(path.removeprefix(f"/{REPOSITORY}/resolve/{REVISION}/"))

    def model_info(self) -> dict:
        siblings = [{"rfilename": name, "size": size} for name, size in self.server.listed_sizes.items()]
        return {"id": REPOSITORY, "sha": REVISION, "gated": "auto", "siblings": siblings}

    def send_json(self, answer) -> None:
        self.answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def send_file(self, name: str) -> None:
        if name not in FILES:
            self.answer(404, b"", {})
        elif not self.server.accepted:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        else:
            if self.command == "GET":
                self.server.fetched.append(name)
            etag = hashlib.sha256(FILES[name]).hexdigest()
            self.answer(200, FILES[name], {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub():
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


@pytest.fixture
def download(hub, tmp_path):
    """Run the script in a process of its own: huggingface_hub reads its settings once, when it is imported."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        script = (
            "import sys; from pathlib import Path; from script import download_weights as script;"
            "script.WEIGHTS = Path(sys.argv[1]); sys.exit(script.main(sys.argv[2:]))"
        )
        return subprocess.run(
            [sys.executable, "-c", script, tmp_path / "weights", *arguments],
            cwd=PROJECT,
            env=os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_test"} | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_default_is_the_base_that_is_used_where_none_is_named():
    assert download_weights.parse([]) == BASES.production[0] == "FLUX.2-klein-base-4B"
    assert download_weights.parse(["FLUX.1-Krea-dev"]) == "FLUX.1-Krea-dev"


def test_an_unknown_base_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as exit:
        download_weights.parse(["FLUX.3"])
    assert exit.value.code == 2
    message = capsys.readouterr().err
    assert "'FLUX.3'" in message
    assert all(base in message for base in CONFIGURED)


@pytest.mark.parametrize("model", download_weights.MODELS.values(), ids=download_weights.MODELS)
def test_revisions_are_commits(model):
    assert len(bytes.fromhex(model.revision)) == 20


@pytest.mark.parametrize("name", CONFIGURED)
def test_a_base_comes_from_where_its_manifest_says_at_its_version(name):
    manifest = json.loads((PROJECT / "weights" / name / "base.json").read_text())
    assert manifest["source"] == download_weights.MODELS[name].repository
    assert download_weights.MODELS[name].revision.startswith(manifest["version"])


def test_of_klein_all_that_its_pipeline_loads_is_downloaded_and_not_the_same_weights_in_one_file():
    model = download_weights.MODELS["FLUX.2-klein-base-4B"]
    loaded = ["model_index.json", "tokenizer/chat_template.jinja", "text_encoder/model-00001-of-00002.safetensors"]
    names = [*loaded, "LICENSE.md", "flux-2-klein-base-4b.safetensors", "README.md"]
    info = ModelInfo(id=model.repository, siblings=[{"rfilename": name, "size": 1} for name in names])
    assert set(download_weights.listed_sizes(model, info)) == {*loaded, "LICENSE.md"}


def test_of_redux_the_reader_is_downloaded_and_not_the_same_weights_in_one_file():
    redux = download_weights.MODELS["FLUX.1-Redux-dev"]
    loaded = ["model_index.json", "image_embedder/config.json", "image_encoder/model.safetensors", "feature_extractor/x.json"]
    names = [*loaded, "flux1-redux-dev.safetensors", "README.md"]
    info = ModelInfo(id=redux.repository, siblings=[{"rfilename": name, "size": 1} for name in names])
    assert set(download_weights.listed_sizes(redux, info)) == set(loaded)


@pytest.mark.parametrize("path", sorted((PROJECT / "weights").glob("*/base.json")), ids=lambda path: path.parent.name)
def test_what_reads_image_prompts_for_a_base_is_here_or_can_be_downloaded(path):
    reader = json.loads(path.read_text()).get("image_reader")
    assert path.parent.name.startswith("FLUX.2") or path.parent.name.startswith("klein-emoji") or reader
    assert reader is None or reader in download_weights.MODELS or (PROJECT / "weights" / reader / "model_index.json").is_file()


def test_of_the_captioner_all_is_downloaded_but_programs():
    captioner = download_weights.MODELS["granite-vision-4.1-4b"]
    names = ["config.json", "model-00001-of-00002.safetensors", "chat_template.jinja", "modeling.py", "README.md"]
    info = ModelInfo(id=captioner.repository, siblings=[{"rfilename": name, "size": 1} for name in names])
    assert set(download_weights.listed_sizes(captioner, info)) == set(names[:3])


def test_only_what_diffusers_loads_is_downloaded(download, hub, tmp_path):
    result = download(BASE)
    assert result.returncode == 0, result.stderr
    assert files_under(tmp_path / "weights" / BASE) == NEEDED
    assert hub.fetched[-1] == "model_index.json"


def test_a_second_run_resumes(download, hub, tmp_path):
    folder = tmp_path / "weights" / BASE
    (folder / "vae").mkdir(parents=True)
    (folder / "vae/config.json").write_bytes(NEEDED["vae/config.json"])
    assert download(BASE).returncode == 0
    assert "vae/config.json" not in hub.fetched
    hub.fetched.clear()
    assert download(BASE).returncode == 0
    assert hub.fetched == []


def test_a_file_of_the_wrong_size_is_named(download, hub, tmp_path):
    hub.listed_sizes["vae/config.json"] += 1
    result = download(BASE)
    assert result.returncode == 1
    assert "vae/config.json" in result.stderr
    assert not (tmp_path / "weights" / BASE / "model_index.json").exists()


def test_without_a_token_it_says_where_to_accept_the_licence(download, hub):
    result = download(BASE, HF_TOKEN="")
    assert result.returncode == 1
    assert f"{hub.url}/{REPOSITORY}" in result.stderr
    assert "HF_TOKEN" in result.stderr
    assert hub.fetched == []


def test_a_token_whose_owner_has_not_accepted_the_licence(download, hub):
    hub.accepted = False
    result = download(BASE)
    assert result.returncode == 1
    assert result.stderr.rstrip().splitlines()[-1].startswith(f"script/download-weights: {BASE} is gated. Accept its")


def test_too_little_space_is_said_before_the_download(download, hub):
    hub.listed_sizes["transformer/diffusion_pytorch_model.safetensors"] = 10**18
    result = download(BASE)
    assert result.returncode == 1
    assert "1000000000.0 GB are still to be downloaded" in result.stderr
    assert hub.fetched == []


def test_a_hub_out_of_reach(download):
    result = download(BASE, HF_ENDPOINT="http://127.0.0.1:1")
    assert result.returncode == 1
    assert f"{BASE} was not downloaded" in result.stderr
    assert "Traceback" not in result.stderr
