"""Where things lie on this machine. Apart from base.py, so that what only looks for finetunes need not import torch."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WEIGHTS = ROOT / "weights"
JOBS = WEIGHTS / "jobs"  # checkpoints, and results that could not be published
CACHE = WEIGHTS / "cache"  # of finetunes from an object store
