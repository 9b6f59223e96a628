"""Many requests for many finetunes to one real server: none fails, nothing piles up."""

import base64
import io
import itertools
import time
from pathlib import Path

import psutil
import pytest
import requests
from helpers import publish
from PIL import Image

from benchmarks.adapters import random_adapter
from finetuner.store import FolderStore

REQUESTS, FINETUNES, SETTLED = 200, 20, 50
FORMATS = {"jpg": "JPEG", "png": "PNG"}


@pytest.fixture(scope="module")
def finetunes(predict_server, base) -> list[str]:
    store, transformer = FolderStore(Path(predict_server.environment["FINETUNE_STORE"])), base.load_transformer()
    ranks = itertools.cycle((16, 32))
    return [
        publish(store, base, random_adapter(transformer, rank, seed), rank)
        for seed, rank in zip(range(FINETUNES), ranks, strict=False)
    ]


def worker_memory(server) -> int:
    """Bytes that the server's processes hold for themselves."""
    server = psutil.Process(server.process.pid)
    return sum(process.memory_full_info().uss for process in [server, *server.children(recursive=True)])


def files_in(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).rglob("*") if path.is_file())


def image_of(response) -> Image.Image:
    body = response.json()
    assert body["status"] == "succeeded", body
    return Image.open(io.BytesIO(base64.b64decode(body["output"].partition(",")[2])))


def test_two_hundred_requests_over_twenty_finetunes(predict_server, finetunes):
    """In every round of twenty each finetune comes once, at another strength and format than the time before."""
    before, settled = files_in(predict_server.environment["TMPDIR"]), None
    for number in range(REQUESTS):
        if number == SETTLED:
            settled = worker_memory(predict_server)
        output_format = "jpg" if (number + number // FINETUNES) % 2 else "png"
        response = predict_server.run(
            prompt=f"a fox, TOK style {number // FINETUNES}",
            finetune_id=finetunes[number % FINETUNES],
            finetune_strength=number % 9 / 4,
            seed=number,
            steps=1,
            output_format=output_format,
        )
        assert image_of(response).format == FORMATS[output_format]
    assert worker_memory(predict_server) <= 1.02 * settled
    left = [name for name in files_in(predict_server.environment["TMPDIR"]) if name not in before]
    assert len(left) == 1 and left[0].startswith("image-"), left  # the last one, until the next request


def test_a_cancelled_request_leaves_nothing_to_the_next(predict_server, finetunes):
    wanted = {"prompt": "a hen, TOK style", "finetune_id": finetunes[0], "steps": 2, "seed": 1, "output_format": "png"}
    before = predict_server.run(**wanted).json()["output"]
    predict_server.wait_until_ready(seconds=10)
    running = f"{predict_server.endpoint}/to-cancel"
    body = {"input": wanted | {"finetune_id": finetunes[1], "steps": 50}}
    assert requests.put(running, json=body, headers={"Prefer": "respond-async"}, timeout=10).status_code == 202
    started = time.monotonic()
    while "/50 [" not in predict_server.log.read_text():
        assert time.monotonic() - started < 30
        time.sleep(0.02)
    assert requests.post(f"{running}/cancel", timeout=10).status_code == 200
    predict_server.wait_until_ready(seconds=10)
    assert "50/50 [" not in predict_server.log.read_text()
    assert predict_server.run(**wanted).json()["output"] == before


def test_a_prediction_reports_what_it_took(predict_server, finetunes):
    request = {"prompt": "a goose, TOK style", "finetune_id": finetunes[0], "steps": 2, "seed": 1}
    first, second = (predict_server.run(**request).json()["metrics"] for _ in range(2))
    for phase in ("fetch", "encode", "sampling", "decode"):
        assert 0 <= second[f"{phase}_seconds"] <= second["predict_time"]
    assert (first["prompt_cache_hit"], second["prompt_cache_hit"]) == (False, True)
    assert second["adapter_cache_hit"] is True


def test_a_prompt_without_the_trigger_word_is_answered_in_the_log(predict_server, finetunes):
    body = predict_server.run(prompt="a hen", finetune_id=finetunes[0], steps=2, seed=12345).json()
    assert "lacks the trigger word 'TOK'" in body["logs"]
    assert "Seed: 12345" in body["logs"]
    assert "Sampling: 100%" in body["logs"] and "2/2" in body["logs"]
