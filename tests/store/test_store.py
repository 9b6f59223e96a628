import json
import uuid

import pytest
from helpers import files_of_a_finetune, manifest_of, publish_files

from finetuner.store import FolderStore, Listing, StoreError, open_store
from finetuner.store.files import MANIFEST


@pytest.fixture
def store(tmp_path) -> FolderStore:
    return FolderStore(tmp_path / "finetunes")


def test_what_is_published_is_fetched(store):
    finetune = store.fetch(publish_files(store, b"weights"))
    assert (finetune.folder / "weights.safetensors").read_bytes() == b"weights"
    assert finetune.trigger_word == "TOK" and finetune.base == {"name": "flux-emoji"}
    assert set(finetune.manifest["sha256"]) == {"weights.safetensors", "report/README.md"}
    assert finetune.manifest["bytes"] == {"weights.safetensors": 7, "report/README.md": 4}


def test_ids_are_random_uuids(store):
    ids = {publish_files(store), publish_files(store)}
    assert len(ids) == 2 and all(uuid.UUID(i).version == 4 for i in ids)


def test_a_store_that_cannot_be_written_says_so_and_the_result_is_published_later(store, tmp_path, full_disk):
    staged = files_of_a_finetune(tmp_path / "result", bytes(2_000_000))
    full = FolderStore(full_disk / "finetunes")
    with pytest.raises(StoreError, match="^FINETUNE_STORE: .*could not be written: .*No space left"):
        full.publish(staged, manifest_of())
    assert not list(full.folder.iterdir())
    published = store.put(staged)
    assert store.put(staged).id == published.id  # a second time changes nothing
    assert len(store.fetch(published.id).folder.joinpath("weights.safetensors").read_bytes()) == 2_000_000


def test_a_folder_that_cannot_be_made_is_found_by_the_check(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="^FINETUNE_STORE: .*could not be written"):
        FolderStore(tmp_path / "file" / "finetunes").check()


def test_the_check_leaves_nothing(store):
    store.check()
    assert not list(store.folder.iterdir())


@pytest.mark.parametrize("wrong", ["", "TOK", "../../etc/passwd", "8f14e45fceea467fa8f01d0a1a3f1c2b", ".staging-x"])
def test_what_is_no_id_is_refused_before_it_touches_a_path(store, wrong):
    for ask in (store.fetch, store.manifest, store.delete):
        with pytest.raises(ValueError, match="^finetune_id: .* is not an id"):
            ask(wrong)


def test_an_unknown_id_is_said_to_be_unknown(store):
    for ask in (store.fetch, store.manifest, store.delete):
        with pytest.raises(ValueError, match="^finetune_id: there is no finetune"):
            ask(str(uuid.uuid4()))


def test_an_id_in_capitals_is_the_same_id(store):
    assert store.fetch(publish_files(store).upper()).trigger_word == "TOK"


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
@pytest.mark.parametrize("name", ["weights.safetensors", MANIFEST])
def test_a_damaged_file_is_named(store, name, damage):
    finetune_id = publish_files(store)
    path = store.fetch(finetune_id).folder / name
    if damage == "missing":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data.replace(b"e", b"E", 1) if damage == "changed" else data[:-7])
    with pytest.raises(ValueError, match="there is no" if (name, damage) == (MANIFEST, "missing") else name):
        store.fetch(finetune_id)


def test_what_is_listed_is_what_is_published_the_newest_first(store):
    newest = publish_files(store)
    oldest = publish_files(store, trigger_word="OLD", created="2026-01-01T00:00:00+00:00")
    (store.folder / str(uuid.uuid4())).mkdir()  # no manifest
    (store.folder / publish_files(store) / MANIFEST).write_text('{"id": "half')
    listed = store.listings()
    assert [summary.id for summary in listed] == [newest, oldest]
    assert listed[1] == Listing(oldest, "2026-01-01T00:00:00+00:00", "flux-emoji", "OLD")


def test_what_is_deleted_is_gone(store):
    gone, kept = publish_files(store), publish_files(store)
    store.delete(gone)
    with pytest.raises(ValueError, match="there is no finetune"):
        store.fetch(gone)
    assert [path.name for path in store.folder.iterdir()] == [kept]


def test_the_manifest_names_its_own_id(store):
    finetune_id = publish_files(store)
    assert json.loads((store.folder / finetune_id / MANIFEST).read_text())["id"] == finetune_id


AROUND = [
    "{}\n",
    "\r\n{}",
    '"{}"',
    "'{}'",
    '"{}"\n',
    "{{{}}}",
    "urn:uuid:{}",
    "URN:UUID:{}",
    '"urn:uuid:{}"',
    "\u201c{}\u201d",
    "\ufeff{}",
    "{},",
]


@pytest.mark.parametrize("around", AROUND)
def test_what_stands_around_an_id_is_no_part_of_it(store, around):
    finetune_id = publish_files(store)
    assert store.fetch(around.format(finetune_id)).id == finetune_id == store.manifest(around.format(finetune_id))["id"]


def test_a_home_and_variables_in_the_stores_name_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("STAGE", "test")
    for said in ("~/finetunes-test", "$HOME/finetunes-${STAGE}"):
        monkeypatch.setenv("FINETUNE_STORE", said)
        assert open_store().folder == tmp_path / "finetunes-test"
    monkeypatch.setenv("FINETUNE_STORE", "s3://bucket/$STAGE")
    assert open_store().url == "s3://bucket/test"
    for unknown in ("$NOWHERE/finetunes", "s3://bucket/${NOWHERE}", "~no-such-user/finetunes"):
        monkeypatch.setenv("FINETUNE_STORE", unknown)
        with pytest.raises(ValueError, match=r"^FINETUNE_STORE: .*(NOWHERE|no-such-user).* is not known to this server"):
            open_store()


def test_the_environment_chooses_the_store(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_STORE", str(tmp_path / "elsewhere"))
    assert open_store().folder == tmp_path / "elsewhere"
    monkeypatch.setenv("FINETUNE_STORE", "s3://bucket/prefix/")
    assert open_store().url == "s3://bucket/prefix"
    monkeypatch.setenv("FINETUNE_STORE", "nonsense://bucket")
    with pytest.raises(ValueError, match="^FINETUNE_STORE: nonsense://bucket cannot be opened here"):
        open_store()
    monkeypatch.setenv("FINETUNE_STORE", "gs://bucket")
    with pytest.raises(ValueError, match=r"^FINETUNE_STORE: gs://bucket cannot be opened here: .*gcsfs"):
        open_store()
