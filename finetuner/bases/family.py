"""What a family of bases tells the rest of the library: the one seam between FLUX.1 and its successors.

A family is a module that has every name of `Family`. Nothing outside `finetuner.bases` asks which family it has.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn
from transformers import PreTrainedTokenizerBase

Size = tuple[int, int]  # width, height in pixels
Grid = tuple[int, int]  # height, width in tokens

# How a base follows its prompt more closely: by an input of its transformer; by a second forward on the empty prompt, which it
# is led away from (classifier-free guidance, Ho & Salimans 2022); or not at all, since it was distilled to do so already.
Guidance = Literal["embedded", "cfg", "none"]


@dataclass(frozen=True)
class TextEmbeddings:
    """Of one or more prompts: a vector for each token [N, length, width], and one for the whole [N, width] where the family
    has it."""

    embeds: torch.Tensor
    pooled: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.embeds)

    @classmethod
    def cat(cls, parts: list[TextEmbeddings]) -> TextEmbeddings:
        """All of the parts' prompts, of one length."""
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(torch.cat([part.embeds for part in parts]), torch.cat(pooled) if pooled else None)

    def __getitem__(self, rows: slice | torch.Tensor) -> TextEmbeddings:
        return TextEmbeddings(self.embeds[rows], None if self.pooled is None else self.pooled[rows])

    def to(self, device: torch.device | str) -> TextEmbeddings:
        return TextEmbeddings(self.embeds.to(device), None if self.pooled is None else self.pooled.to(device))

    @property
    def nbytes(self) -> int:
        return self.embeds.nbytes + (0 if self.pooled is None else self.pooled.nbytes)


@dataclass(frozen=True)
class ImagePrompt:
    """A picture as a base reads it beside the prompt: vectors that come behind the text's or the image's own,
    [1, tokens, width]; and where a family places them, [1, tokens, 4] or None."""

    tokens: torch.Tensor
    ids: torch.Tensor | None = None
    guided: bool = False  # whether guidance raises it, too: then the empty prompt, which that leads away from, lacks it

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + (0 if self.ids is None else self.ids.nbytes)


@dataclass(frozen=True)
class LatentStatistics:
    """How the transformer's latents follow from the VAE's: (x - shift) * scale."""

    shift: float | torch.Tensor
    scale: float | torch.Tensor


@dataclass(frozen=True)
class BlockMemory:
    """What a training step keeps of a block, by the block's kind, "double" or "single". Read off a trace of the step on fake
    tensors; `script/plan --check` prints how far the plan made of them is from the trace."""

    streams: dict[str, int]  # with linears of their own: text and image, or both together
    # Per token and in widths of the model: the inputs of norms and activations, and attention's q, k, v and output.
    kept: dict[str, int]
    # Its linears' inputs, for the gradient of what is trained. Linears that read the same tensor share it.
    inputs: dict[str, int]
    # What else is alive in the block that is being computed, per token and width: bytes, by what is trained and by bytes per
    # value.
    passing: dict[str, dict[int, int]]


@dataclass(frozen=True)
class KohyaBlocks:
    """A kind of block in the names of Black Forest Labs' own code, which kohya's sd-scripts took over."""

    prefix: str  # of our linears: "transformer_blocks"
    linears: dict[str, tuple[str, ...]]  # theirs -> ours, several where theirs fuses them, in its order
    aliases: dict[str, tuple[str, ...]]  # the same for names that other tools alone give to parts of a block


