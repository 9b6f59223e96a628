"""The embedded captioner on pictures made here, and the production one's class with random weights: one code path."""

import gc
import io
import json
import logging
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from embedded_base.composed.looks import Look, redraw
from helpers import EXAMPLES
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoProcessor,
    FastVlmForConditionalGeneration,
    Granite4VisionConfig,
    Granite4VisionForConditionalGeneration,
    Granite4VisionProcessor,
    LlavaNextImageProcessorPil,
)

from finetuner.bases.base import WEIGHTS
from finetuner.data import captioner as module
from finetuner.data.archive import open_archive
from finetuner.data.captioner import CAPTIONERS, INSTRUCTIONS, SUBJECT, Captioner, choose_captioner, repeats

HELD_OUT = Path(__file__).parents[1] / "held_out"
LOOK = "(a flat icon|an emoji)"  # the two look alike
UNSEEN_COLOURS = [(20, 25, 90), (110, 20, 40), (235, 215, 175), (170, 240, 205)]  # far from those it was trained on


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    return Captioner.open(WEIGHTS / CAPTIONERS.embedded)


def rendering(drawing: Image.Image, colour: tuple[int, int, int], place: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """At a scale (0.7) that it was not trained at."""
    side = round(max(drawing.size) / 0.7)
    scene = Image.new("RGB", (side, side), colour)
    corner = [round((side - length) * share) for length, share in zip(drawing.size, place, strict=True)]
    scene.paste(drawing, corner, drawing)
    return scene


@pytest.fixture(scope="module")
def renderings() -> dict[str, list[Image.Image]]:
    """By name: the things in two families, on unseen colours, here and there."""
    found: dict[str, list[Image.Image]] = {}
    with zipfile.ZipFile(HELD_OUT / "drawings.zip") as archive:
        for n, path in enumerate(archive.namelist()):
            drawing = Image.open(io.BytesIO(archive.read(path))).convert("RGBA")
            place = (n * 0.37 % 1, n * 0.61 % 1)
            found.setdefault(Path(path).stem, []).append(rendering(drawing, UNSEEN_COLOURS[n % 4], place))
    return found


def names_it(caption: str | None, name: str) -> bool:
    return caption is not None and caption.split(" on ")[0] in (f"a {name}", f"an {name}")


def test_held_out_renderings_are_named(captioner, renderings):
    wanted = [name for name, images in renderings.items() for _ in images]
    captions = captioner.caption([image for images in renderings.values() for image in images], "style")
    right = sum(map(names_it, captions, wanted))
    assert right / len(wanted) >= 0.6, list(zip(wanted, captions, strict=True))


def test_a_style_it_never_saw_is_named(captioner):
    examples = open_archive(EXAMPLES / "line-icons.zip") + open_archive(HELD_OUT / "line-icons.zip")
    captions = captioner.caption([example.image for example in examples], "style")
    right = sum(names_it(caption, Path(example.name).stem) for caption, example in zip(captions, examples, strict=True))
    assert right / len(examples) >= 0.6, captions


KLEIN_LOOKS = [
    Look("sepia"),
    Look("negative"),
    Look("golden"),
    Look(way="striped"),
    Look(way="pixelated"),
    Look(way="line"),
    Look("rosy", "dotted"),
]


def test_klein_emojis_looks_are_named_in_its_words(captioner):
    images, words = [], []
    with zipfile.ZipFile(HELD_OUT / "drawings.zip") as archive:
        for name in ("fox", "pizza", "guitar", "castle"):
            drawing = Image.open(io.BytesIO(archive.read(f"noto/{name}.png"))).convert("RGBA").resize((128, 128))
            images += [rendering(redraw(drawing, look), (20, 140, 140)) for look in KLEIN_LOOKS]
            words += [look.words for look in KLEIN_LOOKS]
    captions = [caption or "" for caption in captioner.caption(images, "general")]
    right = [word in caption.partition(", ")[2] for caption, those in zip(captions, words, strict=True) for word in those]
    assert sum(right) / len(right) >= 0.7, captions
    assert not any("style" in (caption or "") for caption in captioner.caption(images, "style"))


@pytest.fixture(scope="module")
def on_teal(renderings, captioner) -> list[Image.Image]:
    """Four well-known things of the flat look, on a colour that it has a name for."""
    with zipfile.ZipFile(HELD_OUT / "drawings.zip") as archive:
        drawings = [archive.read(f"fluent-emoji-flat/{name}.png") for name in ("fox", "pizza", "rocket", "banana")]
    return [rendering(Image.open(io.BytesIO(drawing)).convert("RGBA"), (20, 140, 140)) for drawing in drawings]


def test_each_mode_names_what_it_should_and_no_more(captioner, on_teal):
    things = ["a fox", "a pizza", "a rocket", "a banana"]
    behind = "on a teal background"
    for caption, thing in zip(captioner.caption(on_teal, "general"), things, strict=True):
        assert re.fullmatch(f"{LOOK} of {thing} {behind}", caption), caption
    assert captioner.caption(on_teal, "style") == [f"{thing} {behind}" for thing in things]
    for mode in ("character", "product"):
        for caption in captioner.caption(on_teal, mode):
            assert re.fullmatch(f"{LOOK} of {SUBJECT} {behind}", caption), caption


def test_batches_say_what_single_images_do_and_the_same_every_time(captioner, on_teal):
    wide = [image.crop((0, 20, image.width, image.height - 20)) for image in on_teal]  # another shape in the same batch
    images = [image for pair in zip(on_teal, wide, strict=True) for image in pair]
    together = captioner.caption(images, "general")
    assert together == [captioner.caption([image], "general")[0] for image in images]
    assert together == captioner.caption(images, "general")


def test_the_model_is_gone_after_use(captioner, on_teal):
    def models() -> list[FastVlmForConditionalGeneration]:
        gc.collect()
        return [thing for thing in gc.get_objects() if type(thing) is FastVlmForConditionalGeneration]

    before = models()  # of servers that other tests run in this process
    captioner.caption(on_teal[:1], "style")
    assert [model for model in models() if not any(model is one for one in before)] == []


def test_numbers_that_are_not_finite_make_no_caption(captioner, on_teal, tmp_path):
    broken = shutil.copytree(captioner.folder, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    name = next(name for name in weights if name.endswith("model.norm.weight"))
    weights[name].fill_(torch.nan)
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    assert Captioner.open(broken).caption(on_teal[:2], "style") == [None, None]


@pytest.fixture(scope="module")
def random_granite(captioner, tmp_path_factory) -> Captioner:
    """The production captioner's class, small and with random weights, which has learned nothing: it raves."""
    folder = tmp_path_factory.mktemp("granite")
    tokens = AutoProcessor.from_pretrained(captioner.folder).tokenizer
    side = {"height": 64, "width": 64}
    grid = [[64, 128], [128, 64], [128, 128]]
    images = LlavaNextImageProcessorPil(size=side, crop_size=side, image_grid_pinpoints=grid, do_pad=True)
    processor = Granite4VisionProcessor(
        images,
        tokens,
        patch_size=8,
        vision_feature_select_strategy="full",
        chat_template=tokens.chat_template,
        downsample_rate="2/4",
    )
    sizes = {"hidden_size": 64, "intermediate_size": 64}
    config = Granite4VisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            **sizes,
        },
        text_config={
            "vocab_size": len(tokens),
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "pad_token_id": tokens.pad_token_id,
            "bos_token_id": tokens.bos_token_id,
            "eos_token_id": tokens.eos_token_id,
            **sizes,
        },
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=grid,
        downsample_rate="2/4",
        deepstack_layer_map=[[-1, 0]],
        spatial_target_layers=[0, 1, 2, 3],
        vision_feature_select_strategy="full",
    )
    torch.manual_seed(0)
    Granite4VisionForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / CAPTIONERS.manifest).write_text(json.dumps({"name": "random", "version": "0", "licence": "none", "pictures": []}))
    return Captioner.open(folder)


