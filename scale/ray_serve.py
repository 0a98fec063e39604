"""Shards of a gallery as deployments of Ray Serve. Only this module imports ray, once it is used."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.checks import check_positive
from ..runtime.counts import counted
from ..runtime.errors import BackendError, GalleryError, InputError
from ..runtime.extras import needs
from ..runtime.gallery.sharded.manifest import is_sharded, manifest_header, not_sharded, read_manifest
from .asking import Patience
from .connection import connected, other_version
from .questions import Answer, Question
from .remote_gallery import RemoteGallery
from .shard_host import ShardHost

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

_log = logging.getLogger(__name__)
_ONGOING = 4  # questions at one replica: one is answered, the others wait there for the thread
_CHECK = 2.0  # seconds between checks whether a replica lives
_LOG = 10.0  # seconds between lines of the log on shards that start
_DRAIN = 5.0  # seconds that a replica has for questions when it ends


@dataclass(frozen=True)
class RayShards:
    """How the shards of galleries are run on Ray.

    Attributes:
        address: of a running cluster; None for the one of this machine, or one that is started and ends when the
            `RayCluster` is closed.
        replicas: processes of each shard.
        max_replicas: as many processes of each shard when there is much to do; None for no more than `replicas`.
        threads: CPU threads of each process, which Ray counts as its CPUs on a cluster that is there already.
        start_seconds: that the processes have to start.
        patience: how long to wait for a shard.
    """

    address: str | None = None
    replicas: int = 1
    max_replicas: int | None = None
    threads: int = 1
    start_seconds: float = 120.0
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        check_positive("replicas", self.replicas)
        check_positive("threads", self.threads)
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise InputError(f"max_replicas must be at least replicas ({self.replicas}), got {self.max_replicas}")


class ShardReplica:
    """A `ShardHost` in a process of Ray Serve. It answers one question at a time, with all its threads.

    Args:
        folder: the gallery in shards.
        threads: CPU threads for scans.
        version: of this package, where the server was started.

    Raises:
        GalleryError: this node has another version, or cannot read the gallery.
    """

    def __init__(self, folder: str, threads: int, version: str) -> None:
        if (problem := other_version(version)) is not None:
            raise GalleryError(f"the node {socket.gethostname()} cannot take part: {problem}")
        self._host = ShardHost(folder, threads)
        self._thread = ThreadPoolExecutor(1, "chan-shard")

    async def ask(self, question: Question) -> Answer:
        """The answer to a question."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._host.answer, question)


class RayTransport:
    """Carries questions to deployments: one for each slot."""

    def __init__(self, handles: list[DeploymentHandle[Any]]) -> None:
        self._handles = handles

    @property
    def slots(self) -> int:
        """Deployments."""
        return len(self._handles)

    async def ask(self, slot: int, question: Question) -> Answer:
        """The answer of a replica of a deployment; raises what Ray raises where there is none."""
        response = self._handles[slot].ask.remote(question)
        try:
            answer: Answer = await response
            return answer
        except asyncio.CancelledError:
            response.cancel()
            raise


@dataclass(frozen=True)
class _Deployed:
    """The deployments of a gallery.

    Attributes:
        gallery: as in its manifest; another one that takes its folder is deployed again.
        transport: to them.
        apps: their names on the cluster.
    """

    gallery: str
    transport: RayTransport
    apps: list[str]


