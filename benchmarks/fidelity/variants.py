"""A training to measure: the documented inputs, and what of the recipe is done otherwise."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import tempfile
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn

from benchmarks.fidelity.starts import STARTS
from finetuner.bases import block_linears
from finetuner.bases.base import Base
from finetuner.requests import FinetuneRequest
from finetuner.training import adapter
from finetuner.training.checkpoint import Checkpoint
from finetuner.training.dataset import Dataset
from finetuner.training.learn import Learned, learn
from finetuner.training.optim import LoraOptimizer
from finetuner.training.recipe import Recipe, recipe_for
from finetuner.training.trainer import train

INPUTS = {f.name for f in fields(FinetuneRequest)}
RECIPE = {f.name for f in fields(Recipe)}
OTHERS = {"targets", "shift", "average", "start"}  # which neither has: a variant's own fields
WORDS = ("targets", "start", "finetune_type", "priority", "mode", "captioning")  # whose values are words, not numbers

# What a linear's full name must match. Without one of these: the library's own choice.
TARGETS = {
    "image attention": r"attn\.(to_[qkv]|to_out\.0)$",
    "attention": r"attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$",
    "text stream": r"(add_[qkv]_proj|to_add_out|ff_context\.(net\.\w+(\.proj)?|linear_in|linear_out))$",
    "double blocks": r"^transformer_blocks\.\d+\.(attn|ff)",
    "single blocks": r"^single_transformer_blocks\.\d+\.(attn|proj)",
    "with modulation": "",
}


@dataclass(frozen=True)
class Variant:
    name: str
    inputs: dict = field(default_factory=dict)  # of FinetuneRequest
    recipe: dict = field(default_factory=dict)  # fields of Recipe that differ from what `recipe_for` decides
    targets: str | None = None  # one of TARGETS; only a LoRA has a choice
    shift: float | None = None  # of the noise levels; None: the base's own, by resolution
    average: float | None = None  # the LoRA is the moving average of its weights, which keeps this share in each step
    start: str | None = None  # one of starts.STARTS; None: A random, B zero

    @classmethod
    def parse(cls, text: str) -> Variant:
        """``batch_size=8,training_steps=150``: all of it together; or the name of one of `PRESETS`.

        Raises:
            ValueError: a name that is no input, no field of the recipe, and no preset.
        """
        if text in PRESETS:
            return PRESETS[text]
        variant = cls(text)
        for change in re.split(r",(?=\w+=)", text):  # a value may have commas of its own
            name, _, value = change.partition("=")
            if name not in INPUTS | RECIPE | OTHERS:
                raise ValueError(f"{name!r} is no documented input and no field of the recipe. Presets: {', '.join(PRESETS)}.")
            value = value if name in WORDS else ast.literal_eval(value)
            if name in OTHERS:
                variant = replace(variant, **{name: value})
            elif name in INPUTS:
                variant = replace(variant, inputs=variant.inputs | {name: value})
            else:
                variant = replace(variant, recipe=variant.recipe | {name: value})
        return variant

    def with_steps(self, steps: int) -> Variant:
        return replace(self, inputs={"training_steps": steps} | self.inputs)

    def request(self, mode: str) -> FinetuneRequest:
        """LoRA at the smallest resolution unless the variant says otherwise: what trains fastest."""
        defaults = {"finetune_type": "lora", "priority": "speed", "mode": mode}
        return FinetuneRequest(Path("archive.zip"), **defaults | self.inputs)

    def recipe_for(self, request: FinetuneRequest, base: Base, seed: int) -> Recipe:
        recipe = replace(recipe_for(request, base), seed=seed, **self.recipe)
        if not {"batch_size", "preserved_images"} & self.recipe.keys():
            return recipe
        images = recipe.batch_size + recipe.preserved_images
        return replace(recipe, plan=replace(recipe.plan, micro_batch=images, accumulation=1))

    def fingerprint(self, recipe: Recipe) -> str:
        """Of all that decides the training but the base and the data."""
        facts = [asdict(recipe), self.targets, self.shift, *(other for other in (self.average, self.start) if other)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def learn(self, transformer: FluxTransformer2DModel, dataset: Dataset, base: Base, recipe: Recipe) -> Learned:
        """Through the library; only where it has no such choice, its pieces are put together here."""
        with tempfile.TemporaryDirectory() as folder, Checkpoint(Path(folder) / "job") as checkpoint:
            if all(getattr(self, name) is None for name in OTHERS):
                return learn(transformer, dataset, base.load_scheduler(), recipe, checkpoint)
            if recipe.finetune_type != "lora":
                raise ValueError(f"{', '.join(sorted(OTHERS))} can only be changed for a LoRA.")
            names = None if self.targets is None else target_names(transformer, self.targets)
            adapter.add_adapter(transformer, recipe.rank, recipe.seed, names)
            scheduler = base.load_scheduler()
            if self.shift is not None:
                scheduler = FlowMatchEulerDiscreteScheduler(shift=self.shift)
            weights = adapter.trainable_weights(transformer)
            optimizer = LoraOptimizer(weights, recipe)
            if self.average:
                optimizer = AveragingOptimizer(weights, recipe, self.average)
            elif self.start:
                optimizer = STARTS[self.start](transformer, weights, recipe)
            history = train(transformer, optimizer, dataset, scheduler, recipe, checkpoint)
            if isinstance(optimizer, AveragingOptimizer):
                adapter.load_adapter_state_dict(transformer, optimizer.averages)
            return Learned(adapter.adapter_state_dict(transformer), history, {})


class AveragingOptimizer(LoraOptimizer):
    """Keeps a moving average of the weights beside them, as ai-toolkit's ``ema_config`` does."""

    def __init__(self, parameters: dict[str, nn.Parameter], recipe: Recipe, kept: float):
        super().__init__(parameters, recipe)
        self.kept = kept
        self.averages = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    def step(self) -> float:
        norm = super().step()
        for name, parameter in self.parameters.items():
            self.averages[name].lerp_(parameter.detach(), 1 - self.kept)
        return norm


