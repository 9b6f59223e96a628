"""The embedded captioner: a FastVLM of three million parameters that names what the embedded base draws."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import (
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlamaConfig,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ResNetConfig,
)

from finetuner.data.captioner import CAPTIONERS, INSTRUCTIONS, SUBJECT
from finetuner.data.upsampling import INSTRUCTION

from . import captions, rewriting
from .checkpoints import Checkpoints
from .export import forget_origins
from .pictures import BACKGROUNDS, Concept
from .views import LOOKS, PADDING, SIDE, ViewMaker, Views

NAME = "emoji-captioner"
VERSION = "1.1"
LICENCE = "Apache-2.0"

VOCABULARY = 1024
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
PAD, START, END, IMAGE = range(len(SPECIAL))
TEMPLATE = (
    "<s>{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ '\\n' }}{% endif %}"
)
IMAGE_TOKENS_A_SIDE = SIDE // 32
MODE_SHARES = {"general": 0.3, "character": 0.15, "product": 0.15, "style": 0.4}

# Naming is learned first and alone, since a sentence costs as much as an image and most of it is the same.
SIGHT_STEPS, SIGHT_BATCH, SIGHT_RATE = 1500, 64, 2e-3
PLAIN_STEPS, RAMP_STEPS = 120, 700  # views get harder from one to the other
SPEECH_STEPS, SPEECH_BATCH, SPEECH_RATE = 300, 64, 1e-3
REWRITING_STEPS, REWRITING_BATCH, REWRITING_RATE = 900, 64, 1e-3
CAPTIONS_EVERY = 3  # steps of rewriting: a batch of captions, or it would forget them
EMBEDDING_NORM = 0.5
WARMUP_STEPS = 50


def answer(mode: str, name: str, look: str, background: str) -> str:
    """What the captioner is to say of a view."""
    behind = f"on {captions.with_article(background)} background"
    if mode == "style":
        return f"{captions.with_article(name)} {behind}"
    subject = captions.with_article(name) if mode == "general" else SUBJECT
    return f"{captions.with_article(look)} of {subject} {behind}"


def class_words(concepts: list[Concept]) -> list[str]:
    """What the tower tells apart, in the order of its head's outputs."""
    return [*(concept.name for concept in concepts), *LOOKS, *BACKGROUNDS]


