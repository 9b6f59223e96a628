"""A whole FLUX.2 klein of random weights: every class is the real one, every size is tiny."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from finetuner.bases import Base

TOKENS = 48  # that the text encoder reads of a message
# What Qwen3's own chat template makes of a single message: the last line is what keeps the model from thinking aloud.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\n' }}{%- if enable_thinking is false -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}
{%- endif -%}
"""
MANIFEST = {
    "name": "tiny-klein-base",
    "version": "1.0",
    "licence": "Apache-2.0",
    "trains": True,
    "serves_finetunes_of": [],
    "resolutions": {"speed": [32], "quality": [32], "high_res_only": [32]},
    "sampling": {"side": 32, "largest_side": 48, "steps": 6, "guidance": 4},
    "max_sequence_length": TOKENS,
    "training_guidance": 1.0,
    "learning_rate_scale": {"lora": 1, "full": 1},
    "pictures": "noise",
    "learning_rate_scale_reason": "Nothing that has learned nothing has a rate of its own.",
    "caption_form": "a few words",
    "hears_new_words": True,
}


def transformer(**changes) -> Flux2Transformer2DModel:
    """1 double and 1 single block, 32 wide; random weights, the same every time."""
    torch.manual_seed(0)
    sizes = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "axes_dims_rope": (4, 4, 4, 4),
        "guidance_embeds": False,
    }
    return Flux2Transformer2DModel(**sizes | changes).requires_grad_(False).eval()


def tokenizer() -> Qwen2Tokenizer:
    """Byte-level BPE, with the marks of a chat."""
    learning = Tokenizer(models.BPE())
    learning.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=["<|endoftext|>"],
    )
    learning.train_from_iterator(["user assistant", "a red ball on a blue background, TOK style"], trainer)
    learned = json.loads(learning.to_str())["model"]
    tokenizer = Qwen2Tokenizer(learned["vocab"], [tuple(pair) for pair in learned["merges"]])
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in ("<|im_start|>", "<|im_end|>")])
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def pipeline() -> Flux2KleinPipeline:
    words = tokenizer()
    torch.manual_seed(1)
    text_encoder = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=28,  # the pipeline reads three of them, the last after 27
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            tie_word_embeddings=True,
        )
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.2, 2.0)
    return Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=words,
        transformer=transformer(joint_attention_dim=3 * 16),
    )


def write_base(folder: Path) -> Base:
    pipeline().save_pretrained(folder)
    (folder / "base.json").write_text(json.dumps(MANIFEST | {"source": str(folder)}))
    return Base.open(folder)


def write_twin(base: Base, folder: Path) -> Base:
    """A distilled one, as FLUX.2-klein-4B is one of FLUX.2-klein-base-4B."""
    shutil.copytree(base.folder, folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"is_distilled": True}))
    manifest = json.loads((folder / "base.json").read_text()) | {
        "name": "tiny-klein",
        "trains": "tiny-klein is distilled. Train tiny-klein-base.",
        "serves_finetunes_of": [base.name],
        "sampling": {"side": 32, "largest_side": 48, "steps": 2},
    }
    (folder / "base.json").write_text(json.dumps(manifest))
    return Base.open(folder)
