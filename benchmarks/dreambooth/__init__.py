"""Whole jobs beside diffusers' own DreamBooth-LoRA script: wall time and peak memory, each a process of its own.

The script is not ours to ship: ``DREAMBOOTH_SCRIPT`` names a copy of
``examples/dreambooth/train_dreambooth_lora_flux.py`` of diffusers.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.examples import ARCHIVE, RANK
from finetuner.bases import Base, target_names
from finetuner.paths import ROOT, WEIGHTS

STEPS = 300
BATCH = 4
SIDE = 64  # pixels
PAIRS = 5
LAST = Path(__file__).parent / "last.json"
BASE = "flux-emoji"  # a FLUX.1, which the script trains
OURS = f"""
from pathlib import Path
from finetuner.finetune import finetune
from finetuner.requests import FinetuneRequest
finetune(FinetuneRequest(Path({str(ARCHIVE)!r}), mode="style", finetune_type="lora", lora_rank={RANK}, priority="speed",
                         training_steps={STEPS}))
"""
# A process between, which is small: a child's peak counts from the memory of the process that it is forked from.
METER = """
import json, resource, subprocess, sys, time
began = time.perf_counter()
code = subprocess.call(sys.argv[1:])
seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak_bytes": peak}))
sys.exit(code)
"""


@dataclass(frozen=True)
class Cost:
    seconds: float
    peak_bytes: int


def table() -> str:
    """Ours over the script's, in Markdown: measured anew where ``DREAMBOOTH_SCRIPT`` names it, else as it was last measured."""
    if script := os.environ.get("DREAMBOOTH_SCRIPT"):
        found = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "pairs": [[asdict(cost) for cost in pair] for pair in measure(Path(script))],
        }
        LAST.write_text(json.dumps(found, indent=1) + "\n")
    last = json.loads(LAST.read_text())
    pairs = [[Cost(**cost) for cost in pair] for pair in last["pairs"]]
    return f"""A whole job of {STEPS} steps of {BATCH} at {SIDE} px on {BASE}, rank {RANK}, beside one of diffusers'
`train_dreambooth_lora_flux.py` with its latents cached, on the same linears: {len(pairs)} pairs of processes in turns,
on {last["date"]}. Ours also makes the report.

| what | ours | the script's | ratio | target |
|---|---|---|---|---|
{row("wall time", "s", [[cost.seconds for cost in pair] for pair in pairs], 0.85)}
{row("peak memory", "MiB", [[cost.peak_bytes / 2**20 for cost in pair] for pair in pairs], 0.9)}"""


def row(what: str, unit: str, pairs: list[list[float]], target: float) -> str:
    ratios = [mine / other for mine, other in pairs]
    mine, other = (statistics.median(pair[n] for pair in pairs) for n in range(2))
    spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    return f"| {what} | {mine:.0f} {unit} | {other:.0f} {unit} | {spread} | {target:.2f} |"


def measure(script: Path) -> list[tuple[Cost, Cost]]:
    """Ours and the script's, in turns."""
    pairs = []
    for _ in range(PAIRS):
        # Each time anew: a job that was done is not done again.
        with tempfile.TemporaryDirectory(prefix="dreambooth-") as folder:
            pairs.append((cost_of(*ours(Path(folder))), cost_of(*theirs(script, Path(folder)))))
    return pairs


def ours(folder: Path) -> tuple[Sequence[str], dict[str, str]]:
    return (sys.executable, "-c", OURS), {"BASE_MODEL": BASE, "FINETUNE_STORE": str(folder / "store")}


def theirs(script: Path, folder: Path) -> tuple[Sequence[str], dict[str, str]]:
    """Everything that both have is the same; for the rest the script has its own defaults."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = [name for name in archive.namelist() if name.endswith(".png")]
        archive.extractall(folder / "images", names)
    base = Base.open(WEIGHTS / BASE)
    adapted = folder / "script.py"
    adapted.write_text(adapt(script.read_text(), base))
    options = {
        "pretrained_model_name_or_path": WEIGHTS / BASE,
        "instance_data_dir": folder / "images",
        "instance_prompt": "TOK style",
        "output_dir": folder / "out",
        "max_sequence_length": base.max_sequence_length,
        "rank": RANK,
        "lora_alpha": RANK,
        "lora_layers": ",".join(target_names(base.meta_transformer())),
        "resolution": SIDE,
        "train_batch_size": BATCH,
        "max_train_steps": STEPS,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 10 * STEPS,
        "seed": 0,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return (sys.executable, str(adapted), *flags, "--cache_latents"), {"PYTHONPATH": str(ROOT)}


def adapt(script: str, base: Base) -> str:
    """CLIP's length is the base's, not FLUX.1-dev's 77, and the pictures are made without torchvision."""
    length = base.load_text_encoders().text_encoder.config.max_position_embeddings
    script = re.sub(r"max(_sequence)?_length=77", rf"max\1_length={length}", script)
    script = script.replace("from torchvision import transforms", "from benchmarks.dreambooth import transforms")
    return script.replace(
        "from torchvision.transforms.functional import crop", "from benchmarks.dreambooth.transforms import crop"
    )


def cost_of(command: Sequence[str], environment: dict[str, str]) -> Cost:
    """Of one process from its start to its end.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    done = subprocess.run(
        [sys.executable, "-c", METER, *command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{command[1]} ended with {done.returncode}: {done.stderr[-2000:]}")
    return Cost(**json.loads(done.stdout.splitlines()[-1]))
