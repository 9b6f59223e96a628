"""FLUX.2 klein: base-4B and base-9B, their distilled twins, and what was trained in their shape.

No linear has a bias, and the blocks share their modulation, which lies outside them. The text encoder is a language model that
reads the prompt as a user's message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, DiffusionPipeline, Flux2KleinPipeline, Flux2Transformer2DModel
from PIL import Image
from transformers import PreTrainedTokenizerBase

from finetuner.bases.family import (
    BlockMemory,
    Grid,
    Guidance,
    ImagePrompt,
    KohyaBlocks,
    LatentStatistics,
    Size,
    TextEmbeddings,
    weighed_attention,
)

NAME = "FLUX.2"
PIPELINE = Flux2KleinPipeline
TRANSFORMER = Flux2Transformer2DModel
VAE = AutoencoderKLFlux2
TEXT_PARTS: tuple[str, ...] = ("text_encoder", "tokenizer")  # Qwen3's
TOKENIZER = "tokenizer"
IMAGE_READER: type[DiffusionPipeline] | None = None  # pictures are tokens like the image's own, at t = 10
MODULATION: tuple[str, ...] = ()

MEMORY = BlockMemory(
    streams={"double": 2, "single": 1},
    kept={"double": 17, "single": 16},  # SwiGLU keeps what it reads, 6, and the half that its gate made, 3
    inputs={"double": 6, "single": 5},
    passing={"lora": {2: 31, 4: 62}, "full": {2: 30, 4: 50}},
)

STEP_VALUES = 21.8  # by a trace of klein 4B and 9B with the slot
HUB_TAG = "flux2-klein"
KOHYA_BLOCKS = {
    "double": KohyaBlocks(
        "transformer_blocks",
        {
            "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "img_attn_proj": ("attn.to_out.0",),
            "img_mlp_0": ("ff.linear_in",),
            "img_mlp_2": ("ff.linear_out",),
            "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "txt_attn_proj": ("attn.to_add_out",),
            "txt_mlp_0": ("ff_context.linear_in",),
            "txt_mlp_2": ("ff_context.linear_out",),
        },
        {},
    ),
    "single": KohyaBlocks(
        "single_transformer_blocks",
        {
            "linear1": ("attn.to_qkv_mlp_proj",),  # fused here, too
            "linear2": ("attn.to_out",),
        },
        {},
    ),
}
KOHYA_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_guidance_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_guidance_embed.guidance_embedder.linear_2",
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear",
    "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
KOHYA_METADATA = {
    "modelspec.implementation": "https://github.com/black-forest-labs/flux2",
    "ss_network_module": "networks.lora_flux_2",  # in kohya's musubi-tuner
}

PLACEHOLDER = "\ue000"  # a character for private use, which no chat template has


def guidance_of(model_index: dict, transformer_config: dict) -> Guidance:
    """The pipeline never passes guidance to the transformer; it runs it a second time, or a distilled one only once."""
    return "none" if model_index.get("is_distilled") else "cfg"


def characters_read(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int) -> int:
    """The chat template's beginning takes part of the tokens; its end is what is cut first."""
    start = _as_message(tokenizer, PLACEHOLDER).index(PLACEHOLDER)
    offsets = tokenizer(_as_message(tokenizer, text), return_offsets_mapping=True, verbose=False)["offset_mapping"]
    end = max(end for _, end in offsets[:max_tokens])
    return min(max(0, end - start), len(text))


def _as_message(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """As Flux2KleinPipeline puts a prompt to its text encoder."""
    message = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)


@torch.no_grad()
def encode_texts(encoders: Flux2KleinPipeline, prompts: list[str], max_tokens: int) -> TextEmbeddings:
    """One prompt at a time, for the sake of memory; by the pipeline's own chat template and layers.

    Three of the text encoder's layers side by side are 7.5 MiB a prompt in bfloat16 (12 MiB in the 9B model). What the
    transformer's first linear makes of them is 3 MiB, but not always the same bits for one prompt as for several at once, so
    that it is not what we keep.
    """
    return TextEmbeddings(torch.cat([encoders.encode_prompt(p, max_sequence_length=max_tokens)[0] for p in prompts]))


def image_prompt_tokens(side: int, size_multiple: int) -> int:
    """Those of a picture of the area that the base draws."""
    return math.ceil(side / size_multiple) ** 2


