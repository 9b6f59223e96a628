"""The benchmark for a card, end to end on the CPU with tiny configurations."""

import importlib.metadata
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.gpu import section as page
from benchmarks.gpu.cases import Bases, cases_of, measure
from benchmarks.gpu.pictures import PREDICTIONS, Fp8Linear
from benchmarks.gpu.steps import Step, measure_step, random_transformer
from finetuner.paths import ROOT
from finetuner.serving.slot import SlotLinear
from finetuner.training.costs import Sizes
from script.plan import FLUX_DEV, KLEIN_4B
from script.trace_step import on_meta

SMALL = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "in_channels": 16}
TINY = FLUX_DEV | SMALL | {"joint_attention_dim": 64, "pooled_projection_dim": 32, "axes_dims_rope": (4, 14, 14)}
TINY_KLEIN = KLEIN_4B | SMALL | {"joint_attention_dim": 64, "axes_dims_rope": (8, 8, 8, 8)}
BASES = Bases({"tiny": TINY}, sides=(32, 64), text_tokens=8)


@pytest.fixture(scope="module")
def measured() -> dict:
    """Compiled as far as dynamo goes: what g++ would make of it takes minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, *_, **__: graph)
        return measure(BASES, seconds=600)


def test_every_case_runs_and_comes_beside_its_formula(measured):
    count = len(list(cases_of(Sizes.of(on_meta(TINY)), BASES)))
    assert len(measured["cases"]) == count and not measured["left_out"]
    for case in measured["cases"]:
        assert "failed" not in case, case
        assert 0 < case["seconds"] < 60 and case["first_seconds"] > 0
        if "finetune_type" in case:
            assert case["formula_bytes"] > 0 and case["formula_flop"] > 0
    ways = {(case["finetune_type"], case["way"], case["compiled"]) for case in measured["cases"] if "way" in case}
    assert ways == {
        *(("lora", "ours", compiled) for compiled in (False, True)),
        *(("full", "ours", compiled) for compiled in (False, True)),
        ("lora", "peft", False),
        ("lora", "diffusers", False),
    }
    assert {case["prediction"] for case in measured["cases"] if "prediction" in case} == set(PREDICTIONS)


def test_of_the_other_family_every_eager_case_runs(monkeypatch):
    def eager(*arguments):
        return (case for case in cases_of(*arguments) if "compiled=True" not in str(case) and "compiled " not in str(case))

    monkeypatch.setattr("benchmarks.gpu.cases.cases_of", eager)
    cases = measure(replace(BASES, configs={"tiny klein": TINY_KLEIN}), seconds=600)["cases"]
    assert len(cases) > 10 and not [case for case in cases if "failed" in case]


def test_the_section_tells_of_every_case(measured, tmp_path):
    page.write(measured, tmp_path / "gpu.json")
    text = page.section(json.loads((tmp_path / "gpu.json").read_text()))
    assert measured["device"] in text
    assert sum(line.startswith("| tiny") for line in text.splitlines()) == len(measured["cases"])


def test_without_a_card_the_section_says_that_none_has_run_it():
    assert "No card has run it" in page.section(None)


def test_when_the_time_is_over_no_case_is_begun():
    kept = []
    found = measure(BASES, seconds=-1, keep=kept.append)
    assert kept[-1] is found and not found["cases"]
    assert len(found["left_out"]) == len(list(cases_of(Sizes.of(on_meta(TINY)), BASES)))
    assert "prediction='switch'" in page.section(found)


def test_a_case_that_fails_leaves_the_others_be(monkeypatch):
    def fail(*_):
        raise RuntimeError("no | such kernel")

    monkeypatch.setattr("benchmarks.gpu.cases.measure_step", fail)
    monkeypatch.setattr("benchmarks.gpu.cases.PREDICTIONS", ("bare",))
    found = measure(Bases({"tiny": TINY}, (32, 64), 8), seconds=600)
    failed = [case for case in found["cases"] if "failed" in case]
    assert failed and all(case["failed"] == "RuntimeError: no | such kernel" for case in failed)
    assert found["cases"][-1 - sum("full" in str(case) for case in found["cases"])]["seconds"] > 0
    assert "no / such kernel" in page.section(found)


def test_a_step_that_cannot_fit_is_not_run(monkeypatch):
    monkeypatch.setattr("benchmarks.gpu.steps.device_memory_bytes", lambda: 1 << 29)
    found = measure_step(random_transformer(TINY), Step("lora", 32, 1, 0), 8)
    assert found["failed"] == "does not fit, by the formula" and found["formula_bytes"] > 0


@torch.no_grad()
@pytest.mark.parametrize("slot", [False, True])
def test_fp8_linears_compute_what_they_stand_for(slot):
    torch.manual_seed(0)
    linear = nn.Linear(64, 48)
    if slot:
        linear = SlotLinear(linear, torch.randn(8, 64) / 8, torch.randn(8, 48) / 8)
    x = torch.randn(2, 16, 64)
    expected = linear(x)
    found = Fp8Linear(linear)(x)
    assert 0 < (found - expected).norm() < 0.05 * expected.norm()


def test_few_packages_have_to_be_carried_to_a_card():
    """What docs/running.md names, beside what torch, transformers, peft and safetensors bring. Another would stop it there."""
    script = "import sys; import benchmarks.gpu.section; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    found = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    packages = importlib.metadata.packages_distributions()
    carried = {"diffusers", "pillow", "pi_heif", "charset-normalizer", "cachetools"}
    ours = {"finetuner", "benchmarks", "script"}
    direct = {re.split(r"[=<>~! ]", line)[0] for line in (ROOT / "requirements.in").read_text().splitlines() if "==" in line}
    there = {"torch", "transformers", "peft", "safetensors"} | brought_by("torch", "transformers", "peft", "safetensors")
    loaded = {package for name in found if name not in ours for package in packages.get(name, ())}
    named, allowed = ({name.lower() for name in names} for names in (loaded & direct, carried | there))
    assert named <= allowed | {"bitsandbytes"}  # which peft looks for, and does without
    page = (ROOT / "docs" / "running.md").read_text()
    assert all(package in page for package in carried)


def brought_by(*packages: str) -> set[str]:
    """The distributions that these need, and those that they need, without extras."""
    found: set[str] = set()
    waiting = list(packages)
    while waiting:
        for line in importlib.metadata.requires(waiting.pop()) or []:
            name = re.split(r"[^A-Za-z0-9_.-]", line)[0]
            if "extra ==" in line or name in found:
                continue
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:  # of another platform
                continue
            found.add(name)
            waiting.append(name)
    return found
