"""FLUX.1: dev, schnell, Krea-dev, and what was trained in their shape."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FluxPipeline, FluxPriorReduxPipeline, FluxTransformer2DModel
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

NAME = "FLUX.1"
PIPELINE = FluxPipeline
TRANSFORMER = FluxTransformer2DModel
VAE = AutoencoderKL
TEXT_PARTS: tuple[str, ...] = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")  # CLIP's, then T5's
TOKENIZER = "tokenizer_2"
IMAGE_READER: type[DiffusionPipeline] | None = FluxPriorReduxPipeline
MODULATION: tuple[str, ...] = ("norm.linear", "norm1.linear", "norm1_context.linear")

MEMORY = BlockMemory(
    streams={"double": 2, "single": 1},
    kept={"double": 12, "single": 11},  # double blocks have a LayerNorm more, before the MLP
    inputs={"double": 7, "single": 6},
    passing={"lora": {2: 21, 4: 45}, "full": {2: 13, 4: 27}},
)

STEP_VALUES = 17.4  # by a trace of FLUX.1-dev with the slot
HUB_TAG = "flux"
KOHYA_BLOCKS = {
    "double": KohyaBlocks(
        "transformer_blocks",
        {
            "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "img_attn_proj": ("attn.to_out.0",),
            "img_mlp_0": ("ff.net.0.proj",),
            "img_mlp_2": ("ff.net.2",),
            "img_mod_lin": ("norm1.linear",),
            "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "txt_attn_proj": ("attn.to_add_out",),
            "txt_mlp_0": ("ff_context.net.0.proj",),
            "txt_mlp_2": ("ff_context.net.2",),
            "txt_mod_lin": ("norm1_context.linear",),
        },
        {  # XLabs' processors: 1 is the image's stream, 2 the text's
            "processor_qkv_lora1": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "processor_proj_lora1": ("attn.to_out.0",),
            "processor_qkv_lora2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            "processor_proj_lora2": ("attn.to_add_out",),
        },
    ),
    "single": KohyaBlocks(
        "single_transformer_blocks",
        {
            "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            "linear2": ("proj_out",),
            "modulation_lin": ("norm.linear",),
        },
        {  # XLabs' processor, which leaves the MLP's part of linear1 alone
            "processor_qkv_lora": ("attn.to_q", "attn.to_k", "attn.to_v"),
            "processor_proj_lora": ("proj_out",),
        },
    ),
}
KOHYA_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
KOHYA_METADATA = {  # as sd-scripts writes it (library/sai_model_spec.py, flux_train_network.py), and Forge reads it
    "modelspec.architecture": "flux-1-dev/lora",
    "modelspec.implementation": "https://github.com/black-forest-labs/flux",
    "ss_base_model_version": "flux1",
    "ss_network_module": "networks.lora_flux",
}


def guidance_of(model_index: dict, transformer_config: dict) -> Guidance:
    """Only dev and its like have the input; schnell, distilled to 4 steps, lacks it."""
    return "embedded" if transformer_config.get("guidance_embeds") else "none"


def characters_read(tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int) -> int:
    """T5 reads more than CLIP, whose 77 tokens only make the pooled vector."""
    ends = [end for _, end in tokenizer(text, return_offsets_mapping=True, verbose=False)["offset_mapping"]]
    return len(text) if len(ends) <= max_tokens else max(ends[: max_tokens - 1])  # the last token is the end's own


@torch.no_grad()
def encode_texts(encoders: FluxPipeline, prompts: list[str], max_tokens: int) -> TextEmbeddings:
    """One prompt at a time: T5-XXL's activations of a large batch would need more memory than its weights."""
    rows = [encoders.encode_prompt(p, None, max_sequence_length=max_tokens)[:2] for p in prompts]
    return TextEmbeddings(torch.cat([embeds for embeds, _ in rows]), torch.cat([pooled for _, pooled in rows]))


def image_prompt_tokens(side: int, size_multiple: int) -> int:
    """FLUX.1-Redux's: SigLIP sees 27 x 27 patches, whatever the picture's size."""
    return 27**2


@torch.no_grad()
def encode_image_prompt(reader: FluxPriorReduxPipeline, image: Image.Image, side: int) -> ImagePrompt:
    """By SigLIP, which sees the whole picture squeezed into its square, and Redux's projection to T5's width. Not by the
    pipeline's own call, which puts the tokens behind a text of 512 tokens of T5-XXL's width, whatever the base reads."""
    seen = reader.encode_image(image, reader._execution_device, 1)
    return ImagePrompt(reader.image_embedder(seen).image_embeds)


@torch.no_grad()
def encode_image(vae: AutoencoderKL, image: Image.Image) -> torch.Tensor:
    """The posterior's mean and log variance: [2 * channels, height / downscale, width / downscale]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    return vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.parameters[0].cpu()


def latent_statistics(vae: AutoencoderKL) -> LatentStatistics:
    return LatentStatistics(vae.config.shift_factor, vae.config.scaling_factor)


def draw_latents(cached: torch.Tensor, statistics: LatentStatistics, generator: torch.Generator) -> tuple[torch.Tensor, Grid]:
    """Drawn from the posterior, normalised, and packed as FluxPipeline does: a token is a 2x2 patch of latent pixels."""
    mean, log_variance = cached.float().chunk(2, dim=1)
    latents = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
    latents = (latents - statistics.shift) * statistics.scale
    count, channels, height, width = latents.shape
    return FluxPipeline._pack_latents(latents, count, channels, height, width), (height // 2, width // 2)


def velocity(
    transformer: FluxTransformer2DModel,
    noisy: torch.Tensor,
    sigmas: torch.Tensor,
    texts: TextEmbeddings,
    grid: Grid,
    guidance: float,
) -> torch.Tensor:
    place = {"device": noisy.device, "dtype": texts.embeds.dtype}
    return transformer(
        hidden_states=noisy.to(**place),
        timestep=sigmas.to(**place),
        guidance=torch.full_like(sigmas, guidance) if transformer.config.guidance_embeds else None,
        pooled_projections=texts.pooled,
        encoder_hidden_states=texts.embeds,
        txt_ids=torch.zeros(texts.embeds.shape[1], 3, **place),
        img_ids=FluxPipeline._prepare_latent_image_ids(len(noisy), *grid, **place),
        return_dict=False,
    )[0]


def sample_latents(
    pipeline: FluxPipeline,
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
    """Packed latents [N, tokens, 4 * channels]. The noise is drawn on the CPU: a seed means the same picture everywhere."""
    embeds, attention = texts.embeds, {}
    if image_prompt:
        read = embeds.shape[1]
        embeds = torch.cat([embeds, image_prompt.tokens.expand(len(texts), -1, -1)], dim=1)
        tokens = embeds.shape[1] + size[0] * size[1] // (2 * pipeline.vae_scale_factor) ** 2
        attention = weighed_attention(tokens, slice(read, embeds.shape[1]), image_prompt_strength, embeds)
    return pipeline(
        prompt_embeds=embeds,
        pooled_prompt_embeds=texts.pooled,
        width=size[0],
        height=size[1],
        num_inference_steps=steps,
        guidance_scale=guidance or 0.0,  # reaches the transformer only where that has an input for it
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        joint_attention_kwargs=attention,
        output_type="latent",
    ).images


@torch.no_grad()
def decode_latents(pipeline: FluxPipeline, latents: torch.Tensor, size: Size) -> list[Image.Image]:
    """As FluxPipeline decodes them."""
    width, height = size
    latents = FluxPipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    latents = latents / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
    return pipeline.image_processor.postprocess(pipeline.vae.decode(latents, return_dict=False)[0])
