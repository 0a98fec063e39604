"""A Ray cluster on this machine beside any other, for the benchmarks and the tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..runtime.extras import needs

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

NODE: dict[str, Any] = {
    "num_cpus": 1,
    "object_store_memory": 200 << 20,
    "include_dashboard": False,
    "dashboard_agent_listen_port": 0,
}


@contextmanager
def own_cluster(nodes: int) -> Iterator[Cluster]:
    """Start a cluster of nodes with one CPU each, for a block.

    By default the clusters of a machine share a folder, where the last one to start writes its address and the first
    one to end removes it, and the ports 44217, 44227 and 52365, which a second one tries for seconds and does not get.
    This one has a folder of its own, which it removes, and free ports.

    Args:
        nodes: how many.

    Raises:
        MissingExtra: Ray is not installed.
    """
    with needs("ray", "a cluster on this machine"):
        from ray.cluster_utils import Cluster
    with (
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder,
        _environment(
            RAY_TMPDIR=folder, AUTOSCALER_METRIC_PORT="0", DASHBOARD_METRIC_PORT="0", RAY_USAGE_STATS_ENABLED="0"
        ),
    ):
        cluster = Cluster(initialize_head=True, head_node_args=NODE)
        try:
            for _ in range(nodes - 1):
                cluster.add_node(**NODE)
            yield cluster
        finally:
            cluster.shutdown()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables of the environment for a block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
