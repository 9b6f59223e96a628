"""Print what drawing with a base takes, by the formula that servers decide by and by a trace: script/plan BASE --drawing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from diffusers import AutoencoderKL, AutoencoderKLFlux2
from diffusers.pipelines.flux.modeling_flux import ReduxImageEncoder
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
    T5Config,
    T5EncoderModel,
)

from finetuner.bases import device_for, family_of
from finetuner.requests import RANKS
from finetuner.serving.plan import DECODED_VALUES, TEXT_BYTES, WAYS, DrawingSizes, drawing_bytes
from script.trace_serving import trace_decode, trace_text, trace_transformer
from script.trace_step import on_meta

GIB = 1 << 30
SIDE, SIZE_MULTIPLE, TEXT_TOKENS, CLIP_TOKENS = 1440, 16, 512, 77
IMAGE_PROMPT_SIDE = 1024  # the area that these bases draw at

# What the config.json of their folders say: google/t5-v1_1-xxl, openai/clip-vit-large-patch14, Qwen/Qwen3-4B and Qwen3-8B.
T5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
QWEN = {"num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
QWEN_4B = QWEN | {"hidden_size": 2560, "intermediate_size": 9728, "tie_word_embeddings": True}
QWEN_8B = QWEN | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
FLUX_1: dict[str, Callable[[], nn.Module]] = {
    "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(**CLIP)),
    "text_encoder_2": lambda: T5EncoderModel(T5Config(**T5)),
    "vae": lambda: AutoencoderKL(**VAE),
}
FLUX_2 = {"vae": AutoencoderKLFlux2}
# google/siglip-so400m-patch14-384, and Redux's projection to T5's width.
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
SIGLIP |= {"image_size": 384, "patch_size": 14}
REDUX: tuple[Callable[[], nn.Module], ...] = (lambda: SiglipVisionModel(SiglipVisionConfig(**SIGLIP)), ReduxImageEncoder)
PARTS = {  # beside the transformer
    "FLUX.1-dev": FLUX_1,
    "FLUX.1-Krea-dev": FLUX_1,
    "FLUX.2-klein-base-4B": FLUX_2 | {"text_encoder": lambda: Qwen3ForCausalLM(Qwen3Config(**QWEN_4B))},
    "FLUX.2-klein-base-9B": FLUX_2 | {"text_encoder": lambda: Qwen3ForCausalLM(Qwen3Config(**QWEN_8B))},
}


def print_drawing(base: str, config: Mapping) -> None:
    """Of each way to hold the base: the peak and the smallest device by the formula; and the formula's constants, traced."""
    parts = meta_parts(base, config)
    sizes = drawing_sizes(parts)
    print(f"{base}: pictures of up to {SIDE} x {SIDE} px, with an image prompt.\n")
    print("| transformer | text encoders | peak, GiB | device, GiB |\n|---|---|---|---|")
    for way in WAYS:
        peak = drawing_bytes(sizes, way)
        transformer = "bfloat16, streamed" if way.transformer_streamed else way.precision or "bfloat16"
        texts = "streamed" if way.texts_streamed else "resident"
        print(f"| {transformer} | {texts} | {peak / GIB:.1f} | {device_for(peak) / GIB:.1f} |")
    texts = {
        name: CLIP_TOKENS if isinstance(part, CLIPTextModel) else TEXT_TOKENS for name, part in parts.items() if "text" in name
    }
    traced = {
        "a prompt": (max(trace_text(parts[name], tokens) for name, tokens in texts.items()), TEXT_BYTES),
        "a step": (
            trace_transformer(parts["transformer"], sizes.tokens - TEXT_TOKENS, TEXT_TOKENS, max(RANKS)),
            sizes.tokens * sizes.step_values * 2,
        ),
        "the VAE": (trace_decode(parts["vae"], SIDE, SIDE), DECODED_VALUES * sizes.pixels * 2),
    }
    print("\nBeside the weights, in bfloat16, in GiB by the trace and by the formula:\n")
    for what, (by_trace, by_formula) in traced.items():
        print(f"{what}: {by_trace / GIB:.3f}, {by_formula / GIB:.3f} ({100 * (by_formula / by_trace - 1):+.1f} %)")


def drawing_sizes(parts: dict[str, nn.Module]) -> DrawingSizes:
    """With what reads image prompts."""
    family = family_of(parts["transformer"])
    with torch.device("meta"):
        readers = [make() for make in REDUX] if family.IMAGE_READER else []
    reader_bytes = sum(2 * parameter.numel() for reader in readers for parameter in reader.parameters())
    prompt_tokens = TEXT_TOKENS + family.image_prompt_tokens(IMAGE_PROMPT_SIDE, SIZE_MULTIPLE)
    return DrawingSizes.of(parts, SIDE, prompt_tokens, SIZE_MULTIPLE, torch.bfloat16, reader_bytes)


def meta_parts(base: str, config: Mapping) -> dict[str, nn.Module]:
    with torch.device("meta"):
        parts = {name: make() for name, make in PARTS[base].items()}
    parts["transformer"] = on_meta(config)
    return {name: part.to(torch.bfloat16).requires_grad_(False).eval() for name, part in parts.items()}
