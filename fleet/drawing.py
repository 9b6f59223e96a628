"""One `Generator` per replica, as a deployment of Ray Serve: one picture at a time each."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from finetuner.generate import Generator
from finetuner.requests import ImageRequest
from finetuner.serving import FlaggedError
from finetuner.store import StoreError
from fleet.requests import from_json

log = logging.getLogger(__name__)


class Interrupted(BaseException):
    """Raised where the drawing stands: the client cancelled it."""


class Drawing:
    """What Serve makes a replica of."""

    def __init__(self) -> None:
        logging.getLogger("finetuner").setLevel(logging.INFO)
        self.generator = Generator.open()
        self.pencil = ThreadPoolExecutor(1)  # apart from the event loop, which answers health checks meanwhile

    async def draw(self, inputs: dict, folder: str) -> dict:
        """The picture's file in ``folder``, which is emptied first, with its seed and metrics; or ``error``, a sentence."""
        drawn = Drawn(self.generator, inputs, Path(folder))
        try:
            return await asyncio.get_running_loop().run_in_executor(self.pencil, drawn.run)
        except asyncio.CancelledError:
            drawn.interrupt()
            raise


class Drawn:
    """One picture in the making, which another thread may interrupt."""

    def __init__(self, generator: Generator, inputs: dict, folder: Path):
        self.generator, self.inputs, self.folder = generator, inputs, folder
        self.lock = threading.Lock()
        self.thread: int | None = None  # while it is at work
        self.interrupted = False

    def run(self) -> dict:
        with self.lock:
            if self.interrupted:
                return {"error": "Cancelled."}
            self.thread = threading.get_ident()
        try:
            return self._draw()
        except Interrupted:
            return {"error": "Cancelled."}
        except FlaggedError as error:
            return {"error": str(error), "moderated": True}
        except (ValueError, FloatingPointError, StoreError) as error:
            return {"error": str(error)}
        finally:
            with self.lock:
                self.thread = None

    def interrupt(self) -> None:
        with self.lock:
            self.interrupted = True
            if self.thread is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread), ctypes.py_object(Interrupted))

    def _draw(self) -> dict:
        shutil.rmtree(self.folder, ignore_errors=True)  # of a try whose replica was lost
        self.folder.mkdir(parents=True)
        made = self.generator.generate(from_json(ImageRequest, self.inputs), self.folder)
        metrics = {f"{phase}_seconds": seconds for phase, seconds in made.seconds.items()}
        metrics |= {"adapter_cache_hit": made.adapter_hit, "prompt_cache_hit": made.prompt_hit}
        return {"file": str(made.path), "seed": made.seed, "metrics": metrics}
