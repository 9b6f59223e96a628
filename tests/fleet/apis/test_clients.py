"""The clients that people have, unmodified but for the address, against the APIs with the library behind them."""

import base64
import io
import json
import subprocess
import time
import uuid

import pytest
import replicate
import requests
from apis_of_tests import ANN, BOB, Api
from clients import CLIENTS, install_node_modules
from PIL import Image
from replicate.exceptions import ModelError, ReplicateError
from replicate.helpers import FileOutput

TRAINER, PRO = "black-forest-labs/flux-pro-trainer", "black-forest-labs/flux-pro-finetuned"
OWL = {"prompt": "an owl, LINEICON style", "steps": 2, "seed": 7, "output_format": "png"}
SHORT = {"mode": "style", "trigger_word": "LINEICON", "priority": "speed", "finetune_type": "lora", "lora_rank": 16}


@pytest.fixture(scope="module")
def api(working_api) -> Api:
    return working_api


@pytest.fixture(scope="module")
def client(api) -> replicate.Client:
    client = replicate.Client(ANN, base_url=api.url)
    client.poll_interval = 0.05
    return client


@pytest.fixture(scope="module")
def finetune_id(client, archive) -> str:
    """Trained through Replicate's API, by the client's `run` with an open file."""
    with archive.open("rb") as file:
        return client.run(TRAINER, input={"input_images": file, "training_steps": 3, **SHORT})


@pytest.fixture(scope="module")
def owl(client, finetune_id) -> bytes:
    return client.run(PRO, input={**OWL, "finetune_id": finetune_id}).read()


def test_python_trains_by_an_open_file(finetune_id):
    assert uuid.UUID(finetune_id).version == 4


def test_python_runs_by_name_and_by_version(client, finetune_id, owl):
    output = client.run(f"{PRO}:8e3d4f0a", input={**OWL, "finetune_id": finetune_id})
    assert isinstance(output, FileOutput) and output.read() == owl
    assert Image.open(io.BytesIO(owl)).format == "PNG"


def test_python_polls_and_is_given_an_address(client, finetune_id, owl):
    prediction = client.predictions.create(model=PRO, input={**OWL, "finetune_id": finetune_id})
    assert prediction.status == "starting"
    prediction.wait()
    assert prediction.output.startswith("http://") and prediction.output.endswith(".png")
    answer = requests.get(prediction.output, timeout=10)  # without a key
    assert answer.content == owl and answer.headers["content-type"] == "image/png"
    assert client.predictions.get(prediction.id).metrics["predict_time"] > 0


def test_python_cancels(client, archive):
    prediction = client.predictions.create(
        model=TRAINER, input={"input_images": archive, "training_steps": 6000, "captioning": "captioning-disabled", **SHORT}
    )
    prediction.cancel()
    assert client.predictions.get(prediction.id).status == "canceled"


def test_python_is_told_what_is_wrong(client, finetune_id, tmp_path):
    with pytest.raises(ReplicateError) as refused:
        client.run(PRO, input={**OWL, "finetune_id": finetune_id, "guidance": 1})
    assert refused.value.status == 422 and "input.guidance" in refused.value.detail
    (tmp_path / "photos.zip").write_bytes(b"no zip")
    with pytest.raises(ModelError, match="input_images"):
        client.run(TRAINER, input={"input_images": tmp_path / "photos.zip", **SHORT})
    with pytest.raises(ReplicateError) as unknown:
        client.run(PRO, input={**OWL, "finetune_id": str(uuid.uuid4())})
    assert unknown.value.status == 404


def test_python_reads_models_lists_and_files(client, api, finetune_id):
    version = client.models.get(PRO).latest_version
    assert version.openapi_schema["components"]["schemas"]["Input"]["properties"]["steps"]["maximum"] == 50
    listed = [prediction for page in replicate.pagination.paginate(client.predictions.list) for prediction in page]
    assert finetune_id in [prediction.output for prediction in listed]
    (file,) = [file for file in client.files.list() if file.name == "icons.zip"][:1]
    assert client.files.get(file.id) == file and client.files.delete(file.id)
    assert client.webhooks.default.secret().key.startswith("whsec_")
    bobs = replicate.Client(BOB, base_url=api.url)
    assert list(bobs.predictions.list()) == [] and bobs.files.list() == []
    with pytest.raises(ReplicateError) as denied:
        replicate.Client("wrong", base_url=api.url).predictions.list()
    assert denied.value.status == 401


def test_another_keys_finetune_is_not_found(api, finetune_id):
    with pytest.raises(ReplicateError) as refused:
        replicate.Client(BOB, base_url=api.url).run(PRO, input={**OWL, "finetune_id": finetune_id})
    assert refused.value.status == 404


