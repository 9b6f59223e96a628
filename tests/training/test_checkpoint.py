import json
import os
import shutil
import time

import pytest
import torch

from finetuner.store.files import seal
from finetuner.training import checkpoint
from finetuner.training.checkpoint import Checkpoint, remove_old


class Part:
    def __init__(self, value=0.0):
        self.value = torch.tensor(value)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


class Cancelled(BaseException):
    """As Cog's CancelationException is."""


@pytest.fixture
def due(monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0)


def run(folder, ending=None):
    with Checkpoint(folder) as job:
        job.save_when_due(part=Part(3.0))
        if ending:
            raise ending


def test_a_finished_job_leaves_nothing(tmp_path, due):
    run(tmp_path / "job")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [RuntimeError(), KeyboardInterrupt(), SystemExit(), Cancelled()])
def test_an_interrupted_job_can_go_on(tmp_path, due, ending):
    with pytest.raises(type(ending)):
        run(tmp_path / "job", ending)
    part = Part()
    with Checkpoint(tmp_path / "job") as job:
        job.restore(part=part)
    assert part.value == 3.0


@pytest.mark.parametrize("ending", [RuntimeError(), Cancelled()])
def test_a_job_that_ended_before_its_first_checkpoint_leaves_nothing(tmp_path, ending):
    with pytest.raises(type(ending)):
        run(tmp_path / "job", ending)
    assert not list(tmp_path.iterdir())


def names_in(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_published_job_leaves_its_record_alone(tmp_path, due):
    with Checkpoint(tmp_path / "job") as job:
        job.save_when_due(part=Part(3.0))
        (job.result / "captions").mkdir(parents=True)
        job.note_published("the id")
    assert names_in(tmp_path / "job") == {"published.json", "lock"}
    with Checkpoint(tmp_path / "job") as job:
        assert job.published() == "the id"
        job.forget_published()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("record", ["", "{", '{"id": 1}'])
def test_a_record_that_cannot_be_read_is_none(tmp_path, record):
    with Checkpoint(tmp_path / "job") as job:
        job.record.write_text(record)
        assert job.published() is None


def make_older(folder, seconds: float) -> None:
    os.utime(folder, (time.time() - seconds,) * 2)


def test_what_an_old_job_left_is_removed_and_a_days_work_kept(tmp_path, due):
    for name, age in (("yesterday's", checkpoint.KEPT_SECONDS + 60), ("today's", checkpoint.KEPT_SECONDS - 60)):
        with pytest.raises(Cancelled):
            run(tmp_path / name, Cancelled())
        make_older(tmp_path / name, age)
    with Checkpoint(tmp_path / "published") as job:
        job.note_published("the id")
    make_older(tmp_path / "published", checkpoint.KEPT_SECONDS + 60)
    (tmp_path / "notes.txt").touch()
    remove_old(tmp_path)
    assert names_in(tmp_path) == {"today's", "notes.txt"}
    remove_old(tmp_path / "none yet")


def test_an_old_folder_is_kept_while_a_process_is_at_work_in_it(tmp_path, due):
    with pytest.raises(Cancelled), Checkpoint(tmp_path / "job") as job:
        job.save_when_due(part=Part(3.0))
        make_older(job.folder, 2 * checkpoint.KEPT_SECONDS)
        remove_old(tmp_path)
        assert job.path.exists()
        raise Cancelled


def test_an_old_result_that_waits_to_be_published_is_kept(tmp_path):
    with pytest.raises(RuntimeError), Checkpoint(tmp_path / "job") as job:
        job.result.mkdir()
        seal(job.result, {})
        raise RuntimeError
    make_older(tmp_path / "job", 2 * checkpoint.KEPT_SECONDS)
    remove_old(tmp_path)
    assert json.loads((tmp_path / "job/result/finetune.json").read_text())


def test_a_folder_that_is_removed_as_a_job_comes_is_made_again(tmp_path, monkeypatch):
    flock, removed = checkpoint.fcntl.flock, []

    def remove_first(*arguments) -> None:
        if not removed:
            removed.append(shutil.rmtree(tmp_path / "job"))
        flock(*arguments)

    monkeypatch.setattr(checkpoint.fcntl, "flock", remove_first)
    with Checkpoint(tmp_path / "job"), pytest.raises(RuntimeError, match="running already"), Checkpoint(tmp_path / "job"):
        pass


def test_the_same_job_cannot_run_twice_at_once(tmp_path):
    with Checkpoint(tmp_path / "job"), pytest.raises(RuntimeError, match="running already"), Checkpoint(tmp_path / "job"):
        pass
    run(tmp_path / "job")  # and can again when it has ended


def test_without_a_checkpoint_nothing_is_restored(tmp_path):
    part = Part(1.0)
    with Checkpoint(tmp_path / "job") as job:
        job.restore(part=part)
    assert part.value == 1.0


def test_checkpoints_are_written_at_a_cadence_of_seconds(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    with Checkpoint(tmp_path / "job") as job:
        written = []
        for second in range(100):
            clock[0] = float(second)
            before = job.path.exists() and job.path.stat().st_mtime_ns
            job.save_when_due(part=Part(float(second)))
            if (job.path.exists() and job.path.stat().st_mtime_ns) != before:
                written.append(second)
    assert written == [30, 60, 90]
