"""The container's own servers, started with script/serve. Tests here talk to them over HTTP, as clients do."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from local_server import Server

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def start_server(tmp_path_factory) -> Iterator[Callable[..., Server]]:
    """Call it with train, predict or trainer, and with environment variables; the server lives until the tests end."""
    store = tmp_path_factory.mktemp("store")
    with ExitStack() as running:

        def start(mode: str, **environment: str) -> Server:
            log = tmp_path_factory.mktemp(mode) / "server.log"
            defaults = {
                "BASE_MODEL": os.environ["BASE_MODEL"],
                "FINETUNE_STORE": str(store),
                "TMPDIR": str(tmp_path_factory.mktemp("temporary")),  # its own, to see what it leaves there
            }
            return running.enter_context(Server(mode, log, defaults | environment))

        yield start


@pytest.fixture(scope="session")
def train_server(start_server) -> Server:
    return start_server("train")


@pytest.fixture(scope="session")
def predict_server(start_server) -> Server:
    return start_server("predict")


@pytest.fixture(scope="session")
def trainer_server(start_server) -> Server:
    return start_server("trainer")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests of this folder come after all others; in parallel, where the longest must not be last, in their turn."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        items.sort(key=lambda item: HERE in item.path.parents)