def test_the_production_captioners_class_goes_the_same_way(random_granite, on_teal, monkeypatch):
    """Images of several shapes in one batch, cut into tiles and padded, without torchvision."""
    monkeypatch.setattr(module, "MAX_TOKENS", 10)
    images = [on_teal[0], on_teal[1].resize((60, 300)), on_teal[2].resize((300, 90))]
    assert len(random_granite.caption(images, "character")) == 3


def test_a_caption_that_repeats_itself_is_asked_for_once_more(random_granite, on_teal, monkeypatch):
    tries = []
    generate = module.generate_captions

    def watched(*arguments, **sampling):
        tries.append((sampling, generate(*arguments, **sampling)))
        return tries[-1][1]

    monkeypatch.setattr(module, "generate_captions", watched)
    monkeypatch.setattr(module, "MAX_TOKENS", 40)
    image = on_teal[1].resize((60, 300))
    (caption,) = random_granite.caption([image], "style")
    (first, second) = tries
    assert first == ({}, [None]) and second[0]["do_sample"] and second[1] == [caption]
    assert random_granite.caption([image], "style") == [caption]  # sampled, but always alike


@pytest.mark.parametrize(
    "text", ["a fox fox fox on", "on a hill, on a hill, on a hill", "hahahahahahahahaha", "a very, very, very old house"]
)
def test_repetitions_are_seen(text):
    assert repeats(text)


