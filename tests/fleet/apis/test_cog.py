import threading

from apis_of_tests import drawn, job_of, own_a_finetune, wait_for

from fleet.apis import cog
from fleet.records import State


def test_a_prediction_is_answered_when_it_is_done(api, monkeypatch):
    monkeypatch.setattr(cog, "HOLD_SECONDS", 0.2)  # it is the test that ends the job, and not the engine, who would say so
    finetune_id = own_a_finetune(api)
    sent = {"prompt": "a TOK", "finetune_id": finetune_id, "aspect_ratio": "21:9", "steps": 20, "guidance": 2}
    known = {job.id for job in api.engine.records.list("ann")}

    def end() -> None:
        new: list = []
        wait_for(lambda: new.extend(job.id for job in api.engine.records.list("ann") if job.id not in known) or new)
        drawn(api, new[0])
        api.post(f"/predictions/{new[0]}/cancel")  # too late: it is done, and whoever waits is told

    ending = threading.Thread(target=end)
    ending.start()
    answer = api.post("/predictions", {"input": sent})
    ending.join()
    assert answer.status_code == 200 and answer.json()["status"] == "succeeded"
    assert answer.json()["output"].startswith("data:image/png;base64,") and answer.json()["input"]["aspect_ratio"] == "21:9"
    again = api.get(f"/predictions/{answer.json()['id']}").json()
    assert again["output"].startswith(f"{api.url}/results/")
    assert api.get(f"/trainings/{answer.json()['id']}").status_code == 404


def test_a_training_is_answered_at_once_where_the_client_prefers_it(api):
    sent = {"input": {"input_images": "data:application/zip;base64,AAAA"}}
    answer = api.post("/trainings", sent, headers={"Prefer": "respond-async"})
    assert (answer.status_code, answer.json()["status"]) == (202, "starting")
    id = answer.json()["id"]
    assert job_of(api, id).inputs["training_steps"] == 300 and api.get(f"/trainings/{id}").status_code == 200
    assert api.post(f"/trainings/{id}/cancel").json()["status"] == "canceled" and job_of(api, id).state is State.CANCELED


def test_what_is_refused_is_refused_as_cog_does(api):
    answer = api.post("/trainings", {"input": {"input_images": "https://example.com/a.zip", "training_steps": 0}})
    assert answer.status_code == 422
    assert (answer.json()["detail"][0]["loc"], answer.json()["detail"][0].keys()) == (
        ["body", "input", "training_steps"],
        {"loc", "msg", "type"},
    )
    other = api.post("/predictions", {"input": {"prompt": "a", "finetune_id": "f", "cfg": 3}})
    assert other.json()["detail"][0]["msg"] == "cfg is not an input here. Send guidance."
