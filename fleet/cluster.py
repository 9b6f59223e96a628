"""The Ray cluster that does the work: where drawings and trainings run, and which of its failures are worth another try."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ApplicationStatus

from finetuner.store import FolderStore, open_store
from fleet.drawing import Drawing
from fleet.settings import Settings
from fleet.training import TrainingFolder, train

log = logging.getLogger(__name__)

APP = "drawing"
TRIES = 4  # of a job whose node or process is lost: one that kills whatever it runs on must end, too
ONGOING = 1  # requests that a replica is given at once: behind another's picture none waits while a replica is idle
CANCEL_SECONDS = 20.0
ALIVE_SECONDS = 10.0
LOST = (ray.exceptions.RaySystemError, ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError)


class Cluster:
    """Connects to the cluster of ``RAY_ADDRESS``, or to the one that runs on this machine."""

    def __init__(self, settings: Settings):
        self._settings = settings
        if not ray.is_initialized():
            ray.init(address="auto", log_to_driver=False, runtime_env={"env_vars": _for_workers()})
        gpus = settings.gpus
        if gpus is None:
            gpus = float(min(1, ray.cluster_resources().get("GPU", 0)))
        self._resources = {"num_gpus": gpus} if gpus else {"num_cpus": 1}
        self._train = ray.remote(train).options(
            **self._resources, max_retries=TRIES - 1, retry_exceptions=False, name="training"
        )
        self._drawing = self._deploy()

    async def draw(self, inputs: dict, folder: str) -> dict:
        """What `Drawing.draw` gives; tried again where its replica is lost.

        Serve chooses the less busy of two replicas. By consistent hashing or multiplexing the finetune was in memory about as
        often (48 and 53 %, or 54 and 55 %, against 47 and 58 % with 2 and 4 clients), and all took longer with few clients
        (benchmarks/RESULTS.md).
        """
        for left in reversed(range(TRIES)):
            response = self._drawing.draw.remote(inputs, folder)
            try:
                return await response
            except LOST as error:
                if not left:
                    raise
                log.warning("A replica was lost while it drew, and the picture is begun again: %s", _first_line(error))
            except asyncio.CancelledError:
                response.cancel()
                raise
        raise AssertionError("unreachable")

    async def train(self, finetune_id: str, inputs: dict, folder: TrainingFolder) -> dict:
        """What `training.train` gives; Ray tries again where its node or process is lost."""
        task = self._train.remote(finetune_id, inputs, str(folder.folder), self._settings.lease_seconds)
        try:
            return await task
        except asyncio.CancelledError:
            ray.cancel(task, force=False)
            # Until it has let go of what it works with; one that does not listen is left to its lease.
            await asyncio.to_thread(ray.wait, [task], timeout=CANCEL_SECONDS)
            raise

    async def is_alive(self) -> bool:
        """Whether the cluster answers, and draws."""
        try:
            status = await asyncio.wait_for(asyncio.to_thread(serve.status), ALIVE_SECONDS)
        except Exception as error:
            log.warning("The cluster does not answer: %s", _first_line(error))
            return False
        app = status.applications.get(APP)
        return app is not None and app.status == ApplicationStatus.RUNNING

    def _deploy(self) -> DeploymentHandle:
        """A cluster that draws already, for an engine that is gone, goes on with its replicas: they have the base in memory."""
        serve.start(proxy_location="Disabled")  # the engine asks by handles, and Serve's port would be the APIs'
        app = serve.status().applications.get(APP)
        if app is None or app.status not in (ApplicationStatus.RUNNING, ApplicationStatus.DEPLOYING):
            least, most = self._settings.replicas
            deployment: Any = serve.deployment(Drawing)  # its annotation is that of a decorator
            serve.run(
                deployment.options(
                    ray_actor_options=self._resources,
                    max_ongoing_requests=ONGOING,
                    autoscaling_config=AutoscalingConfig(min_replicas=least, max_replicas=most, target_ongoing_requests=1),
                    graceful_shutdown_timeout_s=5,
                ).bind(),
                name=APP,
                route_prefix=None,
            )
        return serve.get_app_handle(APP)


@functools.cache
def _for_workers() -> dict[str, str]:
    """What of the engine's environment decides which base and which store all nodes work with."""
    store = open_store()
    values = {"FINETUNE_STORE": str(store.folder) if isinstance(store, FolderStore) else os.environ["FINETUNE_STORE"]}
    for name in ("BASE_MODEL", "CAPTIONER"):
        if name in os.environ:
            values[name] = os.environ[name]
    return values


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