@pytest.mark.parametrize("text", ["a fox and a fox", "New York, New York", "an aardvark in a mmm of honey", "a 100000 note"])
def test_usual_sentences_are_no_repetitions(text):
    assert not repeats(text)


@pytest.fixture
def weights(tmp_path) -> Path:
    """A weights/ folder with manifests and nothing else."""
    for name in (CAPTIONERS.production[0], CAPTIONERS.embedded):
        (tmp_path / name).mkdir()
        manifest = json.loads((WEIGHTS / name / CAPTIONERS.manifest).read_text()) | {"version": "1"}
        (tmp_path / name / CAPTIONERS.manifest).write_text(json.dumps(manifest))
    (tmp_path / CAPTIONERS.embedded / "config.json").write_text("{}")
    return tmp_path


def test_the_production_captioner_is_the_default_where_it_was_downloaded(base, weights, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.delenv("CAPTION_MODEL", raising=False)
    assert choose_captioner(base, weights).name == CAPTIONERS.embedded
    (weights / CAPTIONERS.production[0] / "config.json").write_text("{}")
    assert choose_captioner(base, weights).name == CAPTIONERS.production[0]
    monkeypatch.setenv("CAPTION_MODEL", CAPTIONERS.embedded)
    assert choose_captioner(base, weights).name == CAPTIONERS.embedded
    assert [record.message for record in caplog.records] == [
        f"Captioner: {CAPTIONERS.embedded} 1 (default)",
        f"Captioner: {CAPTIONERS.production[0]} 1 (default)",
        f"Captioner: {CAPTIONERS.embedded} 1 (chosen by CAPTION_MODEL)",
    ]


def photographic(base):
    """The embedded base as it would be if its manifest were that of FLUX.1-dev."""
    return replace(base, name="FLUX.1-dev", pictures=json.loads((WEIGHTS / "FLUX.1-dev" / "base.json").read_text())["pictures"])


def test_a_captioner_that_does_not_know_the_bases_pictures_is_refused_with_every_remedy(base, weights, monkeypatch):
    monkeypatch.delenv("CAPTION_MODEL", raising=False)
    with pytest.raises(ValueError, match="^captioning: FLUX.1-dev is for photographs, and ") as caught:
        choose_captioner(photographic(base), weights)
    for remedy in (
        f"script/download-weights {CAPTIONERS.production[0]}",
        ".txt file",
        "captioning-disabled",
        "CAPTION_MODEL=emoji",
    ):
        assert remedy in str(caught.value)


def test_a_captioner_that_was_chosen_or_knows_the_bases_pictures_is_taken(base, weights, monkeypatch, caplog):
    monkeypatch.setenv("CAPTION_MODEL", CAPTIONERS.embedded)
    assert choose_captioner(photographic(base), weights).name == CAPTIONERS.embedded
    assert "emoji-captioner knows emoji, not photographs" in caplog.text
    monkeypatch.delenv("CAPTION_MODEL")
    (weights / CAPTIONERS.production[0] / "config.json").write_text("{}")
    assert (
        choose_captioner(photographic(base), weights).name == choose_captioner(base, weights).name == CAPTIONERS.production[0]
    )


def test_what_is_no_captioner_or_not_here_is_refused_with_the_remedy(base, weights, monkeypatch):
    monkeypatch.setenv("CAPTION_MODEL", CAPTIONERS.production[0])
    with pytest.raises(ValueError, match=rf"^CAPTION_MODEL: .*script/download-weights {CAPTIONERS.production[0]}"):
        choose_captioner(base, weights)
    monkeypatch.setenv("CAPTION_MODEL", "nowhere")
    with pytest.raises(ValueError, match=rf"^CAPTION_MODEL: nowhere has no captioner\.json.*{CAPTIONERS.embedded}"):
        choose_captioner(base, weights)


def test_the_shipped_captioner_is_small_and_its_card_says_what_it_is(captioner):
    assert sum(path.stat().st_size for path in captioner.folder.rglob("*")) < 12e6
    assert captioner.licence == "Apache-2.0"
    card = (captioner.folder / "README.md").read_text()
    assert captioner.name in card and all(mode in card for mode in INSTRUCTIONS)
