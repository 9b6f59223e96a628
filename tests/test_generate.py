import dataclasses
import io
import json
import logging
import re
import shutil
import time
from pathlib import Path

import helpers
import pytest
import torch
from helpers import publish
from PIL import Image

from benchmarks.adapters import random_adapter
from finetuner.bases import Base
from finetuner.generate import Generator
from finetuner.loras import WEIGHTS_NAME
from finetuner.requests import ASPECT_RATIOS, ImageRequest
from finetuner.serving.caches import ServedFinetune
from finetuner.serving.image_file import EXIF_IFD, EXIF_USER_COMMENT
from finetuner.serving.raw import RAW_WORDS
from finetuner.serving.safety import FLAGGED_ABOVE, FlaggedError
from finetuner.serving.slot import PackedAdapter
from finetuner.store import FolderStore, Store

PROMPT = "a fox, TOK style"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return FolderStore(tmp_path_factory.mktemp("finetunes"))


def publish_random(store: Store, base, seed: int, rank: int = 32, **facts) -> str:
    """A finetune of random weights, strong enough to change every picture."""
    return publish(store, base, random_adapter(base.load_transformer(), rank, seed), rank, **facts)


@pytest.fixture(scope="module")
def finetunes(store, base) -> list[str]:
    return [publish_random(store, base, seed=1), publish_random(store, base, seed=2, rank=16)]


@pytest.fixture(scope="module")
def generator(base, store) -> Generator:
    return Generator(base, store)


def request(finetune_id: str, **changes) -> ImageRequest:
    fields = {"prompt": PROMPT, "finetune_id": finetune_id, "steps": 4, "seed": 5, "output_format": "png"}
    return ImageRequest(**fields | changes)


def make(generator: Generator, finetune_id: str, **changes) -> bytes:
    path = generator.generate(request(finetune_id, **changes)).path
    data = path.read_bytes()
    path.unlink()
    return data


def picture(generator: Generator, finetune_id: str, **changes) -> Image.Image:
    image = Image.open(io.BytesIO(make(generator, finetune_id, **changes)))
    image.load()
    return image


def plain_picture(base, folder=None) -> Image.Image:
    """What FluxPipeline alone makes of the same request."""
    return helpers.plain_picture(base, PROMPT, steps=4, seed=5, lora=folder)


def test_strength_zero_is_the_picture_of_the_base_whatever_the_finetune(generator, finetunes, base):
    first, second = (make(generator, finetune, finetune_strength=0.0) for finetune in finetunes)
    assert first == second
    assert picture(generator, finetunes[0], finetune_strength=0.0).tobytes() == plain_picture(base).tobytes()


def test_strength_one_is_what_plain_diffusers_makes_of_the_published_lora(generator, finetunes, base, store):
    ours = picture(generator, finetunes[0], finetune_strength=1.0)
    assert ours.tobytes() == plain_picture(base, store.folder / finetunes[0]).tobytes()
    assert ours.tobytes() != plain_picture(base).tobytes()


def test_a_request_gives_the_same_bytes_whatever_was_served_before(generator, finetunes):
    first = make(generator, finetunes[0], finetune_strength=0.7)
    for finetune, strength in ((finetunes[1], 1.6), (finetunes[0], 0.0), (finetunes[1], 0.3)):
        make(generator, finetune, finetune_strength=strength)
    assert make(generator, finetunes[0], finetune_strength=0.7) == first


def test_a_new_seed_is_drawn_where_none_is_given_and_logged(generator, finetunes, caplog):
    caplog.set_level(logging.INFO, "finetuner")
    assert make(generator, finetunes[0], seed=None, steps=1) != make(generator, finetunes[0], seed=None, steps=1)
    seeds = [record.args[0] for record in caplog.records if record.msg.startswith("Seed")]
    assert make(generator, finetunes[0], seed=seeds[0], steps=1) != make(generator, finetunes[0], seed=seeds[1], steps=1)
    assert caplog.text.count(f"Seed: {seeds[0]}") == 2


@pytest.mark.parametrize("output_format", ["png", "jpg"])
def test_the_picture_says_how_to_make_it_again(generator, finetunes, output_format):
    image = picture(generator, finetunes[0], seed=None, finetune_strength=1.2, output_format=output_format)
    if output_format == "png":
        said = json.loads(image.text["finetune"])
    else:
        said = json.loads(image.getexif().get_ifd(EXIF_IFD)[EXIF_USER_COMMENT].removeprefix(b"ASCII\0\0\0"))
    assert said["finetune_id"] == finetunes[0] and said["finetune_strength"] == 1.2
    assert said["base"] == generator.base.describe()
    fields = {field.name for field in dataclasses.fields(ImageRequest)}
    again = picture(generator, **{name: value for name, value in said.items() if name in fields})
    assert again.tobytes() == image.tobytes()


