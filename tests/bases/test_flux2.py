"""FLUX.2 klein's own ways; what plain Flux2KleinPipeline does is the judge."""

import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from finetuner.bases import flux2


@pytest.fixture(scope="module")
def plain(klein_base) -> Flux2KleinPipeline:
    pipeline = Flux2KleinPipeline.from_pretrained(klein_base.folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def image() -> Image.Image:
    pixels = torch.randint(0, 256, (16, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def test_the_parts_come_frozen_one_at_a_time(klein_base):
    assert not any(p.requires_grad for p in klein_base.load_transformer().parameters())
    vae = klein_base.load_vae()
    assert not any(p.requires_grad for p in vae.parameters())
    with torch.no_grad():
        assert klein_base.size_multiple == 2 * 32 // vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode().shape[-1]
    encoders = klein_base.load_text_encoders()
    assert encoders.transformer is None and encoders.vae is None and encoders.text_encoder is not None


@pytest.mark.parametrize(
    ("prompt", "whole"),
    [
        ("", True),
        ("user", True),
        ("a red ball", True),
        ("a red ball, " * 20, False),
        ("assistant " * 60, False),
        ("\u00fcber \U0001f98a " * 20, False),
    ],
)
def test_the_characters_read_are_those_that_reach_the_text_encoder(klein_base, plain, prompt, whole):
    tokens = []
    with plain.text_encoder.register_forward_pre_hook(
        lambda _, arguments, named: tokens.append(named["input_ids"]), with_kwargs=True
    ):
        plain.encode_prompt(prompt, max_sequence_length=klein_base.max_sequence_length)
    message = plain.tokenizer.decode(tokens[0][0], clean_up_tokenization_spaces=False)
    reached = message.removeprefix("<|im_start|>user\n").partition("<|im_end|>")[0].rstrip("\ufffd")
    read = klein_base.characters_read(prompt)
    assert prompt[:read].rstrip("\U0001f98a") == reached.rstrip("\U0001f98a")  # the last one may be cut in two
    assert (read == len(prompt)) == whole


def test_texts_are_embedded_as_by_the_pipeline_alone(klein_base, plain):
    prompts = ["a fox", "a red ball on a blue background"]
    texts = flux2.encode_texts(klein_base.load_text_encoders(), prompts, klein_base.max_sequence_length)
    assert texts.embeds.shape == (2, klein_base.max_sequence_length, 3 * 16) and texts.pooled is None
    for row, prompt in enumerate(prompts):
        alone, _ = plain.encode_prompt(prompt, max_sequence_length=klein_base.max_sequence_length)
        assert torch.equal(texts[row : row + 1].embeds, alone)


def test_latents_are_normalised_and_packed_as_the_pipeline_does_it_and_undoes_it(klein_base, plain, image):
    vae = klein_base.load_vae()
    cached = flux2.encode_image(vae, image)[None]
    latents, grid = flux2.draw_latents(cached, flux2.latent_statistics(vae), torch.Generator())
    assert grid == (2, 4) and latents.dtype == torch.float32 and latents.shape == (1, 8, 16)

    pixels = plain.image_processor.preprocess(image, height=16, width=32)
    with torch.no_grad():
        expected = plain._encode_vae_image(pixels, generator=None)
    torch.testing.assert_close(latents, plain._pack_latents(expected), rtol=1e-5, atol=1e-5)

    unpacked = plain._unpack_latents_with_ids(latents, plain._prepare_latent_ids(expected), *grid)
    statistics = flux2.latent_statistics(vae)
    undone = plain._unpatchify_latents(unpacked / statistics.scale + statistics.shift)
    torch.testing.assert_close(undone, cached, rtol=1e-5, atol=1e-5)


def test_the_velocity_is_that_of_the_pipelines_own_call(klein_base, plain):
    """The ids of an oblong image, the noise level's scale: sampled in one step, all of them count."""
    texts = flux2.encode_texts(plain, ["a fox"], klein_base.max_sequence_length)
    calls = []
    hook = lambda _, arguments, named, result: calls.append((named, result[0]))  # noqa: E731
    with plain.transformer.register_forward_hook(hook, with_kwargs=True):
        plain(prompt_embeds=texts.embeds, height=16, width=32, num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    ((asked, result),) = calls
    sigmas = asked["timestep"]
    with torch.no_grad():
        ours = flux2.velocity(plain.transformer, asked["hidden_states"], sigmas, texts, (2, 4), guidance=1.0)
    assert torch.equal(ours, result)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_latents_are_sampled_and_decoded_as_by_the_pipeline_alone(klein_base, plain, guidance):
    prompts = ["a fox", "a red ball"]
    alone = plain(
        prompt=prompts,
        width=32,
        height=16,
        num_inference_steps=3,
        guidance_scale=guidance,
        max_sequence_length=klein_base.max_sequence_length,
        generator=[torch.Generator().manual_seed(seed) for seed in (1, 2)],
    ).images
    texts = plain.encode_prompt(prompts, max_sequence_length=klein_base.max_sequence_length)[0]
    empty = flux2.encode_texts(plain, [""], klein_base.max_sequence_length)
    latents = flux2.sample_latents(
        plain,
        flux2.TextEmbeddings(texts),
        (32, 16),
        steps=3,
        guidance=guidance,
        seeds=[1, 2],
        empty=empty,
        image_prompt=None,
        image_prompt_strength=1.0,
    )
    ours = flux2.decode_latents(plain, latents, (32, 16))
    assert [image.tobytes() for image in ours] == [image.tobytes() for image in alone]


def test_a_pipeline_around_a_transformer_is_guided_as_its_base_is(klein_base, klein_twin):
    for base in (klein_base, klein_twin):
        pipeline = base.load_pipeline_around(base.load_transformer())
        assert pipeline.config.is_distilled == (base is klein_twin) == (base.guidance == "none")
