"""Names that clients of other trainers and samplers send for our inputs, and what to send instead.

Taken from the documented inputs of ostris/ai-toolkit, kohya-ss/sd-scripts, diffusers' training scripts and pipelines, and the
public FLUX trainers and LoRA models on Replicate and fal.
"""

from __future__ import annotations

OTHER_NAMES = {  # by the documented name
    "input_images": ["images", "image", "images_data_url", "image_zip", "zip_url", "training_data", "dataset", "file_data"],
    "training_steps": ["steps", "max_train_steps", "num_train_steps", "train_steps", "max_steps", "num_steps", "iterations"],
    "trigger_word": ["trigger", "trigger_phrase", "trigger_token", "token_string", "instance_prompt", "token"],
    "learning_rate": ["lr", "unet_lr", "base_lr"],
    "captioning": ["autocaption", "auto_caption", "auto_captioning", "caption"],
    "finetune_type": ["training_type", "train_type"],
    "lora_rank": ["rank", "network_dim", "network_rank", "lora_r", "lora_dim"],
    "finetune_id": ["lora", "loras", "lora_id", "lora_url", "lora_weights", "hf_lora", "extra_lora", "finetune", "model_id"],
    "finetune_strength": [
        "lora_scale",
        "lora_strength",
        "lora_weight",
        "strength",
        "scale",
        "adapter_strength",
        "extra_lora_scale",
    ],
    "steps": ["num_inference_steps", "inference_steps", "num_steps", "sampling_steps"],
    "guidance": ["guidance_scale", "cfg", "cfg_scale"],
    "aspect_ratio": ["image_size", "size", "ratio"],
    "output_format": ["image_format", "format"],
}

NO_INPUT = {  # what decides instead, by the name; each goes with one of ours, whose endpoint it is sent to
    "input_images": {
        "batch_size": "The batch size is chosen for the images and the card.",
        "resolution": "Send priority: it chooses the resolutions.",
        "epochs": "Send training_steps.",
        "num_train_epochs": "Send training_steps.",
        "lora_alpha": "The alpha follows from lora_rank.",
        "optimizer": "The optimizer is the trainer's own.",
    },
    "finetune_id": {
        "negative_prompt": "Say in prompt what the image is to show.",
        "num_outputs": "Send one request an image, each with another seed.",
        "num_images": "Send one request an image, each with another seed.",
    },
}


def sentences(known: list[str]) -> dict[str, str]:
    """By name, what to say to one who sends it to an endpoint with these inputs."""
    said: dict[str, str] = {}
    for name in known:
        for other in [*OTHER_NAMES.get(name, []), *_spellings(name)]:
            said.setdefault(other, f"{other} is not an input here. Send {name}.")
        for other, remedy in NO_INPUT.get(name, {}).items():
            said[other] = f"{other} is not an input here. {remedy}"
    return {name: sentence for name, sentence in said.items() if name not in known}


def _spellings(name: str) -> list[str]:
    """training_steps -> training_step, trainingSteps, training-steps, trainingsteps, TRAINING_STEPS."""
    first, *words = name.split("_")
    other_number = name.removesuffix("s") if name.endswith("s") else f"{name}s"
    camel = first + "".join(word.title() for word in words)
    return [other_number, *dict.fromkeys([camel, name.replace("_", "-"), name.replace("_", ""), name.upper()])]
