"""Who may, how much, and what is told to whom."""

import http.client
import io
import logging
import re

import pytest
import requests
from apis_of_tests import ANN, BOB, Api, drawn, own_a_finetune

from fleet.apis import bodies, host
from fleet.apis.app import public_url
from fleet.keys import Keys, sha256
from fleet.records import Limits

PRO_PATH = "/v1/models/black-forest-labs/flux-pro-finetuned/predictions"


def drawing(api: Api, finetune_id: str, key: str = ANN) -> requests.Response:
    return api.post(PRO_PATH, {"input": {"prompt": "a TOK", "finetune_id": finetune_id}}, key=key)


def test_nothing_is_told_without_a_key(api):
    document = api.get("/openapi.json", key=None).json()
    asked = 0
    for path, methods in document["paths"].items():
        for method in methods:
            if path in ("/healthz", "/results/{job_id}/{signed}/{name}", "/v1/get_result"):
                continue
            body = {"input": {"prompt": "a", "finetune_id": "f", "input_images": "https://a/b.zip"}, "version": "v"}
            body |= {"finetune_id": "f", "prompt": "a", "file_data": "", "finetune_comment": "", "mode": "style"}
            sent = {"files": {"content": b"x"}} if path == "/v1/files" and method == "post" else {"json": body}
            answer = api.ask(method, path, key="wrong", params={"finetune_id": "f"}, **sent)
            assert answer.status_code in (401, 403), (method, path, answer.text)
            asked += 1
    assert asked > 25


def test_anothers_things_are_not_found(api):
    finetune_id = own_a_finetune(api)
    made = drawing(api, finetune_id).json()
    for path in (f"/v1/predictions/{made['id']}", f"/predictions/{made['id']}"):
        assert api.get(path).status_code == 200
        assert api.get(path, key=BOB).status_code == api.get(f"{path}x").status_code == 404
        assert api.get(path, key=BOB).text == api.get(f"{path}x").text
    assert drawing(api, finetune_id, key=BOB).status_code == 404


def test_a_result_is_read_without_a_key_and_by_its_own_address_alone(api):
    made = drawing(api, own_a_finetune(api)).json()
    drawn(api, made["id"])
    url = api.get(f"/v1/predictions/{made['id']}").json()["output"]
    assert requests.get(url, timeout=10).status_code == 200
    _, _, _, _, id, signed, name = url.split("/")
    other = drawing(api, own_a_finetune(api)).json()["id"]
    drawn(api, other)
    expired = api.engine.settings.folder, signed.split("-")[1]
    for wrong in (f"{id}/{signed[:-1]}/{name}", f"{other}/{signed}/{name}", f"{id}/1-{expired[1]}/{name}"):
        assert requests.get(f"{api.url}/results/{wrong}", timeout=10).status_code == 404


def test_a_picture_of_ours_is_an_image_prompt_by_its_address(api):
    """The library has no image prompts yet: that the sentence is about them, and not about the address, is what is seen."""
    made = drawing(api, own_a_finetune(api)).json()
    drawn(api, made["id"])
    url = api.get(f"/v1/predictions/{made['id']}").json()["output"]
    for sent, said in ((url, "image_prompt"), (f"{api.url}/results/x/y/z.png", "There is no such thing")):
        body = {"input": {"prompt": "a TOK", "finetune_id": own_a_finetune(api), "image_prompt": sent}}
        answer = api.post(PRO_PATH, body)
        assert answer.status_code in (201, 422) and said in answer.text


def test_a_full_queue_says_when_to_come_again(start_api):
    api = start_api(limits=Limits(queue=3, drawings=2))
    finetune_id, bobs = own_a_finetune(api), own_a_finetune(api, "bob")
    assert [drawing(api, finetune_id).status_code for _ in range(3)] == [201, 201, 429]
    full = drawing(api, finetune_id)
    assert int(full.headers["Retry-After"]) > 0 and "2 unfinished drawings" in full.json()["detail"]
    assert [drawing(api, bobs, key=BOB).status_code for _ in range(2)] == [201, 429]
    bfl = api.post("/v1/flux-pro-finetuned", {"prompt": "a", "finetune_id": finetune_id})
    assert bfl.status_code == 429 and bfl.headers["Retry-After"]


def test_uploads_have_a_quota(start_api, monkeypatch):
    monkeypatch.setenv("UPLOAD_QUOTA_GB", "0.000001")
    api = start_api()
    send = lambda size: api.ask("POST", "/v1/files", files={"content": io.BytesIO(b"x" * size)})  # noqa: E731
    assert [send(600).status_code, send(600).status_code, send(300).status_code] == [201, 429, 201]


def test_a_body_that_is_too_large_is_refused_as_it_comes(api, monkeypatch):
    monkeypatch.setattr(bodies, "JSON_BYTES", 1 << 20)
    assert api.ask("POST", "/v1/finetune", data=b"x" * (2 << 20)).status_code == 413
    connection = http.client.HTTPConnection(api.url.removeprefix("http://"), timeout=10)
    chunks = (b"x" * 65536 for _ in range(64))  # no Content-Length says what comes
    connection.request("POST", "/v1/finetune", chunks, {"x-key": ANN, "Content-Type": "application/json"}, encode_chunked=True)
    assert connection.getresponse().status == 413


def test_without_keys_only_this_machine_is_listened_to(start_api, monkeypatch, caplog):
    monkeypatch.setenv("HOST", "0.0.0.0")
    with caplog.at_level(logging.WARNING):
        assert host(Keys({})) == "127.0.0.1" and "only this machine" in caplog.text
    assert host(Keys({"ann": sha256(ANN)})) == "0.0.0.0"
    api = start_api(keys=Keys({}))
    assert api.get("/v1/predictions", key=None).json()["results"] == []
    # One that no record knows may lie in the store since before the fleet.
    assert drawing(api, "8f14e45f-ceea-467f-a8f0-1d0a1a3f1c2b").status_code == 201


def test_addresses_are_those_that_clients_reach(start_api, monkeypatch):
    monkeypatch.setenv("PUBLIC_URL", "https://flux.example.com/")
    api = start_api()
    made = drawing(api, own_a_finetune(api)).json()
    assert made["urls"]["get"] == f"https://flux.example.com/v1/predictions/{made['id']}"
    monkeypatch.setenv("PUBLIC_URL", "flux.example.com")
    with pytest.raises(ValueError, match="PUBLIC_URL"):
        public_url()


def test_the_documents_of_all_three_are_one(api):
    for page in ("/docs", "/redoc"):
        text = api.get(page, key=None).text
        programs = re.findall(r'(?:src|href)="([^"]+)"', text)
        assert "openapi.json" in text and len(programs) > 1
        for program in programs:
            assert program.startswith("/") and api.get(program, key=None).status_code == 200
    document = api.get("/openapi.json", key=None).json()
    tags = {tag for methods in document["paths"].values() for method in methods.values() for tag in method["tags"]}
    assert tags == {"Replicate", "Black Forest Labs", "Cog", "Operator"}
    assert document["components"]["schemas"]["ProInputs"]["properties"]["width"]["multipleOf"] == 32
