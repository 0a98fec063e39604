"""A server of S3's API in a process of its own, small galleries to store there, and a Ray cluster of two nodes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from chan_rt.bench.own_cluster import own_cluster
from chan_rt.runtime import AlignmentConfig, Embeddings, GalleryWriter

from . import fake_shards

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

DIM = 16
S3 = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.disable()
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """The address of the server."""
    pytest.importorskip("moto", reason="moto is not installed")
    command = [sys.executable, "-c", S3]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        port = next(line for line in server.stdout if line.startswith("port ")).split()[1]
        yield f"http://127.0.0.1:{port}"
        server.kill()


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty bucket as `s3://NAME`; the environment names its server, and a cache for this test."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ALLOW_HTTP": "true",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false",
        "CHAN_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{os.getpid()}-{time.monotonic_ns()}"
    assert httpx.put(f"{s3_server}/{name}").status_code == 200
    return f"s3://{name}"


@pytest.fixture
def objects(s3_server: str) -> Callable[[str], set[str]]:
    """(URL) -> names of the objects below it, as the server itself lists them."""

    def read(url: str) -> set[str]:
        name, _, prefix = url.removeprefix("s3://").partition("/")
        listed = httpx.get(f"{s3_server}/{name}", params={"list-type": "2", "prefix": prefix}).text
        return {key.removeprefix(f"{prefix}/") for key in re.findall(r"<Key>([^<]*)</Key>", listed)}

    return read


def rows_of(seed: int, count: int) -> Embeddings:
    """Random rows."""
    rng = np.random.default_rng(seed)
    return Embeddings(rng.standard_normal((count, 2, DIM)).astype(np.float32), np.full(count, 2, np.int32))


@pytest.fixture
def make_rows() -> Callable[[int, int], Embeddings]:
    """The function that makes rows from a seed."""
    return rows_of


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """A gallery of 40 rows in several files, some of them deleted."""
    path = tmp_path / "gallery"
    with GalleryWriter.create(path, dim=DIM, alignment=AlignmentConfig.maxsim()) as writer:
        for first in (0, 30, 38):
            ids = [str(i) for i in range(first, min(40, first + 30))]
            writer.add(ids[: 40 - first], rows_of(first, len(ids)), [{"n": id} for id in ids], overwrite=True)
        writer.delete(["3", "35"])
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A gallery of 30 rows in 3 shards."""
    return fake_shards.make_shards(tmp_path, 3, fake_shards.rows_of(np.random.default_rng(0), 30, ties=False))


@pytest.fixture
def query() -> Embeddings:
    """A query of those shards."""
    return fake_shards.rows_of(np.random.default_rng(1), 1, ties=False)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """Two nodes of one CPU each, on this machine; no driver is connected, and a test that removes a node adds another.

    `ray_cluster.address` is that of the cluster, for `ray.init` and for commands.
    """
    pytest.importorskip("ray", reason="Ray is not installed")
    with own_cluster(2) as cluster:
        yield cluster
