import logging
import subprocess
import sys

import pytest

from fleet.keys import NOBODY, Keys, sha256

ANN, BOB = "ann-has-a-long-key-0001", "bob-has-a-long-key-0002"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    monkeypatch.delenv("API_KEYS", raising=False)
    monkeypatch.delenv("API_KEYS_FILE", raising=False)


def test_a_key_has_a_name_and_a_wrong_one_has_none(monkeypatch):
    monkeypatch.setenv("API_KEYS", f"ann:{ANN}, bob:{BOB}")
    keys = Keys.open()
    assert [keys.owner_of(key) for key in (ANN, BOB, ANN + "x", "", None, sha256(ANN))] == [
        "ann",
        "bob",
        None,
        None,
        None,
        None,
    ]


def test_without_keys_everyone_is_the_same_nobody():
    keys = Keys.open()
    assert not keys and keys.owner_of(None) == keys.owner_of("anything") == NOBODY


def test_a_file_keeps_hashes_alone(monkeypatch, tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# who may\nann:{ANN}\nbob:sha256:{sha256(BOB)}\n")
    monkeypatch.setenv("API_KEYS_FILE", str(file))
    assert [Keys.open().owner_of(key) for key in (ANN, BOB)] == ["ann", "bob"]
    assert file.read_text() == f"# who may\nann:sha256:{sha256(ANN)}\nbob:sha256:{sha256(BOB)}\n"
    assert file.stat().st_mode & 0o077 == 0
    assert [Keys.open().owner_of(key) for key in (ANN, BOB)] == ["ann", "bob"]


def test_the_command_makes_a_key_and_its_line(monkeypatch, tmp_path):
    made = subprocess.run([sys.executable, "-m", "fleet.keys", "ann"], capture_output=True, text=True, check=True)
    key = made.stderr.split()[-1]
    (tmp_path / "keys").write_text(made.stdout)
    monkeypatch.setenv("API_KEYS_FILE", str(tmp_path / "keys"))
    assert key not in made.stdout and Keys.open().owner_of(key) == "ann"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (ANN, "not NAME:KEY"),
        (f"../ann:{ANN}", "not NAME:KEY"),
        (f"..:{ANN}", "not NAME:KEY"),
        ("ann:", "ann has no key"),
        ("ann:sha256:12", "no SHA-256"),
        (f"ann:{ANN},ann:{BOB}", "ann has two keys"),
        (f"ann:{ANN},bob:{ANN}", "the same key"),
    ],
)
def test_what_is_no_entry_is_said_without_the_key(monkeypatch, entries, said):
    monkeypatch.setenv("API_KEYS", entries)
    with pytest.raises(ValueError, match=said) as raised:
        Keys.open()
    assert ANN not in str(raised.value)


def test_two_places_must_not_disagree(monkeypatch, tmp_path):
    (tmp_path / "keys").write_text(f"ann:{BOB}\n")
    monkeypatch.setenv("API_KEYS", f"ann:{ANN}")
    monkeypatch.setenv("API_KEYS_FILE", str(tmp_path / "keys"))
    with pytest.raises(ValueError, match="ann is in API_KEYS, too"):
        Keys.open()


def test_a_short_key_is_warned_of_and_never_logged(monkeypatch, caplog):
    monkeypatch.setenv("API_KEYS", "ann:hunter2")
    with caplog.at_level(logging.WARNING):
        assert Keys.open().owner_of("hunter2") == "ann"
    assert "ann is short" in caplog.text and "hunter2" not in caplog.text
