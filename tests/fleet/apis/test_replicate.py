import base64
import time

import pytest
from apis_of_tests import BOB, drawn, job_of, own_a_finetune, wait_for

from fleet.apis.replicate import wait_seconds
from fleet.apis.replicate_models import MODELS, PRO, TRAINER, ULTRA, model_of
from fleet.records import Kind, State

PRO_PATH = "/v1/models/black-forest-labs/flux-pro-finetuned/predictions"
ULTRA_PATH = "/v1/models/black-forest-labs/flux-1.1-pro-ultra-finetuned/predictions"
TRAINER_PATH = "/v1/models/black-forest-labs/flux-pro-trainer/predictions"
ARCHIVE = "https://example.com/photos.zip"


@pytest.fixture
def finetune_id(api) -> str:
    return own_a_finetune(api)


def created(answer) -> dict:
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_the_documented_defaults(api, finetune_id):
    drawing = job_of(api, created(api.post(PRO_PATH, {"input": {"prompt": "a TOK", "finetune_id": finetune_id}}))["id"])
    assert (drawing.kind, drawing.owner, drawing.finetune_id) == (Kind.DRAWING, "ann", finetune_id)
    words = {"finetune_strength": 1, "aspect_ratio": "1:1", "steps": 40, "guidance": 3, "output_format": "jpg"}
    assert drawing.inputs.items() >= (words | {"prompt": "a TOK", "finetune_id": finetune_id}).items()
    training = job_of(api, created(api.post(TRAINER_PATH, {"input": {"input_images": ARCHIVE}}))["id"])
    words = {"training_steps": 300, "trigger_word": "TOK", "mode": "general", "captioning": "automatic", "priority": "quality"}
    assert training.inputs == words | {"input_images": ARCHIVE, "finetune_type": "full", "lora_rank": 32}


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (PRO_PATH, "steps", 51),
        (PRO_PATH, "steps", 0),
        (PRO_PATH, "guidance", 1.9),
        (PRO_PATH, "finetune_strength", 2.1),
        (PRO_PATH, "width", 255),
        (PRO_PATH, "height", 1441),
        (PRO_PATH, "safety_tolerance", 0),
        (PRO_PATH, "aspect_ratio", "21:9"),
        (ULTRA_PATH, "aspect_ratio", "custom"),
        (ULTRA_PATH, "image_prompt_strength", 1.1),
        (ULTRA_PATH, "output_format", "webp"),
        (ULTRA_PATH, "prompt", " "),  # the library's own rules
        (PRO_PATH, "seed", 2**64),
        (PRO_PATH, "aspect_ratio", "custom"),
        (TRAINER_PATH, "trigger_word", "two words"),
        (TRAINER_PATH, "training_steps", 6001),
        (TRAINER_PATH, "lora_rank", 8),
        (TRAINER_PATH, "input_images", "/etc/passwd"),
        (TRAINER_PATH, "input_images", "file:///etc/passwd"),
        (TRAINER_PATH, "input_images", "data:application/zip;base64,%%%"),
        (TRAINER_PATH, "lr", 0.1),
        (PRO_PATH, "num_inference_steps", 20),
        (PRO_PATH, "num_outputs", 2),
        (PRO_PATH, "prompt", None),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_its_field(api, finetune_id, path, field, value):
    whole = {"input_images": ARCHIVE} if path == TRAINER_PATH else {"prompt": "a TOK", "finetune_id": finetune_id}
    answer = api.post(path, {"input": {**whole, field: value}})
    body = answer.json()
    assert answer.status_code == 422 == body["status"] and body["title"] == "Input validation failed"
    named = "width" if value == "custom" and path == PRO_PATH else field
    assert body["invalid_fields"][0]["field"] == f"input.{named}" and named in body["detail"]


