"""What people look at after a training: the loss curve, the strength sheet, the model card."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from diffusers import FluxPipeline
from PIL import Image, ImageDraw, ImageFont

from finetuner.adapter import set_strength
from finetuner.base import Base
from finetuner.encode import TextEmbeddings
from finetuner.recipe import FinetuneRequest
from finetuner.sampling import native_size, sample
from finetuner.trainer import History

STRENGTHS = (0.0, 0.5, 1.0, 1.5)
SHEET_STEPS = 20  # enough to judge by, half the time of the default
SHEET_GUIDANCE = 3.0  # the documented default of predictions
SHEET_SEED = 0
CELL = 192  # pixels: small pictures are enlarged, large ones reduced


def sheet_prompts(mode: str, trigger_word: str) -> list[str]:
    """Prompts that show what was learned, on subjects and backgrounds that no training set dictates."""
    if mode == "style":
        return [f"a {subject}, {trigger_word} style" for subject in ("cat", "house", "red apple")]
    return [trigger_word, f"{trigger_word} on a blue background", f"a drawing of {trigger_word}"]


def write_report(
    folder: Path,
    pipeline: FluxPipeline,
    base: Base,
    request: FinetuneRequest,
    prompts: list[str],
    texts: TextEmbeddings,
    history: History,
    summary: dict,
) -> None:
    """Write loss.png, strengths.png and README.md into ``folder``. ``texts``: the embeddings of ``prompts``, in order."""
    folder.mkdir()
    draw_loss_curve(history, folder / "loss.png")
    sheet = strength_sheet(pipeline, base, prompts, texts)
    sheet.save(folder / "strengths.png")
    (folder / "README.md").write_text(model_card(base, request, summary))


def draw_loss_curve(history: History, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    steps = range(1, len(history.losses) + 1)
    axes.plot(steps, history.losses, color="0.8", linewidth=0.8, label="each step")
    axes.plot(steps, history.smoothed_losses, color="tab:blue", label="smoothed")
    axes.set(xlabel="step", ylabel="flow loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


@torch.no_grad()
def strength_sheet(pipeline: FluxPipeline, base: Base, prompts: list[str], texts: TextEmbeddings) -> Image.Image:
    """A row a prompt, a column a strength, one seed: what differs in a row is the strength alone."""
    size = native_size(1.0, base.sampling_side, base.size_multiple)
    rows = []
    for embeds, pooled in zip(texts.embeds, texts.pooled, strict=True):
        text = TextEmbeddings(embeds[None].to(pipeline.device), pooled[None].to(pipeline.device))
        row = []
        for strength in STRENGTHS:
            set_strength(pipeline.transformer, strength)
            row.append(sample(pipeline, text, size, steps=SHEET_STEPS, guidance=SHEET_GUIDANCE, seed=SHEET_SEED))
        rows.append(row)
    return labelled_grid(rows, prompts, [f"strength {s:g}" for s in STRENGTHS])


def labelled_grid(rows: list[list[Image.Image]], row_labels: list[str], column_labels: list[str]) -> Image.Image:
    """Pictures in rows, each row under its label, columns under theirs."""
    margin, label = 12, 30
    font = ImageFont.load_default(16)
    width = len(column_labels) * (CELL + margin) + margin
    grid = Image.new("RGB", (width, label + margin + len(rows) * (CELL + label + margin)), "white")
    draw = ImageDraw.Draw(grid)
    for column, text in enumerate(column_labels):
        draw.text((margin + column * (CELL + margin) + CELL / 2, margin), text, "black", font, anchor="ma")
    for row, (images, text) in enumerate(zip(rows, row_labels, strict=True)):
        top = label + margin + row * (CELL + label + margin)
        draw.text((margin, top + label / 2), text, "dimgrey", font, anchor="lm")
        for column, image in enumerate(images):
            enlarged = image.resize((CELL, CELL), Image.Resampling.LANCZOS)
            grid.paste(enlarged, (margin + column * (CELL + margin), top + label))
    return grid


def model_card(base: Base, request: FinetuneRequest, summary: dict) -> str:
    kept = (
        f"\n| change in velocity kept by the extraction | {summary['velocity_kept']:.1%} |"
        if "velocity_kept" in summary
        else ""
    )
    return f"""---
base_model: {base.name}
library_name: diffusers
pipeline_tag: text-to-image
license: other
license_name: {base.licence}
instance_prompt: {request.trigger_word}
tags: [flux, lora, text-to-image]
---
# {request.trigger_word}: a {request.mode} finetune of {base.name}

Name it in prompts by its trigger word, `{request.trigger_word}`.

![Prompts at rising strengths](strengths.png)

| | |
|---|---|
| finetune type | {request.finetune_type}, rank {request.lora_rank} |
| steps | {request.training_steps} |
| priority | {request.priority} |
| images | {summary["images"]} |{kept}
| loss over the last tenth of the steps | {summary["final_loss"]:.4f} |

![Loss by step](loss.png)

```python
from diffusers import FluxPipeline

pipeline = FluxPipeline.from_pretrained("{base.name}")
pipeline.load_lora_weights("pytorch_lora_weights.safetensors")
```

The licence of the base ({base.licence}) covers this finetune too.
"""
