"""The Ray cluster that does the work: where drawings and trainings run, and with which settings."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponse
from ray.serve.schema import ApplicationStatus

from finetuner.store import FolderStore, open_store
from fleet.drawing import Drawing
from fleet.settings import Settings
from fleet.training import TrainingFolder, train
from fleet.tries import first_line, task, tried

log = logging.getLogger(__name__)

APP = "drawing"  # what the names of the fleet's applications of Serve begin with
ONGOING = 1  # requests that a replica is given at once: behind another's picture none waits while a replica is idle
CANCEL_SECONDS = 20.0
ALIVE_SECONDS = 10.0


class Cluster:
    """Connects to the cluster of ``RAY_ADDRESS``, or to the one that runs on this machine."""

    def __init__(self, settings: Settings):
        self._settings = settings
        if not ray.is_initialized():
            ray.init(address="auto", log_to_driver=False)
        gpus = settings.gpus
        if gpus is None:
            gpus = float(min(1, ray.cluster_resources().get("GPU", 0)))
        self._options = {**({"num_gpus": gpus} if gpus else {"num_cpus": 1}), "runtime_env": {"env_vars": _for_workers()}}
        self._train = task(train, name="training", **self._options)
        self._app, self._drawing = self._deploy()

    async def draw(self, inputs: dict, folder: str) -> dict:
        """What `Drawing.draw` gives; tried again where its replica is lost.

        Serve chooses the less busy of two replicas. By consistent hashing or multiplexing the finetune was in memory about as
        often (46 and 50 %, or 51 and 56 %, against 47 and 49 % with 2 and 4 clients), and requests took as long within a tenth
        (benchmarks/RESULTS.md).
        """

        async def cancel(response: DeploymentResponse) -> None:
            response.cancel()

        return await tried(lambda: self._drawing.draw.remote(inputs, folder), cancel)

    async def train(self, finetune_id: str, inputs: dict, folder: TrainingFolder) -> dict:
        """What `training.train` gives; tried again where its node or process is lost."""

        async def cancel(running: ray.ObjectRef) -> None:
            ray.cancel(running, force=False)
            # Until it has let go of what it works with; one that does not listen is left to its lease.
            await asyncio.to_thread(ray.wait, [running], timeout=CANCEL_SECONDS)

        arguments = finetune_id, inputs, str(folder.folder), self._settings.lease_seconds
        return await tried(lambda: self._train.remote(*arguments), cancel)

    async def is_alive(self) -> bool:
        """Whether the cluster answers, and draws."""
        try:
            status = await asyncio.wait_for(asyncio.to_thread(serve.status), ALIVE_SECONDS)
        except Exception as error:
            log.warning("The cluster does not answer: %s", first_line(error))
            return False
        app = status.applications.get(self._app)
        return app is not None and app.status == ApplicationStatus.RUNNING

    def _deploy(self) -> tuple[str, DeploymentHandle]:
        """The application's name, and what asks it.

        A cluster that draws already, for an engine that is gone, goes on with its replicas: they have the base in memory. Not
        so where they were deployed with other settings. The application is named by its settings, since Serve tells of one
        only the name and the status, and replaces all replicas of whatever is deployed again.
        """
        serve.start(proxy_location="Disabled")  # the engine asks by handles, and Serve's port would be the APIs'
        least, most = self._settings.replicas
        options = {
            "ray_actor_options": self._options,
            "max_ongoing_requests": ONGOING,
            "autoscaling_config": {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": 1},
            "graceful_shutdown_timeout_s": 5,
        }
        name = f"{APP}-{hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]}"
        found = serve.status().applications
        for other in found:
            if other.startswith(APP) and other != name:
                log.info("The settings have changed, and the replicas are replaced")
                serve.delete(other)  # before its successor begins: they may not have room beside each other
        if name not in found or found[name].status not in (ApplicationStatus.RUNNING, ApplicationStatus.DEPLOYING):
            deployment: Any = serve.deployment(Drawing)  # its annotation is that of a decorator
            serve.run(deployment.options(**options).bind(), name=name, route_prefix=None)
        return name, serve.get_app_handle(name)


def _for_workers() -> dict[str, str]:
    """What of the engine's environment decides which base and which store all nodes work with."""
    store = open_store()
    values = {"FINETUNE_STORE": str(store.folder) if isinstance(store, FolderStore) else os.environ["FINETUNE_STORE"]}
    for name in ("BASE_MODEL", "CAPTIONER"):
        if name in os.environ:
            values[name] = os.environ[name]
    return values
