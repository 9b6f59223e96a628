"""Numbers of pictures, and one number of a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from benchmarks.fidelity.concepts import Concept, Prompt
from benchmarks.fidelity.drawings import CORNER
from benchmarks.fidelity.probes import Probes
from script.embedded_base import pictures

STRENGTHS = (0.0, 0.4, 0.8, 1.0, 1.2, 1.6, 2.0)
TOP = 5  # a style is free to draw a fox so that it is taken for a wolf


@dataclass(frozen=True)
class Scores:
    """At one strength; all but the changes in 0..1, means over the prompts."""

    strength: float
    concept: float  # the probe's probability of the target: the look for a style, the thing for a character or product
    prompt: float  # share of pictures with what was asked for: the background, and for a style the thing
    both: float  # concept times prompt, picture by picture
    similarity: float  # cosine of the content probe's features to those of the real drawing
    change: float  # mean absolute difference to strength 0, in grey levels
    leak: float  # the same for prompts without the trigger word


def score(
    concept: Concept, asked: list[Prompt], probes: Probes, strength: float, images: np.ndarray, references: np.ndarray
) -> dict[str, float]:
    """All but the changes. ``images`` and ``references``: uint8 [N, 64, 64, 3], in the order of ``asked``."""
    named, features = probes.content.judge(images)
    right = np.array([background_of(i) == p.background for i, p in zip(images, asked, strict=True)], float)
    if concept.thing is None:
        shown = probes.style.judge(images)[0][:, probes.style.classes.index(concept.look)].numpy()
        likeliest = [[probes.content.classes[n] for n in row] for row in named.topk(TOP).indices]
        right *= [prompt.content in names for prompt, names in zip(asked, likeliest, strict=True)]
    else:
        shown = named[:, probes.content.classes.index(concept.thing)].numpy()
    similar = (features * probes.content.judge(references)[1]).sum(1)
    return {
        "strength": strength,
        "concept": float(shown.mean()),
        "prompt": float(right.mean()),
        "both": float((shown * right).mean()),
        "similarity": similar.mean().item(),
    }


def background_of(image: np.ndarray) -> str:
    """The named background that is nearest to the corners' median colour."""
    edge = image[[*range(CORNER), *range(-CORNER, 0)]][:, [*range(CORNER), *range(-CORNER, 0)]]
    colour = np.median(edge.reshape(-1, 3).astype(float), axis=0)
    return min(pictures.BACKGROUNDS, key=lambda name: np.square(colour - pictures.BACKGROUNDS[name]).sum())


def difference(images: np.ndarray, others: np.ndarray) -> float:
    """Mean absolute difference in grey levels."""
    return float(np.abs(images.astype(float) - others.astype(float)).mean())


def area(scores: list[Scores]) -> float:
    """Mean of concept x prompt over all strengths from 0 to 2, by the trapezoid rule: the one number of a finetune, 0..1."""
    strengths = [s.strength for s in scores]
    return float(np.trapezoid([s.both for s in scores], strengths) / (strengths[-1] - strengths[0]))


def leak_ratio(scores: list[Scores], strength: float = 1.0) -> float:
    """Change without the trigger word as a share of the change with it; nan where nothing changed."""
    at = next(s for s in scores if s.strength == strength)
    return at.leak / at.change if at.change else math.nan


FEWEST = 4  # values that a spread is told of: the standard error of two or three is itself a guess


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """The mean, and twice its standard error (nan of fewer than `FEWEST`): a mean further from zero than this is no accident,
    but for one in twenty."""
    if len(values) < FEWEST:
        return float(np.mean(values)), math.nan
    return float(np.mean(values)), float(2 * np.std(values, ddof=1) / math.sqrt(len(values)))