@torch.no_grad()
def encode_image_prompt(reader: Flux2KleinPipeline, image: Image.Image, side: int) -> ImagePrompt:
    """As Flux2KleinPipeline reads a reference picture: by its VAE, at its own size or scaled down to the area that the base
    draws at, its edges cropped to whole patches."""
    image = reader.image_processor._resize_if_exceeds_area(image, side**2)
    patch = 2 * reader.vae_scale_factor
    width, height = (max(1, length // patch) * patch for length in image.size)
    pixels = reader.image_processor.preprocess(image, height=height, width=width, resize_mode="crop")
    vae = reader.vae
    return ImagePrompt(*reader.prepare_image_latents([pixels], 1, None, device=vae.device, dtype=vae.dtype))


@torch.no_grad()
def encode_image(vae: AutoencoderKLFlux2, image: Image.Image) -> torch.Tensor:
    """The posterior's mode, which is all that the pipelines use: [channels, height / downscale, width / downscale]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()[0].cpu()


def latent_statistics(vae: AutoencoderKLFlux2) -> LatentStatistics:
    """Of each channel of a 2x2 patch, as the VAE's batch norm counted them: [1, 4 * channels, 1, 1]."""
    mean, variance = (t.float().cpu().view(1, -1, 1, 1) for t in (vae.bn.running_mean, vae.bn.running_var))
    return LatentStatistics(mean, (variance + vae.config.batch_norm_eps).rsqrt())


def draw_latents(cached: torch.Tensor, statistics: LatentStatistics, generator: torch.Generator) -> tuple[torch.Tensor, Grid]:
    """In patches of 2x2 latent pixels, then normalised, then packed, as Flux2KleinPipeline does. Nothing is random."""
    patches = (PIPELINE._patchify_latents(cached.float()) - statistics.shift) * statistics.scale
    return PIPELINE._pack_latents(patches), (patches.shape[2], patches.shape[3])


def velocity(
    transformer: Flux2Transformer2DModel,
    noisy: torch.Tensor,
    sigmas: torch.Tensor,
    texts: TextEmbeddings,
    grid: Grid,
    guidance: float,
) -> torch.Tensor:
    """``guidance`` is no input of this transformer."""
    place = {"device": noisy.device, "dtype": texts.embeds.dtype}
    return transformer(
        hidden_states=noisy.to(**place),
        timestep=sigmas.to(**place),
        encoder_hidden_states=texts.embeds,
        txt_ids=PIPELINE._prepare_text_ids(texts.embeds).to(noisy.device),
        img_ids=PIPELINE._prepare_latent_ids(noisy.new_empty(len(noisy), 1, *grid)).to(noisy.device),
        return_dict=False,
    )[0]


def sample_latents(
    pipeline: Flux2KleinPipeline,
    texts: TextEmbeddings,
    size: Size,
    *,
    steps: int,
    guidance: float | None,
    seeds: list[int],
    empty: TextEmbeddings | None,
    image_prompt: ImagePrompt | None,
    image_prompt_strength: float,
) -> torch.Tensor:
    """The VAE's latents [N, channels, height / downscale, width / downscale]. The noise is drawn on the CPU: a seed means the
    same picture everywhere."""
    attention = {}
    if image_prompt:
        reference = image_prompt.tokens.shape[1]
        tokens = texts.embeds.shape[1] + size[0] * size[1] // (2 * pipeline.vae_scale_factor) ** 2 + reference
        attention = weighed_attention(tokens, slice(tokens - reference, tokens), image_prompt_strength, texts.embeds)
    with _reading(pipeline.transformer, image_prompt):
        return pipeline(
            prompt_embeds=texts.embeds,
            negative_prompt_embeds=None if empty is None else empty.embeds.expand_as(texts.embeds),
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
            guidance_scale=guidance or 1.0,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            attention_kwargs=attention,
            output_type="latent",
        ).images


@contextmanager
def _reading(transformer: Flux2Transformer2DModel, reference: ImagePrompt | None) -> Iterator[None]:
    """With the tokens of a reference picture behind those of the image, in every forward; where guidance raises the picture,
    too, in those of the prompt alone. The pipeline puts them there as well, and cuts them off the velocity, but it takes a
    picture alone, which it encodes anew for every request."""
    if reference is None:
        yield
        return
    prompts: list[torch.Tensor] = []  # the prompt's embeddings: the pipeline asks with them first, then with the empty one's

    def add(_, arguments: tuple, inputs: dict) -> tuple[tuple, dict]:
        images, prompt = inputs["hidden_states"], inputs["encoder_hidden_states"]
        if not prompts:
            prompts.append(prompt)
        if reference.guided and prompt is not prompts[0]:
            return arguments, inputs | {"joint_attention_kwargs": None}  # its weights are of the reference's tokens
        parts = {"hidden_states": reference.tokens.to(images.dtype), "img_ids": reference.ids}
        beside = {name: torch.cat([inputs[name], part.expand(len(images), -1, -1)], dim=1) for name, part in parts.items()}
        return arguments, inputs | beside

    hook = transformer.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def decode_latents(pipeline: Flux2KleinPipeline, latents: torch.Tensor, size: Size) -> list[Image.Image]:
    """As Flux2KleinPipeline decodes them. It has undone patches and normalisation by then."""
    return pipeline.image_processor.postprocess(pipeline.vae.decode(latents, return_dict=False)[0])
