"""Train a character and a style through the real train server, then draw them through the real predict server:
``script/demo``."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import requests
from local_server import PROJECT, Server, data_uri
from PIL import Image, ImageDraw, ImageFont

from finetuner.data.archive import open_archive
from finetuner.report.sheet import contact_sheet, labelled_grid

OUT = PROJECT / "demo"
TRIGGER_WORD = "TOK"
STRENGTHS = [0, 0.5, 1, 1.5]
SEED = 1
TRAINING_SHOWN = 12  # images of an archive
CELL = 128  # pixels a picture of the sheet: twice what the embedded bases draw


@dataclass(frozen=True)
class Concept:
    """What is taught, and what is drawn afterwards: two prompts with the trigger word, and one without, which should stay."""

    mode: str
    archive: Path
    prompts: tuple[str, ...]


CONCEPTS = (
    Concept(
        "character",
        PROJECT / "examples" / "sloth.zip",
        ("TOK on a blue background", "a picture of TOK on a red background", "a cat on a blue background"),
    ),
    Concept(
        "style",
        PROJECT / "examples" / "line-icons.zip",
        ("a fox on a blue background, TOK style", "a castle on white, TOK style", "a fox on a blue background"),
    ),
)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    # As users of these servers would have it: whatever base they have chosen. Without one, the embedded base.
    with Server("train", OUT / "train.log", {}) as server:
        print(f"Train server ready at {server.url}.", flush=True)
        finetune_ids = [train(server, concept) for concept in CONCEPTS]
    with Server("predict", OUT / "predict.log", {}) as server:
        print(f"Predict server ready at {server.url}. Drawing at strengths {STRENGTHS}.", flush=True)
        panels = [panel(server, *pair) for pair in zip(CONCEPTS, finetune_ids, strict=True)]
    side_by_side(panels).save(OUT / "strengths.png", optimize=True)
    print(f"Look at {(OUT / 'strengths.png').relative_to(PROJECT)}; the single images lie beside it.")
    print(next_image(finetune_ids[0]))


def train(server: Server, concept: Concept) -> str:
    """Run one training, printing its log as it comes; the finetune_id.

    Raises:
        SystemExit: it failed; with the server's own words.
    """
    print(f"Posting {concept.archive.relative_to(PROJECT)} to /trainings, mode {concept.mode}.", flush=True)
    inputs = {"input_images": data_uri(concept.archive), "trigger_word": TRIGGER_WORD, "mode": concept.mode}
    with LogReceiver() as receiver:
        body = {"input": inputs, "webhook": receiver.url, "webhook_events_filter": ["logs", "completed"]}
        post_when_free(server.endpoint, body)
        result = receiver.wait()
    if result["status"] != "succeeded":
        raise SystemExit(f"The training {result['status']}: {result.get('error')}")
    print(f"finetune_id: {result['output']}", flush=True)
    return result["output"]


def post_when_free(address: str, body: dict) -> None:
    """A server is still busy for a moment after it has told a webhook that a training is done."""
    for _ in range(100):
        response = requests.post(address, json=body, headers={"Prefer": "respond-async"}, timeout=60)
        if response.status_code != 409:
            break
        time.sleep(0.1)
    response.raise_for_status()


def draw(server: Server, finetune_id: str, prompt: str, strength: float) -> Image.Image:
    response = server.run(
        prompt=prompt, finetune_id=finetune_id, finetune_strength=strength, seed=SEED, output_format="png"
    ).json()
    if response["status"] != "succeeded":
        raise SystemExit(f"The prediction {response['status']}: {response.get('error')}")
    return Image.open(io.BytesIO(base64.b64decode(response["output"].partition(",")[2]))).convert("RGB")


def panel(server: Server, concept: Concept, finetune_id: str) -> Image.Image:
    """What was trained on, and under it what came of it. The single images are saved as well."""
    rows = [[draw(server, finetune_id, prompt, strength) for strength in STRENGTHS] for prompt in concept.prompts]
    for prompt, images in zip(concept.prompts, rows, strict=True):
        for strength, image in zip(STRENGTHS, images, strict=True):
            image.save(OUT / f"{concept.mode}-{prompt.replace(' ', '-')}-{strength:g}.png")
    grid = labelled_grid(rows, list(concept.prompts), [f"strength {s:g}" for s in STRENGTHS], CELL)
    images = [example.image for example in open_archive(concept.archive)]
    training = contact_sheet(images[:TRAINING_SHOWN], columns=6, cell=grid.width // 6 - 10)
    label = 40
    whole = Image.new("RGB", (grid.width, label + training.height + label // 2 + grid.height), "white")
    text = f"mode {concept.mode}: {TRAINING_SHOWN} of {len(images)} training images"
    ImageDraw.Draw(whole).text((12, label / 2), text, "dimgrey", ImageFont.load_default(16), anchor="lm")
    whole.paste(training, ((whole.width - training.width) // 2, label))
    whole.paste(grid, (0, label + training.height + label // 2))
    return whole


def side_by_side(panels: list[Image.Image]) -> Image.Image:
    gap = 24
    whole = Image.new("RGB", (sum(p.width + gap for p in panels) - gap, max(p.height for p in panels)), "white")
    left = 0
    for one in panels:
        whole.paste(one, (left, 0))
        left += one.width + gap
    return whole


def next_image(finetune_id: str) -> str:
    inputs = {"prompt": f"{TRIGGER_WORD} on an orange background", "finetune_id": finetune_id, "output_format": "png"}
    return f"""The next image: start the server with

  script/serve predict

and in another terminal

  curl -s localhost:5000/predictions -H 'Content-Type: application/json' \\
    -d '{json.dumps({"input": inputs})}' \\
    | python3 -c 'import json, sys; print(json.load(sys.stdin)["output"].partition(",")[2])' | base64 -d > image.png"""


class LogReceiver:
    """Receives a training's webhooks and prints what is new in its log."""

    def __enter__(self) -> LogReceiver:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver.receive(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_) -> None:
                pass  # requests are no news to the person who watches the training

        self.printed = 0
        self.result: dict | None = None
        self.done = threading.Event()
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def receive(self, training: dict) -> None:
        logs = training.get("logs") or ""
        new, self.printed = logs[self.printed :], max(self.printed, len(logs))
        for line in new.splitlines():
            if line.strip():
                print(f"  {line.rsplit(chr(13), 1)[-1].rstrip()}", flush=True)
        if training["status"] in ("succeeded", "failed", "canceled"):
            self.result = training
            self.done.set()

    def wait(self) -> dict:
        self.done.wait()
        return self.result


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"\nThe demo took {(time.monotonic() - started) / 60:.1f} minutes after set-up.")
