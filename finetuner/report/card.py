"""The model card: what the Hugging Face Hub shows of a finetune's folder once it is put there."""

from __future__ import annotations

import html
import re
from dataclasses import asdict
from pathlib import Path

import jinja2
from huggingface_hub import ModelCardData

from finetuner.bases import Base
from finetuner.data import CaptionedExample
from finetuner.report.sheet import Sheet
from finetuner.report.summary import Summary

SHOWN = 24  # captions
HUB_LICENCES = ("apache-2.0", "mit")  # of those that bases have, what the Hub knows by name; others are "other", with a link


def _plain(text: str) -> str:
    """Text that Markdown and HTML take for nothing but text, in a table's cell too."""
    return re.sub(r"([\\`*_\[\]#|~$:])", r"\\\1", html.escape(text, quote=False))


TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=False,  # Markdown: what users wrote goes through `plain`
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["plain"] = _plain


def render_card(summary: Summary, base: Base, examples: list[CaptionedExample], sheet: Sheet, gallery: list[str]) -> str:
    """``gallery``: the files of the sheet's pictures at strength 1, one a prompt, as seen from the card."""
    body = TEMPLATES.get_template("card.md.j2").render(
        **asdict(summary), captions=[(e.name, e.caption) for e in examples[:SHOWN]], more=max(0, len(examples) - SHOWN)
    )
    return f"---\n{front_matter(summary, base, sheet.prompts, gallery).to_yaml()}\n---\n{body}"


def front_matter(summary: Summary, base: Base, prompts: list[str], gallery: list[str]) -> ModelCardData:
    """As https://huggingface.co/docs/hub/model-cards has it; ``widget`` is what its Gallery component shows."""
    licence = base.licence.lower()
    named = {"license": licence}
    if licence not in HUB_LICENCES:
        link = f"https://huggingface.co/{base.source}/blob/main/LICENSE.md"
        named = {"license": "other", "license_name": licence, "license_link": link}
    return ModelCardData(
        **named,
        base_model=base.source,
        base_model_relation="adapter",
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["text-to-image", base.family.HUB_TAG, "lora", "diffusers", "template:diffusion-lora"],
        instance_prompt=summary.trigger_word,
        widget=[{"text": prompt, "output": {"url": path}} for prompt, path in zip(prompts, gallery, strict=True)],
    )
