"""Calls to a server here, checked by the client of the API that they belong to."""

import hashlib
import hmac
import json
import time

import pytest
import replicate
from apis_of_tests import ANN, BOB, drawn, own_a_finetune, wait_for
from local_engine import Idle, engine_of
from web import web

from fleet.apis.front import Served
from fleet.records import State


@pytest.fixture(autouse=True)
def reach_this_machine(monkeypatch):
    monkeypatch.setenv("FETCH_ALLOW", "127.0.0.0/8")


@pytest.fixture
def api(start_api, reach_this_machine):
    return start_api()


def ask(api, path: str = "/v1/predictions", **fields) -> str:
    sent = {"prompt": "a TOK", "finetune_id": own_a_finetune(api)}
    body = sent | fields if path.startswith("/v1/flux") else {"version": "8e3d4f0a", "input": sent} | fields
    answer = api.post(path, body)
    assert answer.status_code in (200, 201), answer.text
    return answer.json()["id"]


def test_replicates_events_and_its_clients_check(api):
    with web(lambda request: request.reply(200)) as hook:
        id = ask(api, webhook=f"{hook.url}/hook")
        wait_for(lambda: len(hook.seen) == 1)
        api.engine.records.change(id, logs="1 of 2")
        wait_for(lambda: len(hook.seen) == 2)
        drawn(api, id)
        wait_for(lambda: len(hook.seen) == 4)
        wait_for(lambda: not api.engine.records.with_webhook())
    bodies = [json.loads(seen.body) for seen in hook.seen]
    assert [body["status"] for body in bodies] == ["processing", "processing", "succeeded", "succeeded"]
    assert bodies[1]["logs"] == "1 of 2" and bodies[-1]["output"].startswith(f"{api.url}/results/")
    secret = replicate.Client(ANN, base_url=api.url).webhooks.default.secret()
    for seen in hook.seen:
        replicate.webhook.Webhooks.validate(headers=seen.headers, body=seen.body.decode(), secret=secret, tolerance=60)
    bobs = replicate.Client(BOB, base_url=api.url).webhooks.default.secret()
    with pytest.raises(replicate.webhook.InvalidSignatureError):
        replicate.webhook.Webhooks.validate(headers=seen.headers, body=seen.body.decode(), secret=bobs)


def test_a_client_chooses_its_events(api):
    with web(lambda request: request.reply(200)) as hook:
        id = ask(api, webhook=f"{hook.url}/hook", webhook_events_filter=["completed"])
        drawn(api, id)
        wait_for(lambda: not api.engine.records.with_webhook())
    assert [json.loads(seen.body)["status"] for seen in hook.seen] == ["succeeded"]
    refused = api.post("/v1/predictions", {"version": "v", "input": {}, "webhook": "x", "webhook_events_filter": ["end"]})
    assert refused.status_code == 422


def test_black_forest_labs_call_is_signed_with_the_requests_secret(api):
    with web(lambda request: request.reply(200)) as hook:
        id = ask(api, "/v1/flux-pro-finetuned", webhook_url=f"{hook.url}/hook", webhook_secret="mine")
        drawn(api, id)
        wait_for(lambda: hook.seen)
    (seen,) = hook.seen
    body = json.loads(seen.body)
    assert body.keys() == {"id", "status", "result", "timestamp"} and (body["id"], body["status"]) == (id, "Ready")
    assert body["result"]["sample"].startswith(f"{api.url}/results/")
    assert seen.headers["x-bfl-signature"] == f"sha256={hmac.new(b'mine', seen.body, hashlib.sha256).hexdigest()}"


def test_the_last_call_is_made_until_it_arrives(api):
    with web(lambda request: request.reply(200 if len(hook.seen) == 3 else 503)) as hook:
        id = ask(api, webhook=f"{hook.url}/hook", webhook_events_filter=["completed"])
        drawn(api, id)
        wait_for(lambda: not api.engine.records.with_webhook(), 20)
    assert len(hook.seen) == 3 and len({seen.headers["webhook-id"] for seen in hook.seen}) == 1


def test_a_restart_forgets_no_call(start_api, tmp_path):
    with web(lambda request: request.reply(200)) as hook:
        first = start_api()
        engine = engine_of(Idle(), tmp_path)
        id = ask(first, webhook=f"{hook.url}/hook", webhook_events_filter=["completed"])
        job = first.engine.records.job(id)
        engine.records.accept(job)  # what a database holds of a process that was killed
        engine.records.change(id, state=State.FAILED, error="It cannot be drawn.")
        again = start_api(engine=engine, served=Served("flux-emoji", True))
        wait_for(lambda: hook.seen)
        assert json.loads(hook.seen[0].body)["error"] == "It cannot be drawn." and again.url != first.url


def test_the_inside_is_not_called(start_api, monkeypatch):
    monkeypatch.delenv("FETCH_ALLOW")
    api = start_api()
    with web(lambda request: request.reply(200)) as hook:
        id = ask(api, webhook=f"{hook.url}/hook", webhook_events_filter=["start"])
        wait_for(lambda: api.engine.records.job(id).state is State.RUNNING)
        drawn(api, id)
        wait_for(lambda: not api.engine.records.with_webhook())
        time.sleep(0.1)
    assert hook.seen == []
