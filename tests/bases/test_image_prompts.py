"""How each family reads a picture: as diffusers itself does at full strength, and by a weight in attention below it."""

import dataclasses

import pytest
import torch
from diffusers import Flux2KleinPipeline, FluxPipeline, FluxPriorReduxPipeline
from PIL import Image, ImageDraw

from finetuner.bases import Base, ImagePrompt
from finetuner.bases.base import WEIGHTS

STEPS, SEED = 4, 3
BASES = ("flux-emoji", "klein-emoji")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    """A yellow disc on red, larger than the bases draw, and of another shape."""
    image = Image.new("RGB", (150, 110), (215, 40, 40))
    ImageDraw.Draw(image).ellipse((40, 20, 110, 90), (250, 215, 60))
    return image


@pytest.fixture(scope="module", params=BASES)
def whole(request) -> tuple:
    base = Base.open(WEIGHTS / request.param)
    pipeline = base.load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return base, pipeline


def drawn(base: Base, pipeline, prompt: str, read: ImagePrompt | None, strength: float) -> torch.Tensor:
    texts, empty = (base.family.encode_texts(pipeline, [text], base.max_sequence_length) for text in (prompt, ""))
    side = base.sampling_side
    return base.family.sample_latents(
        pipeline,
        texts,
        (side, side),
        steps=STEPS,
        guidance=base.sampling_guidance,
        seeds=[SEED],
        empty=empty if base.guidance == "cfg" else None,
        image_prompt=read,
        image_prompt_strength=strength,
    )


def read_by(base: Base, pipeline, image: Image.Image) -> ImagePrompt:
    return base.read_image(base.load_image_reader(pipeline), image)


def test_redux_tokens_come_behind_the_texts_as_in_diffusers(image):
    base = Base.open(WEIGHTS / "flux-emoji")
    ours = base.load_pipeline()
    reader = FluxPriorReduxPipeline.from_pretrained(WEIGHTS / "emoji-redux", dtype=torch.float32)
    plain = FluxPipeline.from_pretrained(base.folder, dtype=torch.float32)
    with torch.no_grad():
        embeds, pooled, _ = plain.encode_prompt("a fox", None, max_sequence_length=base.max_sequence_length)
        tokens = reader.image_embedder(reader.encode_image(image, torch.device("cpu"), 1)).image_embeds
    theirs = plain(
        prompt_embeds=torch.cat([embeds, tokens], dim=1),
        pooled_prompt_embeds=pooled,
        width=64,
        height=64,
        num_inference_steps=STEPS,
        guidance_scale=base.sampling_guidance,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).images
    assert torch.equal(drawn(base, ours, "a fox", read_by(base, ours, image), 1.0), theirs)


def test_klein_reads_a_picture_as_its_pipeline_does(image):
    base = Base.open(WEIGHTS / "klein-emoji")
    ours, plain = base.load_pipeline(), Flux2KleinPipeline.from_pretrained(base.folder, dtype=torch.float32)
    small = image.resize((75, 67))  # not in whole patches; the pipeline takes none with a side below 64 pixels
    theirs = plain(
        image=small,
        prompt="a fox",
        width=64,
        height=64,
        num_inference_steps=STEPS,
        guidance_scale=base.sampling_guidance,
        max_sequence_length=base.max_sequence_length,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
    ).images
    read = base.family.encode_image_prompt(ours, small, side=96)
    assert torch.equal(drawn(base, ours, "a fox", read, 1.0), theirs)
    assert read_by(base, ours, image).tokens.shape[1] <= 64  # a larger one is read at the area that the base draws


def test_guidance_that_raises_a_picture_too_leads_away_from_the_empty_prompt_alone(image):
    base = Base.open(WEIGHTS / "klein-emoji")
    pipeline = base.load_pipeline()
    read, seen = read_by(base, pipeline, image), []
    pipeline.transformer.x_embedder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    for picture, beside_the_empty in ((read, 0), (dataclasses.replace(read, guided=False), read.tokens.shape[1])):
        seen.clear()
        drawn(base, pipeline, "a fox", picture, 0.5)
        assert seen == [64 + read.tokens.shape[1], 64 + beside_the_empty] * STEPS


def test_beside_a_picture_of_something_else_the_prompt_is_drawn(image):
    """On klein-emoji, which was shown no such pair; guided as diffusers does, the background came out glaring."""
    base = Base.open(WEIGHTS / "klein-emoji")
    pipeline = base.load_pipeline()
    latents = drawn(base, pipeline, "an owl on a teal background", read_by(base, pipeline, image), 1.0)
    (picture,) = base.family.decode_latents(pipeline, latents, (64, 64))
    teal = torch.tensor([20.0, 145.0, 140.0])
    assert (torch.tensor(picture.getpixel((2, 2))) - teal).abs().max() < 40


def test_nothing_of_a_picture_stays_behind(whole, image):
    before = drawn(*whole, "a fox", None, 1.0)
    assert not torch.equal(drawn(*whole, "a fox", read_by(*whole, image), 1.0), before)
    assert torch.equal(drawn(*whole, "a fox", None, 1.0), before)


def test_the_strength_is_a_weight_in_attention(whole, image):
    """Every token twice at half the weight is every token once."""
    once = read_by(*whole, image)
    twice = dataclasses.replace(
        once, tokens=once.tokens.repeat(1, 2, 1), ids=None if once.ids is None else once.ids.repeat(1, 2, 1)
    )
    wanted = drawn(*whole, "a fox", once, 1.0)
    assert torch.allclose(drawn(*whole, "a fox", twice, 0.5), wanted, atol=2e-3)
    assert not torch.allclose(drawn(*whole, "a fox", twice, 1.0), wanted, atol=2e-2)


def test_the_weaker_the_picture_the_nearer_is_the_image_to_the_one_without_it(whole, image):
    """Down to nothing, with no jump before 0."""
    read, without = read_by(*whole, image), drawn(*whole, "a fox", None, 1.0)
    distances = [(drawn(*whole, "a fox", read, s) - without).norm() / without.norm() for s in (1e-8, 0.1, 0.4, 1.0)]
    assert distances == sorted(distances) and distances[0] < 0.01 < 0.1 < distances[-1]


def test_a_base_that_has_nothing_to_read_with_says_so():
    base = dataclasses.replace(Base.open(WEIGHTS / "flux-emoji"), image_reader=None)
    with pytest.raises(
        ValueError, match="^image_prompt: flux-emoji has nothing to read a picture with. Leave image_prompt out"
    ):
        base.require_reads_images()


def test_a_reader_that_was_not_downloaded_is_named_with_the_remedy():
    base = dataclasses.replace(Base.open(WEIGHTS / "flux-emoji"), image_reader="FLUX.1-Redux-dev")
    with pytest.raises(
        ValueError, match="^image_prompt: .*script/download-weights FLUX.1-Redux-dev, or leave image_prompt out"
    ):
        base.load_image_reader(base.load_pipeline())


def test_klein_needs_no_reader(klein_base):
    pipeline = klein_base.load_pipeline()
    assert klein_base.load_image_reader(pipeline) is pipeline
