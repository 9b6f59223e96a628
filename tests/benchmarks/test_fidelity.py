"""The judges judge right, and the one number counts what it says."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.__main__ import PARTS, RESULTS, read_sections
from benchmarks.adapters import random_adapter
from benchmarks.fidelity import cell, pool, scores
from benchmarks.fidelity.concepts import CONCEPTS, HELD_OUT_CONTENTS, TRAINING_CONTENTS, chosen, plain_prompts, prompts
from benchmarks.fidelity.drawings import SIDE
from benchmarks.fidelity.probes import load_probes
from benchmarks.fidelity.sheets import GAP, grouped_sheet
from benchmarks.fidelity.tables import comparison
from benchmarks.fidelity.variants import Variant, target_names
from finetuner.bases.base import Base
from finetuner.data import archive
from finetuner.serving.slot import Slot
from script.embedded_base import pictures

HELD_OUT = Path(__file__).parents[1] / "held_out"
LINE_ICONS = next(c for c in CONCEPTS if c.name == "line icons")
SLOTH = next(c for c in CONCEPTS if c.name == "sloth")


def real_pictures(name: str) -> tuple[np.ndarray, list[str]]:
    """uint8 [8, 64, 64, 3], and what each shows."""
    examples = archive.open_archive(HELD_OUT / f"{name}.zip")
    shrunk = [np.asarray(e.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for e in examples]
    return np.stack(shrunk), [Path(e.name).stem for e in examples]


@pytest.mark.parametrize(("name", "look"), [("line-icons", pictures.LINE), ("noto", pictures.NOTO)])
def test_the_probes_know_real_pictures(name: str, look: str) -> None:
    images, things = real_pictures(name)
    probes = load_probes()
    looks = [probes.style.classes[n] for n in probes.style.judge(images)[0].argmax(1)]
    assert looks.count(look) >= 6
    likeliest = [[probes.content.classes[n] for n in row] for row in probes.content.judge(images)[0].topk(scores.TOP).indices]
    assert sum(thing in names for thing, names in zip(things, likeliest, strict=True)) >= 6


def scored(both: list[float], change: float = 20.0, leak: float = 5.0) -> list[scores.Scores]:
    return [
        scores.Scores(strength, concept=b, prompt=1.0, both=b, similarity=0.0, change=change, leak=leak)
        for strength, b in zip(scores.STRENGTHS, both, strict=True)
    ]


def test_the_area_is_the_mean_over_strength() -> None:
    assert scores.area(scored([1.0] * 7)) == pytest.approx(1.0)
    assert scores.area(scored([s / 2 for s in scores.STRENGTHS])) == pytest.approx(0.5)  # strengths stand unevenly


def test_the_leak_is_a_share_of_the_change() -> None:
    assert scores.leak_ratio(scored([0.0] * 7)) == pytest.approx(0.25)
    assert math.isnan(scores.leak_ratio(scored([0.0] * 7, change=0.0)))
    assert scores.difference(np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 250, np.uint8)) == 250  # no wrap-around


def test_a_finetune_of_noise_scores_nothing(base: Base) -> None:
    asked = prompts(LINE_ICONS)[:4]
    texts = base.family.encode_texts(base.load_text_encoders(), [p.text for p in asked], base.max_sequence_length)
    transformer = base.load_transformer()
    weights = {name: 5 * tensor for name, tensor in random_adapter(transformer, rank=4).items()}
    slot = Slot(transformer, rank=4)
    slot.load(slot.pack(weights), 1.0)
    images = cell.draw(base.load_pipeline_around(transformer), texts, texts[:1])
    assert images.shape == (4, SIDE, SIDE, 3)
    assert scores.score(LINE_ICONS, asked, load_probes(), 1.0, images, images)["both"] < 0.05


def test_the_background_is_read_off_the_corners() -> None:
    red = np.full((SIDE, SIDE, 3), pictures.BACKGROUNDS["red"], np.uint8)
    red[20:44, 20:44] = pictures.BACKGROUNDS["blue"]
    assert scores.background_of(red) == "red"


def test_what_is_asked_for_was_not_shown() -> None:
    assert not set(TRAINING_CONTENTS) & set(HELD_OUT_CONTENTS)
    for concept in CONCEPTS:
        assert all("TOK" in p.text for p in prompts(concept))
        assert len(prompts(concept)) == len(plain_prompts())
    assert not any("TOK" in p.text for p in plain_prompts())
    modes = [concept.mode for concept in CONCEPTS]
    assert (modes.count("style"), modes.count("character"), modes.count("product")) == (4, 3, 3)
    assert chosen("styles,sloth")[-1] == SLOTH
    with pytest.raises(ValueError, match="no concept 'unicorns'"):
        chosen("unicorns")


def row(variant: str, concept: str, seed: int, area: float) -> dict:
    return {
        "key": f"{variant}-{concept}-{seed}", "variant": variant, "concept": concept, "mode": "style", "seed": seed,
        "area": area, "leak_ratio": 0.5, "images_seen": 1200, "training_seconds": 40.0,
    }  # fmt: skip


def test_a_difference_within_its_spread_is_told_as_none() -> None:
    keys = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    rows = [row("ours", *key, area) for key, area in zip(keys, (0.1, 0.2, 0.5, 0.6), strict=True)]
    rows += [row("better", *key, area) for key, area in zip(keys, (0.15, 0.26, 0.54, 0.65), strict=True)]
    rows += [row("other", *key, area) for key, area in zip(keys, (0.2, 0.1, 0.6, 0.5), strict=True)]
    rows += [row("short", *keys[0], 0.3)]
    lines = {line.split(" | ")[0].strip("| "): line for line in comparison(rows, "ours").splitlines()}
    assert lines["better"].count("| 0.400 (**+0.050 ± 0.008**) |") == 1 and "| 4 |" in lines["better"]  # by mode, and in all
    assert "| 0.350 (+0.000 ± 0.115: none) |" in lines["other"]
    assert "| 0.300 (+0.200) |" in lines["short"]
    assert "| 0.350 | 0.350 |  | 0.50 |" in lines["ours"]


def test_each_mode_has_a_difference_of_its_own() -> None:
    rows = [row(variant, "a", seed, area) for variant, area in (("ours", 0.2), ("better", 0.3)) for seed in range(4)]
    products = [row(variant, "b", seed, area) for variant, area in (("ours", 0.6), ("better", 0.4)) for seed in range(4)]
    rows += [product | {"mode": "product"} for product in products]
    line = comparison(rows, "ours").splitlines()[-1]
    assert "| better | 0.300 (**+0.100 ± 0.000**) | 0.400 (**-0.200 ± 0.000**) | 0.350 (-0.050 ± 0.113: none) | 8 |" in line


def test_a_variant_changes_what_it_names(base: Base) -> None:
    variant = Variant.parse("batch_size=8,training_steps=150,logit_mean=0.5,targets=image attention,shift=1.0")
    request = variant.request("style")
    recipe = variant.recipe_for(request, base, seed=3)
    assert (recipe.steps, recipe.batch_size, recipe.logit_mean, recipe.seed) == (150, 8, 0.5, 3)
    assert (recipe.plan.micro_batch, recipe.plan.accumulation) == (8, 1)
    assert variant.fingerprint(recipe) != Variant.parse("batch_size=8,training_steps=150,logit_mean=0.5").fingerprint(recipe)
    names = target_names(base.load_transformer(), variant.targets)
    assert len(names) == 2 * 4 + 4 * 3  # two double blocks with q, k, v and the output, four single ones with q, k, v
    with pytest.raises(ValueError, match="'logit_median' is no"):
        Variant.parse("logit_median=1")


def test_plain_timesteps_are_all_but_uniform() -> None:
    recipe = Variant.parse("plain").recipe
    quantiles = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    sigmas = torch.sigmoid(recipe["logit_mean"] + recipe["logit_std"] * torch.special.ndtri(quantiles))
    assert (sigmas - quantiles).abs().max() < 0.011


def test_a_measured_cell_is_not_measured_again(tmp_path: Path) -> None:
    one = cell.Cell(SLOTH, Variant.parse("ours"), 0)
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps({"key": one.key(), "area": 0.5}) + "\n")
    assert list(pool.run_cells([one], log)) == [({"key": one.key(), "area": 0.5}, None)]
    assert cell.Cell(SLOTH, Variant.parse("rank=16"), 0).key() != one.key()


def test_the_results_are_here_and_whole() -> None:
    sections = read_sections(RESULTS.read_text())
    assert {"fidelity", "train"} <= sections.keys() <= PARTS.keys()
    for picture in re.findall(r"\]\((.+?\.png)\)", sections["fidelity"]):
        assert (RESULTS.parent / picture).is_file()
    measured = [section for section in sections.values() if "No card has run it" not in section]
    assert all("minutes on" in section and "fingerprint" in section for section in measured)


def test_a_sheet_shows_every_picture_in_its_row_and_the_groups_apart():
    levels = {"first\nrecipe": (10, 20, 30, 40), "second": (110, 120, 130, 140)}
    rows = {name: np.stack([np.full((8, 8, 3), level, np.uint8) for level in row]) for name, row in levels.items()}
    seen = np.asarray(grouped_sheet(rows, {0: "with", 2: "without"}, group=2, cell=64))[..., 0]
    corners = []
    for level in (level for row in levels.values() for level in row):
        places = np.argwhere(seen == level)
        whole = [list(place) for place in places if (seen[place[0] :, place[1] :][:64, :64] == level).all()]
        corners.append(whole[0])
    tops, lefts = np.array(corners).reshape(2, 4, 2).transpose(2, 0, 1)
    assert (np.diff(tops, axis=0) == 64 + GAP).all() and (np.diff(tops) == 0).all()
    assert (np.diff(lefts) == [64 + GAP, 64 + 4 * GAP, 64 + GAP]).all()
