"""LoRA files: a finetune's own, and those of other tools, in and out.

In: a LoRA's file of any tool. Out: a finetune in the store, or a file for another tool; no value changes on the way but what
the user allows. Begin with files.py for what a finetune's file holds, with foreign.py for how those of others are read.
"""

from finetuner.loras.exchange import export_lora, import_lora
from finetuner.loras.files import WEIGHTS_NAME, in_half, load_lora, save_lora

__all__ = ["WEIGHTS_NAME", "export_lora", "import_lora", "in_half", "load_lora", "save_lora"]
