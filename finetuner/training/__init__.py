"""Examples -> a LoRA.

In: examples with captions, a base, a request. Out: a `Learned` LoRA and the history of its losses. `recipe_for` decides every
number before anything heavy is loaded, `encode_dataset` caches what text encoders and VAE say, and `learn` trains with only the
transformer in memory. Begin with recipe.py, then trainer.py.
"""

from finetuner.training.adapter import set_strength
from finetuner.training.checkpoint import Checkpoint, remove_old
from finetuner.training.encode import encode_dataset
from finetuner.training.learn import Learned, learn
from finetuner.training.optim import rate_factor
from finetuner.training.recipe import Recipe, recipe_for
from finetuner.training.tracker import Writer, tracking
from finetuner.training.trainer import History

__all__ = [
    "Checkpoint",
    "History",
    "Learned",
    "Recipe",
    "Writer",
    "encode_dataset",
    "learn",
    "rate_factor",
    "recipe_for",
    "remove_old",
    "set_strength",
    "tracking",
]
