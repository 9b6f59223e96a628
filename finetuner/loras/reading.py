"""What was taken of a LoRA's file so far, and the verdict: what is refused, what is said, what is kept."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from itertools import chain

import torch

from finetuner.bases import Family
from finetuner.loras.files import Weights
from finetuner.loras.kinds import some
from finetuner.loras.names import Shapes, fused_modules
from finetuner.loras.rank import cut, energy, is_rounding, without_zeros

log = logging.getLogger(__name__)

BLOCKS = "the transformer's blocks"
ENERGY = "measured by the squares of its entries (Frobenius norm)"


@dataclass
class Reading:
    """Filled module by module with `hold` and `leave_out`; then `judge`, and `pack`."""

    name: str  # of the file
    largest_rank: int  # that a finetune has room for
    weights: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # linear -> down, up, in float32
    whole: float = 0.0  # energy of what a finetune holds
    lost: float = 0.0  # energy beyond the largest rank
    rank: int = 0  # the largest in the file, without what is zero or rounding
    left_out: dict[str, float] = field(default_factory=dict)  # what a finetune cannot hold -> its energy
    examples: dict[str, list[str]] = field(default_factory=dict)  # of its modules' names
    zeros: Counter[str] = field(default_factory=Counter)  # what was dropped as it changes nothing -> how many

    def hold(self, linear: str, down: torch.Tensor, up: torch.Tensor, dtype: torch.dtype) -> None:
        """Take a linear's change, cut to the largest rank where it has more; what that costs is counted unless it is rounding.

        Args:
            down, up: in float64, the strength in the up.
            dtype: of the file's numbers.

        Raises:
            ValueError: the linear was taken before.
        """
        if linear in self.weights:
            raise ValueError(f"{self.name}: it changes {linear} twice.")
        down, up = without_zeros(down, up)
        whole = energy(down, up)
        rank, lost = down.shape[0], 0.0
        if rank > self.largest_rank:
            down, up, lost = cut(down, up, self.largest_rank)
            if is_rounding(lost, whole, dtype):
                rank, lost = self.largest_rank, 0.0
        self.weights[linear] = (down.float(), up.float())
        if not rank:
            self.zeros[BLOCKS] += 1
        self.rank = max(self.rank, rank)
        self.whole += whole
        self.lost += lost

    def leave_out(self, what: str, module: str, amount: float) -> None:
        """Count a module that a finetune cannot hold, by the energy of its change."""
        if amount:
            self.left_out[what] = self.left_out.get(what, 0.0) + amount
            self.examples.setdefault(what, []).append(module)
        else:
            self.zeros[what] += 1

    def judge(self, resize: bool, blocks_only: bool) -> None:
        """Refuse what takes an option that was not given, and say in the log what was dropped, left out or cut.

        Raises:
            ValueError: an option is missing, or nothing is left.
        """
        shares = {what: f"{share:.2%}" for what, share in self.shares_left_out.items()}
        for what, count in self.zeros.items():
            log.warning("%s: %d parts of %s are all zero and were dropped: they change nothing.", self.name, count, what)
        if shares and not blocks_only:
            parts = [f"{what} ({some(self.examples[what])}), {share} of its change" for what, share in shares.items()]
            raise ValueError(
                f"{self.name}: it changes {' and '.join(parts)}, {ENERGY}. A finetune holds the transformer's blocks alone."
                " --blocks-only leaves the rest out."
            )
        for what, share in shares.items():
            log.warning("%s: %s were left out, as asked: %s of its change, %s.", self.name, what, share, ENERGY)
        if not self.whole:
            raise ValueError(f"{self.name}: it changes nothing in {BLOCKS}: all of it there is zero.")
        if self.rank <= self.largest_rank:
            return
        if not resize:
            raise ValueError(
                f"{self.name}: its rank is {self.rank}, and a finetune has room for {self.largest_rank}."
                f" A cut to {self.largest_rank} would keep {self.kept:.4%} of its change, {ENERGY}: --resize makes it."
                " The rest is lost, so look at its pictures."
            )
        said = "%s: was cut from rank %d to %d, which keeps %.4f %% of its change, %s."
        log.warning(said, self.name, self.rank, self.largest_rank, 100 * self.kept, ENERGY)

    @property
    def kept(self) -> float:
        """The share of the change that the largest rank keeps."""
        return 1 - self.lost / self.whole

    @property
    def shares_left_out(self) -> dict[str, float]:
        everything = self.whole + sum(self.left_out.values())
        return {what: amount / everything for what, amount in self.left_out.items()}

    def pack(self, family: Family, shapes: Shapes) -> Weights:
        """All of one rank, smaller ones padded with zeros; what is fused with another in kohya's names stands beside it.

        Raises:
            ValueError: float32 does not hold the numbers.
        """
        changed = {linear: factors for linear, factors in self.weights.items() if len(factors[0])}
        rank = max(len(down) for down, _ in changed.values())
        tensors = {}
        for linear in sorted(chain(*fused_modules(changed, family).values())):
            out, width = shapes[linear]
            down, up = changed.get(linear, (torch.zeros(0, width), torch.zeros(out, 0)))
            padding = rank - len(down)
            tensors[f"{linear}.lora_A.weight"] = torch.nn.functional.pad(down, (0, 0, 0, padding))
            tensors[f"{linear}.lora_B.weight"] = torch.nn.functional.pad(up, (0, padding))
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError(f"{self.name}: its alpha makes numbers that float32 does not hold.")
        exact_in_half = all(torch.equal(tensor.half().float(), tensor) for tensor in tensors.values())
        dtype = torch.float16 if exact_in_half else torch.float32
        return {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
