"""The APIs as clients reach them, on a port of this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from apis_of_tests import ANN, BOB, EMOJI, Api, running
from local_engine import Idle, Inside, engine_of

from fleet.apis import build_app
from fleet.apis.front import Served
from fleet.engine import Engine
from fleet.keys import Keys, sha256
from fleet.records import Limits


@pytest.fixture(scope="session")
def start_api(tmp_path_factory) -> Iterator[Callable[..., Api]]:
    """Call it with what does the work, or nothing; the keys are Ann's and Bob's, unless others are named."""
    with ExitStack() as open_ones:

        def start(
            cluster: Idle | Inside | None = None,
            served: Served = EMOJI,
            keys: Keys | None = None,
            limits: Limits | None = None,
            engine: Engine | None = None,
        ) -> Api:
            folder = tmp_path_factory.mktemp("shared")
            keys = keys if keys is not None else Keys({"ann": sha256(ANN), "bob": sha256(BOB)})
            engine = engine or engine_of(cluster or Idle(), folder, limits)
            return Api(open_ones.enter_context(running(build_app(engine, served, keys))), engine, folder)

        yield start


@pytest.fixture(scope="module")
def api(start_api) -> Api:
    """In front of an engine whose jobs wait for the test."""
    return start_api()
