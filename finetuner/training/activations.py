"""Which of the transformer's blocks keep what their backward pass needs, and which compute it anew (Chen et al. 2016)."""

from __future__ import annotations

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(transformer: nn.Module, count: int) -> None:
    """Let the first ``count`` blocks keep their input alone, and compute the rest again in backward.

    The first, since backward comes to them last, when what the others kept is gone. The very last block had better keep what
    it needs: it would be computed again at once.
    """
    if not count:
        return
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    chosen = {id(block) for block in blocks[:count]}

    def run(block: nn.Module, *inputs: object) -> object:
        if id(block) not in chosen:
            return block(*inputs)
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)  # there is no dropout

    transformer.enable_gradient_checkpointing(run)
