"""Every number of a training, from what was asked for."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

from finetuner.bases import Base, device_memory_bytes, weight_dtype
from finetuner.requests import DOCUMENTED_LEARNING_RATE, FinetuneRequest
from finetuner.training.compiling import worth_compiling
from finetuner.training.costs import StepSize, token_count
from finetuner.training.plan import Plan, choose_plan
from finetuner.training.ranks import rank_count


@dataclass(frozen=True)
class Recipe:
    """Every number of one training. Decided before anything heavy is loaded, stored with the finetune.

    Scores are the area under concept x prompt of benchmarks/RESULTS.md, on klein-emoji a style's and a character's, two seeds,
    0.604, where flux-emoji is not named; "alike" means that a difference was within its spread. A 12 B base may differ most in
    its rates, and in what a number of steps is worth.
    """

    finetune_type: str
    steps: int
    rank: int
    resolutions: tuple[int, ...]  # sides of the square areas, in pixels; images keep their aspect ratio
    learning_rate: float  # as asked for or documented, times the base's scale
    guidance: float  # the guidance embedding in training; at 3.5 instead of 1 flux-emoji scores 0.090 ± 0.059 less
    distillation_steps: int  # of the extracted LoRA against the full fine-tune; none where there is nothing to extract
    distillation_rate: float  # its learning rate
    plan: Plan  # how a step runs on this device; the result is the same but for rounding

    # At as many images seen, 8 scores 0.090 ± 0.043 less, for half the steps, and 1 scores 0.035 ± 0.019 less on flux-emoji.
    # fal trains at 4 and more.
    batch_size: int = 4
    # LoRA B learns this much faster than A (LoRA+, Hayou et al. 2024; fal uses 3): 1 scores 0.086 ± 0.016 less.
    lora_b_rate: float = 4.0
    warmup_share: float = 0.05  # of the steps: Adam's first estimates are noise
    final_rate: float = 0.1  # of a cosine decay, which settles what was found; a constant rate is alike (-0.004 ± 0.048)
    betas: tuple[float, float] = (0.9, 0.99)  # a second moment over 100 steps fits into a 300-step job
    weight_decay: float = 0.01  # on the LoRA: keeps unused directions small; none is alike on flux-emoji
    clip_norm: float = 1.0  # of the LoRA's gradient: one odd batch cannot throw the adapter off
    # Replicate's flux-fine-tuner; keeps the empty prompt's meaning; on flux-emoji 0 and 0.2 are alike. Preservation keeps it,
    # and has none.
    caption_dropout: float = 0.05
    # Of the logit-normal timesteps (Esser et al. 2024): -0.5 is alike (+0.013 ± 0.013), 0.5 scores 0.048 ± 0.023 less.
    logit_mean: float = 0.0
    logit_std: float = 1.0  # 1.7, which is all but uniform, is alike on flux-emoji
    # Each step is trained at a strength of its own between these (`strength`); ours. At 1 alone klein-emoji's styles broke
    # beyond 1.2: two styles and a character scored 0.343, with 1 to 2 0.527, with 0.7 to 2.5 0.547, and with this 0.564.
    strengths: tuple[float, float] = (0.5, 2.0)
    preserved_images: int = 0  # of a step, beside its batch, under prompts without the trigger word (`preserve`)
    # Of their loss. Between 1 and 2: a style and a character leak 0.31 of the change and 0.23, and score 0.598 and 0.579 (0.543
    # without preservation, which over ten concepts scores 0.046 ± 0.068 more and leaks 0.82).
    preservation_weight: float = 1.5
    seed: int = 0  # from the job's fingerprint: the same job gives the same weights

    def describe(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


# 300 steps of the example style, rank 32: the LoRA keeps 86.7 % of the change in velocity as extracted, 92.0 % after a tenth
# of the steps at this rate, 93.0 % after a fifth; at four times the rate a tenth gives 88.6 %.
DISTILLATION_SHARE = 0.1
DISTILLATION_RATE = 3e-5  # times the base's scale


def recipe_for(request: FinetuneRequest, base: Base) -> Recipe:
    """Decide all of it but the seed, which follows from the job's fingerprint.

    Raises:
        ValueError: the training does not fit into this device's memory, or ``GPUS`` is no number of its cards; says what would.
    """
    rate = request.learning_rate or DOCUMENTED_LEARNING_RATE[request.finetune_type]
    resolutions = base.resolutions[request.priority]
    tokens = tuple(token_count(side, base.size_multiple, base.max_sequence_length) for side in resolutions)
    ranks = rank_count(Recipe.batch_size)
    preserved = 1 if base.hears_new_words and request.mode != "general" else 0
    images = Recipe.batch_size // ranks + preserved
    step = StepSize(request.finetune_type, request.lora_rank, max(tokens), images, weight_dtype())

    def worth(eager: float, compiled: float) -> bool:
        return worth_compiling(request.training_steps * eager, request.training_steps * compiled)

    return Recipe(
        finetune_type=request.finetune_type,
        steps=request.training_steps,
        rank=request.lora_rank,
        resolutions=resolutions,
        learning_rate=rate * base.learning_rate_scale[request.finetune_type],
        guidance=base.training_guidance,
        distillation_steps=math.ceil(DISTILLATION_SHARE * request.training_steps) if request.finetune_type == "full" else 0,
        distillation_rate=DISTILLATION_RATE * base.learning_rate_scale["lora"],
        caption_dropout=0.0 if preserved else Recipe.caption_dropout,
        preserved_images=preserved,
        plan=replace(choose_plan(base.meta_transformer(), step, device_memory_bytes(), tokens, worth), ranks=ranks),
    )
