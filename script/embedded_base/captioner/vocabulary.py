"""What the captioner says of a view, and the words that it says it with."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from finetuner.data.captioner import INSTRUCTIONS, SUBJECT
from finetuner.data.upsampling import INSTRUCTION

from ..captions import with_article
from ..pictures import BACKGROUNDS, Concept
from .redrawn import WORDS
from .views import LOOKS

VOCABULARY = 1024
SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
PAD, START, END, IMAGE = range(len(SPECIAL))
TEMPLATE = (
    "<s>{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ '\\n' }}{% endif %}"
)


def answer(mode: str, name: str, look: str, background: str, words: tuple[str, ...] = ()) -> str:
    """What is to be said of a view; ``words`` are those of a composed look, in klein-emoji's wording."""
    behind = f"on {with_article(background)} background"
    if mode == "style":
        return f"{with_article(name)} {behind}"
    subject = with_article(name) if mode == "general" else SUBJECT
    style = f", {' '.join(words)} style" if words else ""
    return f"{with_article(look)} of {subject} {behind}{style}"


def class_words(concepts: list[Concept]) -> list[list[str | None]]:
    """What the tower tells apart, by question: a class without a word is "none"."""
    return [[concept.name for concept in concepts], list(LOOKS), list(BACKGROUNDS), *(list(words) for words in WORDS.values())]


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
    words = [word for those in class_words(concepts) for word in those if word]
    backend.add_tokens([AddedToken(text, normalized=False) for text in INSTRUCTIONS.values()])
    backend.add_tokens([AddedToken(word, normalized=False, single_word=True) for word in words])
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


def to_learn(asked: list[list[int]], answers: list[list[int]]) -> dict[str, torch.Tensor]:
    """Token ids of what is asked and answered -> what the model trains on, padded; the loss counts the answers alone."""
    answers = [[*spoken, END] for spoken in answers]
    length = max(len(a) + len(b) for a, b in zip(asked, answers, strict=True))
    ids, labels = torch.full((len(asked), length), PAD), torch.full((len(asked), length), -100)
    for n, (before, after) in enumerate(zip(asked, answers, strict=True)):
        ids[n, : len(before) + len(after)] = torch.tensor(before + after)
        labels[n, len(before) : len(before) + len(after)] = torch.tensor(after)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": labels}
