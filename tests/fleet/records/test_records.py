import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from fleet.records import Job, Kind, Limits, QueueFull, QuotaExceeded, Records, State

NOW = datetime.now(UTC)


def training(owner: str = "ann", **fields) -> Job:
    return Job(**{"owner": owner, "kind": Kind.TRAINING, "api": "bfl", "model": "flux-pro-trainer", "inputs": {}} | fields)


def drawing(owner: str = "ann", **fields) -> Job:
    inputs = {"prompt": "TOK", "seed": 2**63, "width": None}
    job = {"owner": owner, "kind": Kind.DRAWING, "api": "cog", "model": "", "inputs": inputs, "finetune_id": "f"}
    return Job(**job | fields)


@pytest.fixture
def records(database_url) -> Iterator[Records]:
    records = Records(database_url, Limits(queue=5, trainings=2, drawings=3))
    yield records
    with records._database.begin() as connection:
        for table in ("jobs", "finetunes"):
            connection.execute(text(f"DELETE FROM {table}"))
    records.close()


def test_what_was_accepted_outlives_the_process(records, database_url):
    job = records.accept(drawing(webhook={"url": "http://a"}))
    again = Records(database_url).get("ann", job.id)
    assert again == job and again.created_at.tzinfo and again.kind is Kind.DRAWING and again.state is State.QUEUED


def test_a_killed_process_loses_nothing(tmp_path):
    url = f"sqlite:///{tmp_path}/fleet.sqlite3"
    program = f"""
import os, signal
from fleet.records import Job, Kind, Records
job = Records({url!r}).accept(Job("ann", Kind.TRAINING, "cog", "", {{}}))
print(job.id, job.finetune_id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.split()
    (job,) = Records(url).unended()
    assert said == [job.id, job.finetune_id]


def test_the_same_job_is_accepted_once(records):
    job = training()
    assert records.accept(job) == records.accept(job) == job
    assert records.unended() == [job]


def test_another_owners_job_is_not_found(records):
    job = records.accept(training("ann"))
    assert records.get("bob", job.id) is None and records.list("bob") == []
    assert records.get("ann", job.id) == job


def test_the_queue_is_bounded(records):
    accepted = [records.accept(drawing(owner)) for owner in "abcde"]
    with pytest.raises(QueueFull, match="5 jobs wait"):
        records.accept(drawing("f"))
    records.change(accepted[0].id, state=State.FAILED, error="no")
    records.accept(drawing("f"))


def test_a_keys_quota_counts_its_unended_jobs_of_a_kind(records):
    first, _ = records.accept(training()), records.accept(training())
    with pytest.raises(QuotaExceeded, match="2 unfinished trainings"):
        records.accept(training())
    records.accept(training("bob"))
    records.accept(drawing())
    records.change(first.id, state=State.CANCELED)
    records.accept(training())


def test_many_threads_exceed_no_quota(records):
    refused = []

    def accept() -> None:
        try:
            records.accept(drawing())
        except QuotaExceeded as error:
            refused.append(error)

    threads = [threading.Thread(target=accept) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(records.unended()), len(refused)) == (3, 5)


def test_a_job_that_ended_changes_no_more(records):
    job = records.accept(drawing())
    assert records.change(job.id, state=State.RUNNING, started_at=NOW, progress=0.5)
    assert records.change(job.id, state=State.CANCELED)
    assert not records.change(job.id, state=State.SUCCEEDED, output={"file": "x"})
    ended = records.job(job.id)
    assert (ended.state, ended.output, ended.progress, ended.started_at) == (State.CANCELED, None, 0.5, NOW)
    assert ended.completed_at is not None and ended.ended


def test_a_training_that_succeeds_gives_its_owner_the_finetune(records):
    job = records.accept(training(inputs={"trigger_word": "SKS"}))
    assert records.owner_of(job.finetune_id) is None
    records.change(job.id, state=State.SUCCEEDED, output={"finetune_id": job.finetune_id})
    records.change(job.id, state=State.SUCCEEDED)
    (owned,) = records.finetunes("ann")
    assert (owned.id, owned.job_id, owned.inputs) == (job.finetune_id, job.id, {"trigger_word": "SKS"})
    assert records.owner_of(job.finetune_id) == "ann" and records.finetunes("bob") == []
    assert not records.delete_finetune("bob", job.finetune_id)
    assert records.delete_finetune("ann", job.finetune_id)
    assert records.owner_of(job.finetune_id) is None


def test_a_drawing_gives_nobody_its_finetune(records):
    job = records.accept(drawing())
    records.change(job.id, state=State.SUCCEEDED)
    assert records.finetunes("ann") == []


def test_lists_come_by_page_the_newest_first(records):
    minutes = [NOW + timedelta(minutes=n) for n in (1, 2, 2)]
    jobs = [records.accept(drawing(created_at=at)) for at in minutes]
    records.accept(training(created_at=NOW))
    newest = sorted(jobs, key=lambda job: (job.created_at, job.id), reverse=True)
    first = records.list("ann", Kind.DRAWING, limit=2)
    assert [*first, *records.list("ann", Kind.DRAWING, before=first[-1].id)] == newest
    assert [job.kind for job in records.list("ann", api="bfl")] == [Kind.TRAINING]


def test_old_jobs_expire_and_their_finetunes_stay(records):
    old, young, unended = records.accept(training()), records.accept(drawing()), records.accept(drawing())
    records.change(old.id, state=State.SUCCEEDED, completed_at=NOW - timedelta(days=31))
    records.change(young.id, state=State.SUCCEEDED, completed_at=NOW - timedelta(hours=23))
    assert [job.id for job in records.expire(NOW)] == [old.id]
    assert {job.id for job in records.list("ann")} == {young.id, unended.id}
    assert records.owner_of(old.finetune_id) == "ann"


def test_a_drawing_names_its_finetune():
    with pytest.raises(ValueError, match="finetune_id"):
        drawing(finetune_id="")


def test_a_database_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="DATABASE_URL: mysql is neither"):
        Records("mysql://localhost/fleet")


def test_a_database_that_restarts_is_waited_for(postgres):
    records = Records(postgres.url)
    job = records.accept(training("carl"))
    postgres.stop()
    threading.Thread(target=lambda: (time.sleep(0.5), postgres.start())).start()
    assert records.change(job.id, state=State.CANCELED)
    assert records.job(job.id).state is State.CANCELED
