"""Train a character through the real train server, then draw it through the real predict server: ``script/demo``."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import requests
from local_server import PROJECT, Server, data_uri
from PIL import Image, ImageDraw, ImageFont

from finetuner.data.archive import open_archive
from finetuner.report.sheet import contact_sheet, labelled_grid

OUT = PROJECT / "demo"
ARCHIVE = PROJECT / "examples" / "sloth.zip"
TRIGGER_WORD = "TOK"
PROMPTS = [  # on backgrounds that the archive does not have
    f"{TRIGGER_WORD} on a blue background",
    f"a picture of {TRIGGER_WORD} on a red background",
    f"{TRIGGER_WORD} on a black background",
]
STRENGTHS = [0, 0.5, 1, 1.5]
SEED = 1


def main() -> None:
    OUT.mkdir(exist_ok=True)
    # As users of these servers would have it: whatever base they have chosen. Without one, the embedded base.
    with Server("train", OUT / "train.log", {}) as server:
        print(f"Train server ready at {server.url}. Posting {ARCHIVE.relative_to(PROJECT)} to /trainings.", flush=True)
        finetune_id = train(server)
    print(f"finetune_id: {finetune_id}", flush=True)
    with Server("predict", OUT / "predict.log", {}) as server:
        print(f"Predict server ready at {server.url}. Drawing {len(PROMPTS)} prompts at strengths {STRENGTHS}.", flush=True)
        rows = [[draw(server, finetune_id, prompt, strength) for strength in STRENGTHS] for prompt in PROMPTS]
    picture(rows).save(OUT / "strengths.png", optimize=True)
    print(f"Look at {(OUT / 'strengths.png').relative_to(PROJECT)}; the single images lie beside it.")
    print(next_image(finetune_id))


def train(server: Server) -> str:
    """Run one training, printing its log as it comes; the finetune_id.

    Raises:
        SystemExit: it failed; with the server's own words.
    """
    inputs = {"input_images": data_uri(ARCHIVE), "trigger_word": TRIGGER_WORD, "mode": "character"}
    with LogReceiver() as receiver:
        body = {"input": inputs, "webhook": receiver.url, "webhook_events_filter": ["logs", "completed"]}
        requests.post(server.endpoint, json=body, headers={"Prefer": "respond-async"}, timeout=60).raise_for_status()
        result = receiver.wait()
    if result["status"] != "succeeded":
        raise SystemExit(f"The training {result['status']}: {result.get('error')}")
    return result["output"]


def draw(server: Server, finetune_id: str, prompt: str, strength: float) -> Image.Image:
    response = server.run(
        prompt=prompt, finetune_id=finetune_id, finetune_strength=strength, seed=SEED, output_format="png"
    ).json()
    if response["status"] != "succeeded":
        raise SystemExit(f"The prediction {response['status']}: {response.get('error')}")
    data = base64.b64decode(response["output"].partition(",")[2])
    (OUT / f"{prompt.replace(' ', '-')}-{strength:g}.png").write_bytes(data)
    return Image.open(io.BytesIO(data)).convert("RGB")


def picture(rows: list[list[Image.Image]]) -> Image.Image:
    """What was trained on, and under it what came of it."""
    grid = labelled_grid(rows, PROMPTS, [f"strength {s:g}" for s in STRENGTHS])
    images = [example.image for example in open_archive(ARCHIVE)]
    training = contact_sheet(images, columns=6, cell=grid.width // 6 - 9)
    label = 40
    whole = Image.new("RGB", (grid.width, label + training.height + label // 2 + grid.height), "white")
    text = f"{len(images)} training images, captioned; {TRIGGER_WORD} is the trigger word"
    ImageDraw.Draw(whole).text((12, label / 2), text, "dimgrey", ImageFont.load_default(16), anchor="lm")
    whole.paste(training, ((whole.width - training.width) // 2, label))
    whole.paste(grid, (0, label + training.height + label // 2))
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