@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
def test_every_documented_aspect_ratio_is_made_at_the_area_the_base_knows(generator, finetunes, aspect_ratio):
    width, height = picture(generator, finetunes[0], aspect_ratio=aspect_ratio, steps=1).size
    side, multiple = generator.base.sampling_side, generator.base.size_multiple
    assert width % multiple == height % multiple == 0
    assert width * height == pytest.approx(side**2, rel=0.2)
    wanted = ASPECT_RATIOS[aspect_ratio]
    assert abs(width - height * wanted[0] / wanted[1]) <= multiple


@pytest.mark.parametrize(("asked", "made"), [((500, 330), (512, 320)), ((272, 1440), (288, 1440)), ((1440, 256), (1440, 256))])
def test_a_custom_size_is_the_size_of_the_picture_rounded_to_32(generator, finetunes, caplog, asked, made):
    caplog.set_level(logging.INFO, "finetuner")
    image = picture(generator, finetunes[0], aspect_ratio="custom", width=asked[0], height=asked[1], steps=1)
    assert image.size == made
    assert f"enlarged to {made[0]} x {made[1]}" in caplog.text


def test_jpeg_keeps_the_colours_of_flat_areas(generator, finetunes):
    png, jpg = (
        picture(generator, finetunes[0], finetune_strength=0.0, steps=20, output_format=f).convert("RGB")
        for f in ("png", "jpg")
    )
    errors = torch.tensor(list(png.tobytes())).float() - torch.tensor(list(jpg.tobytes())).float()
    assert errors.abs().mean() < 2


def test_an_upsampled_prompt_is_what_is_drawn_and_is_in_the_metadata(generator, finetunes):
    asked = picture(generator, finetunes[0], prompt="a fox on teal, TOK style", prompt_upsampling=True)
    said = json.loads(asked.text["finetune"])
    assert said["prompt"] == "a fox on teal, TOK style" and said["prompt_upsampling"] is True
    longer = picture(generator, finetunes[0], prompt=said["drawn_prompt"])
    assert longer.tobytes() == asked.tobytes()
    assert longer.tobytes() != picture(generator, finetunes[0], prompt="a fox on teal, TOK style").tobytes()
    assert "drawn_prompt" not in json.loads(longer.text["finetune"])


def test_a_finetune_of_another_base_is_refused_by_both_names(generator, store, base):
    krea = {"name": "FLUX.1-Krea-dev", "version": "1.0", "fingerprint": "0" * 64}
    other = publish_random(store, base, seed=3, trained_on=krea)
    with pytest.raises(ValueError, match=rf"^finetune_id: .*FLUX.1-Krea-dev 1.0.*{base.name}.*BASE_MODEL"):
        generator.generate(request(other))


def test_a_prompt_without_the_trigger_word_is_answered_with_a_warning(generator, finetunes, caplog):
    make(generator, finetunes[0], prompt="a fox", steps=1)
    assert "lacks the trigger word 'TOK'" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": " "}, "^prompt: "),
        ({"aspect_ratio": "custom", "width": 512}, "^width, height: "),
        ({"aspect_ratio": "2:1"}, "^aspect_ratio: "),
        ({"seed": 2**64}, "^seed: "),
    ],
)
def test_a_request_that_cannot_be_met_says_why(fields, message):
    with pytest.raises(ValueError, match=message):
        request("8f14e45f-ceea-467f-a8f0-1d0a1a3f1c2b", **fields)


@pytest.mark.parametrize("finetune_id", ["../../etc/passwd", "8f14e45f", "", "8f14e45f-ceea-467f-a8f0-1d0a1a3f1c2b"])
def test_an_unknown_finetune_is_refused(generator, finetune_id):
    with pytest.raises(ValueError, match="^finetune_id: "):
        generator.generate(request(finetune_id))


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [flip_a_byte, Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-1])])
def test_a_damaged_finetune_is_refused_by_the_name_of_its_file(generator, store, base, damage):
    damaged = publish_random(store, base, seed=4)
    damage(store.folder / damaged / WEIGHTS_NAME)
    with pytest.raises(ValueError, match=rf"^finetune_id: {WEIGHTS_NAME} of {damaged} is missing or damaged"):
        generator.generate(request(damaged))


