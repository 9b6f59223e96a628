"""The APIs as clients reach them, on a port of this machine."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from apis_of_tests import ANN, BOB, EMOJI, Api, running
from helpers import EXAMPLES
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


@pytest.fixture(scope="session")
def working_api(start_api) -> Iterator[Api]:
    """In front of an engine that trains and draws, with the embedded base."""
    with pytest.MonkeyPatch.context() as patch:
        api = start_api(Inside())
        patch.setenv("FINETUNE_STORE", str(api.folder / "finetunes"))
        patch.setenv("BASE_MODEL", "flux-emoji")
        yield api


@pytest.fixture(scope="session")
def archive(tmp_path_factory) -> Path:
    """Two pictures of the example with their captions."""
    path = tmp_path_factory.mktemp("archives") / "icons.zip"
    with zipfile.ZipFile(EXAMPLES / "line-icons.zip") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            if name.startswith(("owl.", "dog.")):
                target.writestr(name, source.read(name))
    return path
