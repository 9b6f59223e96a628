import os

import pytest
from helpers import files_of_a_finetune, manifest_of

from finetuner.store import files as store_files
from finetuner.store.files import Checker, seal, sealed_manifest, sha256, staging_folder


def test_a_staging_folder_is_empty_unless_what_lies_there_is_sealed(tmp_path):
    folder = files_of_a_finetune(tmp_path / "result")
    assert not list(staging_folder(folder).iterdir())
    manifest = seal(files_of_a_finetune(folder / "again"), manifest_of())
    assert sealed_manifest(staging_folder(folder / "again")) == manifest


def test_a_sealed_folder_that_has_changed_is_refused(tmp_path):
    seal(files_of_a_finetune(tmp_path / "result"), manifest_of())
    (tmp_path / "result" / "report" / "README.md").write_text("Card")
    with pytest.raises(ValueError, match="is not what the training wrote"):
        sealed_manifest(tmp_path / "result")


@pytest.fixture
def old_file(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"weights")
    return path


def test_an_untouched_file_is_hashed_once(old_file, monkeypatch):
    monkeypatch.setattr(store_files, "RACY_SECONDS", -1)
    hashed = []
    monkeypatch.setattr(store_files, "sha256", lambda path: hashed.append(path) or sha256(path))
    checker, digest = Checker(), sha256(old_file)
    assert checker.is_whole(old_file, digest) and checker.is_whole(old_file, digest)
    assert len(hashed) == 1
    assert not checker.is_whole(old_file, "0" * 64)


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_file_that_was_changed_in_place_is_hashed_again(old_file, keep_time, monkeypatch):
    checker, digest, stat = Checker(), sha256(old_file), old_file.stat()
    assert checker.is_whole(old_file, digest)
    old_file.write_bytes(b"Weights")
    if keep_time:
        os.utime(old_file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not checker.is_whole(old_file, digest)
