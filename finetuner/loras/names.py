"""The names in a LoRA's file -> our linears.

diffusers names a linear as its transformer does. Black Forest Labs' own code, and with it kohya's sd-scripts, fuses q, k and v
(and the MLP's first linear in the single blocks) into one. Tools put prefixes of their own before either, and write dots or
underscores; OneTrainer names the pieces of what is fused by number. So a name is looked up with every dot as an underscore,
after any of the known prefixes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from finetuner.bases import Family

Shapes = dict[str, tuple[int, int]]  # linear's name in diffusers -> (out, in)

PREFIXES = (
    "lora_unet_",
    "lora_transformer_",
    "lora_",
    "lycoris_",
    "base_model_",
    "diffusion_model_",
    "transformer_",
    "model_",
    "module_",
)
DOWN_UP = {"A": "down", "B": "up", "down": "down", "up": "up"}
KEY = re.compile(
    r"(?P<module>.+?)\.(?:lora_(?P<side>A|B|down|up)|(?:lora\.|lora_linear_layer\.)?(?P<plain>down|up))"
    r"(?:\.\w+)?\.(?P<what>weight|bias)|(?P<scaled>.+?)(?:\.lora)?\.alpha"
)  # between the side and "weight" peft writes the adapter's name: lora_A.default.weight
TEXT_ENCODER = re.compile(
    r"(lora_|base_model\.model\.)?(te\d?|t5\w*|text_encoders?|text_encoder_\d|clip(_[lgh])?|cond_stage_model|conditioner)[._]"
    r"|text_model[._]|encoder[._]block[._]\d"
)


@dataclass(frozen=True)
class Key:
    """What a tensor of a file is: of which module, and which part of its LoRA."""

    module: str
    role: str  # down, up, alpha, or the bias of either


def parse_key(key: str) -> Key | None:
    """None where it is no part of a LoRA."""
    if not (match := KEY.fullmatch(key)):
        return None
    if match["scaled"]:
        return Key(match["scaled"], "alpha")
    side = DOWN_UP[match["side"] or match["plain"]]
    return Key(match["module"], side if match["what"] == "weight" else f"{side} bias")


class Names:
    """The names that files give to the linears of a base, in every spelling."""

    def __init__(self, family: Family, shapes: Shapes):
        """``shapes``: of all linears of the base's transformer."""
        self.family = family
        self.linears: dict[str, tuple[str, ...]] = {name.replace(".", "_"): (name,) for name in shapes}
        self.linears |= {ours.replace(".", "_"): (ours,) for ours in family.KOHYA_OUTSIDE.values()}  # some bases lack some
        self.linears |= {theirs.replace(".", "_"): (ours,) for theirs, ours in family.KOHYA_OUTSIDE.items()}
        for kind, blocks in family.KOHYA_BLOCKS.items():
            for number in sorted({name.split(".")[1] for name in shapes if name.startswith(f"{blocks.prefix}.")}):
                for part, linears in (blocks.linears | blocks.aliases).items():
                    names = tuple(f"{blocks.prefix}.{number}.{linear}" for linear in linears)
                    self.linears[f"{kind}_blocks_{number}_{part}"] = names
                    for piece, name in enumerate(names):
                        self.linears.setdefault(f"{kind}_blocks_{number}_{part}_{piece}", (name,))

    def of(self, module: str) -> tuple[str, ...]:
        """Our linears behind a file's module: one, or those that it fuses; none where it is not known."""
        return self.linears.get(self._bare(module), ())

    def block_that_is_missing(self, module: str) -> bool:
        """Whether the base has such a linear, but not in a block of that number."""
        return not self.of(module) and bool(self.of(re.sub(r"(blocks[._])\d+", r"\g<1>0", module, count=1)))

    def are_held(self, names: tuple[str, ...]) -> bool:
        """Whether the linears are in the blocks, where a finetune may change them."""
        return names[0].startswith(tuple(f"{blocks.prefix}." for blocks in self.family.KOHYA_BLOCKS.values()))

    def convention(self, module: str) -> str:
        """Whose names a module of a file has, with the prefix they stand behind."""
        bare = self._bare(module)
        prefix = module[: len(module) - len(bare)]
        kinds = tuple(f"{kind}_blocks_" for kind in self.family.KOHYA_BLOCKS)
        ours = any(bare.startswith(f"{blocks.prefix}_") for blocks in self.family.KOHYA_BLOCKS.values())
        whose = "diffusers" if ours or not bare.startswith(kinds) else "XLabs" if "processor" in bare else "Black Forest Labs"
        return f"{whose}, behind {prefix}" if prefix else whose

    def _bare(self, module: str) -> str:
        """Without what stands before the names that are known; dots as underscores."""
        name = module.replace(".", "_")
        while name not in self.linears:
            prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
            if prefix is None:
                return module.replace(".", "_")
            name = name.removeprefix(prefix)
        return name


def fused_modules(names: Iterable[str], family: Family) -> dict[str, list[str]]:
    """Kohya's modules that hold these linears, with all the linears of each, in their order."""
    modules = {}
    for name in sorted(names):
        prefix, number, linear = name.split(".", 2)
        kind, blocks = next((kind, blocks) for kind, blocks in family.KOHYA_BLOCKS.items() if blocks.prefix == prefix)
        part, linears = next((part, linears) for part, linears in blocks.linears.items() if linear in linears)
        modules[f"lora_unet_{kind}_blocks_{number}_{part}"] = [f"{prefix}.{number}.{linear}" for linear in linears]
    return modules
