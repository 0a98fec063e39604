"""Shards on a real Ray cluster: answers are those of one gallery, and processes and nodes may die."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.bench.own_cluster import NODE
from chan_rt.runtime import AlignmentConfig, Embeddings, GalleryWriter, ShardedWriter, split_gallery
from chan_rt.runtime.errors import BackendError, GalleryError, GalleryIncomplete, InputError
from chan_rt.scale.asking import Patience
from chan_rt.scale.connection import connected
from chan_rt.scale.ray_serve import RayCluster, RayShards, ShardReplica
from chan_rt.scale.remote_gallery import RemoteGallery

from ..run_chan import chan
from .fake_shards import answers_of, make_shards, plain, rows_of
from .served import SECONDS, serving, until

QUICK = Patience(hedge=0.3, limit=1.5)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of 60 rows in 2 shards, with ties."""
    return make_shards(tmp_path_factory.mktemp("shards"), 2, rows_of(np.random.default_rng(0), 60))


@pytest.fixture(scope="module")
def on_ray(ray_cluster: Any) -> Iterator[RayCluster]:
    """Connected with the cluster, with one process for each shard."""
    with _connected(ray_cluster.address) as found:
        yield found


@contextmanager
def _connected(address: str, **choice: Any) -> Iterator[RayCluster]:
    found = RayCluster(RayShards(address, **choice))
    try:
        yield found
    finally:
        found.close()


@pytest.fixture
def remote(on_ray: RayCluster, shards: Path) -> Iterator[RemoteGallery]:
    """The gallery, searched by two processes with little patience."""
    found = on_ray.open("many", shards, QUICK)
    yield found
    found.close()


def is_right(result: Any, expected: Any) -> bool:
    """Whether an answer is the certified one, or is not certified and lacks one shard."""
    if result.certified:
        return plain([result]) == [expected]
    lost = re.match(r"30 rows are lost and were left out: shard-00000[12] with rows \d+ to \d+ \(", result.reason)
    return lost is not None and result.rows == 30


def processes(remote: RemoteGallery) -> list[int]:
    """The process of each shard."""
    return [one.process for one in remote.describe() if one is not None]


def test_the_command_serves_shards_and_ends(ray_cluster: Any, tmp_path: Path) -> None:
    folder = make_shards(tmp_path, 2, rows_of(np.random.default_rng(9), 20, ties=False))
    with serving(tmp_path / "log", f"shards={folder}", "--ray", ray_cluster.address, "--require-complete") as client:
        found = client.post("/v1/search", json={"like": "r7", "k": 3}).json()["results"][0]
        assert found["certified"]
        assert found["rows"] == 20
        assert 'chan_shards_left_out{gallery="shards"} 0.0' in client.get("/metrics").text
        assert client.get("/v1/galleries").json()["galleries"][0]["rows"] == 20
        with ShardedWriter.open(folder) as writer:
            writer.delete(["r3"])
        assert client.post("/v1/search", json={"like": "r7"}).json()["results"][0]["rows"] == 19


def test_a_node_with_another_version_searches_nothing(shards: Path) -> None:
    with pytest.raises(GalleryError, match=r"cannot take part: it has chan-rt \S+, and 0\.0\.1 is needed"):
        ShardReplica(str(shards), 1, "0.0.1")


def test_what_cannot_be_served_is_an_error(ray_cluster: Any, shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "chan_rt")
    with pytest.raises(InputError, match=r"max_replicas must be at least replicas \(3\), got 2"):
        RayShards(replicas=3, max_replicas=2)
    with _connected(ray_cluster.address, threads=40, start_seconds=1.0) as cluster:  # so that none begins to start
        with pytest.raises(
            GalleryError, match=r"is not a gallery in shards; make one with: chan gallery split \S+/one -o"
        ):
            cluster.open("one", shards.parent / "one")
        with pytest.raises(
            BackendError, match=r"only 0 of 2 shards run on Ray after 1 seconds: give the cluster 80 CPUs"
        ):
            cluster.open("many", shards)
        assert "0 of 2 shards run on Ray; waiting for the others" in caplog.messages


def test_a_gallery_that_takes_the_place_of_another_is_served_and_nothing_else_is_left(
    ray_cluster: Any, tmp_path: Path
) -> None:
    from ray import serve

    folder = make_shards(tmp_path / "old", 2, rows_of(np.random.default_rng(3), 20))
    with _connected(ray_cluster.address) as cluster:
        before = cluster.open("replaced", folder)
        shutil.rmtree(folder)
        with GalleryWriter.create(tmp_path / "new", dim=8, alignment=AlignmentConfig("VHA", "Max")) as writer:
            rows = np.random.default_rng(4).standard_normal((9, 3, 8)).astype(np.float32)
            writer.add(range(9), Embeddings(rows, np.full(9, 3, np.int32)))
        split_gallery(tmp_path / "new", folder, 1)
        with pytest.raises(GalleryError, match="was replaced by another gallery; open it again"):
            before.search(rows_of(np.random.default_rng(5), 1), same_kind=True)
        after = cluster.open("replaced", folder)
        queries = after.embeddings(["3", "7"])
        assert plain(after.search(queries, 4, same_kind=True)) == answers_of(folder, queries, 4)
        deadline = time.monotonic() + 30
        while "chan-replaced-1" in serve.status().applications:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        before.close()
        after.close()


