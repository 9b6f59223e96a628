"""Cog's prediction entrypoint: a prompt and a finetune in, one image out."""

import pathlib
import tempfile
from typing import Optional

from cog import BaseRunner, Input, Path, current_scope

from entrypoints.interface import as_documented, complete_schema, local_file, read_data_uris
from entrypoints.logs import show_library_log
from entrypoints.startup import check_predict_server
from finetuner.generate import Generator
from finetuner.requests import ImageRequest


class Predictor(BaseRunner):
    def setup(self) -> None:
        show_library_log()
        check_predict_server()
        complete_schema(trains=False)
        read_data_uris("image_prompt")
        self.generator = Generator.open()
        self.images = pathlib.Path(tempfile.mkdtemp(prefix="images-"))

    def run(
        self,
        prompt: str = Input(
            description="What the image is to show. It must contain the trigger word of the finetune, or the concept will not appear."
        ),
        finetune_id: str = Input(
            description="The id that the training returned. It must belong to the base model that this server runs."
        ),
        finetune_strength: float = Input(
            default=1,
            ge=0,
            le=2,
            description="How strongly the finetune acts: 0 leaves the base model as it is, 1 is as trained. Go up to 1.4, for a style even further, when the concept is too weak, and below 1 when it overpowers the prompt.",
        ),
        image_prompt: Optional[Path] = Input(
            default=None,
            description="A picture to take after, beside the prompt: JPEG, PNG, GIF or WebP, up to 20 MB and 20 megapixels.",
        ),
        image_prompt_strength: float = Input(
            default=0.1,
            ge=0,
            le=1,
            description="How much the image prompt counts beside the prompt: 0 leaves it out, 1 follows the picture most closely.",
        ),
        aspect_ratio: str = Input(
            default="1:1",
            choices=["custom", "1:1", "21:9", "16:9", "3:2", "4:3", "5:4", "4:5", "3:4", "2:3", "9:16", "9:21"],
            description="The shape of the image, width to height. With custom, width and height decide.",
        ),
        width: Optional[int] = Input(
            default=None,
            ge=256,
            le=1440,
            description="Width in pixels, rounded to a multiple of 32. Only for aspect_ratio custom.",
        ),
        height: Optional[int] = Input(
            default=None,
            ge=256,
            le=1440,
            description="Height in pixels, rounded to a multiple of 32. Only for aspect_ratio custom.",
        ),
        prompt_upsampling: bool = Input(
            default=False,
            description="Whether a language model adds composition, light and detail to the prompt before it is drawn. The answer's log and the image's metadata say what it made of it.",
        ),
        steps: int = Input(
            default=40,
            ge=1,
            le=50,
            description="How many denoising steps to take. Fewer are faster, more are finer.",
        ),
        guidance: float = Input(
            default=3,
            ge=2,
            le=5,
            description="How closely the image follows the prompt. Lower looks more natural, higher is more literal.",
        ),
        raw: bool = Input(
            default=False,
            description="Whether the image is to look less processed, more like a candid photograph. Only for bases that draw photographs.",
        ),
        safety_tolerance: int = Input(
            default=2,
            ge=1,
            le=6,
            description="How much the check of the image and the image prompt lets pass: 1 is the strictest, 6 lets everything pass.",
        ),
        seed: Optional[int] = Input(
            default=None,
            description="The same seed with the same inputs gives the same image. Left out, every request draws a new one.",
        ),
        output_format: str = Input(
            default="jpg",
            choices=["jpg", "png"],
            description="The file format of the image.",
        ),
    ) -> Path:
        self.delete_previous_image()
        with local_file("image_prompt", image_prompt) as picture:
            request = as_documented(
                ImageRequest,
                prompt=prompt,
                finetune_id=finetune_id,
                finetune_strength=finetune_strength,
                image_prompt=picture,
                image_prompt_strength=image_prompt_strength,
                aspect_ratio=aspect_ratio,
                width=width,
                height=height,
                prompt_upsampling=prompt_upsampling,
                steps=steps,
                guidance=guidance,
                raw=raw,
                safety_tolerance=safety_tolerance,
                seed=seed,
                output_format=output_format,
            )
            made = self.generator.generate(request, self.images)
        for phase, seconds in made.seconds.items():
            current_scope().record_metric(f"{phase}_seconds", seconds)
        current_scope().record_metric("adapter_cache_hit", made.adapter_hit)
        current_scope().record_metric("prompt_cache_hit", made.prompt_hit)
        if made.image_prompt_hit is not None:
            current_scope().record_metric("image_prompt_cache_hit", made.image_prompt_hit)
        if made.safety_score is not None:
            current_scope().record_metric("safety_score", made.safety_score)
        return Path(made.path)

    def delete_previous_image(self) -> None:
        # Cog sends an output file but never deletes it, and a server that runs for weeks would fill its disk. All of the folder:
        # a cancelled request may have left a file that nobody was told of.
        for path in self.images.iterdir():
            path.unlink()
