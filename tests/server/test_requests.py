"""What clients really send, to the real servers: null, foreign names, odd ids and seeds, the other endpoint, long prompts."""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from helpers import publish
from local_server import free_port
from PIL import Image

from benchmarks.adapters import random_adapter
from finetuner.requests import ImageRequest
from finetuner.store import FolderStore

PROJECT = Path(__file__).parents[2]
NOBODY = "00000000-0000-4000-8000-000000000000"
NO_ARCHIVE = "data:application/zip;base64," + base64.b64encode(b"<html>").decode()


@pytest.fixture(scope="module")
def finetune_id(predict_server, base) -> str:
    store = FolderStore(Path(predict_server.environment["FINETUNE_STORE"]))
    return publish(store, base, random_adapter(base.load_transformer(), 16, 1), 16)


def draw(server, **inputs) -> dict:
    answer = server.run(**{"prompt": "TOK", "steps": 1, "seed": 5} | inputs).json()
    assert answer["status"] == "succeeded", answer
    return answer


def failure(response) -> str:
    assert response.status_code == 200 and response.json()["status"] == "failed", response.text
    return response.json()["error"]


def refusals(response) -> dict[str, str]:
    assert response.status_code == 422, response.text
    return {error["loc"][-1]: error["msg"] for error in response.json()["detail"]}


def test_a_tolerance_changes_no_byte_and_the_answer_says_the_score(predict_server, finetune_id):
    default, lenient = (draw(predict_server, finetune_id=finetune_id, safety_tolerance=level) for level in (2, 6))
    assert default["output"] == lenient["output"]
    assert 0 <= default["metrics"]["safety_score"] < 0.2 and "safety_tolerance 2 lets 0.5 pass" in default["logs"]


def test_the_raw_look_is_refused_by_a_base_of_emoji(predict_server, finetune_id):
    error = failure(predict_server.run(prompt="TOK", finetune_id=finetune_id, raw=True))
    assert "raw: makes photographs look candid, and flux-emoji draws emoji. Send false." in error


def test_null_is_left_out_of_a_prediction(predict_server, finetune_id):
    optional = set(ImageRequest.__dataclass_fields__) - {"prompt", "finetune_id", "steps", "seed"}
    left_out, null = (draw(predict_server, finetune_id=finetune_id, **sent) for sent in ({}, dict.fromkeys(optional)))
    assert null["output"] == left_out["output"]
    assert "Seed: " in draw(predict_server, finetune_id=finetune_id, seed=None)["logs"]
    assert "50/50" not in draw(predict_server, finetune_id=finetune_id, steps=None)["logs"]


def test_an_image_prompt_as_a_data_uri_takes_part_by_its_strength(predict_server, finetune_id, tmp_path):
    Image.new("RGB", (80, 60), (125, 65, 175)).save(tmp_path / "purple.png")
    uri = "data:image/png;base64," + base64.b64encode((tmp_path / "purple.png").read_bytes()).decode()
    without, none, some, all_of_it = (
        draw(predict_server, finetune_id=finetune_id, **sent)["output"]
        for sent in ({}, *({"image_prompt": uri, "image_prompt_strength": strength} for strength in (0, 0.3, 1)))
    )
    assert none == without and len({without, some, all_of_it}) == 3
    answer = draw(predict_server, finetune_id=finetune_id, image_prompt=uri)
    assert "Image prompt: " in answer["logs"] and answer["metrics"]["image_prompt_cache_hit"] is True
    assert "image_prompt_cache_hit" not in draw(predict_server, finetune_id=finetune_id)["metrics"]


def test_an_image_prompt_that_is_none_is_refused_in_a_sentence(predict_server, finetune_id):
    sent = {"prompt": "TOK", "finetune_id": finetune_id, "image_prompt": NO_ARCHIVE}
    assert "image_prompt: is not an image that can be read here" in failure(predict_server.run(**sent))


def test_an_upsampled_prompt_is_in_the_log_and_false_changes_nothing(predict_server, finetune_id):
    asked = {"finetune_id": finetune_id, "prompt": "a fox on teal, TOK style"}
    plain, false, longer = (
        draw(predict_server, **asked, **sent) for sent in ({}, {"prompt_upsampling": False}, {"prompt_upsampling": True})
    )
    assert plain["output"] == false["output"] != longer["output"]
    assert "Prompt, upsampled by emoji-captioner: an illustration of a fox on a teal background, TOK style" in longer["logs"]


@pytest.mark.parametrize("server", ["train_server", "trainer_server"])
def test_null_is_left_out_of_a_training(request, server):
    optional = (
        "training_steps",
        "trigger_word",
        "mode",
        "learning_rate",
        "captioning",
        "priority",
        "finetune_type",
        "lora_rank",
    )
    error = failure(request.getfixturevalue(server).run(input_images=NO_ARCHIVE, **dict.fromkeys(optional)))
    assert "input_images: " in error and "web page" in error  # it came as far as the archive


