import pytest

from fleet.settings import Settings


def test_what_the_environment_says(tmp_path, monkeypatch):
    for name, value in {
        "FLEET_FOLDER": str(tmp_path),
        "DRAWING_REPLICAS": "1-4",
        "TRAININGS_AT_ONCE": "2",
        "GPUS_PER_WORKER": "0.5",
        "QUEUE_LIMIT": "7",
    }.items():
        monkeypatch.setenv(name, value)
    settings = Settings.open()
    assert (settings.folder, settings.replicas, settings.trainings, settings.gpus) == (tmp_path, (1, 4), 2, 0.5)
    assert settings.limits.queue == 7 and settings.records_url == f"sqlite:///{tmp_path}/records.sqlite3"
    monkeypatch.setenv("DATABASE_URL", "postgresql://a/b")
    assert Settings.open().records_url == "postgresql://a/b"


@pytest.mark.parametrize(
    "name, value",
    [
        ("DRAWING_REPLICAS", "4-1"),
        ("DRAWING_REPLICAS", "some"),
        ("TRAININGS_AT_ONCE", "0"),
        ("GPUS_PER_WORKER", "one"),
        ("QUEUE_LIMIT", "-1"),
    ],
)
def test_what_is_no_number_is_refused_by_name(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{name}: '{value}'"):
        Settings.open()
