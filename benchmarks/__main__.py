"""Run the benchmarks and write RESULTS.md: ``script/bench [fidelity|categories|train|predict|gpu|fleet]``, each by itself."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import logging
import os
import platform
import re
import time
from datetime import UTC, datetime
from pathlib import Path

from finetuner.bases.base import choose_base

PARTS = {
    "fidelity": "benchmarks.fidelity.section",
    "categories": "benchmarks.categories",
    "train": "benchmarks.train",
    "predict": "benchmarks.predict",
    "gpu": "benchmarks.gpu.section",
    "fleet": "benchmarks.fleet",
}
RESULTS = Path("benchmarks/RESULTS.md")
PACKAGES = ("torch", "diffusers", "transformers", "peft", "numpy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=PARTS, help="one part; all where none is named")
    arguments = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for part in [arguments.part] if arguments.part else PARTS:
        started = time.monotonic()
        section = importlib.import_module(PARTS[part]).run()
        write(part, f"{section.rstrip()}\n\n{conditions(time.monotonic() - started)}")
        print(f"{part}: {(time.monotonic() - started) / 60:.1f} minutes; written to {RESULTS}", flush=True)


def write(part: str, section: str) -> None:
    """Put the section into RESULTS.md in the place of the one before."""
    sections = read_sections(RESULTS.read_text()) if RESULTS.exists() else {}
    sections[part] = section
    parts = [f"<!-- part: {name} -->\n{sections[name].strip()}\n" for name in PARTS if name in sections]
    RESULTS.write_text("\n".join([HEADER, *parts]))


def read_sections(text: str) -> dict[str, str]:
    pieces = re.split(r"^<!-- part: (\w+) -->$", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


HEADER = """# Results

What `script/bench` measured, and wrote; every figure of quality and speed in the README and in docs/ is one of these (memory is
`script/plan`'s). Each part tells at its end when, on what and in how much time. `script/bench fidelity`, `categories`,
`train`, `predict`, `gpu` or `fleet` measures one part anew.
"""


def conditions(seconds: float) -> str:
    base = choose_base()
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    return (
        f"*{datetime.now(UTC):%Y-%m-%d}, {seconds / 60:.1f} minutes on {len(os.sched_getaffinity(0))} cores of {cpu_name()},"
        f" {memory_gib():.0f} GiB; {platform.system()}, Python {platform.python_version()}, {versions};"
        f" base {base.name} {base.version}, fingerprint {base.fingerprint[:12]}.*"
    )


def cpu_name() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found.group(1) if found else platform.processor()


def memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


if __name__ == "__main__":
    main()