@pytest.mark.parametrize("command", [["index", "bundle", "photos", "-o", "out"], ["serve", "shards"]])
def test_what_stands_behind_the_option_is_not_taken_for_an_address(command: list[str]) -> None:
    name, *rest = command
    done = chan(name, "--ray", *rest)
    assert done.exit_code == 2
    assert f"an address must be HOST:PORT, auto or local, got {rest[0]}; --ray without an address" in done.output


def test_the_environment_names_a_cluster_as_for_ray(ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is `local` is this machine's alone, which places processes without counting CPUs."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InputError, match=r"no Ray cluster at 127\.0\.0\.1:1: nothing answers"), connected(None):
        pass
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.address)
    with connected(None) as alone:
        assert not alone
    # in a process of its own: one that has started a cluster cannot ask Ray Serve on another one after that
    monkeypatch.setenv("RAY_ADDRESS", "local")
    code = "from chan_rt.scale.connection import connected\nwith connected(None) as alone: print(alone)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr


def test_answers_are_those_of_one_gallery_whatever_is_committed(ray_cluster: Any, tmp_path: Path) -> None:
    folder = make_shards(tmp_path, 2, rows_of(np.random.default_rng(3), 40))
    queries = rows_of(np.random.default_rng(4), 5)
    with _connected(ray_cluster.address) as cluster:
        remote = cluster.open("changed", folder)
        with ShardedWriter.open(folder) as writer:
            for change in (
                lambda: writer.delete(["r1", "r30"]),
                lambda: writer.rebalance(3),
                lambda: writer.add(["new"], rows_of(np.random.default_rng(5), 1), [{"n": 1, "even": True}]),
                lambda: writer.prepare(queries),
                lambda: writer.rebalance(1),
            ):
                change()
                for choice in ({}, {"where": {"even": True}}, {"ids": ["r2", "r39"]}, {"at_least": 0.5}):
                    found = remote.search(queries, 7, same_kind=True, **choice)
                    assert plain(found) == answers_of(folder, queries, 7, **choice)
                assert len(remote) == len(writer)
            assert remote.prepared is not None
        assert remote.find(["r39"])[0].metadata == {"n": 39, "even": False}
        assert remote.embeddings(["r39", "r2"]).lengths.tolist() == [2, 2]
        with pytest.raises(InputError, match="at least one id"):
            remote.embeddings([])
        remote.close()


def test_a_killed_process_is_replaced_under_load_and_no_answer_is_wrong(remote: RemoteGallery, shards: Path) -> None:
    queries = rows_of(np.random.default_rng(6), 2)
    expected = answers_of(shards, queries, 5)
    done, results, failures = threading.Event(), [], []

    def ask() -> None:
        try:
            while not done.is_set():
                results.append(remote.search(queries, 5, same_kind=True))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    killed = processes(remote)[0]
    os.kill(killed, signal.SIGKILL)
    until(lambda: not remote.left_out and killed not in processes(remote) and len(processes(remote)) == 2)
    count = len(results)
    until(lambda: len(results) > count + 20)
    done.set()
    for thread in threads:
        thread.join(SECONDS)
    assert not failures
    assert all(is_right(*pair) for found in results for pair in zip(found, expected, strict=True))
    assert all(one.certified for one in results[-1])


def test_a_process_that_hangs_is_left_out_until_it_answers(remote: RemoteGallery, shards: Path) -> None:
    queries = rows_of(np.random.default_rng(7), 1)
    process = processes(remote)[1]
    os.kill(process, signal.SIGSTOP)
    try:
        (result,) = remote.search(queries, 5, same_kind=True)
        why = "it did not answer within 1.5 seconds"
        assert result.reason == f"30 rows are lost and were left out: shard-000002 with rows 30 to 59 ({why})"
        assert not result.certified
        assert [hit.id for hit in result.hits] == [
            hit[0] for hit in answers_of(shards, queries, 5, ids=[f"r{i}" for i in range(30)])[0][3]
        ]
        with pytest.raises(GalleryIncomplete, match="one of them may be r59"):
            remote.find(["r59"])
        assert remote.find(["r2"])[0].id == "r2"
    finally:
        os.kill(process, signal.SIGCONT)
    until(lambda: not remote.left_out)
    assert plain(remote.search(queries, 5, same_kind=True)) == answers_of(shards, queries, 5)


def test_a_node_that_is_lost_costs_no_answer_for_long(ray_cluster: Any, remote: RemoteGallery, shards: Path) -> None:
    from ray._private.state import actors

    queries = rows_of(np.random.default_rng(8), 1)
    expected = answers_of(shards, queries, 5)
    ray_cluster.add_node(**NODE)  # room for the process that is lost
    head = ray_cluster.head_node.node_id
    nodes = {one["Pid"]: one["Address"]["NodeID"] for one in actors().values() if one["State"] == "ALIVE"}
    lost = next(process for process in processes(remote) if nodes[process] != head)
    node = next(one for one in ray_cluster.list_all_nodes() if one.node_id == nodes[lost])
    ray_cluster.remove_node(node, allow_graceful=False)

    def whole() -> bool:
        (result,) = remote.search(queries, 5, same_kind=True)
        assert is_right(result, expected[0])
        return bool(result.certified) and lost not in processes(remote)

    until(whole)