def target_names(transformer: FluxTransformer2DModel, targets: str) -> list[str]:
    return [name for name in block_linears(transformer) if re.search(TARGETS[targets], name)]


# What diffusers' examples/dreambooth/train_dreambooth_lora_flux.py (0.32) does unless told otherwise: uniform timesteps without
# a shift, guidance 3.5, constant rate 1e-4, AdamW with betas 0.9 and 0.999 and decay 1e-4, gradient clipped to 1, LoRA on the
# image's attention alone, no caption dropout. Batch 1 is its README's command (its default is 4). Not taken: rank 4 (a
# documented input here, so both have the same), Gaussian LoRA A, and encoding every image and caption anew in each step, which
# would only cost it time.
# A logit-normal of deviation 1.7 stands for uniform: the two distributions nowhere differ by more than 0.01.
PLAIN_RECIPE = {
    "logit_mean": 0.0,
    "logit_std": 1.7,
    "batch_size": 1,
    "lora_b_rate": 1.0,
    "warmup_share": 0.0,
    "final_rate": 1.0,
    "betas": (0.9, 0.999),
    "weight_decay": 1e-4,
    "clip_norm": 1.0,
    "caption_dropout": 0.0,
    "guidance": 3.5,
    "preserved_images": 0,
    "strengths": (1.0, 1.0),
}
# What other trainers publish, through our loop, at our rank and on our linears, in about the time of 300 of our steps. Each is
# said where it differs from the plain recipe; adamw8bit is AdamW here.
# ai-toolkit, config/examples/train_lora_flux_24gb.yaml: logit-normal timesteps, guidance 1, a moving average of the weights.
AI_TOOLKIT_RECIPE = PLAIN_RECIPE | {"logit_std": 1.0, "caption_dropout": 0.05, "weight_decay": 0.01, "guidance": 1.0}
# SimpleTuner, documentation/quickstart/FLUX2.md, and its defaults: the same without the average, shifted by 3.
SIMPLETUNER_RECIPE = AI_TOOLKIT_RECIPE | {"caption_dropout": 0.1}
# fal's published trainer: batches of 4, B three times as fast, a decay to zero, noise levels about the middle.
FAL_RECIPE = AI_TOOLKIT_RECIPE | {
    "batch_size": 4,
    "lora_b_rate": 3.0,
    "final_rate": 0.0,
    "weight_decay": 0.1,
    "caption_dropout": 0.0,
    "logit_mean": 0.5,
    "logit_std": 0.25,
}
OURS = Variant("ours")
ALONE = Variant("without preservation", recipe={"preserved_images": 0, "caption_dropout": Recipe.caption_dropout})
FULL = Variant("full", {"finetune_type": "full"})
PLAIN = Variant("plain, equal steps", {}, PLAIN_RECIPE, "image attention", 1.0)
# In about the time of 300 steps at batch 4 with a preserved image beside: benchmarks/RESULTS.md has the seconds.
PLAIN_LONG = Variant("plain, equal time", {"training_steps": 1650}, PLAIN_RECIPE, "image attention", 1.0)
AT_ONE = Variant("at strength 1 alone", recipe={"strengths": (1.0, 1.0)})
OTHER_TRAINERS = (
    Variant("as ai-toolkit", {"training_steps": 1650}, AI_TOOLKIT_RECIPE, shift=1.0, average=0.99),
    Variant("as flux-fine-tuner", {"training_steps": 1650, "learning_rate": 4e-4}, AI_TOOLKIT_RECIPE, shift=1.0, average=0.99),
    Variant("as SimpleTuner", {"training_steps": 1650}, SIMPLETUNER_RECIPE, shift=3.0),
    Variant("as fal, FLUX.1", {"training_steps": 477, "learning_rate": 5e-4}, FAL_RECIPE, shift=1.0),
    Variant("as fal, klein", {"training_steps": 477, "learning_rate": 5e-5}, FAL_RECIPE, shift=1.0),
)
PRESETS = {variant.name: variant for variant in (OURS, FULL, ALONE, PLAIN, PLAIN_LONG, AT_ONE, *OTHER_TRAINERS)} | {
    "plain": PLAIN,
    "plain-long": PLAIN_LONG,
}
