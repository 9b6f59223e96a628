import hashlib
import io
import os
import time

import pytest

from fleet.files import SECONDS, Files, NoRoom
from fleet.secret import Secret


def test_a_file_is_its_owners_alone(tmp_path):
    files = Files(tmp_path, quota=1000)
    sent = files.keep("ann", io.BytesIO(b"zip"), "my photos.zip", "application/zip", {"of": "me"})
    assert files.get("ann", sent.id) == sent and files.list("ann") == [sent]
    assert files.get("bob", sent.id) is None and files.list("bob") == []
    assert (sent.size, sent.sha256, sent.metadata) == (3, hashlib.sha256(b"zip").hexdigest(), {"of": "me"})
    assert files.path(sent).read_bytes() == b"zip" and files.path(sent).name == "my_photos.zip"
    files.delete(sent)
    assert files.get("ann", sent.id) is None and not files.path(sent).exists()


@pytest.mark.parametrize("name", ["../../etc/passwd", "..", "", "facts.json", "a\r\nb.zip", "é" * 300 + ".zip"])
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    files = Files(tmp_path / "files", quota=1000)
    sent = files.keep("ann", io.BytesIO(b"zip"), name, "application/zip")
    assert files.get("ann", sent.id) == sent and files.path(sent).read_bytes() == b"zip"
    assert [path.name for path in tmp_path.iterdir()] == ["files"] and files.path(sent).resolve().is_relative_to(
        tmp_path / "files"
    )


@pytest.mark.parametrize("file_id", ["..", "../bob", "", ".", "x/y"])
def test_an_id_is_no_path(tmp_path, file_id):
    files = Files(tmp_path, quota=1000)
    files.keep("ann", io.BytesIO(b"zip"), "a.zip", "application/zip")
    assert files.get("ann", file_id) is None


def test_the_quota_counts_all_that_an_owner_has(tmp_path):
    files = Files(tmp_path, quota=10)
    first = files.keep("ann", io.BytesIO(b"x" * 6), "a", "text/plain")
    with pytest.raises(NoRoom):
        files.keep("ann", io.BytesIO(b"x" * 5), "b", "text/plain")
    files.keep("bob", io.BytesIO(b"x" * 10), "c", "text/plain")
    files.delete(first)
    files.keep("ann", io.BytesIO(b"x" * 10), "d", "text/plain")
    assert sorted(path.name[0] for path in tmp_path.glob("ann/*")) != ["."]  # nothing half is left


def test_old_files_go_unless_a_job_needs_them(tmp_path):
    files = Files(tmp_path, quota=1000)
    old, needed, new = (files.keep("ann", io.BytesIO(b"x"), f"{n}.zip", "application/zip") for n in range(3))
    for upload in (old, needed):
        os.utime(files.path(upload).parent.parent, (time.time() - SECONDS - 1,) * 2)
    files.expire(in_use=[str(files.path(needed))])
    assert [files.get("ann", upload.id) for upload in (old, needed, new)] == [None, needed, new]


def test_what_is_signed_is_allowed_until_it_expires(tmp_path):
    secret = Secret.open(tmp_path)
    signed = secret.sign("result/1", 60)
    assert secret.allows("result/1", signed) and Secret.open(tmp_path).allows("result/1", signed)
    assert not secret.allows("result/2", signed)
    assert not Secret.open(tmp_path / "another").allows("result/1", signed)
    assert not secret.allows("result/1", secret.sign("result/1", -1))
    expiry, _, signature = signed.partition("-")
    for wrong in (f"{int(expiry) + 60}-{signature}", f"{expiry}-", "", "-", f"{expiry}-é", f"²-{signature}", "9" * 5000 + "-x"):
        assert not secret.allows("result/1", wrong)


def test_the_secret_is_nobody_elses_to_read(tmp_path):
    Secret.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["secret"] and (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_each_owner_has_a_webhook_secret(tmp_path):
    secret = Secret.open(tmp_path)
    assert secret.webhook_secret("ann") == Secret.open(tmp_path).webhook_secret("ann") != secret.webhook_secret("bob")
