"""A base is held as the device's memory allows, and the finetune acts on it alike."""

import dataclasses
import math

import pytest
import torch
from diffusers import AutoencoderKL
from helpers import publish
from PIL import Image, ImageChops, ImageStat

from benchmarks.adapters import random_adapter
from finetuner.bases import RESIDENT, Base, device_for, family_of
from finetuner.generate import Generator
from finetuner.paths import WEIGHTS
from finetuner.requests import ImageRequest
from finetuner.serving import Slot
from finetuner.serving.plan import (
    CPU_WAYS,
    DECODED_VALUES,
    WAYS,
    DrawingSizes,
    bytes_left,
    choose_placement,
    drawing_bytes,
    fastest,
    sizes_of,
)
from finetuner.store import FolderStore
from script.plan import BASES
from script.plan_drawing import VAE
from script.trace_serving import trace_decode, trace_transformer
from script.trace_step import on_meta

GIB = 1 << 30


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> FolderStore:
    return FolderStore(tmp_path_factory.mktemp("finetunes"))


@pytest.fixture(scope="module")
def finetune_id(store, base) -> str:
    return publish(store, base, random_adapter(base.load_transformer(), 32, 1), 32)


def draw(generator: Generator, finetune_id: str, strength: float) -> Image.Image:
    fields = {"finetune_strength": strength, "steps": 2, "seed": 5, "output_format": "png"}
    path = generator.generate(ImageRequest("a fox, TOK style", finetune_id, **fields)).path
    with Image.open(path) as image:
        image.load()
    path.unlink()
    return image


def distance(one: Image.Image, other: Image.Image) -> float:
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


@pytest.fixture(scope="module")
def resident(base, store, finetune_id) -> list[Image.Image]:
    generator = Generator(base, store, RESIDENT)
    return [draw(generator, finetune_id, strength) for strength in (0.0, 1.0)]


@pytest.mark.parametrize("placement", WAYS[1:], ids=lambda way: "-".join(str(value) for value in dataclasses.astuple(way)))
def test_however_the_base_is_held_strength_zero_is_its_picture_and_a_finetune_acts(
    base, store, finetune_id, resident, placement
):
    generator = Generator(base, store, placement)
    before, with_it, after = (draw(generator, finetune_id, strength) for strength in (0.0, 1.0, 0.0))
    assert before.tobytes() == after.tobytes()
    if placement.precision is None:
        assert [before.tobytes(), with_it.tobytes()] == [picture.tobytes() for picture in resident]
        return
    assert f'"base_precision": "{placement.precision}"' in before.text["finetune"]
    generator.pipeline.transformer = base.load_transformer(placement.precision)  # the same base without a slot
    assert draw(generator, finetune_id, 0.0).tobytes() == before.tobytes()
    # What the finetune changes is far more than what rounding does.
    assert distance(before, resident[0]) < distance(before, with_it) / 2
    assert distance(with_it, resident[1]) < distance(before, with_it) / 2


def test_the_parts_lie_where_the_placement_says(base):
    pipeline = base.load_pipeline(WAYS[2])
    linear = pipeline.transformer.transformer_blocks[0].attn.to_q
    assert linear.weight.dtype == torch.int8
    assert pipeline.transformer.x_embedder.weight.dtype == torch.float32
    hooked = [name for name, part in pipeline.components.items() if hasattr(part, "modules") and streamed(part)]
    assert hooked == ["text_encoder", "text_encoder_2"]
    assert streamed(base.load_pipeline(WAYS[4]).transformer)


def test_a_reader_of_image_prompts_is_held_as_the_text_encoders_and_reads_alike(base):
    pipeline, picture = base.load_pipeline(), Image.new("RGB", (48, 64), "orange")
    readers = [base.load_image_reader(pipeline, way) for way in WAYS[:2]]
    assert [streamed(reader.image_encoder) for reader in readers] == [False, True]
    one, other = (base.family.encode_image_prompt(reader, picture, base.sampling_side) for reader in readers)
    assert torch.equal(one.tokens, other.tokens)


def streamed(part: torch.nn.Module) -> bool:
    return any(getattr(module, "_diffusers_hook", None) is not None for module in part.modules())