def test_null_is_left_out_and_one_picture_is_what_there_is(api, finetune_id):
    sent = {"prompt": "a TOK", "finetune_id": finetune_id, "seed": None, "steps": None, "num_outputs": 1, "shininess": 3}
    job = job_of(api, created(api.post(PRO_PATH, {"input": sent}))["id"])
    assert job.inputs["steps"] == 40 and "seed" not in job.inputs
    assert job.logs == "Not inputs here, so that they change nothing: shininess\n"


def test_a_wait_holds_the_answer_and_says_starting_where_it_is_not_over(api, finetune_id):
    body = {"input": {"prompt": "a TOK", "finetune_id": finetune_id}}
    start = time.monotonic()
    answer = api.post(PRO_PATH, body, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "starting") and 0.4 < time.monotonic() - start < 5
    id = answer.json()["id"]
    wait_for(lambda: api.get(f"/v1/predictions/{id}").json()["status"] == "processing")


@pytest.mark.parametrize(
    ("prefer", "seconds"), [("", None), ("respond-async", None), ("wait", 59), ("wait=10", 9), ("respond-async, wait=1", 0.5)]
)
def test_how_long_a_wait_is(prefer, seconds):
    assert wait_seconds(prefer) == seconds


def test_a_prediction_as_it_goes(api, finetune_id):
    made = created(api.post(PRO_PATH, {"input": {"prompt": "a TOK", "finetune_id": finetune_id}}))
    assert made["urls"]["get"] == f"{api.url}/v1/predictions/{made['id']}" and made["output"] is made["error"] is None
    assert len(made["version"]) == 64 and made["model"] == "black-forest-labs/flux-pro-finetuned"
    picture = drawn(api, made["id"])
    done = api.get(f"/v1/predictions/{made['id']}").json()
    assert done["status"] == "succeeded" and done["metrics"]["predict_time"] >= 0 and done["completed_at"].endswith("Z")
    assert api.ask("GET", done["output"].removeprefix(api.url), key=None).content == picture.read_bytes()
    failed = created(api.post(PRO_PATH, {"input": {"prompt": "a TOK", "finetune_id": finetune_id}}))
    drawn(api, failed["id"], state=State.FAILED, output=None, error="finetune_id: it is damaged.")
    answer = api.get(f"/v1/predictions/{failed['id']}").json()
    assert (answer["status"], answer["error"], answer["output"]) == ("failed", "finetune_id: it is damaged.", None)
    moderated = created(api.post(PRO_PATH, {"input": {"prompt": "a TOK", "finetune_id": finetune_id}}))
    drawn(api, moderated["id"], state=State.FAILED, output=None, error="It shows too much.", moderated=True)
    assert api.get(f"/v1/predictions/{moderated['id']}").json()["error"].startswith("E005: The input or output was flagged")


def test_a_picture_goes_in_the_answer_where_its_address_is_plain_http(api, finetune_id, monkeypatch):
    def wait_on(base: str) -> str:
        import threading

        body = {"input": {"prompt": "a TOK", "finetune_id": finetune_id}}
        headers = {"Prefer": "wait=4", "X-Forwarded-Proto": base}
        known = {job.id for job in api.engine.records.list("ann")}
        threading.Thread(target=lambda: drawn(api, new_one(known)), daemon=True).start()
        return created(api.post(PRO_PATH, body, headers=headers))["output"]

    def new_one(known: set) -> str:
        new: list = []
        wait_for(lambda: new.extend(job.id for job in api.engine.records.list("ann") if job.id not in known) or new)
        return new[0]

    assert wait_on("http").startswith("data:image/png;base64,")
    assert wait_on("https").startswith("https://127.0.0.1")


def test_lists_come_by_page(start_api):
    api = start_api()
    finetune_id = own_a_finetune(api)
    body = {"input": {"prompt": "a TOK", "finetune_id": finetune_id}}
    ids = [created(api.post(PRO_PATH, body))["id"] for _ in range(203)]

    def page(address: str) -> dict:
        return api.ask("GET", address.removeprefix(api.url)).json()

    first = page("/v1/predictions")
    second = page(first["next"])
    third = page(second["next"])
    assert [len(found["results"]) for found in (first, second, third)] == [100, 100, 3]
    assert [made["id"] for found in (first, second, third) for made in found["results"]] == ids[::-1]
    assert first["previous"] is None and third["next"] is None
    assert page(third["previous"]) == second and page(second["previous"]) == first


