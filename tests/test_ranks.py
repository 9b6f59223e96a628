"""The whole job on two processes: one finetune comes of it, and whichever process dies, the same request goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import EXAMPLES
from safetensors.torch import load_file

from finetuner import finetune
from finetuner.report import sheet
from finetuner.requests import FinetuneRequest
from finetuner.store import Finetune
from finetuner.training import trainer

STEPS = 10


class Cancelled(BaseException):
    """As Cog's CancelationException is."""


@pytest.fixture(autouse=True)
def quick(monkeypatch, store):
    monkeypatch.setattr(sheet, "SAMPLING_STEPS", 1)  # what is drawn is not looked at here
    monkeypatch.setattr("finetuner.training.checkpoint.EVERY_SECONDS", 0)


def request_of(finetune_type: str) -> FinetuneRequest:
    return FinetuneRequest(
        EXAMPLES / "line-icons.zip", training_steps=STEPS, priority="speed", finetune_type=finetune_type, mode="style"
    )


def weights_of(published: Finetune) -> dict[str, torch.Tensor]:
    return load_file(published.folder / "pytorch_lora_weights.safetensors")


def other_ranks(parent: int) -> list[int]:
    """The processes that a rank 0 has started."""
    children = [int(pid) for path in Path(f"/proc/{parent}/task").glob("*/children") for pid in path.read_text().split()]
    return [pid for pid in children if b"finetuner.training.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def checkpoints(jobs: Path) -> list[Path]:
    return list(jobs.glob("*/checkpoint.pt"))


def test_a_job_begun_alone_goes_on_on_two_whatever_ends_it_in_between(store, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    request = request_of("lora")

    def run(gpus: int, stop_at: int, stop) -> None:
        """Until the step ``stop_at``, where ``stop`` is done."""
        monkeypatch.setenv("GPUS", str(gpus))
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "track", lambda step, **_: step == stop_at and stop())
            finetune.finetune(request)

    def cancel() -> None:
        raise Cancelled

    def kill_rank_1() -> None:
        (pid,) = other_ranks(os.getpid())
        os.kill(pid, signal.SIGKILL)

    with pytest.raises(Cancelled):
        run(gpus=1, stop_at=3, stop=cancel)
    with pytest.raises(RuntimeError, match=r"^rank 1 of 2 was killed by SIGKILL\. Nothing was published\. The same request"):
        run(gpus=2, stop_at=5, stop=kill_rank_1)
    assert checkpoints(tmp_path / "jobs") and not store.listings()
    with pytest.raises(Cancelled):
        run(gpus=2, stop_at=8, stop=cancel)
    assert not other_ranks(os.getpid()) and not torch.distributed.is_initialized()
    shared = finetune.finetune(request)
    for step in (2, 5, 7):
        assert f"Going on from step {step} of {STEPS}, where the checkpoint of an earlier run" in caplog.text
    assert [listing.id for listing in store.listings()] == [shared.id]
    alone_on, both_on = shared.manifest["devices"]
    assert both_on == f"2 x {alone_on}"

    shutil.rmtree(tmp_path / "jobs")
    monkeypatch.setenv("GPUS", "1")
    alone = finetune.finetune(request)
    assert shared.manifest["losses"] == pytest.approx(alone.manifest["losses"], rel=1e-4)
    assert relative_difference(weights_of(alone), weights_of(shared)) < 1e-3


def relative_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Of what the LoRAs add to the base's weights."""

    def change(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        pairs = [(weights[name.replace("lora_A", "lora_B")], a) for name, a in weights.items() if "lora_A" in name]
        return torch.cat([(b.float() @ a.float()).flatten() for b, a in pairs])

    return ((change(first) - change(second)).norm() / change(first).norm()).item()


JOB = """
import sys
from pathlib import Path
import torch
from finetuner import finetune
from finetuner.requests import FinetuneRequest
from finetuner.training import checkpoint
torch.set_num_threads(int(sys.argv[3]))
checkpoint.EVERY_SECONDS = 0
finetune.JOBS = Path(sys.argv[1])
finetune.finetune(FinetuneRequest(Path(sys.argv[2]), training_steps=10, priority="speed", finetune_type="full", mode="style"))
"""


def test_a_killed_rank_0_takes_the_other_with_it_and_the_job_goes_on_to_the_same_bits(store, tmp_path, monkeypatch):
    monkeypatch.setenv("GPUS", "2")
    request, jobs = request_of("full"), tmp_path / "killed"
    through = finetune.finetune(request)
    command = [sys.executable, "-c", JOB, jobs, request.input_images, str(torch.get_num_threads())]
    with subprocess.Popen(command) as job:
        while not checkpoints(jobs) and job.poll() is None:
            time.sleep(0.01)
        (other,) = other_ranks(job.pid)
        job.kill()
    deadline = time.monotonic() + 20
    while alive(other) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(other)
    assert checkpoints(jobs)
    monkeypatch.setattr(finetune, "JOBS", jobs)
    resumed = finetune.finetune(request)
    first, second = weights_of(through), weights_of(resumed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def alive(pid: int) -> bool:
    """Not gone, nor a zombie that whoever took it over has yet to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
