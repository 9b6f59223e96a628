"""LoRA files: a finetune's own, and those of other tools, in and out.

In: a safetensors file in diffusers' or kohya's keys. Out: a finetune in the store, or a file for another tool; no value changes
on the way. Begin with files.py for what a finetune's file holds, with formats.py for what others write.
"""

from finetuner.loras.exchange import export_lora, import_lora
from finetuner.loras.files import WEIGHTS_NAME, in_half, load_lora, save_lora

__all__ = ["WEIGHTS_NAME", "export_lora", "import_lora", "in_half", "load_lora", "save_lora"]
