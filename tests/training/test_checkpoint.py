import pytest
import torch

from finetuner.training import checkpoint
from finetuner.training.checkpoint import Checkpoint


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


def test_a_cancelled_job_leaves_nothing(tmp_path, due):
    with pytest.raises(Cancelled):
        run(tmp_path / "job", Cancelled())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", [RuntimeError(), KeyboardInterrupt(), SystemExit()])
def test_an_interrupted_job_can_go_on(tmp_path, due, ending):
    with pytest.raises(type(ending)):
        run(tmp_path / "job", ending)
    part = Part()
    with Checkpoint(tmp_path / "job") as job:
        job.restore(part=part)
    assert part.value == 3.0


def test_a_job_that_failed_before_its_first_checkpoint_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError):
        run(tmp_path / "job", RuntimeError())
    assert not list(tmp_path.iterdir())


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