class Family(Protocol):
    NAME: str  # as people say it: "FLUX.1"
    PIPELINE: type[DiffusionPipeline]
    TRANSFORMER: Any  # the class of the transformer, and of the VAE: diffusers' from_pretrained and from_config
    VAE: Any
    TEXT_PARTS: tuple[str, ...]  # the pipeline's text encoders and tokenizers, by name
    TOKENIZER: str  # the folder of the one whose length limits a prompt
    MODULATION: tuple[str, ...]  # how the blocks' linears end that a finetune leaves alone
    MEMORY: BlockMemory
    STEP_VALUES: float  # that a step without gradients has alive beside the weights, per token and width of the model
    KOHYA_BLOCKS: dict[str, KohyaBlocks]  # by kind: "double", "single"
    KOHYA_OUTSIDE: dict[str, str]  # what lies outside of the blocks, theirs -> ours
    KOHYA_METADATA: dict[str, str]  # by which other tools tell a LoRA of this family; the same in each of its files
    HUB_TAG: str  # what the Hugging Face Hub's model cards call the family
    # The pipeline that makes an image prompt's tokens for a base, in a folder of its own; None where every base of the family
    # reads pictures by itself.
    IMAGE_READER: type[DiffusionPipeline] | None

    def guidance_of(self, model_index: dict, transformer_config: dict) -> Guidance:
        """How a base is guided, by its ``model_index.json`` and its transformer's ``config.json``."""

    def characters_read(self, tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int) -> int:
        """How many characters of ``text`` fit into so many tokens."""

    def encode_texts(self, encoders: DiffusionPipeline, prompts: list[str], max_tokens: int) -> TextEmbeddings:
        """The embeddings of prompts, each padded to ``max_tokens``."""

    def image_prompt_tokens(self, side: int, size_multiple: int) -> int:
        """The most tokens of an image prompt, where a base draws squares of ``side`` pixels in tokens of ``size_multiple``."""

    def encode_image_prompt(self, reader: DiffusionPipeline, image: Image.Image, side: int) -> ImagePrompt:
        """A picture as an image prompt.

        Args:
            reader: an `IMAGE_READER`, or the base's own pipeline where the family has none.
            image: RGB.
            side: of the square area that the base draws at, in pixels: a larger picture is scaled down to it where its size
                matters.
        """

    def encode_image(self, vae: nn.Module, image: Image.Image) -> torch.Tensor:
        """What is cached of an image, on the CPU: a tensor [values, height, width]."""

    def latent_statistics(self, vae: nn.Module) -> LatentStatistics:
        """What `draw_latents` needs of the VAE when that is gone."""

    def draw_latents(
        self, cached: torch.Tensor, statistics: LatentStatistics, generator: torch.Generator
    ) -> tuple[torch.Tensor, Grid]:
        """What the transformer is trained on, from what `encode_image` gave, stacked: float32 [B, tokens, channels]."""

    def velocity(
        self,
        transformer: nn.Module,
        noisy: torch.Tensor,
        sigmas: torch.Tensor,
        texts: TextEmbeddings,
        grid: Grid,
        guidance: float,
    ) -> torch.Tensor:
        """The transformer's velocity at ``noisy`` [B, tokens, channels], at noise levels ``sigmas`` [B]; in its own dtype."""

    def sample_latents(
        self,
        pipeline: DiffusionPipeline,
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
        """The latents of an image of each text, from the noise of its seed, in the form that `decode_latents` takes.

        Args:
            guidance: None where the base takes none.
            empty: of the empty prompt, one; a base of guidance "cfg" needs it.
            image_prompt: beside each of the texts.
            image_prompt_strength: above 0 and up to 1, what a token of the image prompt counts for in attention, a token of
                the text counting for 1: `weighed_attention`.
        """

    def decode_latents(self, pipeline: DiffusionPipeline, latents: torch.Tensor, size: Size) -> list[Image.Image]:
        """The images of latents."""


def weighed_attention(tokens: int, weighed: slice, strength: float, place: torch.Tensor) -> dict[str, torch.Tensor]:
    """The keyword arguments by which a pipeline's attention lets some tokens count less: exp(q k) becomes strength * exp(q k),
    an addition of log(strength) to what attention makes a softmax of.

    At 0 a token so weighed would be gone, and as the strength goes to 0 the picture goes to the one without it, with no jump on
    the way. Scaling the tokens themselves does not: a token of zeros is still a key and a value. At 1 there is no addition,
    and the attention is the pipeline's own. benchmarks/image_prompts.py measures both.

    Args:
        tokens: all that attention reads.
        weighed: which of them count less.
        strength: above 0 and up to 1.
        place: a tensor whose device and dtype the addition takes.
    """
    if strength == 1:
        return {}
    bias = torch.zeros(1, 1, 1, tokens, device=place.device, dtype=place.dtype)
    bias[..., weighed] = math.log(strength)
    return {"attention_mask": bias}
