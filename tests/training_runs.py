"""Short trainings of a tiny transformer, of either kind."""

from helpers import make_recipe
from torch import nn

from finetuner.training import adapter, delta
from finetuner.training.checkpoint import Checkpoint
from finetuner.training.optim import InBackwardOptimizer, LoraOptimizer
from finetuner.training.trainer import train

RECIPE = make_recipe()
KINDS = ["lora", "full"]


def make_trainable(transformer, kind) -> tuple[dict[str, nn.Parameter], LoraOptimizer | InBackwardOptimizer]:
    if kind == "lora":
        adapter.add_adapter(transformer, RECIPE.rank, seed=0)
        trained = adapter.trainable_weights(transformer)
        return trained, LoraOptimizer(trained, RECIPE)
    delta.add_deltas(transformer)
    trained = delta.deltas(transformer)
    return trained, InBackwardOptimizer(trained, RECIPE)


def run(transformer, kind, dataset, scheduler, folder, recipe=RECIPE):
    trained, optimizer = make_trainable(transformer, kind)
    with Checkpoint(folder) as job:
        history = train(transformer, optimizer, dataset, scheduler, recipe, job)
    return {name: p.detach().clone() for name, p in trained.items()}, history


def copy_of(transformer):
    other = type(transformer).from_config(transformer.config).requires_grad_(False).eval()
    other.load_state_dict(transformer.state_dict())
    return other
