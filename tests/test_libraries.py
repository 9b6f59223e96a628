import subprocess
import sys

from finetuner.paths import ROOT

IMPORTS = "import sys, train, predict, finetuner.finetune, finetuner.generate\n"


def said_by(code: str) -> str:
    return subprocess.run([sys.executable, "-c", IMPORTS + code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_bitsandbytes_is_left_alone_until_it_is_needed():
    """The package is here, and whoever asks for it gets it. Nor is matplotlib there before a curve is drawn."""
    assert said_by("print({'bitsandbytes', 'matplotlib'} & sys.modules.keys())").strip() == "set()"
    assert said_by("import bitsandbytes; print(bitsandbytes.nn.Linear4bit.__name__)").strip().endswith("Linear4bit")