def test_a_finetune_of_the_wrong_shape_is_refused(generator, store, base, transformer):
    other = publish(store, base, random_adapter(transformer, 16), 16)
    with pytest.raises(ValueError, match=rf"^finetune_id: {other} does not fit {base.name}: "):
        generator.generate(request(other))


def twin_of(base, folder: Path, **facts) -> Base:
    """A base of the same weights, but for one number, that says other things of itself."""
    shutil.copytree(base.folder, folder)
    manifest = json.loads((folder / "base.json").read_text())
    (folder / "base.json").write_text(json.dumps(manifest | {"name": folder.name} | facts))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"shift": 2.0}))
    return Base.open(folder)


def test_a_finetune_is_drawn_by_a_base_that_says_so_and_by_no_other(store, base, finetunes, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    partner = Generator(twin_of(base, tmp_path / "partner", serves_finetunes_of=[base.name]), store)
    assert make(partner, finetunes[0]) != make(partner, finetunes[0], finetune_strength=0.0)
    assert f"Finetune {finetunes[0]} was trained on {base.name}; partner draws with it" in caplog.messages
    stranger = Generator(twin_of(base, tmp_path / "stranger"), store)
    with pytest.raises(ValueError, match=rf"^finetune_id: {finetunes[0]} was trained on {base.name} .* runs stranger"):
        stranger.generate(request(finetunes[0]))


def test_a_finetune_that_takes_the_base_out_of_range_fails_and_harms_no_one(generator, store, base, finetunes):
    weights = random_adapter(base.load_transformer(), 16)
    name = min(weights)
    broken = publish(store, base, weights | {name: torch.full_like(weights[name], torch.inf)}, 16)
    before = make(generator, finetunes[0])
    with pytest.raises(FloatingPointError, match=r"^finetune_strength: at 0.5 finetune .* Lower it"):
        generator.generate(request(broken, finetune_strength=0.5))
    assert make(generator, broken, finetune_strength=0.0) == make(generator, finetunes[0], finetune_strength=0.0)
    assert make(generator, finetunes[0]) == before


class Cancelled(BaseException):
    """As Cog's."""


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt, Cancelled])
def test_an_error_while_sampling_leaves_the_slot_empty(generator, finetunes, error):
    before = make(generator, finetunes[0])

    def fail(*_):
        raise error

    with generator.pipeline.transformer.single_transformer_blocks[0].register_forward_hook(fail), pytest.raises(error):
        generator.generate(request(finetunes[1]))
    assert generator.slot.loaded is None
    assert not generator.slot.a.any() and not generator.slot.b.any()
    assert make(generator, finetunes[0]) == before


def test_an_error_while_loading_leaves_the_slot_empty(generator, finetunes):
    before = make(generator, finetunes[0])
    served = generator.finetunes.get(finetunes[0])
    finetune, whole = served.finetune, served.adapter
    generator.finetunes.served[finetune.id] = ServedFinetune(finetune, PackedAdapter(whole.a * 2, whole.b.repeat(1, 2)))
    with pytest.raises(RuntimeError):
        generator.generate(request(finetune.id))
    assert generator.slot.loaded is None and not generator.slot.a.any()
    generator.finetunes.served[finetune.id] = served
    assert make(generator, finetune.id) == before


def test_a_prompt_is_encoded_once_for_all_strengths_and_seeds(generator, finetunes):
    encoded = []
    with generator.pipeline.text_encoder_2.register_forward_hook(lambda *_: encoded.append(1)):
        hits = [
            generator.generate(
                request(finetune, prompt="TOK, an owl", seed=seed, finetune_strength=seed / 2, steps=1)
            ).prompt_hit
            for seed, finetune in enumerate([*finetunes, *finetunes])
        ]
        assert hits == [False, True, True, True] and len(encoded) == 1
        make(generator, finetunes[0], prompt="TOK, two owls", steps=1)
        assert len(encoded) == 2


def test_cached_prompts_are_bounded(generator, finetunes):
    for number in range(3):
        make(generator, finetunes[0], prompt=f"TOK, {number} owls", steps=1)
    prompts = generator.prompts.texts
    size = prompts.currsize / len(prompts)
    assert size == generator.base.max_sequence_length * 96 * 4 + 96 * 4  # float32 [length, width] and [width]
    assert prompts.maxsize < 2**30


