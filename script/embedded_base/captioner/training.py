"""The captioner's training: to name, to speak, and to make prompts longer."""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from transformers import FastVlmForConditionalGeneration, PreTrainedTokenizerFast

from finetuner.data.captioner import INSTRUCTIONS

from ..checkpoints import Checkpoints
from ..pictures import BACKGROUNDS, Concept
from . import redrawn
from .model import IMAGE_TOKENS_A_SIDE
from .redrawn import WORDS
from .rewriting import Rewritings, encode
from .views import LOOKS, ViewMaker, Views
from .vocabulary import IMAGE, SPECIAL, answer, class_words, to_learn

MODE_SHARES = {"general": 0.4, "character": 0.15, "product": 0.15, "style": 0.3}

# Naming is learned first and alone, since a sentence costs as much as an image and most of it is the same.
SIGHT_STEPS, SIGHT_BATCH, SIGHT_RATE = 5000, 64, 2e-3
PLAIN_STEPS, RAMP_STEPS = 120, 1000  # views get harder from one to the other
WEIGHTS = (1.0, 0.3, 0.2, 0.6, 0.6, 0.6)  # of the questions: name, look, background, and a composed look's words
SPEECH_STEPS, SPEECH_BATCH, SPEECH_RATE = 600, 64, 1e-3
REWRITING_STEPS, REWRITING_BATCH, REWRITING_RATE = 900, 64, 1e-3
CAPTIONS_EVERY = 3  # steps of rewriting: a batch of captions, or it would forget them
EMBEDDING_NORM = 0.5
WARMUP_STEPS = 50


def learning_rate(step: int, steps: int, highest: float) -> float:
    return highest * min(1.0, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))


def optimizer_for(*modules: nn.Module) -> torch.optim.AdamW:
    """Weight decay on matrices alone."""
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def train_sight(
    model: FastVlmForConditionalGeneration, views: ViewMaker, concepts: list[Concept], checkpoints: Checkpoints
) -> nn.Linear:
    """The vision tower alone; returns the linear layer that answered all questions of `class_words` by it."""
    tower = model.model.vision_tower
    classes = [len(words) for words in class_words(concepts)]
    head = nn.Linear(tower.config.hidden_size, sum(classes))
    optimizer = optimizer_for(tower, head)
    parts = {"tower": tower, "head": head, "optimizer": optimizer}
    for step in range(checkpoints.resume("captioner-sight", **parts), SIGHT_STEPS):
        difficulty = min(1.0, max(0.0, (step - PLAIN_STEPS) / RAMP_STEPS))
        batch = views.batch(SIGHT_BATCH, torch.Generator().manual_seed(step), difficulty)
        with torch.autocast("cpu", torch.bfloat16):
            features = tower(batch.pixels.contiguous(memory_format=torch.channels_last)).pooler_output
        found = head(features.flatten(1).float()).split(classes, dim=1)
        wanted = (batch.concepts, batch.looks, batch.backgrounds, *batch.words.unbind(1))
        losses = torch.stack([functional.cross_entropy(logits, w) for logits, w in zip(found, wanted, strict=True)])
        loss = (losses * torch.tensor(WEIGHTS)).sum()
        _step(optimizer, loss, learning_rate(step, SIGHT_STEPS, SIGHT_RATE))
        if step % 100 == 0:
            right = [(logits.argmax(1) == w).float().mean() for logits, w in zip(found, wanted, strict=True)]
            shares = " ".join(f"{share:.0%}" for share in right)
            logging.info("sight %d: name, look, background, %s %s", step, ", ".join(WORDS), shares)
        checkpoints.save("captioner-sight", step + 1, last=step + 1 == SIGHT_STEPS, **parts)
    return head


@torch.no_grad()
def speak_of_what_is_seen(
    model: FastVlmForConditionalGeneration, head: nn.Linear, tokens: PreTrainedTokenizerFast, concepts: list[Concept]
) -> None:
    """Let the head's classes be the embeddings of their words, and let what the tower sees pass unchanged into the first
    layer's values: speech then has to learn when to say a word, not which."""
    embeddings = model.get_input_embeddings().weight
    questions = class_words(concepts)
    for words, weights in zip(questions, head.weight.split([len(words) for words in questions]), strict=True):
        directions = functional.normalize(weights - weights.mean(0), dim=1)
        for word, direction in zip(words, directions, strict=True):  # "orange" is a thing and a colour: the latter stays
            if word:
                embeddings[tokens.convert_tokens_to_ids(word)] = EMBEDDING_NORM * direction
    projector, attention = model.model.multi_modal_projector, model.model.language_model.layers[0].self_attn
    for linear in (projector.linear_1, projector.linear_2, attention.v_proj, attention.o_proj):
        nn.init.eye_(linear.weight)


