"""The examples of docs/fleet.md, as they stand there but for the address, the key, and how long is trained."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from apis_of_tests import ANN
from clients import CLIENTS, install_node_modules
from PIL import Image

PAGE = (Path(__file__).parents[3] / "docs" / "fleet.md").read_text()


def examples(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE[PAGE.index("## For clients") :], re.DOTALL)


def as_run(example: str, url: str) -> str:
    for name, value in (("https://flux.example.com", url), ('"KEY"', json.dumps(ANN)), ("Bearer KEY", f"Bearer {ANN}")):
        example = example.replace(name, value)
    return re.sub(r"(training_steps\"?: )300", r"\g<1>2", example)


@pytest.mark.parametrize("example", examples("python"), ids=["replicate", "bfl"])
def test_python(working_api, archive, tmp_path, example):
    shutil.copy(archive, tmp_path / "photos.zip")
    program = as_run(example, working_api.url)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=240)
    assert Image.open(tmp_path / "fox.jpg").format == "JPEG"


def test_javascript(working_api, archive, tmp_path):
    install_node_modules()
    (example,) = examples("js")
    shutil.copy(archive, tmp_path / "photos.zip")
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    (tmp_path / "example.mjs").write_text(as_run(example, working_api.url))
    subprocess.run(["node", "example.mjs"], cwd=tmp_path, check=True, timeout=240)
    assert Image.open(tmp_path / "fox.jpg").format == "JPEG"


def test_curl(working_api, archive, monkeypatch):
    if shutil.which("curl") is None or shutil.which("jq") is None:
        pytest.skip("no curl or no jq is here: apt-get install curl jq")
    (example,) = examples("sh")[:1]
    sent = working_api.ask("POST", "/v1/files", files={"content": archive.read_bytes()}).json()["urls"]["get"]
    program = as_run(example, working_api.url).replace("https://example.com/photos.zip", sent) + 'echo "$finetune_id"'
    told = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, timeout=240).stdout
    assert working_api.engine.records.owner_of(told.strip()) == "ann"
