"""The two text encoders and their tokenizers: FLUX's classes, small vocabularies of our own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from . import captions
from .pictures import Concept

CLIP_LENGTH = 32
T5_LENGTH = 32  # room for about 22 words; every padded token costs time in every step
WIDTH = 96
VOCABULARY = 2048  # CLIP's own vocabulary alone would weigh 9.5 MB at this width


@dataclass
class TextEncoders:
    clip_tokenizer: CLIPTokenizer
    t5_tokenizer: PreTrainedTokenizerFast
    clip: CLIPTextModel
    t5: T5EncoderModel

    def modules(self) -> torch.nn.ModuleDict:
        return torch.nn.ModuleDict({"clip": self.clip, "t5": self.t5})

    def __call__(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompts -> (CLIP's pooled embedding [B, 96], T5's embeddings [B, 32, 96]), as FluxPipeline computes them."""
        clip_ids = self.clip_tokenizer(
            prompts, padding="max_length", truncation=True, max_length=CLIP_LENGTH, return_tensors="pt"
        ).input_ids
        t5_ids = self.t5_tokenizer(
            prompts, padding="max_length", truncation=True, max_length=T5_LENGTH, return_tensors="pt"
        ).input_ids
        return self.clip(clip_ids).pooler_output, self.t5(t5_ids).last_hidden_state


def tokenizers(folder: Path, concepts: list[Concept], saved: Path) -> tuple[CLIPTokenizer, PreTrainedTokenizerFast]:
    """Trained once and kept in ``saved``: ties between words are broken at random, and a resumed build needs the same ids."""
    if not saved.exists():
        texts = captions.corpus(folder, concepts)
        new_clip_tokenizer(texts).save_pretrained(saved / "clip")
        new_t5_tokenizer(texts).save_pretrained(saved / "t5")
    return CLIPTokenizer.from_pretrained(saved / "clip"), PreTrainedTokenizerFast.from_pretrained(saved / "t5")


def new_text_encoders(folder: Path, concepts: list[Concept], saved_tokenizers: Path) -> TextEncoders:
    torch.manual_seed(8)
    clip_tokenizer, t5_tokenizer = tokenizers(folder, concepts, saved_tokenizers)
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip_tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CLIP_LENGTH,
            bos_token_id=clip_tokenizer.bos_token_id,
            eos_token_id=clip_tokenizer.eos_token_id,
            pad_token_id=clip_tokenizer.pad_token_id,
        )
    )
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=len(t5_tokenizer),
            d_model=WIDTH,
            d_kv=24,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=t5_tokenizer.pad_token_id,
            eos_token_id=t5_tokenizer.eos_token_id,
        )
    )
    return TextEncoders(clip_tokenizer, t5_tokenizer, clip, t5)


def new_clip_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """A byte-pair vocabulary for CLIP's own normalizer and splitter."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    backend = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=special[1]))
    learned.normalizer, learned.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
    learned.train_from_iterator(texts, trainer)
    vocabulary = learned.get_vocab()
    # A letter that never ended a word in the corpus still must be spelled at a word's end (made-up trigger words).
    for letter in pre_tokenizers.ByteLevel.alphabet():
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    merges = [tuple(pair) for pair in json.loads(learned.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_LENGTH)


def new_t5_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A unigram vocabulary, lower-cased. T5TokenizerFast itself would rebuild its backend and drop the lower-casing."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789,.'-!?:")
    backend.train_from_iterator(
        texts,
        trainers.UnigramTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            unk_token="<unk>",
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
