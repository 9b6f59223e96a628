import torch

from finetuner.phases import Phases


def test_each_phase_has_its_own_seconds_and_peak():
    phases = Phases()
    with phases.phase("large"):
        torch.ones(64 << 20).sum()  # 256 MiB
    with phases.phase("small"):
        pass
    assert list(phases.seconds) == ["large", "small"] == list(phases.peak_memory_bytes)
    assert 250 << 20 < phases.peak_memory_bytes["large"] - phases.peak_memory_bytes["small"] < 270 << 20
