import base64

import pytest
import requests
from apis_of_tests import ANN, BOB, drawn, job_of, own_a_finetune

from fleet.apis.bfl_inputs import shape_of
from fleet.apis.front import Served
from fleet.records import State

ZIP = base64.b64encode(b"zip").decode()
TRAINING = {"file_data": ZIP, "finetune_comment": "mine", "mode": "style"}


@pytest.fixture
def finetune_id(api) -> str:
    return own_a_finetune(api)


def test_the_key_is_read_in_any_case(api):
    for name in ("x-key", "X-Key", "X-KEY"):
        assert requests.get(f"{api.url}/v1/my_finetunes", headers={name: ANN}, timeout=10).status_code == 200
    for headers in ({}, {"x-key": "wrong"}):
        answer = requests.get(f"{api.url}/v1/my_finetunes", headers=headers, timeout=10)
        assert answer.status_code == 403 and "Not authenticated" in answer.json()["detail"]


def test_a_training_in_the_librarys_words(api):
    answer = api.post("/v1/finetune", {**TRAINING, "iterations": 150, "captioning": False, "learning_rate": None, "extra": 1})
    told = answer.json()
    assert answer.status_code == 200 and told["finetune_id"] == told["id"]
    job = api.engine.records.training_of(told["id"])
    words = {"training_steps": 150, "captioning": "captioning-disabled", "trigger_word": "TOK", "mode": "style"}
    assert job.inputs.items() >= words.items() and job.inputs["learning_rate"] is None
    with open(job.inputs["input_images"], "rb") as kept:
        assert kept.read() == b"zip"
    details = api.get(f"/v1/finetune_details?finetune_id={told['id']}").json()["finetune_details"]
    assert (details["finetune_comment"], details["captioning"], details["iterations"]) == ("mine", False, 150)


def test_the_endpoints_own_defaults(api, finetune_id):
    def inputs(path: str, **sent) -> dict:
        answer = api.post(f"/v1/{path}", {"prompt": "a TOK", "finetune_id": finetune_id, **sent})
        assert answer.status_code == 200, answer.text
        assert answer.json()["polling_url"] == f"{api.url}/v1/get_result?id={answer.json()['id']}"
        return job_of(api, answer.json()["id"]).inputs

    pro = {"finetune_strength": 1.1, "aspect_ratio": "custom", "width": 1024, "height": 768, "steps": 40, "guidance": 2.5}
    assert inputs("flux-pro-finetuned").items() >= (pro | {"output_format": "jpg"}).items()
    ultra = inputs("flux-pro-1.1-ultra-finetuned")
    assert ultra.items() >= {"finetune_strength": 1.2, "aspect_ratio": "16:9", "output_format": "jpg"}.items()
    assert not {"width", "guidance"} & ultra.keys()
    assert inputs("flux-pro-finetuned", output_format="png", guidance=1.5)["guidance"] == 1.5


def test_a_base_with_a_guidance_of_its_own_keeps_it(start_api):
    api = start_api(served=Served("FLUX.2-klein-base-4B", guidance_is_documented=False))
    sent = {"prompt": "a TOK", "finetune_id": own_a_finetune(api)}
    assert "guidance" not in job_of(api, api.post("/v1/flux-pro-finetuned", sent).json()["id"]).inputs
    by_name = job_of(api, api.post("/v1/flux-2-klein-base-4b-finetuned", sent | {"width": 512, "height": 768}).json()["id"])
    assert (by_name.inputs["aspect_ratio"], by_name.inputs["finetune_strength"]) == ("custom", 1)
    other = api.post("/v1/flux-2-klein-9b-finetuned", sent)
    assert other.status_code == 422 and "FLUX.2-klein-base-4B alone" in other.json()["detail"][0]["msg"]


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("finetune", "iterations", 99),
        ("finetune", "iterations", 1001),
        ("finetune", "lora_rank", 64),
        ("finetune", "learning_rate", 0.01),
        ("finetune", "mode", "none"),
        ("finetune", "file_data", "%%%"),
        ("finetune", "finetune_comment", None),
        ("flux-pro-finetuned", "width", 1000),
        ("flux-pro-finetuned", "height", 224),
        ("flux-pro-finetuned", "guidance", 1.4),
        ("flux-pro-finetuned", "steps", 51),
        ("flux-pro-finetuned", "safety_tolerance", 7),
        ("flux-pro-finetuned", "output_format", "jpg"),
        ("flux-pro-finetuned", "prompt", None),  # "" is this API's default, and nothing to draw
        ("flux-pro-1.1-ultra-finetuned", "aspect_ratio", "22:9"),
        ("flux-pro-1.1-ultra-finetuned", "aspect_ratio", "9:22"),
        ("flux-pro-1.1-ultra-finetuned", "aspect_ratio", "wide"),
        ("flux-pro-1.1-ultra-finetuned", "image_prompt_strength", -0.1),
        ("flux-pro-1.1-ultra-finetuned", "finetune_strength", 2.1),
    ],
)
def test_what_is_out_of_bounds_is_refused_by_its_field(api, finetune_id, path, field, value):
    whole = TRAINING if path == "finetune" else {"prompt": "a TOK", "finetune_id": finetune_id}
    answer = api.post(f"/v1/{path}", {**whole, field: value})
    assert answer.status_code == 422 and answer.json()["detail"][0]["loc"] == ["body", field]
    assert {"loc", "msg", "type"} == answer.json()["detail"][0].keys()