def test_null_for_what_must_be_given_is_refused(predict_server, train_server):
    assert set(refusals(predict_server.run(prompt=None, finetune_id=NOBODY))) == {"prompt"}
    assert set(refusals(train_server.run(input_images=None))) == {"input_images"}


@pytest.mark.parametrize(
    ("sent", "ours"),
    [
        ("lora_scale", "finetune_strength"),
        ("num_inference_steps", "steps"),
        ("guidance_scale", "guidance"),
        ("finetuneId", "finetune_id"),
        ("aspect-ratio", "aspect_ratio"),
        ("negative_prompt", "prompt"),
    ],
)
def test_the_name_of_another_tool_is_refused_with_ours(predict_server, sent, ours):
    told = refusals(predict_server.run(prompt="TOK", finetune_id=NOBODY, **{sent: 1}))
    assert set(told) == {sent} and f"{sent} is not an input here." in told[sent] and f" {ours}" in told[sent]


@pytest.mark.parametrize("server", ["train_server", "trainer_server"])
@pytest.mark.parametrize(
    ("sent", "ours"),
    [("training_step", "training_steps"), ("steps", "training_steps"), ("rank", "lora_rank"), ("resolution", "priority")],
)
def test_a_mistyped_training_input_is_refused_before_it_costs_a_training(request, server, sent, ours):
    told = refusals(request.getfixturevalue(server).run(input_images=NO_ARCHIVE, **{sent: 3000}))
    assert set(told) == {sent} and f"Send {ours}" in told[sent]


def test_the_log_says_what_a_request_runs_with(predict_server, train_server, finetune_id):
    """Cog drops a field of any other name before we are asked: what counts instead is what the log says."""
    assert "steps 1, guidance 3" in draw(predict_server, finetune_id=finetune_id, bogus=1)["logs"]


def test_the_other_endpoint_gets_a_sentence(predict_server, train_server):
    for server, endpoint, words in (
        (predict_server, "trainings", "makes images: POST /predictions"),
        (train_server, "predictions", "trains: POST /trainings"),
    ):
        for inputs in ({}, {"input_images": NO_ARCHIVE, "prompt": "TOK", "finetune_id": NOBODY}):
            response = requests.post(f"{server.url}/{endpoint}", json={"input": inputs}, timeout=10)
            assert words in refusals(response)["__root__"]


@pytest.mark.parametrize("around", ["{}\n", '"{}"', ' "{}"\r\n', "{{{}}}", "urn:uuid:{}", "\ufeff{}\u00a0"])
def test_an_id_is_taken_out_of_what_stands_around_it(predict_server, finetune_id, around):
    assert draw(predict_server, finetune_id=around.format(finetune_id.upper()))["metrics"]["adapter_cache_hit"] is True


@pytest.mark.parametrize("seed", ["-9223372036854775808", "18446744073709551615", "0", "7.0", "-0.0", "9007199254740993"])
def test_a_seed_is_taken_as_it_was_sent(predict_server, finetune_id, seed):
    answer = post_text(
        predict_server, f'{{"prompt": "TOK", "steps": 1, "finetune_id": "{finetune_id}", "seed": {seed}}}'
    ).json()
    assert answer["status"] == "succeeded" and f"Seed: {int(seed.removesuffix('.0'))}\n" in answer["logs"]


@pytest.mark.parametrize("seed", ["-9223372036854775809", "18446744073709551616", "1e30", "1e18", "9007199254740993.0"])
def test_a_seed_that_does_not_arrive_as_it_was_sent_is_refused(predict_server, finetune_id, seed):
    body = f'{{"prompt": "TOK", "finetune_id": "{finetune_id}", "seed": {seed}}}'
    assert "seed: " in failure(post_text(predict_server, body))


@pytest.mark.parametrize(
    ("field", "value"), [("seed", "true"), ("seed", "3.5"), ("finetune_strength", "true"), ("steps", "false")]
)
def test_what_is_no_number_is_refused_by_its_name(predict_server, field, value):
    body = f'{{"prompt": "TOK", "finetune_id": "{NOBODY}", "{field}": {value}}}'
    assert set(refusals(post_text(predict_server, body))) == {field}


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_what_json_has_no_number_for_is_refused(predict_server, value):
    response = post_text(predict_server, f'{{"prompt": "TOK", "finetune_id": "{NOBODY}", "guidance": {value}}}')
    assert response.status_code == 400 and "input.guidance" in response.text


def post_text(server, inputs: str) -> requests.Response:
    """As `Server.run`, but the numbers stand as they are written."""
    for _ in range(100):
        body = f'{{"input": {inputs}}}'
        response = requests.post(server.endpoint, body, headers={"Content-Type": "application/json"}, timeout=60)
        if response.status_code != 409:
            break
        time.sleep(0.05)
    return response


