"""Archive in, finetune_id out, image from it: through the real servers."""

import base64
import io
import json
import tarfile
import uuid
import zipfile
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from finetuner.bases.base import Base, choose_base

STYLE = Path(__file__).parents[2] / "examples" / "line-icons.zip"
PROMPT = "a fox on a teal background, LINEICON style"
SHORT = {"training_steps": 4, "priority": "speed", "mode": "style", "trigger_word": "LINEICON"}


def finetune_id_of(response) -> str:
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["status"] == "succeeded", answer.get("error")
    assert uuid.UUID(answer["output"]).version == 4
    return answer["output"]


def error_of(response) -> str:
    assert response.status_code == 200, response.text
    assert response.json()["status"] == "failed"
    return response.json()["error"]


@pytest.fixture(scope="module")
def tar_archive(tmp_path_factory) -> Path:
    """The example's pictures as a tar.gz, in a folder, two of them without a caption."""
    path = tmp_path_factory.mktemp("archives") / "pictures.tar.gz"
    with zipfile.ZipFile(STYLE) as source, tarfile.open(path, "w:gz") as target:
        for name in source.namelist():
            if name in ("owl.txt", "dog.txt"):
                continue
            member = tarfile.TarInfo(f"my pictures/{name}")
            data = source.read(name)
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def documented_finetune(train_server) -> str:
    """The documented example, with every input it has; the archive is ours, and a third of its steps, which take a minute."""
    return finetune_id_of(
        train_server.run(
            mode="general",
            priority="quality",
            lora_rank=32,
            captioning="captioning-disabled",
            input_images=STYLE,
            trigger_word="ABSRTBNGS",
            finetune_type="full",
            training_steps=100,
        )
    )


@pytest.fixture(scope="module")
def short_finetune(train_server, tar_archive) -> str:
    inputs = SHORT | {"finetune_type": "lora", "captioning": "captioning-disabled"}
    return finetune_id_of(train_server.run(input_images=tar_archive, **inputs))


@pytest.fixture(scope="module")
def server_base() -> Base:
    return choose_base()


def folder_of(server, finetune_id: str) -> Path:
    return Path(server.environment["FINETUNE_STORE"]) / finetune_id


def draw(server, finetune_id: str, **inputs) -> bytes:
    defaults = {"prompt": PROMPT, "finetune_id": finetune_id, "seed": 3, "output_format": "png"}
    answer = server.run(**defaults | inputs).json()
    assert answer["status"] == "succeeded", answer.get("error")
    return base64.b64decode(answer["output"].partition(",")[2])


def pixels(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_the_documented_example_ends_in_a_finetune(documented_finetune, train_server):
    manifest = json.loads((folder_of(train_server, documented_finetune) / "finetune.json").read_text())
    assert manifest["inputs"]["training_steps"] == 100 and manifest["recipe"]["finetune_type"] == "full"
    assert len(manifest["losses"]) == 100


def test_a_training_reports_what_it_took(train_server):
    metrics = train_server.run(input_images=STYLE, **SHORT).json()["metrics"]
    assert metrics["train_seconds"] > 0 and metrics["encode_seconds"] > 0 and metrics["train_peak_memory_bytes"] > 1e8


def test_captions_of_a_tar_archive_are_used_and_given_back(short_finetune, train_server):
    captions = folder_of(train_server, short_finetune) / "captions" / "my pictures"
    assert (captions / "fox.txt").exists() is False and (captions / "dog.txt").read_text() == "LINEICON\n"
    assert (captions / "cactus.txt").read_text() == "a cactus on a grey background, LINEICON style\n"


def test_the_same_container_serves_the_trainer_as_predictions(trainer_server):
    finetune_id_of(trainer_server.run(input_images=STYLE, **SHORT))


def test_images_without_captions_are_captioned(train_server, tmp_path):
    path = tmp_path / "bare.zip"
    with zipfile.ZipFile(STYLE) as source, zipfile.ZipFile(path, "w") as target:
        for name in ("owl.png", "pizza.png"):
            target.writestr(name, source.read(name))
    response = train_server.run(input_images=path, captioning="automatic", **SHORT | {"training_steps": 2})
    folder = folder_of(train_server, finetune_id_of(response))
    for stem in ("owl", "pizza"):
        caption = (folder / "captions" / f"{stem}.txt").read_text().strip()
        assert caption.startswith("a") and caption.endswith(" background, LINEICON style")
        assert f"Caption of {stem}.png: {caption}" in response.json()["logs"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"PK\x03\x04 broken", "cut short|damaged"), (b"<html>Sign in</html>", "web page"), (b"", "empty")],
    ids=["broken", "web page", "empty"],
)
def test_what_is_no_archive_fails_with_a_sentence_and_the_server_lives_on(train_server, tmp_path, content, words):
    path = tmp_path / "upload.zip"
    path.write_bytes(content)
    error = error_of(train_server.run(input_images=path, **SHORT))
    assert "input_images: " in error
    assert any(word in error for word in words.split("|")), error


def test_nothing_half_made_is_in_the_store(train_server, short_finetune, documented_finetune):
    store = Path(train_server.environment["FINETUNE_STORE"])
    assert all((folder / "finetune.json").is_file() for folder in store.iterdir())


def test_strength_zero_of_two_finetunes_gives_the_same_bytes(predict_server, documented_finetune, short_finetune):
    first, second = (draw(predict_server, f, finetune_strength=0) for f in (documented_finetune, short_finetune))
    assert first == second


def test_the_image_is_the_one_that_plain_diffusers_makes_of_the_published_files(
    predict_server, documented_finetune, server_base
):
    folder = folder_of(predict_server, documented_finetune)
    pipeline = FluxPipeline.from_pretrained(server_base.folder, dtype=torch.float32)
    pipeline.load_lora_weights(folder)
    plain = pipeline(
        "ABSRTBNGS, a fox",
        width=server_base.sampling_side,
        height=server_base.sampling_side,
        num_inference_steps=40,
        guidance_scale=3.0,
        max_sequence_length=server_base.max_sequence_length,
        generator=torch.Generator().manual_seed(3),
    ).images[0]
    ours = pixels(draw(predict_server, documented_finetune, prompt="ABSRTBNGS, a fox"))
    difference = (torch.tensor(list(ours)).float() - torch.tensor(list(plain.tobytes())).float()).abs()
    assert difference.max() <= 1  # the server's worker may use another number of threads
    assert ours != pixels(draw(predict_server, documented_finetune, prompt="ABSRTBNGS, a fox", finetune_strength=0))


def test_a_custom_size_comes_back_in_that_size_as_jpeg(predict_server, short_finetune):
    data = draw(predict_server, short_finetune, aspect_ratio="custom", width=320, height=256, output_format="jpg")
    image = Image.open(io.BytesIO(data))
    assert image.format == "JPEG" and image.size == (320, 256)


def test_an_unknown_finetune_fails_with_a_sentence_and_the_server_lives_on(predict_server, short_finetune):
    for finetune_id, words in (("my-finetune", "is not an id"), (str(uuid.uuid4()), "there is no finetune")):
        assert words in error_of(predict_server.run(prompt=PROMPT, finetune_id=finetune_id))
    assert draw(predict_server, short_finetune)