@pytest.mark.parametrize("endpoint", ["fill", "canny", "depth"])
def test_what_another_base_would_do_is_said(api, finetune_id, endpoint):
    answer = api.post(f"/v1/flux-pro-1.0-{endpoint}-finetuned", {"finetune_id": finetune_id, "prompt": "a"})
    assert answer.status_code == 422 and "draws with flux-emoji alone" in answer.json()["detail"][0]["msg"]


@pytest.mark.parametrize(
    ("ratio", "shape"),
    [
        ("16:9", {"aspect_ratio": "16:9"}),
        ("32:18", {"aspect_ratio": "16:9"}),
        ("7:5", {"aspect_ratio": "custom", "width": 1216, "height": 864}),
        ("20:9", {"aspect_ratio": "custom", "width": 1440, "height": 640}),
        ("9:20", {"aspect_ratio": "custom", "width": 640, "height": 1440}),
    ],
)
def test_a_shape_without_a_name_is_a_size(ratio, shape):
    assert shape_of(ratio) == shape


def test_a_task_as_it_goes(api, finetune_id):
    sent = {"prompt": "a TOK", "finetune_id": finetune_id, "webhook_url": "https://example.com/hook"}
    told = api.post("/v1/flux-pro-finetuned", sent).json()
    assert (told["status"], told["webhook_url"]) == ("Pending", "https://example.com/hook")
    result = lambda **arguments: api.get(f"/v1/get_result?id={told['id']}", **arguments).json()  # noqa: E731
    assert (result()["status"], result()["result"]) == ("Pending", None)
    picture = drawn(api, told["id"])
    done = result(key=None)  # an id cannot be guessed
    assert (done["status"], done["progress"]) == ("Ready", 1.0)
    assert done["result"].items() >= {"prompt": "a TOK", "seed": 3}.items()
    assert requests.get(done["result"]["sample"], timeout=10).content == picture.read_bytes()
    assert result(key=BOB)["status"] == "Task not found"
    assert api.get("/v1/get_result?id=nothing").json()["status"] == "Task not found"


@pytest.mark.parametrize(("moderated", "status"), [(False, "Error"), (True, "Content Moderated")])
def test_a_task_without_a_picture(api, finetune_id, moderated, status):
    told = api.post("/v1/flux-pro-finetuned", {"prompt": "a TOK", "finetune_id": finetune_id}).json()
    drawn(api, told["id"], state=State.FAILED, output=None, error="It cannot be drawn.", moderated=moderated)
    answer = api.get(f"/v1/get_result?id={told['id']}").json()
    assert (answer["status"], answer["result"], answer["details"]["error"]) == (status, None, "It cannot be drawn.")


def test_a_finetune_that_is_not_there_or_not_ready(api):
    pending = api.post("/v1/finetune", TRAINING).json()["finetune_id"]
    for id in (pending, "nothing", own_a_finetune(api, "bob")):
        answer = api.post("/v1/flux-pro-finetuned", {"prompt": "a TOK", "finetune_id": id})
        assert (answer.status_code, answer.json()) == (404, {"detail": "Finetune not found or not ready"})
        assert api.post("/v1/delete_finetune", {"finetune_id": id}).status_code == 404
    bobs = own_a_finetune(api, "bob")
    assert api.get(f"/v1/finetune_details?finetune_id={bobs}").status_code == 404
    assert bobs not in api.get("/v1/my_finetunes").json()["finetunes"]
