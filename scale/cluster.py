"""Work of `bulk.py` on a Ray cluster: finding it, checking its nodes, and a pool of actors."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..runtime.backends import BACKENDS
from ..runtime.errors import BackendError, ChanError, GalleryError, InputError
from ..runtime.extras import needs
from .bulk_worker import Encoder, Filled, Job, Work, check_node
from .connection import connected

_log = logging.getLogger(__name__)
_CHECK_SECONDS = 120.0  # a node may have to start a process, which imports this package


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Be connected to a cluster for a block.

    Args:
        address: as of `connected`.

    Raises:
        MissingExtra: Ray is not installed.
        InputError: there is no cluster at the address.
    """
    with needs("ray", "encoding on a cluster"):
        import ray.data  # noqa: F401 - before anything is opened
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with connected(address):
        yield


def fill(job: Job, works: Sequence[Work], actors: int | None = None) -> Iterator[Filled]:
    """Fill shards, each by one actor of a pool, and yield what became of each, in the order in which they are ready.

    Args:
        job: what all nodes are told.
        works: the shards.
        actors: how many; None for one for each GPU, or for each CPU where the cluster has no GPU or the backend uses
            none.

    Raises:
        GalleryError: a node cannot take part, or a shard cannot be written.
        InputError: more actors than the cluster has room for, or more rows than the job allows cannot be encoded.
        BackendError: no actor can be started, or one shard's work was lost again and again.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    gpu = (job.backend == "auto" or BACKENDS[job.backend].gpu) and ray.cluster_resources().get("GPU", 0) >= 1
    resource = "GPU" if gpu else "CPU"
    nodes = _check_nodes(job, [node for node in _alive() if node["Resources"].get(resource, 0) >= 1])
    places = sum(int(node["Resources"][resource]) for node in nodes)
    if not places:
        raise BackendError(f"the cluster has no free {resource} for an actor")
    if actors is not None and actors > places:
        raise InputError(f"actors must be at most {places}, the {resource}s of the cluster, got {actors}")
    count = min(len(works), places if actors is None else actors)
    context = DataContext.get_current()
    kept = context.enable_progress_bars, context.print_on_execution_start
    context.enable_progress_bars = context.print_on_execution_start = False
    try:
        dataset = ray.data.from_items(
            [{"work": ray.cloudpickle.dumps(work)} for work in works], override_num_blocks=len(works)
        ).map_batches(
            Encoder,
            fn_constructor_args=(job,),
            batch_size=1,
            batch_format="numpy",
            compute=ActorPoolStrategy(min_size=1, max_size=count, initial_size=count, max_tasks_in_flight_per_actor=1),
            num_cpus=0 if gpu else 1,
            num_gpus=1 if gpu else 0,
        )
        for row in dataset.iter_rows():
            found: Filled | ChanError = pickle.loads(row["done"])
            if isinstance(found, ChanError):
                raise found
            yield found
    except ray.exceptions.RayError as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise BackendError(f"the Ray cluster could not finish: {reason}; run the command again to continue") from error
    finally:
        context.enable_progress_bars, context.print_on_execution_start = kept


def _alive() -> list[dict[str, Any]]:
    """Nodes of the cluster; one that was lost is among them until Ray has noticed, which takes it some 15 to 40 s."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _check_nodes(job: Job, nodes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ask every node whether it can take part, and return those that are still there.

    Raises:
        GalleryError: a node is there and cannot take part.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    check = ray.remote(num_cpus=0, max_retries=0)(check_node)
    asked = [
        check.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(job)
        for node in nodes
    ]
    there = []
    for node, answer in zip(nodes, asked, strict=True):
        name = node["NodeManagerAddress"]
        try:
            reason = ray.get(answer, timeout=_CHECK_SECONDS)
        except ray.exceptions.RayError as error:
            if _is_lost(node, error):
                _log.warning("the node %s is lost, and the run goes on without it", name)
                continue
            last = str(error).strip().rpartition("\n")[2]
            reason = f"it does not run chan-rt, which every node needs with the extra ray ({last})"
            if isinstance(error, ray.exceptions.GetTimeoutError):
                reason = f"it did not answer within {_CHECK_SECONDS:.0f} seconds"
        if reason is not None:
            raise GalleryError(f"the node {name} cannot take part: {reason}")
        there.append(node)
    return there


def _is_lost(node: dict[str, Any], error: Exception) -> bool:
    """Whether the node is gone for which Ray gave this error, even if Ray still lists it."""
    from ray.exceptions import NodeDiedError, TaskUnschedulableError

    gone = isinstance(error, NodeDiedError | TaskUnschedulableError)
    return gone or node["NodeID"] not in {other["NodeID"] for other in _alive()}
