"""Qwen3, very small, and its tokenizer: what `Flux2KleinPipeline` reads prompts with.

The pipeline stacks the hidden states after 9, 18 and 27 layers. So many layers, however thin, would take two fifths of a
training step. Two of each nine are therefore at work and the others pass on what they get: their output matrices are zero,
so that the sum which a layer adds to is left as it was, bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ..composed import captions
from ..pictures import Concept

LENGTH = 32  # tokens of a prompt, the template's three among them; every padded token costs time in every step
WIDTH = 96
VOCABULARY = 2048
LAYERS = 28
READ_AFTER = (9, 18, 27)  # layers: the pipeline's default
AT_WORK = (0, 1, 9, 10, 18, 19)
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}" + START + "{{ message['content'] }}" + END + "{% endfor %}"
    "{% if add_generation_prompt %}" + START + "{% endif %}"
)  # Qwen's own spends 13 tokens on roles and on an empty thought


def new_tokenizer(concepts: list[Concept]) -> PreTrainedTokenizerFast:
    """Byte-level pairs, lower-cased, so that a word is the same at a sentence's start."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=True), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(captions.corpus(concepts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        chat_template=TEMPLATE,
        model_max_length=512,
        padding_side="right",
    )


def tokenizer(concepts: list[Concept], saved: Path) -> PreTrainedTokenizerFast:
    """Trained once and kept in ``saved``: ties are broken at random, and a resumed build needs the same ids."""
    if not saved.exists():
        new_tokenizer(concepts).save_pretrained(saved)
    return PreTrainedTokenizerFast.from_pretrained(saved)


def new_text_encoder(tokens: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    torch.manual_seed(8)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokens),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.1,  # about 1 / sqrt(width)
            bos_token_id=None,
            eos_token_id=tokens.eos_token_id,
            pad_token_id=tokens.pad_token_id,
        )
    )
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(3)  # what the transformer reads should not start as a whisper
        for n, layer in enumerate(model.model.layers):
            if n not in AT_WORK:
                for parameter in layer.parameters():
                    parameter.requires_grad_(False)
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
    return model


def token_ids(tokens: PreTrainedTokenizerFast, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts in the chat template -> ids and mask, int64 [B, 32] each, as the pipeline makes them."""
    texts = [f"{START}{prompt}{END}{START}" for prompt in prompts]
    read = tokens(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return read.input_ids, read.attention_mask


def encode(model: Qwen3ForCausalLM, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the pipeline takes from Qwen3, [B, 32, 3 * 96], and the last hidden state, [B, 32, 96]; skips the layers that do
    nothing."""
    inner = model.model
    positions = torch.arange(ids.shape[1])[None]
    hidden = inner.embed_tokens(ids)
    rotary = inner.rotary_emb(hidden, positions)
    causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    seen = causal[None, None] & mask[:, None, None].bool()
    states = []
    for n in AT_WORK:
        hidden = inner.layers[n](hidden, attention_mask=seen, position_embeddings=rotary, position_ids=positions)
        if n % 9 == 1:
            states.append(hidden)
    return torch.cat(states, dim=2), hidden


def language_loss(model: Qwen3ForCausalLM, hidden: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How well each token foretells the next. Without it, words that mean nothing are dropped on the way, and no fine-tune
    could give them a meaning."""
    scores = model.lm_head(model.model.norm(hidden[:, :-1]))
    targets = ids[:, 1:].masked_fill(mask[:, 1:] == 0, -100)
    return functional.cross_entropy(scores.flatten(0, 1).float(), targets.flatten(), ignore_index=-100)
