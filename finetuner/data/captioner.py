"""A vision-language model that captions images: which one, and its use."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    ProcessorMixin,
)

from finetuner.bases import Base, ModelFolder, ModelKind, device, streamed_to, weight_dtype
from finetuner.data.captions import SUBJECT
from finetuner.paths import WEIGHTS

log = logging.getLogger(__name__)

CAPTIONERS = ModelKind(
    noun="a captioner",
    variable="CAPTION_MODEL",
    manifest="captioner.json",
    downloaded_last="config.json",  # script/download-weights fetches it last
    production=("granite-vision-4.1-4b",),
    embedded="emoji-captioner",
)

# What a caption names is not learned into the trigger word. Where it has to speak of the concept all the same, it calls it
# `SUBJECT`.
_ASK = "Describe this image in one plain sentence, as a prompt for an image generator. {} Answer with the sentence alone."
INSTRUCTIONS = {
    "general": _ASK.format("Say what is shown, what it does, the setting, the light, and the style or medium."),
    "character": _ASK.format(
        f"Call the main character {SUBJECT}, and say nothing of who they are or of their face, hair or build. "
        "Say what they do and wear, the setting, the light, and the style or medium."
    ),
    "product": _ASK.format(
        f"Call the main object {SUBJECT}, and say nothing of what it is or how it is made. "
        "Say where and how it is placed, the setting, the light, and the style or medium."
    ),
    "style": _ASK.format(
        "Say what is shown, what it does, and the setting. Say nothing of the style, medium, technique or colouring."
    ),
}

BATCH_SIZE = 4  # of a megapixel each, cut into tiles: a few GB beside the weights
MAX_TOKENS = 120  # two long sentences
RETRY_TEMPERATURE = 0.7
RETRY_SEED = 0
LONGEST_PHRASE = 8  # words; one that comes three times in a row is a model that lost its way


@dataclass(frozen=True)
class Captioner(ModelFolder):
    """A folder in transformers' layout, and what its ``captioner.json`` says of it."""

    pictures: tuple[str, ...]  # the kinds that it has learned to describe

    @classmethod
    def open(cls, folder: Path) -> Captioner:
        """Read a captioner's manifest; loads no weights.

        Raises:
            ValueError: there is no captioner in the folder, or its weights were not downloaded.
        """
        fields = CAPTIONERS.read_manifest(folder)
        return cls(folder, fields["name"], fields["version"], fields["licence"], tuple(fields["pictures"]))

    @property
    def weight_bytes(self) -> int:
        """In memory; the files hold two bytes a number, as such models are published."""
        on_disk = sum(path.stat().st_size for path in self.loaded_files() if path.suffix == ".safetensors")
        return on_disk * weight_dtype().itemsize // 2

    def load(self, streamed: bool = False) -> tuple[PreTrainedModel, ProcessorMixin]:
        """The model, frozen, and its processor; ``streamed``: as `streamed_to` the device."""
        # Left: what is generated has to follow each prompt directly.
        processor = AutoProcessor.from_pretrained(self.folder, padding_side="left", trust_remote_code=False)
        model = AutoModelForImageTextToText.from_pretrained(self.folder, dtype=weight_dtype(), trust_remote_code=False)
        model.requires_grad_(False).eval()
        return streamed_to(model, device()) if streamed else model.to(device()), processor

    def caption(self, images: list[Image.Image], mode: str) -> list[str | None]:
        """Load the model, caption in batches, free it.

        A caption that comes out empty, repeats itself or was made of numbers that are not finite is asked for once more, by
        sampling at a fixed seed.

        Returns:
            One caption an image, in which `SUBJECT` may stand for the concept; None where both tries failed.
        """
        model, processor = self.load()
        instruction = INSTRUCTIONS[mode]
        captions: list[str | None] = []
        for start in tqdm(range(0, len(images), BATCH_SIZE), desc="Captioning images, batches", mininterval=1):
            captions += generate_captions(model, processor, images[start : start + BATCH_SIZE], instruction)
        for n in [n for n, caption in enumerate(captions) if caption is None]:
            with torch.random.fork_rng():
                torch.manual_seed(RETRY_SEED)
                (captions[n],) = generate_captions(
                    model, processor, [images[n]], instruction, do_sample=True, temperature=RETRY_TEMPERATURE
                )
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return captions