class RayCluster:
    """A connection to a cluster, and the deployments that it has started there; close it to end them.

    Args:
        shards: how to run shards.

    Raises:
        MissingExtra: ray is not installed.
        InputError: there is no cluster at the address.
    """

    def __init__(self, shards: RayShards) -> None:
        with needs("ray", "shards on Ray"):
            from ray import serve
        self._shards = shards
        self._deployed: dict[str, _Deployed] = {}
        self._connection = ExitStack()
        self._alone = self._connection.enter_context(connected(shards.address))
        logging.getLogger("ray").setLevel(logging.WARNING)
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False, "log_level": "WARNING"})

    def open(self, name: str, folder: Path, patience: Patience | None = None) -> RemoteGallery:
        """A gallery whose shards are deployed here, which are started for the first one of its name.

        Args:
            name: of the deployments. A cluster has one server of a name: a second one takes the first one's place.
            folder: the gallery in shards, which every node of the cluster must see at this path.
            patience: in place of that of all galleries.

        Raises:
            BackendError: the cluster has no room for the processes, or they do not start.
            GalleryError: there is no gallery, or it is not in shards.
            GalleryCorrupt, GalleryIncomplete: as `RemoteGallery`.
        """
        folder = folder.absolute()
        if not is_sharded(folder):
            raise not_sharded(folder)
        gallery = manifest_header(folder).gallery
        deployed = self._deployed.get(name)
        if deployed is None or deployed.gallery != gallery:
            deployed = self._deployed[name] = self._deploy(name, folder, gallery)
        patience = patience or self._shards.patience
        if (self._shards.max_replicas or self._shards.replicas) == 1:  # the one process would do the work twice
            patience = replace(patience, hedge=patience.limit)
        return RemoteGallery(folder, deployed.transport, patience)

    def end(self, name: str) -> None:
        """End the deployments of a gallery, which nobody may search any more."""
        _delete(self._deployed.pop(name).apps)

    def close(self) -> None:
        """End the deployments, and leave the cluster."""
        for name in list(self._deployed):
            self.end(name)
        self._connection.close()

    def _deploy(self, name: str, folder: Path, gallery: str) -> _Deployed:
        from ray import serve

        options = self._shards
        count = len(read_manifest(folder)[1].shards)
        scaling: dict[str, Any] = {"num_replicas": options.replicas}
        if options.max_replicas is not None:
            bounds = {"min_replicas": options.replicas, "max_replicas": options.max_replicas}
            scaling = {"autoscaling_config": {**bounds, "target_ongoing_requests": 1}}
        deployment = serve.deployment(
            name="shard",
            # A cluster that is this machine alone has nothing to place, and may have fewer cores than shards.
            ray_actor_options={"num_cpus": 0 if self._alone else options.threads},
            max_ongoing_requests=_ONGOING,
            health_check_period_s=_CHECK,
            health_check_timeout_s=5 * _CHECK,
            graceful_shutdown_timeout_s=_DRAIN,
            graceful_shutdown_wait_loop_s=0.2,
            **scaling,
        )(ShardReplica)
        apps = [f"chan-{name}-{number}" for number in range(count)]
        targets = [
            serve.RunTarget(
                deployment.bind(str(folder), options.threads, version("chan-rt")), name=app, route_prefix=None
            )
            for app in apps
        ]
        handles = serve.run_many(targets, wait_for_applications_running=False)
        try:
            self._wait_for(apps)
        except BaseException:
            _delete(apps)
            raise
        left = re.compile(re.escape(f"chan-{name}-") + r"\d+")  # by a server that was killed
        _delete([app for app in serve.status().applications if left.fullmatch(app) and app not in apps])
        return _Deployed(gallery, RayTransport(handles), apps)

    def _wait_for(self, apps: list[str]) -> None:
        """Wait until deployments run, and log how many do; BackendError where they fail or have no room."""
        from ray import serve

        deadline = time.monotonic() + self._shards.start_seconds
        logged = -math.inf
        while True:
            found = serve.status().applications
            states = {app: found[app].status.value if app in found else "NOT_STARTED" for app in apps}
            if all(state == "RUNNING" for state in states.values()):
                return
            for app, state in states.items():
                if state in ("DEPLOY_FAILED", "UNHEALTHY"):
                    raise BackendError(f"the processes of {app} do not start on Ray: {found[app].message}")
            running = sum(state == "RUNNING" for state in states.values())
            if time.monotonic() > logged + _LOG:
                logged = time.monotonic()
                shards = counted(len(apps), "shard runs", "shards run")
                _log.info("%d of %s on Ray; waiting for the others", running, shards)
            if time.monotonic() > deadline:
                wanted = self._shards.threads * self._shards.replicas * len(apps)
                raise BackendError(
                    f"only {running} of {counted(len(apps), 'shard runs', 'shards run')} on Ray after "
                    f"{self._shards.start_seconds:g} seconds: "
                    f"give the cluster {wanted} CPUs for them, or ask for fewer replicas"
                )
            time.sleep(0.05)


def _delete(apps: list[str]) -> None:
    from ray import serve

    for app in apps:
        serve.delete(app, _blocking=False)