def test_a_version_alone_is_told_by_its_inputs():
    drawing = {"prompt": "a", "finetune_id": "f"}
    asked = {
        TRAINER: {"input_images": ARCHIVE},
        PRO: drawing | {"aspect_ratio": "custom", "width": 512, "height": 512},
        ULTRA: drawing | {"aspect_ratio": "21:9"},
    }
    for model, sent in asked.items():
        assert model_of("8e3d4f0a", sent) == (model, "8e3d4f0a")
        assert model_of(model.version, {})[0] is model_of(model.id, {})[0] is model_of(f"{model.id}:8e3d", {})[0] is model
    assert model_of("8e3d4f0a", drawing)[0] is PRO and model_of("8e3d4f0a", drawing | {"raw": True})[0] is ULTRA


def test_models_and_versions(api):
    for model in MODELS.values():
        described = api.get(f"/v1/models/{model.id}").json()
        assert described["latest_version"]["id"] == model.version
        schema = api.get(f"/v1/models/{model.id}/versions/8e3d4f0a").json()["openapi_schema"]["components"]["schemas"]
        assert schema["Output"]["type"] == "string" and next(iter(schema["Input"]["properties"])) in ("prompt", "input_images")
        assert api.get(f"/v1/models/{model.id}/versions").json()["results"][0]["id"] == model.version
    assert api.get("/v1/models/stability-ai/sdxl").status_code == 404


def test_a_file_is_sent_once_and_read_by_whoever_does_the_job(api):
    sent = api.ask(
        "POST", "/v1/files", files={"content": ("a b.zip", b"zip", "application/zip")}, data={"metadata": '{"a": 1}'}
    )
    file = created(sent)
    assert (file["name"], file["size"], file["metadata"]) == ("a_b.zip", 3, {"a": 1})
    assert file["urls"]["get"] == f"{api.url}/v1/files/{file['id']}" and api.get(f"/v1/files/{file['id']}").json() == file
    job = job_of(api, created(api.post(TRAINER_PATH, {"input": {"input_images": file["urls"]["get"]}}))["id"])
    with open(job.inputs["input_images"], "rb") as kept:
        assert kept.read() == b"zip"
    assert str(api.folder) not in api.get(f"/v1/predictions/{job.id}").text
    bobs = api.post(TRAINER_PATH, {"input": {"input_images": file["urls"]["get"]}}, key=BOB)
    assert bobs.status_code == 422 and "There is no such thing" in bobs.json()["detail"]
    assert api.get(f"/v1/files/{file['id']}", key=BOB).status_code == 404
    assert api.ask("DELETE", f"/v1/files/{file['id']}").status_code == 204
    assert api.get(f"/v1/files/{file['id']}").status_code == 404


def test_a_data_uri_is_kept_where_every_node_reads_it(api):
    uri = f"data:application/zip;base64,{base64.b64encode(b'zip').decode()}"
    job = job_of(api, created(api.post(TRAINER_PATH, {"input": {"input_images": uri}}))["id"])
    with open(job.inputs["input_images"], "rb") as kept:
        assert kept.read() == b"zip" and job.inputs["input_images"].startswith(str(api.folder))


def test_cancel(api, finetune_id):
    made = created(api.post(PRO_PATH, {"input": {"prompt": "a TOK", "finetune_id": finetune_id}}))
    assert api.post(f"/v1/predictions/{made['id']}/cancel", key=BOB).status_code == 404
    assert api.post(f"/v1/predictions/{made['id']}/cancel").json()["status"] == "canceled"
    assert api.get(f"/v1/predictions/{made['id']}").json()["status"] == "canceled"
