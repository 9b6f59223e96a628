"""The strength of a LoRA in a file: alpha / rank, with alpha from wherever the format says it.

In this order: a tensor of the module, the header's ``lora_adapter_metadata`` (diffusers), peft's ``adapter_config.json``, a
bare key of the header; where nothing says it, alpha is the rank, as every tool takes it.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from functools import cached_property
from typing import Any

import torch
from peft.utils.other import get_pattern_key

from finetuner.loras.opening import ADAPTER_CONFIG, LoraFile

log = logging.getLogger(__name__)

ADAPTER_METADATA = "lora_adapter_metadata"
BARE_KEYS = ("lora_alpha", "network_alpha", "ss_network_alpha", "alpha")
UNSAID = ("", "none", "null", "dynamic")  # sd-scripts writes None for what was not given, and Dynamic where it differs
PREFIX = "transformer."  # diffusers', before each field; other prefixes are of text encoders
ASSUMED = "assumed equal to the rank"


class Alphas:
    """What a file says of alpha, and where it was found, by how many modules took it from there."""

    def __init__(self, file: LoraFile, plain: dict[str, tuple[int, ...]]):
        """Raises ValueError where the file names its alpha in a way that cannot be read: a guess could be far off.

        Args:
            plain: of the modules that are one linear, their alpha's key and their down's shape.
        """
        self.file = file
        self.plain = plain
        self.pieces: list[str] = []
        self.sources: Counter[str] = Counter()
        self.fields, self.place = self._fields()
        self.bare = next(
            (
                (key, alpha)
                for key in (*BARE_KEYS, *(PREFIX + key for key in BARE_KEYS))
                if (alpha := self._number(key, file.metadata.get(key))) is not None
            ),
            None,
        )
        self.other_ranks: list[str] = []

    def scale(self, module: str, linear: str, rank: int, tensor: torch.Tensor | None, held: bool) -> float:
        """alpha / rank of a module.

        Args:
            module: its name in the file.
            linear: the name of the linear in diffusers.
            rank: what alpha belongs to.
            tensor: the module's own alpha, where the file has one.
            held: whether it is of the finetune: only then its source counts.

        Raises:
            ValueError: alpha is not a finite number.
        """
        if tensor is not None:
            if tensor.numel() != 1 or tensor.is_complex() or not math.isfinite(alpha := float(tensor.double())):
                raise ValueError(f"{self.file.name}: the alpha of {module} is not one finite number.")
            return self._found("tensors", alpha / rank, held)
        names = (linear, PREFIX + linear, module)
        said = self._of_pattern("alpha_pattern", names)
        if said is None:
            said = self._number("lora_alpha", self.fields.get("lora_alpha"))
        if said is not None:
            self._compare_rank(module, names, rank)
            return self._found(self.place, said / (math.sqrt(rank) if self.fields.get("use_rslora") else rank), held)
        if self.bare:
            return self._found(f"{self.bare[0]} of its header", self.bare[1] / rank, held)
        if self.fields.get("use_rslora"):
            raise ValueError(f"{self.file.name}: {self.place} says use_rslora and no lora_alpha. Add it there.")
        return self._found(ASSUMED, 1.0, held)

    def is_of_one_piece(self, module: str, rank: int, tensor: torch.Tensor | None) -> bool:
        """Whether the alpha of a fused module, block-diagonal in pieces of ``rank``, was saved as the alpha of each piece.

        sd-scripts does that with split_qkv=True (networks/lora_flux.py: "alpha is unchanged"), where the pieces are trained at
        alpha / rank. Files that were fused by a conversion carry the alpha of all ranks.
        """
        if tensor is None or tensor.numel() != 1:
            return False
        alpha = float(tensor.double())
        said = (str(rank), str(alpha))
        metadata = self.file.metadata
        split = "split_qkv" in metadata.get("ss_network_args", "") and "true" in metadata["ss_network_args"].lower()
        as_trained = (metadata.get("ss_network_dim"), str(self._number("ss_network_alpha", metadata.get("ss_network_alpha"))))
        if split or said == as_trained or (rank, alpha) in self._plain_alphas:
            self.pieces.append(module)
            return True
        return False

    @cached_property
    def _plain_alphas(self) -> set[tuple[int, float]]:
        """Rank and alpha of the modules that are one linear."""
        keys = list(self.plain)
        tensors = self.file.read(keys) if keys else []
        return {
            (self.plain[key][0], float(tensor.double()))
            for key, tensor in zip(keys, tensors, strict=True)
            if tensor.numel() == 1 and self.plain[key]
        }

    def warn(self, usually_said: bool) -> None:
        """Say in the log where a strength was assumed although such files say it, or does not go together."""
        if self.sources[ASSUMED] and (usually_said or self.sources.total() > self.sources[ASSUMED]):
            log.warning(
                "%s: nothing says alpha for %d linears, though such files usually do: it was assumed equal to the rank."
                " If pictures come out too weak or too strong, finetune_strength makes up for it; PEFT's %s belongs"
                " beside its file.",
                self.file.name,
                self.sources[ASSUMED],
                ADAPTER_CONFIG,
            )
        if self.pieces:
            log.warning(
                "%s: the alpha of %d fused modules is that of each of their pieces (sd-scripts' split_qkv). They are as"
                " strong as they were trained; tools that divide it by all ranks (diffusers, ComfyUI) draw them weaker.",
                self.file.name,
                len(self.pieces),
            )
        if self.other_ranks:
            log.warning(
                "%s: %s gives %d linears another rank than they have (%s): alpha was divided by the rank that they have.",
                self.file.name,
                self.place,
                len(self.other_ranks),
                self.other_ranks[0],
            )

    def _found(self, source: str, scale: float, held: bool) -> float:
        self.sources[source] += held
        if not math.isfinite(scale):
            raise ValueError(f"{self.file.name}: its alpha ({source}) is not a finite number.")
        return scale

    def _fields(self) -> tuple[dict[str, Any], str]:
        """The configuration of peft that belongs to the transformer, and where it stands."""
        if text := self.file.metadata.get(ADAPTER_METADATA):
            try:
                said = json.loads(text)
            except (ValueError, RecursionError):
                raise ValueError(
                    f"{self.file.name}: {ADAPTER_METADATA} in its header, which says its alpha, is not JSON."
                ) from None
            place = f"{ADAPTER_METADATA} of its header"
        else:
            said, place = self.file.adapter_config or {}, ADAPTER_CONFIG
        if not isinstance(said, dict):
            raise ValueError(f"{self.file.name}: {place}, which says its alpha, is no JSON object.")
        fields = {name.removeprefix(PREFIX): value for name, value in said.items()}
        for name in ("alpha_pattern", "rank_pattern"):
            if not isinstance(fields.get(name) or {}, dict):
                raise ValueError(f"{self.file.name}: {name} in {place} is no JSON object.")
        return fields, place

    def _of_pattern(self, field: str, names: tuple[str, ...]) -> float | None:
        """As peft takes it: the first pattern that matches the end of a name, as a regular expression."""
        patterns = {key.removeprefix(PREFIX): value for key, value in (self.fields.get(field) or {}).items()}
        for name in names:
            try:
                key = get_pattern_key(list(patterns), name)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(f"{self.file.name}: {field} in {self.place} is no pattern: {error}.") from None
            if (value := self._number(field, patterns.get(key))) is not None:
                return value
        return None

    def _compare_rank(self, module: str, names: tuple[str, ...], rank: int) -> None:
        said = self._of_pattern("rank_pattern", names)
        if said is None:
            said = self._number("r", self.fields.get("r"))
        if said is not None and said != rank:
            self.other_ranks.append(f"{module}: {said:g} there, {rank} here")

    def _number(self, field: str, value: Any) -> float | None:
        """None where it is not said."""
        if value is None or (isinstance(value, str) and value.strip().lower() in UNSAID):
            return None
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{self.file.name}: {field} is {str(value)[:40]!r}, and not a number.") from None
