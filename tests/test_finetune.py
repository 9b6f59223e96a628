"""The whole job on the embedded base: a concept is truly learned, and nothing half-made is left by what goes wrong."""

import json
import logging
import random
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from helpers import EXAMPLES, make_archive, make_recipe
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor

from finetuner import finetune
from finetuner.bases import WarmParts
from finetuner.data import archive
from finetuner.data.captioner import Captioner, choose_captioner
from finetuner.data.captions import with_trigger_word
from finetuner.report import sheet
from finetuner.requests import FinetuneRequest
from finetuner.store import StoreError
from finetuner.store.files import seal
from finetuner.training import tracker, trainer
from finetuner.training.checkpoint import Checkpoint
from finetuner.training.encode import encode_dataset
from finetuner.training.flow import Samples, resolution_shift, sample_sigmas, velocity_errors
from finetuner.training.recipe import recipe_for

STYLE = EXAMPLES / "line-icons.zip"
HELD_OUT = Path(__file__).parent / "held_out"
TRIGGER_WORD = "LINEICON"


pytestmark = pytest.mark.usefixtures("store")


def style_request(**changes) -> FinetuneRequest:
    return FinetuneRequest(STYLE, **{"trigger_word": TRIGGER_WORD, "mode": "style", "priority": "speed"} | changes)


def left_behind(tmp_path: Path) -> list[Path]:
    return [path for folder in ("finetunes", "jobs") for path in (tmp_path / folder).glob("*")]


