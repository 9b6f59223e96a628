import json
import uuid

import pytest

from finetuner.store import MANIFEST, Store


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "finetunes")


def publish(store: Store, content: bytes = b"weights") -> str:
    with store.staging("job") as staged:
        (staged / "report").mkdir()
        (staged / "weights.bin").write_bytes(content)
        (staged / "report" / "README.md").write_text("card")
        return store.publish(staged, {"inputs": {"trigger_word": "TOK"}, "base": {"name": "x"}}).id


def test_what_is_published_is_fetched(store):
    finetune = store.fetch(publish(store))
    assert (finetune.folder / "weights.bin").read_bytes() == b"weights"
    assert finetune.trigger_word == "TOK" and finetune.base == {"name": "x"}
    assert set(finetune.manifest["sha256"]) == {"weights.bin", "report/README.md"}


def test_ids_are_random_uuids(store):
    ids = {publish(store), publish(store)}
    assert len(ids) == 2 and all(uuid.UUID(i).version == 4 for i in ids)


def test_an_unfinished_finetune_is_never_seen_and_leaves_nothing(store):
    with pytest.raises(RuntimeError), store.staging("job") as staged:
        (staged / "weights.bin").write_bytes(b"half")
        raise RuntimeError
    assert not list(store.folder.iterdir())


@pytest.mark.parametrize("wrong", ["", "TOK", "../../etc/passwd", "8f14e45fceea467fa8f01d0a1a3f1c2b", ".staging-x"])
def test_what_is_no_id_is_refused_before_it_touches_a_path(store, wrong):
    with pytest.raises(ValueError, match="^finetune_id: .* is not an id"):
        store.fetch(wrong)


def test_an_unknown_id_is_said_to_be_unknown(store):
    with pytest.raises(ValueError, match="^finetune_id: there is no finetune"):
        store.fetch(str(uuid.uuid4()))


def test_an_id_in_capitals_is_the_same_id(store):
    assert store.fetch(publish(store).upper()).trigger_word == "TOK"


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_a_damaged_file_is_named(store, damage):
    finetune_id = publish(store)
    path = store.folder / finetune_id / "weights.bin"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"Weights" if damage == "changed" else b"weight")
    with pytest.raises(ValueError, match="weights.bin"):
        store.fetch(finetune_id)


def test_a_finetune_without_its_manifest_does_not_exist(store):
    finetune_id = publish(store)
    (store.folder / finetune_id / MANIFEST).unlink()
    with pytest.raises(ValueError, match="there is no finetune"):
        store.fetch(finetune_id)


def test_the_manifest_names_its_own_id(store):
    finetune_id = publish(store)
    assert json.loads((store.folder / finetune_id / MANIFEST).read_text())["id"] == finetune_id


def test_the_environment_chooses_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_STORE", str(tmp_path / "elsewhere"))
    assert Store().folder == tmp_path / "elsewhere"