class _FiniteLogits(LogitsProcessor):
    """Notes which rows had logits that are no numbers, and lets the generation go on."""

    def __init__(self) -> None:
        self.broken = torch.zeros((), dtype=torch.bool)  # bool [B] once there is a row

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.broken = self.broken.to(scores.device) | (scores.isnan() | scores.isposinf()).any(1)
        return scores.nan_to_num(nan=0.0, posinf=0.0)


def generate_captions(model, processor, images: list[Image.Image], instruction: str, **sampling) -> list[str | None]:
    """One caption an image, greedily unless ``sampling`` says otherwise; None for what is no caption."""
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": instruction}]}]
        for image in images
    ]
    return generate_texts(model, processor, conversations, MAX_TOKENS, **sampling)


@torch.no_grad()
def generate_texts(model, processor, conversations: list[list[dict]], max_tokens: int, **sampling) -> list[str | None]:
    """One answer to each conversation; None for what is empty, repeats itself or was made of numbers that are not finite."""
    inputs = processor.apply_chat_template(
        conversations,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    finite = _FiniteLogits()
    output = model.generate(
        **inputs.to(model.device, model.dtype),
        max_new_tokens=max_tokens,
        logits_processor=LogitsProcessorList([finite]),
        **({"do_sample": False} | sampling),
    )
    texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    texts = [" ".join(text.split()).strip("\"'* ") for text in texts]
    failed = [broken or not text or repeats(text) for text, broken in zip(texts, finite.broken.tolist(), strict=True)]
    return [None if fails else text for text, fails in zip(texts, failed, strict=True)]


def repeats(text: str) -> bool:
    """Whether a phrase of up to `LONGEST_PHRASE` words comes three times in a row, or a few letters eight times."""
    words = [word.strip(".,;:!?").casefold() for word in text.split()]
    return re.search(r"(\S{1,8}?)\1{7}", text) is not None or any(
        words[start : start + size] == words[start + size : start + 2 * size] == words[start + 2 * size : start + 3 * size]
        for size in range(1, LONGEST_PHRASE + 1)
        for start in range(len(words) - 3 * size + 1)
    )


def choose_captioner(base: Base, weights: Path = WEIGHTS) -> Captioner:
    """The captioner that ``CAPTION_MODEL`` names (a folder under ``weights/``, or a path); without it, the production one
    where it was downloaded, else the embedded one. The log says which.

    Raises:
        ValueError: ``CAPTION_MODEL`` names no captioner, or one that was not downloaded; or it is not set, and the default
            has not learned the kind of pictures that the base draws.
    """
    folder, reason = CAPTIONERS.choose(weights)
    captioner = Captioner.open(folder)
    if base.pictures not in captioner.pictures:
        if not CAPTIONERS.is_chosen():
            raise ValueError(
                f"captioning: {base.name} is for {base.pictures}, and the captioner here, {captioner.name}, knows"
                f" {' and '.join(captioner.pictures)} alone. Run script/download-weights {CAPTIONERS.production[0]}; or put a"
                " caption for every image into the archive, as a .txt file beside it; or send captioning-disabled, to train on"
                f" the trigger word alone. To use {captioner.name} all the same, set CAPTION_MODEL={captioner.name}."
            )
        log.warning("Captioner: %s knows %s, not %s", captioner.name, " and ".join(captioner.pictures), base.pictures)
    log.info("Captioner: %s %s (%s)", captioner.name, captioner.version, reason)
    return captioner
