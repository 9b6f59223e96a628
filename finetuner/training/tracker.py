"""The training's figures as they come, in TensorBoard or Weights & Biases, where people have set these up."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

# What asks for which library: the variables by which the users of these know them.
LIBRARIES = {"TENSORBOARD_LOGDIR": "tensorboard", "WANDB_PROJECT": "wandb", "WANDB_API_KEY": "wandb"}

Writer = Callable[[dict[str, float], int], None]  # takes a step's figures by name, and the number of the step

_writers: list[Writer] = []  # of the training that runs: a process has one at a time


@contextmanager
def tracking(run: str, facts: dict, writer: Writer | None = None) -> Iterator[None]:
    """Pass on what is tracked inside, under the name ``run``: a job that goes on after it was killed goes on there. ``writer``
    is the caller's own.

    Raises:
        ValueError: the environment asks for a library that is not installed.
    """
    wanted = _wanted()
    with ExitStack() as stack:
        stack.callback(_writers.clear)
        if writer:
            _writers.append(writer)
        if "tensorboard" in wanted:
            from torch.utils.tensorboard import SummaryWriter

            board = stack.enter_context(SummaryWriter(os.path.join(os.environ["TENSORBOARD_LOGDIR"], run)))
            board.add_text("recipe", "\n".join(f"    {name}: {value}" for name, value in facts.items()))

            def write(values: dict[str, float], step: int) -> None:
                for name, value in values.items():
                    board.add_scalar(name, value, step)

            _writers.append(write)
        if "wandb" in wanted:
            import wandb

            wandb_run = stack.enter_context(wandb.init(id=run, resume="allow", config=facts))
            _writers.append(lambda values, step: wandb_run.log(values, step=step))
        yield


def track(step: int, **values: float) -> None:
    for write in _writers:
        write(values, step)


def _wanted() -> set[str]:
    asked = {variable: library for variable, library in LIBRARIES.items() if os.environ.get(variable)}
    for variable, library in asked.items():
        if importlib.util.find_spec(library) is None:
            raise ValueError(f"{variable}: is set, but {library} is not installed. Run pip install {library}, or unset it.")
    return set(asked.values())