def test_a_prompt_of_any_length_is_drawn_and_what_is_not_read_is_said(predict_server, finetune_id):
    prompt = "fox " * 16_500 + "TOK"
    logs = draw(predict_server, finetune_id=finetune_id, prompt=prompt, output_format="jpg")["logs"]
    assert "prompt: the text encoder reads the first " in logs and f"of its {len(prompt)} characters" in logs
    assert "lacks the trigger word" in logs  # where it stands, it is not read
    assert "do not fit into a JPEG's metadata" in logs
    assert "prompt: " not in draw(predict_server, finetune_id=finetune_id, prompt="TOK" + "狐" * 11_000)["logs"]


URI = b"PK\x03\x04 broken?>\xff"  # its base64 has +, / and =


@pytest.mark.parametrize(
    "uri",
    [
        "data:application/zip;base64,{plain}",
        "data:;base64,{plain}",
        "data:application/zip;charset=utf-8;base64,{plain}",
        "data:application/zip;name=a.zip;BASE64,{plain}",
        "data:application/zip;base64,{urlsafe}",
        "data:application/zip;base64,{unpadded}",
        "data:application/zip;base64,{quoted}",
        "data:application/zip;base64,{wrapped}\n",
        "DATA:application/zip;base64,{plain}",
        "  data:application/zip;base64,{plain}",
        "data:application/zip,{percent}",
    ],
)
@pytest.mark.parametrize("server", ["train_server"])
def test_a_data_uri_is_read_in_every_spelling(request, server, uri):
    plain = base64.b64encode(URI).decode()
    spelt = uri.format(
        plain=plain,
        urlsafe=base64.urlsafe_b64encode(URI).decode(),
        unpadded=plain.rstrip("="),
        quoted=requests.utils.quote(plain, safe=""),
        wrapped="\r\n".join([plain[:5], plain[5:]]),
        percent=requests.utils.quote(URI, safe=""),
    )
    error = failure(request.getfixturevalue(server).run(input_images=spelt))
    assert "input_images: " in error and ("cut short" in error or "damaged" in error), error  # what a broken zip is told


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("data:application/zip;base64", "has no comma"),
        ("data:application/zip;base64,UEs$DBBQ", "no base64"),
        ("data:application/zip;base64,UEsDB", "cut short: 5 characters"),
        ("UEsDBBQA", "not an address"),
    ],
)
def test_a_data_uri_that_cannot_be_read_is_refused_by_its_field(train_server, uri, words):
    error = failure(train_server.run(input_images=uri))
    assert "input_images: " in error and words in error


def test_cog_reads_the_schema_after_the_entrypoint_has_completed_it(tmp_path):
    """The document that Cog's own generator wrote, as a container holds it, and a server that is nothing but inputs."""
    shutil.copytree(PROJECT / "entrypoints", tmp_path / "entrypoints")
    source = (PROJECT / "tests/cog_example.py").read_text()
    completing = "from entrypoints.interface import complete_schema\ncomplete_schema(trains=False)\n"
    answering = "return repr((width, image_prompt, finetune_strength))"
    start = source.replace("-> Path:\n        raise NotImplementedError", f"-> str:\n        {answering}")
    (tmp_path / "example.py").write_text(start.replace("\n\nclass", f"\n\n{completing}\n\nclass", 1))
    (tmp_path / ".cog").mkdir()
    shutil.copy(PROJECT / "tests/cog_example.json", tmp_path / ".cog/openapi_schema.json")
    port = str(free_port())
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PORT": port,
        "PYTHONPATH": str(PROJECT),  # the library
        "COG_PREDICT_TYPE_STUB": "example.py:Predictor",
    }
    command = [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        inputs = {"prompt": "TOK", "finetune_id": "x", "width": None, "image_prompt": None, "finetune_strength": None}
        answer = answer_when_ready(server, f"http://127.0.0.1:{port}/predictions", inputs, tmp_path / "log")
        assert answer["output"] == repr((None, None, None))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)
    properties = json.loads((tmp_path / ".cog/openapi_schema.json").read_text())["components"]["schemas"]["Input"]["properties"]
    assert "const" in properties["lora_scale"]


def answer_when_ready(server: subprocess.Popen, url: str, inputs: dict, log: Path) -> dict:
    deadline = time.monotonic() + 30
    while server.poll() is None and time.monotonic() < deadline:
        try:
            response = requests.post(url, json={"input": inputs}, timeout=10)
            if response.status_code == 200:
                return response.json()
            assert response.status_code in (409, 503), response.text
        except requests.ConnectionError:
            pass
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-3000:])


def test_a_train_server_that_cannot_serve_fails_its_setup_with_a_sentence(start_server, tmp_path):
    (tmp_path / "finetunes").touch()
    with pytest.raises(RuntimeError, match=r"SETUP_FAILED, not ready(.|\n)*FINETUNE_STORE: \S*finetunes could not be written"):
        start_server("train", FINETUNE_STORE=str(tmp_path / "finetunes"))