@torch.no_grad()
def held_out_loss(base, transformer, family: str, trigger_word: str | None) -> float:
    """Flow loss on held-out pictures at fixed noise and timesteps, 8 of each picture."""
    examples = archive.open_archive(HELD_OUT / f"{family}.zip")
    if trigger_word:
        examples = [replace(e, caption=with_trigger_word(e.caption, trigger_word, "style")) for e in examples]
    examples = [archive.CaptionedExample(e.name, e.image, e.caption, plain=e.caption) for e in examples]
    dataset, _ = encode_dataset(examples, ["unused"], base, make_recipe(resolutions=base.resolutions["speed"]))
    ((size, bucket),) = dataset.buckets.items()
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(len(bucket.captions))
    losses = []
    for _ in range(8):
        batch = dataset.batch(size, rows, dataset.buckets[size].captions[rows], generator)
        noise = torch.randn(batch.latents.shape, generator=generator)
        shift = resolution_shift(base.load_scheduler(), batch.latents.shape[1])
        sigmas = sample_sigmas(len(rows), shift, 0.0, 1.0, generator)
        losses.append(velocity_errors(transformer, Samples.of(batch, noise, sigmas), 1.0).mean().item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("finetune_type", ["lora", "full"])
def test_a_style_is_learned_and_told_from_other_styles(base, store, finetune_type):
    published = finetune.finetune(style_request(finetune_type=finetune_type, training_steps=150))
    before = base.load_pipeline()
    after = base.load_pipeline()
    after.load_lora_weights(published.folder)

    def gain(family: str, trigger_word: str | None) -> float:
        losses = [held_out_loss(base, p.transformer, family, trigger_word) for p in (before, after)]
        return 1 - losses[1] / losses[0]

    learned, elsewhere = gain("line-icons", TRIGGER_WORD), gain("noto", None)
    assert learned > 0.15, f"held-out pictures of the style: loss lowered by {learned:.1%}"
    assert learned > elsewhere + 0.15, f"the style gained {learned:.1%}, the base's own look {elsewhere:.1%}"


def test_a_finetune_holds_what_it_was_made_of(base, store, tmp_path):
    published = finetune.finetune(style_request(training_steps=2, finetune_type="full", lora_rank=16))
    manifest = published.manifest
    assert manifest["base"] == base.describe() and manifest["captioner"] is None
    assert manifest["inputs"] == style_request(training_steps=2, finetune_type="full", lora_rank=16).inputs()
    assert manifest["recipe"]["rank"] == 16 and manifest["recipe"]["steps"] == 2 and manifest["images"] == 16
    assert len(manifest["losses"]) == 2 and 0 < manifest["velocity_kept"] <= 1 and 0 < manifest["energy_kept"] <= 1
    assert set(manifest["seconds"]) == {"archive", "captions", "encode", "load", "train", "report"}
    assert manifest["peak_memory_bytes"].keys() == manifest["seconds"].keys()
    assert manifest["versions"]["torch"] == torch.__version__
    assert (published.folder / "captions" / "owl.txt").read_text() == f"an owl on a yellow background, {TRIGGER_WORD} style\n"
    page, card = ((published.folder / name).read_text() for name in ("report/index.html", "README.md"))
    for said in (TRIGGER_WORD, base.name, f"{manifest['velocity_kept']:.1%}", "an owl on a yellow background"):
        assert said in page and said in card
    assert all((published.folder / picture["output"]["url"]).is_file() for picture in ModelCard(card).data.widget)
    weights = load_file(published.folder / "pytorch_lora_weights.safetensors")
    assert {tensor.shape[0] for name, tensor in weights.items() if name.endswith("lora_A.weight")} == {16}
    assert list(store.folder.iterdir()) == [published.folder] and records(tmp_path) == [published.id]


@pytest.fixture
def bare_style(tmp_path) -> Path:
    """The example's pictures without their captions."""
    path = tmp_path / "bare.zip"
    with zipfile.ZipFile(STYLE) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if name.endswith(".png"):
                target.writestr(name, source.read(name))
    return path


def test_a_style_is_learned_from_the_captioners_captions_nearly_as_well_as_from_the_true_ones(
    base, store, bare_style, monkeypatch
):
    monkeypatch.setattr(sheet, "SAMPLING_STEPS", 1)  # what is drawn is not looked at here

    def loss_after(path: Path) -> float:
        request = replace(style_request(finetune_type="lora", training_steps=40), input_images=path)
        published = finetune.finetune(request)
        assert (published.manifest["captioner"] is not None) == (path == bare_style)
        pipeline = base.load_pipeline()
        pipeline.load_lora_weights(published.folder)
        return held_out_loss(base, pipeline.transformer, "line-icons", TRIGGER_WORD)

    before = held_out_loss(base, base.load_transformer(), "line-icons", TRIGGER_WORD)
    with_true, with_automatic = loss_after(STYLE), loss_after(bare_style)
    assert with_true < before  # else the comparison would say nothing
    assert with_automatic <= 1.1 * with_true, f"{before:.4f} before, {with_true:.4f} and {with_automatic:.4f} after"


def test_automatic_captions_are_printed_and_published_and_those_of_the_archive_kept(
    store, bare_style, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(sheet, "SAMPLING_STEPS", 1)  # what is drawn is not looked at here
    caplog.set_level(logging.INFO)
    with zipfile.ZipFile(bare_style, "a") as archive:
        archive.writestr("owl.txt", "my own words")
    request = replace(style_request(training_steps=1), input_images=bare_style)
    first = finetune.finetune(request)
    shutil.rmtree(tmp_path / "jobs")  # else the same request gives the same finetune
    again = finetune.finetune(request)
    assert again.id != first.id
    captions = {path.name: path.read_text() for path in (first.folder / "captions").iterdir()}
    assert len(captions) == 16 and captions["owl.txt"] == f"my own words, {TRIGGER_WORD} style\n"
    for name, caption in captions.items():
        assert caption.endswith(f", {TRIGGER_WORD} style\n") and caption.count(TRIGGER_WORD) == 1
        assert f"Caption of {Path(name).with_suffix('.png')}: {caption.strip()}" in caplog.messages
    assert captions == {path.name: path.read_text() for path in (again.folder / "captions").iterdir()}


def test_captions_that_are_yet_to_be_written_are_part_of_the_job(base):
    def job(captioner: Captioner | None) -> str:
        request = style_request()
        return finetune.job_fingerprint(request, recipe_for(request, base), base, captioner, "the data")

    assert job(None) != job(choose_captioner(base)) == job(choose_captioner(base))


def test_how_the_device_runs_a_job_is_no_part_of_it(base):
    request = style_request()
    recipe = recipe_for(request, base)
    split = replace(recipe, plan=replace(recipe.plan, checkpointed_blocks=3, micro_batch=1, accumulation=4, compiled=True))
    jobs = {finetune.job_fingerprint(request, r, base, None, "the data") for r in (recipe, split)}
    assert len(jobs) == 1
    assert finetune.job_fingerprint(request, replace(recipe, batch_size=8), base, None, "the data") not in jobs


def test_a_distilled_base_is_not_trained(tmp_path, monkeypatch, base):
    folder = tmp_path / "distilled"
    shutil.copytree(base.folder, folder)
    manifest = json.loads((folder / "base.json").read_text())
    (folder / "base.json").write_text(json.dumps(manifest | {"trains": "this one draws in 4 steps. Train flux-emoji."}))
    monkeypatch.setenv("BASE_MODEL", str(folder))
    with pytest.raises(ValueError, match=r"^BASE_MODEL: this one draws in 4 steps\. Train flux-emoji\.$"):
        finetune.finetune(FinetuneRequest(tmp_path / "not-even-opened.zip"))
    assert not left_behind(tmp_path)


def test_photographs_without_captions_need_a_captioner_of_photographs(tmp_path, monkeypatch, base):
    folder = shutil.copytree(base.folder, tmp_path / "photographic")
    manifest = json.loads((folder / "base.json").read_text())
    (folder / "base.json").write_text(json.dumps(manifest | {"name": "photographic", "pictures": "photographs"}))
    monkeypatch.setenv("BASE_MODEL", str(folder))
    monkeypatch.delenv("CAPTION_MODEL", raising=False)
    path = make_archive(
        tmp_path / "one.zip", {"a.png": Image.new("RGB", (40, 30)), "b.png": Image.new("L", (40, 30)), "b.txt": "b"}
    )
    for captioning in ("automatic", "captioning-enabled"):
        with pytest.raises(ValueError, match="^captioning: photographic is for photographs, and .*script/download-weights"):
            finetune.finetune(FinetuneRequest(path, captioning=captioning))
    assert not left_behind(tmp_path)


def test_one_small_image_without_a_caption_is_enough(store, tmp_path):
    path = make_archive(tmp_path / "one.zip", {"holiday/dog.png": Image.new("RGB", (40, 30), "brown")})
    request = FinetuneRequest(path, training_steps=2, captioning="captioning-disabled")
    published = finetune.finetune(request)
    assert (published.folder / "captions" / "holiday" / "dog.txt").read_text() == "TOK\n"


def test_bad_input_is_refused_before_anything_is_loaded_or_written(tmp_path, monkeypatch):
    monkeypatch.setattr(FluxPipeline, "from_pretrained", None)  # nothing may get as far as this
    monkeypatch.setattr(AutoProcessor, "from_pretrained", None)
    path = make_archive(tmp_path / "bare.zip", {"dog.png": Image.new("RGB", (40, 30), "brown")})
    monkeypatch.setenv("CAPTION_MODEL", "nowhere")
    with pytest.raises(ValueError, match="^CAPTION_MODEL: "):
        finetune.finetune(FinetuneRequest(path))
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(ValueError, match="^input_images: "):
        finetune.finetune(FinetuneRequest(tmp_path / "broken.zip"))
    monkeypatch.setitem(tracker.LIBRARIES, "WANDB_PROJECT", "wandb_is_not_here")
    monkeypatch.setenv("WANDB_PROJECT", "portraits")
    with pytest.raises(ValueError, match="^WANDB_PROJECT: "):
        finetune.finetune(style_request())
    assert not left_behind(tmp_path)


class Cancelled(BaseException):
    """As Cog's CancelationException is."""


def records(tmp_path: Path) -> list[str]:
    """The ids that the jobs which are done say they published; nothing else is left of those."""
    jobs = list((tmp_path / "jobs").iterdir())
    assert all({path.name for path in job.iterdir()} == {"published.json", "lock"} for job in jobs)
    return [json.loads((job / "published.json").read_text())["finetune_id"] for job in jobs]


def test_a_cancelled_job_stops_at_once_and_the_same_request_goes_on(store, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sheet, "SAMPLING_STEPS", 1)  # what is drawn is not looked at here
    monkeypatch.setattr("finetuner.training.checkpoint.EVERY_SECONDS", 0)
    request = style_request(training_steps=8, finetune_type="lora")
    steps = []

    def cancelled_in_step_5(*arguments):
        steps.append(1)
        if len(steps) == 5:
            raise Cancelled
        return velocity_errors(*arguments)

    with monkeypatch.context() as cancelling, pytest.raises(Cancelled):
        cancelling.setattr(trainer, "velocity_errors", cancelled_in_step_5)
        finetune.finetune(request)
    assert len(steps) == 5 and not list((tmp_path / "finetunes").glob("*"))
    resumed = finetune.finetune(request)
    assert "Going on from step 4 of 8, where the checkpoint of an earlier run of this job stands" in caplog.messages
    assert records(tmp_path) == [resumed.id]


def test_a_job_publishes_once_wherever_it_dies_and_again_when_its_finetune_is_deleted(store, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sheet, "SAMPLING_STEPS", 1)  # what is drawn is not looked at here
    request = style_request(training_steps=1, finetune_type="lora")

    def die(*_) -> None:
        raise SystemExit

    with monkeypatch.context() as dying, pytest.raises(SystemExit):
        dying.setattr(Checkpoint, "note_published", die)  # between the store and the record
        finetune.finetune(request)
    (published,) = store.listings()
    with monkeypatch.context() as untrained:
        untrained.setattr(finetune, "learn", None)
        assert finetune.finetune(request).id == published.id
        assert records(tmp_path) == [published.id]
        assert finetune.finetune(request).id == published.id  # as when its answer was lost
    assert f"This same job made finetune {published.id} already; nothing is trained again" in caplog.messages
    assert store.listings() == [published]

    store.delete(published.id)
    other = finetune.finetune(request)
    assert other.id != published.id and records(tmp_path) == [other.id]
    assert f"This same job made finetune {published.id}, which is not to be had any more" in caplog.text


def test_who_keeps_account_of_the_jobs_names_the_finetune_and_its_folder(store, tmp_path):
    wanted, figures = "8f14e45f-ceea-467f-a8f0-1d0a1a3f1c2b", []

    def job() -> Checkpoint:
        return Checkpoint(tmp_path / "jobs" / "the job's own")

    request = style_request(training_steps=2, finetune_type="lora", lora_rank=16)
    published = finetune.finetune(request, wanted, job(), lambda values, step: figures.append((step, values)))
    assert published.id == wanted == store.fetch(wanted).id
    assert [step for step, _ in figures] == [1, 2] and figures[0][1].keys() >= {"loss", "images_per_second"}
    assert [path.name for path in (tmp_path / "jobs").iterdir()] == ["the job's own"]
    shutil.rmtree(tmp_path / "jobs")
    assert finetune.finetune(request, wanted, job(), lambda *_: pytest.fail("trained again")).id == wanted
    assert finetune.finetune(request).id != wanted


def test_a_result_that_cannot_be_published_is_kept_and_published_later(store, tmp_path, monkeypatch):
    def seal_and_lose_the_store(*arguments) -> None:
        seal(*arguments)
        store.folder.rmdir()
        store.folder.touch()

    monkeypatch.setattr(finetune, "seal", seal_and_lose_the_store)
    sentence = r"^FINETUNE_STORE: .* could not be written: .* kept in \S*result\. .* python -m finetuner publish \w{64}$"
    with pytest.raises(StoreError, match=sentence):
        finetune.finetune(style_request(training_steps=2))
    (job,) = (tmp_path / "jobs").iterdir()
    with pytest.raises(StoreError, match=sentence):
        finetune.publish(job.name)

    store.folder.unlink()
    monkeypatch.setattr(finetune, "learn", None)  # nothing is trained again
    published = finetune.finetune(style_request(training_steps=2))
    assert list(store.folder.iterdir()) == [published.folder] and records(tmp_path) == [published.id]
    assert store.fetch(published.id).manifest["seconds"]


JOB = """
import sys
from pathlib import Path
import torch
from finetuner import finetune
from finetuner.requests import FinetuneRequest
from finetuner.training import checkpoint
archive, jobs, finetune_type, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
checkpoint.EVERY_SECONDS = 0.2
finetune.JOBS = Path(jobs)
finetune.finetune(FinetuneRequest(Path(archive), training_steps=25, priority="speed", finetune_type=finetune_type))
"""


@pytest.mark.parametrize("finetune_type", ["lora", "full"])
def test_a_killed_job_goes_on_to_the_same_bits(store, tmp_path, monkeypatch, finetune_type):
    request = FinetuneRequest(STYLE, training_steps=25, priority="speed", finetune_type=finetune_type)

    def weights_of(jobs: str) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(finetune, "JOBS", tmp_path / jobs)
        return load_file(finetune.finetune(request).folder / "pytorch_lora_weights.safetensors")

    def checkpoints() -> set[int]:
        return {path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*/checkpoint.pt")}

    through = weights_of("through")
    moments = random.Random(finetune_type)
    for _ in range(2):
        earlier = checkpoints()
        command = [sys.executable, "-c", JOB, STYLE, tmp_path / "killed", finetune_type, str(torch.get_num_threads())]
        with subprocess.Popen(command) as job:
            while checkpoints() <= earlier and job.poll() is None:
                time.sleep(0.01)
            time.sleep(moments.uniform(0, 1))  # it trains, saves a checkpoint, or on the last time perhaps publishes
            job.kill()
    resumed = weights_of("killed")
    assert through.keys() == resumed.keys()
    assert all(torch.equal(through[name], resumed[name]) for name in through)
    assert [path.name for job in (tmp_path / "killed").iterdir() for path in job.iterdir() if path.name != "lock"] == [
        "published.json"
    ]
    assert not list(store.folder.glob(".staging-*"))


def test_the_same_job_gives_the_same_weights_and_another_seed_comes_with_other_inputs(store, tmp_path):
    def train(warm: WarmParts | None = None, **changes) -> dict[str, torch.Tensor]:
        shutil.rmtree(tmp_path / "jobs", ignore_errors=True)  # else the same request gives the same finetune
        request = style_request(training_steps=3, finetune_type="lora", **changes)
        return load_file(finetune.finetune(request, warm=warm).folder / "pytorch_lora_weights.safetensors")

    kept = WarmParts()
    first, again, other, _, warm = train(), train(), train(trigger_word="OTHER"), train(kept), train(kept)
    assert set(kept.parts) == {"text encoders", "VAE", "transformer"}
    assert all(torch.equal(first[name], again[name]) and torch.equal(first[name], warm[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_manifest_is_readable_json(store):
    published = finetune.finetune(style_request(training_steps=1))
    assert json.loads((published.folder / "finetune.json").read_text())["id"] == published.id
