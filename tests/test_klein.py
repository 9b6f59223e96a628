"""A whole job on FLUX.2 klein, of random weights: what is published draws as plain diffusers draws with it."""

import json
import logging
from collections.abc import Iterator

import pytest
from helpers import EXAMPLES, plain_picture
from huggingface_hub import ModelCard
from PIL import Image

from finetuner import finetune
from finetuner.generate import Generator
from finetuner.report.usage import FINETUNE_FOLDER
from finetuner.requests import FinetuneRequest, ImageRequest
from finetuner.store import Finetune, FolderStore

ARCHIVE = EXAMPLES / "line-icons.zip"
PROMPT = "a cat, TOK style"


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Iterator[FolderStore]:
    folder = tmp_path_factory.mktemp("klein")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINETUNE_STORE", str(folder / "finetunes"))
        patch.setattr(finetune, "JOBS", folder / "jobs")
        yield FolderStore(folder / "finetunes")


@pytest.fixture(scope="module")
def published(store, klein_base) -> Finetune:
    """At a rate at which three steps are seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BASE_MODEL", str(klein_base.folder))
        request = FinetuneRequest(ARCHIVE, training_steps=3, mode="style", learning_rate=5e-3, lora_rank=16)
        return finetune.finetune(request)


@pytest.fixture(scope="module")
def generators(store, klein_base, klein_twin) -> dict[str, Generator]:
    return {base.name: Generator(base, store) for base in (klein_base, klein_twin)}


def request(published: Finetune, **changes) -> ImageRequest:
    fields = {"prompt": PROMPT, "finetune_id": published.id, "seed": 5, "output_format": "png"}
    return ImageRequest(**fields | changes)


def picture(generator: Generator, asked: ImageRequest) -> Image.Image:
    path = generator.generate(asked).path
    with Image.open(path) as image:
        image.load()
    path.unlink()
    return image


@pytest.mark.parametrize("name", ["tiny-klein-base", "tiny-klein"])
def test_a_finetune_is_drawn_by_its_base_and_the_twin_as_plain_diffusers_draws_it(published, generators, name):
    generator, base = generators[name], generators[name].base
    at_one, at_zero = (picture(generator, request(published, finetune_strength=s)) for s in (1.0, 0.0))
    assert at_one.tobytes() != at_zero.tobytes()
    steps = base.sampling_steps
    assert at_one.tobytes() == plain_picture(base, PROMPT, steps, seed=5, lora=published.folder).tobytes()
    assert at_zero.tobytes() == plain_picture(base, PROMPT, steps, seed=5).tobytes()


def said(caplog) -> list[logging.LogRecord]:
    """Of steps and guidance."""
    return [record for record in caplog.records if record.name == "finetuner.serving.sampling"]


def test_the_documented_defaults_are_the_bases_own_and_what_changes_nothing_is_said(published, generators, caplog):
    caplog.set_level(logging.INFO, "finetuner.serving")
    picture(generators["tiny-klein-base"], request(published))
    assert "steps: 40, the documented default, stands for 6 on tiny-klein-base" in caplog.text
    assert "guidance: 3, the documented default, stands for 4 on tiny-klein-base" in caplog.text
    caplog.clear()
    default = picture(generators["tiny-klein"], request(published))
    assert [record.getMessage() for record in said(caplog)] == ["steps: 40, the documented default, stands for 2 on tiny-klein"]
    caplog.clear()
    guided = picture(generators["tiny-klein"], request(published, steps=2, guidance=5.0))
    (record,) = said(caplog)
    assert record.levelname == "WARNING" and "guidance: 5 changes nothing, since tiny-klein takes none" in record.getMessage()
    assert guided.tobytes() == default.tobytes()
    assert picture(generators["tiny-klein"], request(published, steps=3)).tobytes() != default.tobytes()


@pytest.mark.parametrize("name", ["tiny-klein-base", "tiny-klein"])
def test_a_picture_says_what_it_was_made_with(published, generators, name):
    generator, base = generators[name], generators[name].base
    image = picture(generator, request(published))
    said = json.loads(image.text["finetune"])
    assert said["steps"] == base.sampling_steps and said.get("guidance") == base.sampling_guidance
    del said["base"]
    assert picture(generator, ImageRequest(**said)).tobytes() == image.tobytes()


def test_the_empty_prompt_is_encoded_once_and_only_where_guidance_leads_away_from_it(published, store, klein_base, klein_twin):
    for base, times in ((klein_base, 3), (klein_twin, 2)):
        generator, encoded = Generator(base, store), []
        with generator.pipeline.text_encoder.register_forward_hook(lambda *_, encoded=encoded: encoded.append(1)):
            for prompt in ("TOK, a cat", "TOK, a dog", "TOK, a cat"):
                picture(generator, request(published, prompt=prompt, steps=1))
        assert len(encoded) == times


def test_the_distilled_twin_is_not_trained(klein_twin, store, monkeypatch):
    monkeypatch.setenv("BASE_MODEL", str(klein_twin.folder))
    with pytest.raises(ValueError, match=r"^BASE_MODEL: tiny-klein is distilled\. Train tiny-klein-base\.$"):
        finetune.finetune(FinetuneRequest(ARCHIVE))


def test_the_report_says_how_to_draw_with_this_family_in_code_that_runs(published, klein_base, tmp_path, monkeypatch):
    card = ModelCard((published.folder / "README.md").read_text())
    assert "flux2-klein" in card.data.tags and "flux" not in card.data.tags
    made = json.loads((published.folder / "report" / "sheet.json").read_text())
    assert made["guidance"] == 4.0
    code = card.text.partition("```python\n")[2].partition("```")[0]
    assert "guidance_scale=4.0," in code and "num_inference_steps=6," in code
    monkeypatch.chdir(tmp_path)
    drawn = []
    for strength in ("1.0", "0.0"):
        code_at = code.replace(FINETUNE_FOLDER, str(published.folder)).replace('"finetune", 1.0', f'"finetune", {strength}')
        exec(code_at, {})
        drawn.append(Image.open("image.png").convert("RGB"))
    assert drawn[0].size == (32, 32) and drawn[0].tobytes() != drawn[1].tobytes()
