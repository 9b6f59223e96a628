"""The rank of up @ down: what is zero or rounding in it goes without loss, more than that by a cut that says what it keeps.

Nothing here makes the product: with FLUX.1 a single one takes 300 MB.
"""

from __future__ import annotations

import torch

# How much of a change (in Frobenius norm) is the rounding of the numbers that a file holds, by their dtype: the two factors are
# each rounded by half a unit of the last place at most. Coarser dtypes are held to bfloat16's, or an eighth would pass for it.
ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-6, torch.float16: 2.0**-10}
COARSEST = 2.0**-7


def without_zeros(down: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Drop the ranks that add nothing, as a row of the down or a column of the up is zero: a block diagonal has many."""
    used = down.any(1) & up.any(0)
    return down[used], up[:, used]


def energy(down: torch.Tensor, up: torch.Tensor) -> float:
    """The sum of squares of all entries of up @ down (its Frobenius norm, squared), in the factors' dtype."""
    return float(((up.T @ up) * (down @ down.T)).sum())


def cut(down: torch.Tensor, up: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The nearest change of a rank (Eckart, Young 1936), of the same factors' dtype, and the energy that it leaves out.

    Args:
        down: [r, in] in float64, up: [out, r].
    """
    (q_up, r_up), (q_down, r_down) = torch.linalg.qr(up), torch.linalg.qr(down.T)
    u, values, v = torch.linalg.svd(r_up @ r_down.T)
    root = values[:rank].sqrt()
    return (v[:rank] * root[:, None]) @ q_down.T, q_up @ (u[:, :rank] * root), float(values[rank:].square().sum())


def is_rounding(lost: float, whole: float, dtype: torch.dtype) -> bool:
    """Whether an energy is no more of the whole than the rounding of numbers of a dtype."""
    return lost <= ROUNDING.get(dtype, COARSEST) ** 2 * whole