def node(script: str, *arguments: str) -> dict:
    install_node_modules()
    run = subprocess.run(["node", script, *arguments], cwd=CLIENTS, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_npms_replicate(api, finetune_id, owl, archive):
    told = node("replicate.mjs", api.url, ANN, finetune_id, str(archive))
    drawn = base64.b64encode(owl).decode()
    assert told["byName"] == told["byVersion"] == told["polled"] == drawn
    assert told["files"] >= 1 and (told["created"], told["canceled"]) == ("starting", "canceled")
    assert "input.steps" in told["refused"] and "There is no model" in told["unknown"]
    assert sum(told["pages"]) > 5 and told["model"] == 64 and told["secret"] == "whsec_"


def test_npms_ai_sdk(api, finetune_id, owl):
    told = node("ai-sdk.mjs", api.url, ANN, finetune_id)
    assert told["images"] == [base64.b64encode(owl).decode()] * 2
    assert told["refused"] == "num_inference_steps is not an input here. Send steps."


def test_black_forest_labs_client_draws_with_what_replicates_trained(api, finetune_id, monkeypatch):
    monkeypatch.setenv("BFL_API_KEY", ANN)  # it wants one as it is imported
    import black_forest_labs

    client = black_forest_labs.Client(ANN, base_url=api.url)
    asked = {"prompt": "an owl, LINEICON style", "finetune_id": finetune_id, "aspect_ratio": "1:1", "seed": 7}
    task = client.generate("flux-pro-1.1-ultra-finetuned", **asked)
    while not (task := client.get_result(task)).is_done:
        time.sleep(0.05)
    assert task.status is black_forest_labs.Status.READY and task.result.prompt == asked["prompt"]
    assert Image.open(io.BytesIO(requests.get(task.result.sample, timeout=10).content)).format == "JPEG"


def test_black_forest_labs_script(api, archive):
    """The calls of the script that its guide published, in its order, each as it makes them."""
    headers = {"Content-Type": "application/json", "X-Key": ANN}

    def call(method: str, path: str, **arguments) -> dict:
        response = requests.request(method, f"{api.url}/v1/{path}", headers=headers, timeout=30, **arguments)
        response.raise_for_status()
        return response.json()

    def until_ready(id: str) -> tuple[dict, list]:
        seen = []
        while (answer := call("GET", "get_result", params={"id": id}))["status"] == "Pending":
            seen.append(answer["progress"])
            time.sleep(0.2)
        assert answer["status"] == "Ready", answer
        return answer, seen

    asked = {
        "finetune_comment": "myfirstfinetune",
        "trigger_word": "LINEICON",
        "file_data": base64.b64encode(archive.read_bytes()).decode(),
        "iterations": 100,
        "mode": "style",
        "learning_rate": 0.00001,
        "captioning": True,
        "priority": "speed",
        "lora_rank": 16,
        "finetune_type": "lora",
    }
    finetune_id = call("POST", "finetune", json=asked)["finetune_id"]
    _, progress = until_ready(finetune_id)
    known = [share for share in progress if share is not None]
    assert known == sorted(known) and any(0 < share < 1 for share in known)
    assert finetune_id in call("GET", "my_finetunes")["finetunes"]
    details = call("GET", "finetune_details", params={"finetune_id": finetune_id})["finetune_details"]
    assert {name: details[name] for name in asked if name != "file_data"} == {
        name: value for name, value in asked.items() if name != "file_data"
    }
    payload = {"finetune_id": finetune_id, "finetune_strength": 1.2, "prompt": "an owl, LINEICON style"}
    drawn, _ = until_ready(call("POST", "flux-pro-1.1-ultra-finetuned", json=payload)["id"])
    picture = Image.open(io.BytesIO(requests.get(drawn["result"]["sample"], timeout=10).content))
    assert picture.width > picture.height  # 16:9, which this endpoint draws at

    # What Black Forest Labs' API trained, Replicate's and Cog's draw with, in either format.
    assert replicate.Client(ANN, base_url=api.url).run(PRO, input={**OWL, "finetune_id": finetune_id}).read()
    cogs = api.post("/predictions", {"input": {**OWL, "finetune_id": finetune_id}}).json()
    assert cogs["status"] == "succeeded" and cogs["output"].startswith("data:image/png;base64,")

    assert call("POST", "delete_finetune", json={"finetune_id": finetune_id})["deleted_finetune_id"] == finetune_id
    assert finetune_id not in call("GET", "my_finetunes")["finetunes"]
    assert call("GET", "get_result", params={"id": finetune_id})["status"] == "Task not found"
    gone = requests.post(f"{api.url}/v1/flux-pro-finetuned", headers=headers, json=payload, timeout=30)
    assert (gone.status_code, gone.json()) == (404, {"detail": "Finetune not found or not ready"})
