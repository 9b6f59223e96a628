"""What Cog's own generator was given when it wrote cog_example.json: one input of every kind."""

from typing import Optional

from cog import BaseRunner, Input, Path


class Predictor(BaseRunner):
    def run(
        self,
        prompt: str = Input(description="What to paint"),
        finetune_id: str = Input(description="Which finetune"),
        finetune_strength: float = Input(description="How strongly", default=1, ge=0, le=2),
        aspect_ratio: str = Input(
            description="Shape",
            default="1:1",
            choices=["custom", "1:1", "21:9", "16:9", "3:2", "4:3", "5:4", "4:5", "3:4", "2:3", "9:16", "9:21"],
        ),
        width: Optional[int] = Input(description="Width", default=None, ge=256, le=1440),
        steps: int = Input(description="Steps", default=40, ge=1, le=50),
        raw: bool = Input(description="Raw", default=False),
        image_prompt: Optional[Path] = Input(description="Picture", default=None),
    ) -> Path:
        raise NotImplementedError


def train(
    input_images: Path = Input(description="A zip file"),
    training_steps: int = Input(
        description="Number of training steps for the fine-tuning process.",
        default=300,
        choices=[149, 300, 400, 500, 600, 700, 800, 900, 1000],
    ),
    trigger_word: str = Input(description="trig", default="TOK"),
    mode: str = Input(description="Mode", default="general", choices=["general", "character", "style", "product"]),
    learning_rate: Optional[float] = Input(description="lr", default=None, ge=1e-6, le=5e-3),
    captioning: str = Input(
        description="c",
        default="automatic",
        choices=["automatic", "captioning-enabled", "captioning-disabled"],
    ),
    priority: str = Input(description="p", default="quality", choices=["speed", "quality", "high_res_only"]),
    finetune_type: str = Input(description="t", default="full", choices=["lora", "full"]),
    lora_rank: int = Input(description="r", default=32, choices=[16, 32]),
) -> str:
    raise NotImplementedError