def test_the_adapters_used_last_stay_in_memory_within_the_budget(base, store, finetunes, monkeypatch):
    three = [finetunes[0], publish_random(store, base, seed=5), publish_random(store, base, seed=6)]
    one = file_size(store, finetunes[0])
    monkeypatch.setenv("ADAPTER_CACHE_GB", str(2.5 * one / 1e9))
    generator = Generator(base, store)
    hits = {name: [] for name in three}
    for index in (0, 1, 0, 2, 0, 1):  # 2 takes the place of 1, which was used before 0
        hits[three[index]].append(generator.generate(request(three[index].upper(), steps=1)).adapter_hit)
    assert hits == {three[0]: [False, True, True], three[1]: [False, False], three[2]: [False]}

    served = generator.finetunes.served
    generator.finetunes.served = type(served)(one / 2, getsizeof=served.getsizeof)
    assert not generator.generate(request(three[0], steps=1)).adapter_hit
    assert not generator.finetunes.served


def file_size(store: Store, finetune_id: str) -> int:
    return (store.folder / finetune_id / WEIGHTS_NAME).stat().st_size


@pytest.mark.parametrize(
    ("name", "value"), [("ADAPTER_CACHE_GB", "much"), ("ADAPTER_CACHE_GB", "-1"), ("COMPILE", "yes"), ("SAFETY", "off")]
)
def test_a_wrong_variable_is_refused_by_name_before_anything_is_loaded(base, store, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(type(base), "load_pipeline", lambda _: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=f"^{name}: '{value}'"):
        Generator(base, store)


def test_a_picture_comes_with_its_seed_the_seconds_of_each_phase_and_a_bar(generator, finetunes, capsys):
    started = time.perf_counter()
    made = generator.generate(request(finetunes[0], steps=3))
    passed = time.perf_counter() - started
    made.path.unlink()
    assert made.seed == 5
    assert list(made.seconds) == ["fetch", "encode", "sampling", "decode", "safety", "write"]
    assert 0.5 * passed < sum(made.seconds.values()) <= passed
    assert re.search(r"Sampling: 100%.* 3/3 ", capsys.readouterr().err)


def test_the_raw_look_is_words_and_less_guidance_and_the_picture_says_so(base, store, finetunes, tmp_path):
    photographer = Generator(
        twin_of(base, tmp_path / "photographer", serves_finetunes_of=[base.name], pictures="photographs"), store
    )
    raw = picture(photographer, finetunes[0], raw=True)
    said = json.loads(raw.text["finetune"])
    assert said["raw"] is True and said["prompt"] == PROMPT and said["guidance"] == base.guidance_scale
    assert said["drawn_prompt"] == f"{PROMPT}, {RAW_WORDS}" and said["drawn_guidance"] == pytest.approx(2.0)
    by_hand = picture(photographer, finetunes[0], prompt=said["drawn_prompt"], guidance=said["drawn_guidance"])
    assert raw.tobytes() == by_hand.tobytes() != picture(photographer, finetunes[0]).tobytes()
    assert not {"drawn_prompt", "drawn_guidance"} & set(json.loads(by_hand.text["finetune"]))
    fields = {field.name for field in dataclasses.fields(ImageRequest)}
    again = picture(photographer, **{name: value for name, value in said.items() if name in fields})
    assert again.tobytes() == raw.tobytes()


def test_a_base_of_emoji_refuses_the_raw_look(generator, finetunes):
    with pytest.raises(ValueError, match=r"^raw: .*flux-emoji draws emoji. Send false"):
        generator.generate(request(finetunes[0], raw=True))


def test_a_flagged_image_is_not_kept_and_harms_no_one(generator, finetunes, tmp_path, monkeypatch):
    before = make(generator, finetunes[0])
    monkeypatch.setitem(FLAGGED_ABOVE, 3, -1.0)  # so strict a level flags every drawing
    with pytest.raises(FlaggedError, match="^E005: The input or output was flagged as sensitive. The image scores 0.0"):
        generator.generate(request(finetunes[0], safety_tolerance=3), tmp_path)
    assert not list(tmp_path.iterdir())
    assert make(generator, finetunes[0]) == before == make(generator, finetunes[0], safety_tolerance=6)


def test_the_check_can_be_switched_off_and_changes_no_byte(base, store, generator, finetunes, tmp_path, monkeypatch):
    checked = generator.generate(request(finetunes[0]), tmp_path)
    monkeypatch.setenv("SAFETY", "0")
    monkeypatch.setitem(FLAGGED_ABOVE, 2, -1.0)
    unchecked = Generator(base, store).generate(request(finetunes[0]), tmp_path)
    assert unchecked.safety_score is None and 0 <= checked.safety_score < 0.2
    assert unchecked.path.read_bytes() == checked.path.read_bytes()


def test_an_image_goes_into_the_folder_that_is_named(generator, finetunes, tmp_path):
    made = generator.generate(request(finetunes[0], steps=1), tmp_path)
    assert list(tmp_path.iterdir()) == [made.path]
