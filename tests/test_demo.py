"""The demo's receiver of webhooks, as Cog sends them: not always in their order."""

import requests
from demo import LogReceiver


def test_a_webhook_that_comes_late_changes_nothing(capsys):
    with LogReceiver() as receiver:
        for update in (
            {"status": "processing", "logs": "step 1\n"},
            {"status": "succeeded", "logs": "step 1\nstep 2\n", "output": "the id"},
            {"status": "processing", "logs": "step 1\n"},
            {"status": "starting"},
        ):
            assert requests.post(receiver.url, json=update, timeout=10).status_code == 200
        assert receiver.wait()["output"] == "the id"
    assert capsys.readouterr().out.split() == ["step", "1", "step", "2"]