@pytest.mark.parametrize("ways", [WAYS, CPU_WAYS])
def test_a_smaller_device_gets_the_next_way_and_one_too_small_a_sentence(base, ways):
    sizes = large(sizes_of(base))
    needed = [drawing_bytes(sizes, way) for way in ways]
    assert needed == sorted(needed, reverse=True) and len(set(needed)) == len(ways)
    for way, needs in zip(ways, needed, strict=True):
        assert fastest("it", sizes, ways, device_for(needs)) == way
    with pytest.raises(ValueError, match=r"^BASE_MODEL: drawing with it takes a device with \d+ GiB, and this one has"):
        fastest("it", sizes, ways, device_for(needed[-1]) - GIB // 100)


def large(sizes: DrawingSizes) -> DrawingSizes:
    """As wide as FLUX.1-dev is: of a small base, what a picture takes hides the weights."""
    return dataclasses.replace(
        sizes, blocks=11 * 10**9, others=10**8, texts=4 * 10**9, largest=4 * 10**7, largest_text=10**8, block_rows=4 * 10**6
    )


def test_the_weights_that_are_counted_are_the_bases(base):
    sizes, pipeline = sizes_of(base), base.load_pipeline()
    assert sizes.blocks + sizes.others == sum(p.numel() for p in pipeline.transformer.parameters())
    texts = (pipeline.text_encoder, pipeline.text_encoder_2)
    assert sizes.texts == sum(p.numel() for text in texts for p in text.parameters())
    assert sizes.vae == sum(p.numel() for p in pipeline.vae.parameters())
    slot = Slot(pipeline.transformer, 32)
    assert sizes.slot == slot.a.numel() + slot.b.numel()


@pytest.mark.parametrize("base_name", ["FLUX.1-dev", "FLUX.2-klein-base-9B"])
def test_what_a_step_takes_is_what_a_trace_of_it_shows(base_name):
    """Of few blocks: nothing of one is alive in the next."""
    transformer = on_meta(BASES[base_name] | {"num_layers": 1, "num_single_layers": 2}).to(torch.bfloat16).requires_grad_(False)
    formula = family_of(transformer).STEP_VALUES * transformer.inner_dim * (4096 + 512) * 2
    assert trace_transformer(transformer, 4096, 512, 32) == pytest.approx(formula, rel=0.03)


def test_an_image_prompt_and_its_reader_are_counted(base, klein_base):
    sizes, alone = sizes_of(base), dataclasses.replace(base, image_reader=None)
    reader = base.load_image_reader(base.load_pipeline())
    weights = [p for part in reader.components.values() if isinstance(part, torch.nn.Module) for p in part.parameters()]
    assert sizes.image_reader_bytes == pytest.approx(2 * sum(p.numel() for p in weights), rel=0.02)  # its files are in bfloat16
    assert sizes.tokens - sizes_of(alone).tokens == 729 and sizes_of(alone).image_reader_bytes == 0
    klein = sizes_of(klein_base)  # reads it by itself: as many tokens as a picture that it draws
    assert klein.image_reader_bytes == 0
    assert klein.tokens - klein_base.max_sequence_length - (32 // klein_base.size_multiple) ** 2 == (
        math.ceil(klein_base.largest_side / klein_base.size_multiple) ** 2
    )


def test_what_is_left_is_less_where_more_is_resident(base):
    resident, streamed = (bytes_left(base, way) for way in (WAYS[0], WAYS[1]))
    assert 0 < resident < streamed


def test_what_the_vae_takes_is_what_a_trace_of_it_shows():
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE).to(torch.bfloat16).requires_grad_(False)
    assert trace_decode(vae, 512, 256) == pytest.approx(DECODED_VALUES * 512 * 256 * 2, rel=0.03)


def test_a_small_base_is_resident_here_and_the_log_says_so(caplog):
    caplog.set_level("INFO")
    assert choose_placement(Base.open(WEIGHTS / "flux-emoji")) == RESIDENT
    assert "Memory: the transformer in float32; the text encoders resident; at most " in caplog.text