class Sentences:
    """Views and modes -> the token ids that are trained on."""

    def __init__(self, tokens: PreTrainedTokenizerFast, concepts: list[Concept]):
        self.tokens, self.concepts = tokens, concepts
        image = SPECIAL[IMAGE] * IMAGE_TOKENS_A_SIDE**2
        self.prompts = {mode: tokens(f"<s>{image}{text}\n").input_ids for mode, text in INSTRUCTIONS.items()}

    def drawn(self, views: ViewMaker, seed: int) -> dict[str, torch.Tensor]:
        """A batch, by its seed: pictures, and what is to be said of them in modes by the draw."""
        generator = torch.Generator().manual_seed(seed)
        batch = views.batch(SPEECH_BATCH, generator)
        modes, shares = list(MODE_SHARES), torch.tensor(list(MODE_SHARES.values()))
        chosen = torch.multinomial(shares, SPEECH_BATCH, replacement=True, generator=generator).tolist()
        pixels = batch.pixels.contiguous(memory_format=torch.channels_last)
        return {"pixel_values": pixels, **self(batch, [modes[n] for n in chosen])}

    def __call__(self, views: Views, modes: list[str]) -> dict[str, torch.Tensor]:
        backgrounds = list(BACKGROUNDS)
        composed = [redrawn.words_of(row) for row in views.words.tolist()]
        facts = zip(modes, views.concepts.tolist(), views.looks.tolist(), views.backgrounds.tolist(), composed, strict=True)
        texts = [answer(m, self.concepts[c].name, LOOKS[k], backgrounds[b], words) for m, c, k, b, words in facts]
        return to_learn([self.prompts[mode] for mode in modes], [self.tokens(text).input_ids for text in texts])


def train_speech(
    model: FastVlmForConditionalGeneration, views: ViewMaker, sentences: Sentences, checkpoints: Checkpoints
) -> None:
    """The language model and the projector, on captions in all modes; the tower stays as it is, which names well already."""
    model.model.vision_tower.requires_grad_(False).eval()
    optimizer = optimizer_for(model.model.multi_modal_projector, model.model.language_model)
    parts = {"model": model, "optimizer": optimizer}
    for step in range(checkpoints.resume("captioner", **parts), SPEECH_STEPS):
        inputs = sentences.drawn(views, 10**6 + step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).loss
        _step(optimizer, loss, learning_rate(step, SPEECH_STEPS, SPEECH_RATE))
        if step % 25 == 0:
            logging.info("speech %d: loss %.3f", step, loss.item())
        checkpoints.save("captioner", step + 1, last=step + 1 == SPEECH_STEPS, **parts)


def train_rewriting(
    model: FastVlmForConditionalGeneration,
    views: ViewMaker,
    sentences: Sentences,
    rewritings: Rewritings,
    checkpoints: Checkpoints,
) -> None:
    """The language model alone, on longer prompts, with captions in between."""
    model.model.vision_tower.requires_grad_(False).eval()
    optimizer = optimizer_for(model.model.multi_modal_projector, model.model.language_model)
    parts = {"model": model, "optimizer": optimizer}
    for step in range(checkpoints.resume("captioner-rewriting", **parts), REWRITING_STEPS):
        if step % CAPTIONS_EVERY:
            rng = np.random.default_rng((42, step))
            pairs = [rewritings(rng) for _ in range(REWRITING_BATCH)]
            inputs = encode(sentences.tokens, pairs)
        else:
            inputs = sentences.drawn(views, 2 * 10**6 + step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).loss
        _step(optimizer, loss, learning_rate(step, REWRITING_STEPS, REWRITING_RATE))
        if step % 25 < 2:
            logging.info("rewriting %d: loss %.3f", step, loss.item())
        checkpoints.save("captioner-rewriting", step + 1, last=step + 1 == REWRITING_STEPS, **parts)
