"""Cog's training entrypoint: the documented inputs, then one call into the library."""

from typing import Optional

from cog import Input, Path, current_scope

from entrypoints.interface import IS_SERVER, as_documented, complete_schema, local_file, read_data_uris
from entrypoints.logs import show_library_log
from entrypoints.startup import check_train_server
from finetuner.bases import WarmParts
from finetuner.finetune import finetune
from finetuner.requests import FinetuneRequest

WARM = WarmParts()  # the base, for the next job

if IS_SERVER:  # a function has no setup(): what a train server does at its start it does here
    show_library_log()
    check_train_server()
    complete_schema(trains=True)
    read_data_uris("input_images")


def train(
    input_images: Path = Input(
        description="The training images, in one zip, tar.gz, tgz or tar archive: JPG, PNG or WebP files, 10 to 20 of them as a rule, though one is enough. A caption for photo.jpg is a text file named photo.txt beside it."
    ),
    training_steps: int = Input(
        default=300,
        ge=1,
        le=6000,
        description="How many optimizer steps to train for. 100 to 150 are enough for a first look, 300 to 1000 for a finished finetune; too many make the images repeat.",
    ),
    trigger_word: str = Input(
        default="TOK",
        description="The word that stands for your concept. Every caption that is trained on carries it, and a prompt that is to show the concept must contain it. Best a word that means nothing else.",
    ),
    mode: str = Input(
        default="general",
        choices=["general", "character", "style", "product"],
        description="What the images have in common. It steers the automatic captions: general describes the whole image, the other three describe everything except the character, style or product to be learned.",
    ),
    learning_rate: Optional[float] = Input(
        default=None,
        ge=1e-6,
        le=5e-3,
        description="How large each optimizer step is. Left out, it is 0.00001 for finetune_type full and 0.0001 for lora.",
    ),
    captioning: str = Input(
        default="automatic",
        choices=["automatic", "captioning-enabled", "captioning-disabled"],
        description="Which images are captioned for you: automatic captions those without a caption file, captioning-enabled captions all of them and replaces your files, captioning-disabled captions none, so that an image without a file trains on the trigger word alone.",
    ),
    priority: str = Input(
        default="quality",
        choices=["speed", "quality", "high_res_only"],
        description="What to favour: speed trains in less time, quality follows the images more closely, high_res_only trains at the highest resolution of the base only.",
    ),
    finetune_type: str = Input(
        default="full",
        choices=["lora", "full"],
        description="What is trained: lora trains a LoRA of lora_rank directly; full trains all the weights, then extracts a LoRA of lora_rank from what changed.",
    ),
    lora_rank: int = Input(
        default=32,
        choices=[16, 32],
        description="The rank of the LoRA that the finetune is published as. 32 holds more detail, 16 trains and loads faster.",
    ),
) -> str:
    show_library_log()
    with local_file("input_images", input_images) as archive:
        request = as_documented(
            FinetuneRequest,
            input_images=archive,
            training_steps=training_steps,
            trigger_word=trigger_word,
            mode=mode,
            learning_rate=learning_rate,
            captioning=captioning,
            priority=priority,
            finetune_type=finetune_type,
            lora_rank=lora_rank,
        )
        published = finetune(request, warm=WARM)
    for what in ("seconds", "peak_memory_bytes"):
        for phase, amount in published.manifest[what].items():
            current_scope().record_metric(f"{phase}_{what}", amount)
    return published.id
