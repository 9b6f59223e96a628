"""What lies at the path that is given: opened where a LoRA is in it, else named with the remedy."""

import io
import json
import tarfile
import zipfile

import pytest
import torch
from safetensors.torch import save, save_file

from finetuner.bases import flux1
from finetuner.loras.foreign import linear_shapes, read_foreign_lora
from finetuner.loras.opening import opened

NAME = "transformer_blocks.0.attn.to_q"
LORA = save({f"{NAME}.lora_A.weight": torch.ones(2, 32), f"{NAME}.lora_B.weight": torch.ones(32, 2)})


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(1)}, buffer)
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


REPLICATE = {
    "output/flux_train_replicate/config.yaml": b"job: train",
    "output/flux_train_replicate/optimizer.pt": b"\x80\x02",
    "output/flux_train_replicate/._lora.safetensors": b"of macOS",
    "output/flux_train_replicate/lora.safetensors": LORA,
}


@pytest.mark.parametrize(
    "data",
    [tarred(REPLICATE), tarred(REPLICATE, "w:gz"), tarred(REPLICATE, "w:xz"), zipped(REPLICATE)],
    ids=["tar", "gz", "xz", "zip"],
)
def test_an_archive_with_one_lora_is_opened(transformer, tmp_path, data, caplog):
    (tmp_path / "trained_model.tar").write_bytes(data)
    lora = read_foreign_lora(tmp_path / "trained_model.tar", flux1, linear_shapes(transformer), 32)
    assert lora.facts["member"] == "output/flux_train_replicate/lora.safetensors" and lora.weights
    assert "trained_model.tar: output/flux_train_replicate/lora.safetensors was taken" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["trained_model.tar"]


def test_pefts_configuration_beside_it_counts_in_folders_and_archives(transformer, tmp_path):
    files = {"a/adapter_model.safetensors": LORA, "a/adapter_config.json": json.dumps({"lora_alpha": 1}).encode()}
    (tmp_path / "peft.zip").write_bytes(zipped(files))
    (tmp_path / "a").mkdir()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for path in (tmp_path / "peft.zip", tmp_path / "a", tmp_path / "a" / "adapter_model.safetensors"):
        facts = read_foreign_lora(path, flux1, linear_shapes(transformer), 32).facts
        assert facts["alpha"] == {"adapter_config.json": 1}


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x8B1F])  # of the header: the first bytes of a pickle, of a gzip
def test_a_header_whose_length_reads_as_another_kind_of_file_is_read(transformer, tmp_path, length):
    size = int.from_bytes(LORA[:8], "little")
    header = LORA[8 : 8 + size].ljust(length)
    (tmp_path / "lora.safetensors").write_bytes(length.to_bytes(8, "little") + header + LORA[8 + size :])
    assert read_foreign_lora(tmp_path / "lora.safetensors", flux1, linear_shapes(transformer), 32).weights


HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
PAGE = b"\n<!DOCTYPE html><html><head><title>Sign in</title>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 171969408\n"


def sized(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (POINTER, "is a Git-LFS pointer.*git lfs pull"),
        (PAGE, "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is text .XML.*error message"),
        (b'{"error": "Unauthorized"}', "is text .JSON"),
        (b"Entry not found\n", "is text, and not a safetensors file"),
        (LORA[:-1], r"is cut short: \d+ of \d+ bytes"),
        (LORA[:100], "is cut short: its header alone"),
        (LORA[:5], "is cut short"),
        (pickled(), "is a pickle"),
        (b"\x80\x02}q\x00.", "is a pickle"),
        (b"GGUF\x03" + bytes(30), "is a GGUF"),
        (b"Rar!\x1a\x07\x01" + bytes(30), "is a RAR archive"),
        (b"\x89PNG\r\n\x1a\n" + bytes(30), "is a picture"),
        (bytes(range(1, 255)), "is not a safetensors file"),
        (b"\xff" * 64, "is not a safetensors file"),
        (sized(b"[1]") + bytes(9), "header is damaged"),
        (sized(HEADER[:-1]) + bytes(9), "header is damaged"),
        (sized(HEADER.replace(b'"shape":[2]', b'"shape":"2"')) + bytes(8), "header is damaged"),
        (sized(HEADER.replace(b"F32", b"F99")) + bytes(8), "header is damaged"),
        (sized(HEADER[:-1] + b"," + HEADER[1:]) + bytes(8), "header is damaged .a key stands in it twice"),
        (tarred({"a.txt": b"x"}), "is an archive without a .safetensors file"),
        (tarred({"a.safetensors": LORA, "b.safetensors": LORA}), "has 2 .safetensors files.*a.safetensors, b.safetensors"),
        (tarred({"a.safetensors": POINTER}), "a.safetensors: is a Git-LFS pointer"),
        (tarred(REPLICATE, "w:gz")[:300], "the archive is damaged|not a safetensors file"),
        (zipped(REPLICATE)[:-30], "the archive is damaged"),
    ],
)
def test_what_is_no_lora_is_named_by_its_bytes(tmp_path, data, message):
    (tmp_path / "lora.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=f"^lora.safetensors: .*{message}"), opened(tmp_path / "lora.safetensors"):
        pass


def test_folders_and_files_that_are_not_there_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"), opened(tmp_path / "gone.safetensors"):
        pass
    with pytest.raises(ValueError, match="is a folder without a .safetensors file"), opened(tmp_path):
        pass
    for name in "ab":
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="has 2 .safetensors files.*a.safetensors, b.safetensors"), opened(tmp_path):
        pass
