from collections import Counter

import pytest
import torch
from helpers import make_recipe
from PIL import Image, ImageDraw

from finetuner.bases import flux2
from finetuner.data.archive import CaptionedExample, Example, data_fingerprint
from finetuner.training.dataset import batch_schedule
from finetuner.training.encode import bucket_sizes, crop_to, encode_dataset


@pytest.mark.parametrize("image_size", [(1000, 1000), (1500, 1000), (700, 2100), (513, 512), (90, 200), (65, 64), (20, 31)])
@pytest.mark.parametrize("multiple", [8, 16])
def test_no_image_is_ever_enlarged(image_size, multiple):
    for width, height in bucket_sizes(image_size, (512, 768, 1024), multiple):
        assert width % multiple == height % multiple == 0
        assert width <= image_size[0] and height <= image_size[1]


def test_an_image_smaller_than_a_patch_becomes_one_patch():
    assert bucket_sizes((5, 3), (64,), 8) == [(8, 8)]


def test_a_large_image_trains_at_every_resolution_and_a_small_one_at_those_it_has_the_pixels_for():
    assert bucket_sizes((2000, 2000), (512, 768, 1024), 16) == [(512, 512), (768, 768), (1024, 1024)]
    assert bucket_sizes((800, 800), (512, 768, 1024), 16) == [(512, 512), (768, 768)]
    assert bucket_sizes((300, 300), (512, 768, 1024), 16) == [(288, 288)]


def test_buckets_keep_the_area_and_the_aspect():
    ((width, height),) = bucket_sizes((3000, 2000), (1024,), 16)
    assert width * height == pytest.approx(1024**2, rel=0.03)
    assert width / height == pytest.approx(1.5, rel=0.03)


def test_fitting_crops_evenly_and_keeps_the_aspect():
    image = Image.new("RGB", (300, 100), "white")
    ImageDraw.Draw(image).ellipse((125, 25, 175, 75), fill="black")  # a circle in the middle
    fitted = crop_to(image, (64, 64)).convert("L")
    left, top, right, bottom = fitted.point(lambda v: 255 * (v < 128)).getbbox()
    assert abs((right - left) - (bottom - top)) <= 1  # still a circle
    assert abs((left + right) / 2 - 32) <= 1  # still in the middle


def test_every_image_comes_up_before_any_comes_up_again(dataset):
    seen = {size: Counter() for size in dataset.buckets}
    for size, rows in batch_schedule(dataset.buckets, steps=60, batch_size=4, seed=3):
        seen[size].update(rows.tolist())
        assert max(seen[size].values()) - min(seen[size][row] for row in range(len(dataset.buckets[size].captions))) <= 2


def test_buckets_come_up_as_often_as_they_have_images(dataset):
    drawn = Counter(size for size, _ in batch_schedule(dataset.buckets, steps=3000, batch_size=4, seed=0))
    assert drawn[(32, 32)] / 3000 == pytest.approx(4 / 6, abs=0.03)


def test_a_schedule_is_a_function_of_its_seed(dataset):
    first, second, other = (batch_schedule(dataset.buckets, 20, 4, seed) for seed in (1, 1, 2))
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in zip(first, second, strict=True))
    assert any(a != b or not torch.equal(x, y) for (a, x), (b, y) in zip(first, other, strict=True))


def test_each_draw_of_a_batch_samples_what_is_random_anew_with_the_texts_it_is_told(dataset, family):
    rows, texts = torch.tensor([0, 1]), torch.tensor([1, 0])
    first = dataset.batch((32, 32), rows, texts, torch.Generator().manual_seed(0))
    second = dataset.batch((32, 32), rows, texts, torch.Generator().manual_seed(1))
    assert first.latents.shape == (2, 4, 16)
    assert torch.equal(first.latents, second.latents) == (family is flux2)  # FLUX.2 takes the posterior's mode
    assert torch.equal(first.texts.embeds[0], dataset.texts.embeds[1])
    assert torch.equal(first.texts.embeds[1], dataset.texts.embeds[0])  # the empty caption


def test_latents_decode_to_the_image(base):
    """The moments, the normalisation and the sizes fit together: what was encoded is what the VAE gives back."""
    image = Image.new("RGB", (256, 256), (40, 95, 210))
    ImageDraw.Draw(image).ellipse((60, 60, 196, 196), fill=(250, 215, 60))
    side = base.resolutions["speed"][0]
    example = CaptionedExample("a.png", image, "a ball", plain="a ball")
    dataset, prompts = encode_dataset([example], ["TOK", "a dog"], base, make_recipe(resolutions=(side,)))
    assert len(prompts.embeds) == 2 and len(dataset.texts.embeds) == 2
    ((size, bucket),) = dataset.buckets.items()
    assert size == (side, side)
    vae = base.load_vae()
    with torch.no_grad():
        decoded = vae.decode(bucket.latents.chunk(2, dim=1)[0].to(vae.device, vae.dtype)).sample[0].float().cpu()
    pixels = torch.tensor(list(crop_to(image, size).get_flattened_data())).T.reshape(3, side, side) / 127.5 - 1
    assert (decoded - pixels).pow(2).mean() < 0.01  # 26 dB


def test_the_fingerprint_sees_every_pixel_and_caption():
    image, other = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8))
    other.putpixel((7, 7), (0, 0, 1))
    example = Example("a.png", image, "x")
    different = [Example("a.png", other, "x"), Example("a.png", image, "y"), Example("b.png", image, "x")]
    assert len({data_fingerprint([e]) for e in [example, *different]}) == 4
    assert data_fingerprint([example]) == data_fingerprint([Example("a.png", image.copy(), "x")])
