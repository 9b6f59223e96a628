"""A server that cannot serve says so when it starts."""

import logging
import os

import pytest
from s3fs import S3FileSystem

from entrypoints import startup
from finetuner.store import object as store_object


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Of this test's own; all of them can be made."""
    monkeypatch.setattr(startup, "COGS_FOLDER", tmp_path / "coglet" / "predictions")
    monkeypatch.setattr(startup, "JOBS", tmp_path / "jobs")
    monkeypatch.setattr(startup, "FREE_BYTES", 0)
    monkeypatch.setenv("FINETUNE_STORE", str(tmp_path / "finetunes"))


CHECKS = [startup.check_train_server, startup.check_predict_server]


@pytest.mark.parametrize("check", CHECKS)
def test_a_server_that_can_serve_starts_and_leaves_nothing(tmp_path, check):
    check()
    check()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or path.name.startswith(("tmp", ".staging"))]


@pytest.mark.parametrize("check", CHECKS)
def test_cogs_folder_that_cannot_be_written_is_named(tmp_path, check):
    (tmp_path / "coglet").write_text("")
    with pytest.raises(RuntimeError, match=rf"^{tmp_path}/coglet/predictions: Cog keeps .* cannot be written: .*Remove it"):
        check()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user takes root")
def test_cogs_folder_of_another_user_is_named(tmp_path):
    startup.COGS_FOLDER.mkdir(parents=True, mode=0o755)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o755)
    os.seteuid(65534)  # nobody
    try:
        with pytest.raises(RuntimeError, match="Permission denied.*give it to the user"):
            startup.check_predict_server()
    finally:
        os.seteuid(0)


def test_a_base_that_was_not_downloaded_is_named(monkeypatch):
    monkeypatch.setenv("BASE_MODEL", "nowhere")
    with pytest.raises(ValueError, match="^BASE_MODEL: nowhere has no base.json"):
        startup.check_train_server()


def test_jobs_that_cannot_be_written_or_have_no_room_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(startup, "FREE_BYTES", 1 << 60)
    with pytest.raises(RuntimeError, match=rf"^{tmp_path}/jobs: its disk has [\d.]+ GB free"):
        startup.check_train_server()
    (tmp_path / "jobs").rmdir()
    (tmp_path / "jobs").touch()
    with pytest.raises(RuntimeError, match=rf"^{tmp_path}/jobs: trainings keep their checkpoints there"):
        startup.check_train_server()


@pytest.mark.parametrize("check", CHECKS)
def test_a_folder_of_finetunes_that_is_none_is_named(tmp_path, check):
    (tmp_path / "finetunes").touch()
    with pytest.raises(RuntimeError, match="^FINETUNE_STORE: .*finetunes could not be (read|written)"):
        check()


@pytest.mark.parametrize("check", CHECKS)
def test_an_object_store_that_is_away_is_a_warning(monkeypatch, check, caplog):
    caplog.set_level(logging.WARNING)
    monkeypatch.setattr(store_object, "WAITS", ())
    monkeypatch.setattr(S3FileSystem, "cachable", False)  # another test's server is at another address
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:1", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("FINETUNE_STORE", "s3://bucket/away")
    check()
    assert (
        "FINETUNE_STORE: s3://bucket/away could not be " in caplog.text and "each request asks the store again" in caplog.text
    )