def new_tokenizer(concepts: list[Concept]) -> PreTrainedTokenizerFast:
    """A byte-pair vocabulary in which each instruction, thing, look and colour is one token: they are all that matters here."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    looks, backgrounds = list(LOOKS), list(BACKGROUNDS)
    texts = [
        answer(mode, concept.name, looks[n % len(looks)], backgrounds[n % len(backgrounds)])
        for mode in INSTRUCTIONS
        for n, concept in enumerate(concepts)
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken(text, normalized=False) for text in INSTRUCTIONS.values()])
    backend.add_tokens([AddedToken(word, normalized=False, single_word=True) for word in class_words(concepts)])
    backend.add_tokens([AddedToken(INSTRUCTION, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=SPECIAL[PAD],
        bos_token=SPECIAL[START],
        eos_token=SPECIAL[END],
        extra_special_tokens={"image_token": SPECIAL[IMAGE]},
        chat_template=TEMPLATE,
        padding_side="left",
    )


def tokenizer(concepts: list[Concept], saved: Path) -> PreTrainedTokenizerFast:
    """Trained once and kept in ``saved``: a resumed build needs the same ids."""
    if not saved.exists():
        new_tokenizer(concepts).save_pretrained(saved)
    return PreTrainedTokenizerFast.from_pretrained(saved)


def new_processor(tokens: PreTrainedTokenizerFast) -> LlavaProcessor:
    side = {"height": SIDE, "width": SIDE}
    mean = PADDING / 255  # what the processor pads with, too
    images = LlavaImageProcessorPil(
        do_pad=True, size=side, crop_size=side, image_mean=[mean] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    return LlavaProcessor(
        images,
        tokens,
        patch_size=SIDE // IMAGE_TOKENS_A_SIDE,
        vision_feature_select_strategy="full",
        image_token=SPECIAL[IMAGE],
        chat_template=TEMPLATE,
    )


def new_model(vocabulary: int) -> FastVlmForConditionalGeneration:
    """Sight: a ResNet, since convolutions learn from little: 8,000 plain views teach it to name 62 % of them, a Swin 1 %.
    Speech: two Llama layers that read 9 places and the instruction.
    """
    torch.manual_seed(21)
    sight = ResNetConfig(embedding_size=40, hidden_sizes=[40, 80, 160, 320], depths=[1, 1, 1, 1], layer_type="basic")
    sight.hidden_size = sight.hidden_sizes[-1]  # what FastVLM asks its tower for
    speech = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=sight.hidden_size,
        intermediate_size=640,
        num_hidden_layers=2,
        num_attention_heads=8,
        max_position_embeddings=384,
        pad_token_id=PAD,
        bos_token_id=START,
        eos_token_id=END,
        tie_word_embeddings=True,
    )
    config = FastVlmConfig(
        vision_config=sight,
        text_config=speech,
        image_token_index=IMAGE,
        image_seq_length=IMAGE_TOKENS_A_SIDE**2,
        tie_word_embeddings=True,
    )
    model = FastVlmForConditionalGeneration(config)
    model.generation_config.update(pad_token_id=PAD, bos_token_id=START, eos_token_id=END)
    return model.to(memory_format=torch.channels_last)  # a third faster


def learning_rate(step: int, steps: int, highest: float) -> float:
    return highest * min(1.0, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))


def optimizer_for(*modules: torch.nn.Module) -> torch.optim.AdamW:
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
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
    optimizer.step()


def train_sight(model: FastVlmForConditionalGeneration, views: ViewMaker, checkpoints: Checkpoints) -> torch.nn.Linear:
    """The vision tower alone; returns the linear layer that told concept, look and background apart by it."""
    tower = model.model.vision_tower
    classes = views.concepts, len(LOOKS), len(BACKGROUNDS)
    head = torch.nn.Linear(tower.config.hidden_size, sum(classes))
    optimizer = optimizer_for(tower, head)
    parts = {"tower": tower, "head": head, "optimizer": optimizer}
    for step in range(checkpoints.resume("captioner-sight", **parts), SIGHT_STEPS):
        difficulty = min(1.0, max(0.0, (step - PLAIN_STEPS) / RAMP_STEPS))
        batch = views.batch(SIGHT_BATCH, torch.Generator().manual_seed(step), difficulty)
        with torch.autocast("cpu", torch.bfloat16):
            features = tower(batch.pixels.contiguous(memory_format=torch.channels_last)).pooler_output
        found = head(features.flatten(1).float()).split(classes, dim=1)
        wanted = batch.concepts, batch.looks, batch.backgrounds
        losses = [functional.cross_entropy(logits, target) for logits, target in zip(found, wanted, strict=True)]
        _step(optimizer, losses[0] + 0.3 * losses[1] + 0.3 * losses[2], learning_rate(step, SIGHT_STEPS, SIGHT_RATE))
        if step % 100 == 0:
            right = [(logits.argmax(1) == target).float().mean() for logits, target in zip(found, wanted, strict=True)]
            logging.info("sight %d: name, look, background %s", step, " ".join(f"{share:.0%}" for share in right))
        checkpoints.save("captioner-sight", step + 1, last=step + 1 == SIGHT_STEPS, **parts)
    return head


@torch.no_grad()
def speak_of_what_is_seen(
    model: FastVlmForConditionalGeneration, head: torch.nn.Linear, tokens: PreTrainedTokenizerFast, words: list[str]
) -> None:
    """Let the head's classes be the embeddings of their words, and let what the tower sees pass unchanged into the first
    layer's values: speech then has to learn when to say a word, not which."""
    embeddings = model.get_input_embeddings().weight
    directions = functional.normalize(head.weight - head.weight.mean(0), dim=1)
    for word, direction in zip(words, directions, strict=True):  # "orange" is a thing and a colour: the latter stays
        embeddings[tokens.convert_tokens_to_ids(word)] = EMBEDDING_NORM * direction
    projector, attention = model.model.multi_modal_projector, model.model.language_model.layers[0].self_attn
    for linear in (projector.linear_1, projector.linear_2, attention.v_proj, attention.o_proj):
        torch.nn.init.eye_(linear.weight)


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
        facts = zip(modes, views.concepts.tolist(), views.looks.tolist(), views.backgrounds.tolist(), strict=True)
        texts = [answer(m, self.concepts[c].name, LOOKS[k], backgrounds[b]) for m, c, k, b in facts]
        answers = [[*self.tokens(text).input_ids, END] for text in texts]
        rows = [self.prompts[mode] + ids for mode, ids in zip(modes, answers, strict=True)]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), PAD)
        labels = torch.full((len(rows), length), -100)
        for n, (row, spoken) in enumerate(zip(rows, answers, strict=True)):
            ids[n, : len(row)] = torch.tensor(row)
            labels[n, len(row) - len(spoken) : len(row)] = torch.tensor(spoken)
        return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}


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
    rewritings: rewriting.Rewritings,
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
            inputs = rewriting.encode(sentences.tokens, pairs, PAD, END)
        else:
            inputs = sentences.drawn(views, 2 * 10**6 + step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**inputs).loss
        _step(optimizer, loss, learning_rate(step, REWRITING_STEPS, REWRITING_RATE))
        if step % 25 < 2:
            logging.info("rewriting %d: loss %.3f", step, loss.item())
        checkpoints.save("captioner-rewriting", step + 1, last=step + 1 == REWRITING_STEPS, **parts)


def train(
    drawings: Path, concepts: list[Concept], checkpoints: Checkpoints, saved_tokenizer: Path
) -> tuple[FastVlmForConditionalGeneration, LlavaProcessor]:
    tokens = tokenizer(concepts, saved_tokenizer)
    model = new_model(len(tokens))
    views = ViewMaker(drawings, concepts)
    head = train_sight(model.train(), views, checkpoints)
    speak_of_what_is_seen(model, head, tokens, class_words(concepts))
    sentences = Sentences(tokens, concepts)
    train_speech(model, views, sentences, checkpoints)
    train_rewriting(model, views, sentences, rewriting.Rewritings(drawings, concepts), checkpoints)
    return model.eval(), new_processor(tokens)


def export(folder: Path, model: FastVlmForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Write the captioner in bfloat16, with ``captioner.json``."""
    model.to(torch.bfloat16).to(memory_format=torch.contiguous_format).save_pretrained(folder)
    processor.save_pretrained(folder)
    forget_origins(folder)
    manifest = {"name": NAME, "version": VERSION, "licence": LICENCE, "pictures": ["emoji"]}
    (folder / CAPTIONERS.manifest).write_text(json.dumps(manifest, indent=2) + "\n")
