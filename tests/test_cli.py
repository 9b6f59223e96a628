import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import files_of_a_finetune, manifest_of, publish_files
from safetensors.torch import save_file
from typer.testing import CliRunner

from finetuner import cli, finetune
from finetuner.loras import WEIGHTS_NAME, load_lora
from finetuner.loras.foreign import linear_shapes
from finetuner.store import FolderStore
from finetuner.store.files import seal

PROJECT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> FolderStore:
    monkeypatch.setenv("FINETUNE_STORE", str(tmp_path / "finetunes"))
    return FolderStore(tmp_path / "finetunes")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_list_shows_every_finetune_and_as_json_too(store):
    ids = [publish_files(store, created=f"202{year}-01-01T00:00:00+00:00") for year in (7, 6)]
    lines = run("list").splitlines()[1:]
    assert [line.split()[0] for line in lines] == ids
    assert lines[0].split()[1:] == ["2027-01-01", "00:00", "flux-emoji", "TOK"]
    listed = json.loads(run("list", "--json"))
    assert [entry["id"] for entry in listed] == ids and listed[0]["trigger_word"] == "TOK"


def test_one_is_shown_and_deleted(store):
    finetune_id = publish_files(store)
    shown = run("show", finetune_id)
    assert finetune_id in shown and "TOK" in shown and "flux-emoji" in shown
    assert json.loads(run("show", finetune_id, "--json")) == store.manifest(finetune_id)
    assert finetune_id in run("delete", finetune_id)
    assert not store.listings()


def test_a_file_is_imported_and_exported(store, base, tmp_path):
    name, (out, width) = next(item for item in linear_shapes(base.meta_transformer()).items() if ".attn." in item[0])
    file = {f"{name}.lora_A.weight": torch.ones(2, width), f"{name}.lora_B.weight": torch.ones(out, 2)}
    save_file(file, tmp_path / "in.safetensors")
    finetune_id = run("import", tmp_path / "in.safetensors", "--trigger-word", "TOK").strip()
    assert store.fetch(finetune_id).trigger_word == "TOK"
    run("export", finetune_id, tmp_path / "out.safetensors", "--format", "kohya")
    assert (tmp_path / "out.safetensors").exists()
    again = json.loads(run("import", tmp_path / "out.safetensors", "--trigger-word", "TOK", "--json"))["finetune_id"]
    first, second = (load_lora(store.fetch(which).folder / WEIGHTS_NAME) for which in (finetune_id, again))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_an_import_cuts_or_leaves_out_takes_an_option_and_is_said(store, base, tmp_path, caplog):
    name, (out, width) = next(item for item in linear_shapes(base.meta_transformer()).items() if ".attn." in item[0])
    factors = torch.randn(40, width), torch.randn(out, 40)
    file = {f"{name}.lora_A.weight": factors[0], f"{name}.lora_B.weight": factors[1]}
    file |= {f"text_encoder.x.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}
    save_file(file, tmp_path / "in.safetensors")
    arguments = ["import", tmp_path / "in.safetensors", "--trigger-word", "TOK"]
    for options, wanted in (([], "--blocks-only"), (["--blocks-only"], "--resize")):
        with pytest.raises(ValueError, match=wanted):
            run(*arguments, *options)
    assert not store.listings()
    finetune_id = run(*arguments, "--blocks-only", "--resize").strip()
    assert "text encoders were left out" in caplog.text and "from rank 40 to 32" in caplog.text
    imported = store.manifest(finetune_id)["imported"]
    assert imported["rank"] == 40 and 0.5 < imported["energy_kept"] < 1 and imported["left_out"]["text encoders"] > 0
    assert "in.safetensors" in run("show", finetune_id)


def test_the_result_of_a_job_is_published_and_only_its_record_stays(store, tmp_path, monkeypatch):
    monkeypatch.setattr(finetune, "JOBS", tmp_path / "jobs")
    made = seal(files_of_a_finetune(tmp_path / "jobs" / "abc" / "result"), manifest_of())
    for other in ("nothing", "../jobs/abc"):
        with pytest.raises(ValueError, match=r"^JOB: no result of .* waits to be published\. Those that do: abc\."):
            run("publish", other)
    assert run("publish", "abc").strip() == made["id"]
    assert store.fetch(made["id"]).trigger_word == "TOK"
    assert {path.name for path in (tmp_path / "jobs" / "abc").iterdir()} == {"lock", "published.json"}


def test_what_lists_imports_no_torch_and_an_error_is_one_sentence(store):
    def start(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-X", "importtime", "-m", "finetuner", *arguments]
        return subprocess.run(command, cwd=PROJECT, env=os.environ, capture_output=True, text=True)

    finetune_id = publish_files(store)
    listed = start("list")
    assert listed.returncode == 0 and finetune_id in listed.stdout
    assert "torch" not in listed.stderr and "s3fs" not in listed.stderr
    failed = start("show", "nonsense")
    assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith(
        "python -m finetuner: finetune_id: 'nonsense' is"
    )
    assert "Traceback" not in failed.stderr
