"""`python -m chan_rt.bench.ray_shards`: the cost of searching shards in processes of Ray, and of one that is killed.

The same embeddings are searched by one process and by one process for each shard, with the same hits. Then two clients
search while a shard's process is killed. The times of the single answers are kept for bench/simulate_shards.py.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..commands import values
from ..runtime.embeddings import Embeddings
from ..runtime.gallery import Gallery, SearchResult, split_gallery
from ..runtime.gallery.merge import Floors
from ..runtime.gallery.sharded.manifest import ShardEntry, read_manifest
from ..scale.questions import Found, Question, SearchShard
from ..scale.ray_serve import RayCluster, RayShards
from ..scale.remote_gallery import RemoteGallery
from ..scale.shard_host import ShardHost
from .measure import machine
from .search import DIM, WORDS, Concepts
from .search_measures import K
from .shards import make_gallery

Hits = list[list[tuple[str, float]]]


def measure(images: int, queries: int, shards: Sequence[int], seconds: float, dim: int = DIM) -> dict[str, Any]:
    """Times and answers of searches of shards in processes of their own.

    Args:
        images: rows, with the regions of `Concepts.images`.
        queries: captions of 12 words; as many others fit search before the gallery is cut.
        shards: numbers of shards.
        seconds: of the load during which a process is killed, for the largest number of shards.
        dim: D.
    """
    concepts = Concepts(0, dim)
    lengths = np.full(queries, WORDS, np.int32)
    fitted, asked = concepts.captions(lengths), concepts.captions(lengths)
    found: dict[str, Any] = {"machine": machine(("numpy", "ray")), "images": images, "dim": dim, "queries": queries}
    with tempfile.TemporaryDirectory(prefix="chan-bench-") as scratch, ExitStack() as closing:
        one = Path(scratch, "one")
        make_gallery(one, images, concepts, fitted)
        cluster = RayCluster(RayShards("local"))
        closing.callback(cluster.close)
        found["shards"] = {}
        for count in shards:
            many = Path(scratch, f"shards-{count}")
            split_gallery(one, many, count)
            remote = cluster.open(f"bench-{count}", many)
            try:
                with Gallery.open(many, threads=1) as gallery:
                    figures = _compare(gallery, remote, asked)
                figures["cpu_ms"] = _waves(many, asked)
                figures["shard_ms"] = _shard_times(many, asked)
                found["shards"][count] = figures
                if count == max(shards):
                    found["killed"] = _kill(remote, asked, seconds, many)
            finally:
                remote.close()
                cluster.end(f"bench-{count}")
    return found


def _compare(gallery: Gallery, remote: RemoteGallery, queries: Embeddings) -> dict[str, Any]:
    """Milliseconds of single queries, one after the other, by this process and by the router; the hits must agree."""
    here, here_ms = _timed(lambda query: gallery.search(query, K)[0], queries)
    begin = time.process_time()
    there, there_ms = _timed(lambda query: remote.search(query, K)[0], queries)
    router = 1e3 * (time.process_time() - begin) / (len(queries) + 1)
    if here != there:
        raise AssertionError("the shards on Ray found other hits than one process")
    return {
        "one_process_ms": _percentiles(here_ms),
        "ray_ms": _percentiles(there_ms),
        "router_cpu_ms": round(router, 3),
    }


def _timed(search: Callable[[Embeddings], SearchResult], queries: Embeddings) -> tuple[Hits, list[float]]:
    search(queries[0])  # what is read once is read now
    results, times = [], []
    for query in range(len(queries)):
        begin = time.perf_counter()
        results.append(search(queries[query]))
        times.append(1e3 * (time.perf_counter() - begin))
    if not all(result.certified for result in results):
        raise AssertionError("an answer is not certified")
    return [[(hit.id, hit.score) for hit in result.hits] for result in results], times


def _waves(folder: Path, queries: Embeddings) -> dict[str, float]:
    """Milliseconds of CPU time of single queries: all shards at once, and the first one before the others.

    `work` is that of all shards together, `path` of those that an answer has to wait for: the slowest shard, or the
    first one and the slowest of the others.
    """
    host = ShardHost(folder, 1)
    first, *others = entries = read_manifest(folder)[1].shards
    found: dict[str, list[float]] = {}
    for query in [0, *range(len(queries))]:  # the first one reads what is read once
        times = [_cpu(host, entry, queries[query], None)[0] for entry in entries]
        results = _cpu(host, first, queries[query], None)[1]
        floors = Floors(np.array([-np.inf]), K)
        floors.learn(results)
        later = [_cpu(host, entry, queries[query], float(floors.values[0]))[0] for entry in others]
        found.setdefault("at_once_work", []).append(sum(times))
        found.setdefault("at_once_path", []).append(max(times))
        found.setdefault("first_before_work", []).append(times[0] + sum(later))
        found.setdefault("first_before_path", []).append(times[0] + max(later, default=0.0))
    host.close()
    return {name: round(float(np.median(times[1:])), 3) for name, times in found.items()}


def _cpu(
    host: ShardHost, entry: ShardEntry, query: Embeddings, floor: float | None
) -> tuple[float, tuple[SearchResult, ...]]:
    begin = time.process_time()
    answer = host.answer(Question(0, entry, SearchShard(query, K, (-np.inf if floor is None else floor,))))
    if not isinstance(answer, Found):
        raise AssertionError(f"a shard answered {answer}")
    return 1e3 * (time.process_time() - begin), answer.results


def _shard_times(folder: Path, queries: Embeddings) -> list[list[float]]:
    """Milliseconds of CPU time in which each shard answers each query that comes alone."""
    host, found = ShardHost(folder, 1), []
    for entry in read_manifest(folder)[1].shards:
        _cpu(host, entry, queries[0], None)  # what is read once is read now
        found.append([round(_cpu(host, entry, queries[query], None)[0], 3) for query in range(len(queries))])
    host.close()
    return found


def _kill(remote: RemoteGallery, queries: Embeddings, seconds: float, folder: Path) -> dict[str, Any]:
    """What two clients see while the process of a shard is killed a third into the load."""
    with Gallery.open(folder, threads=1) as gallery:
        expected = [[(hit.id, hit.score) for hit in one.hits] for one in gallery.search(queries, K)]
    began, answers, wrong = time.perf_counter(), [], []

    def ask(first: int) -> None:
        number = first
        while (start := time.perf_counter()) - began < seconds:
            row = number % len(queries)
            (result,) = remote.search(queries[row], K)
            answers.append((start - began, time.perf_counter() - start, result.certified))
            if result.certified and [(hit.id, hit.score) for hit in result.hits] != expected[row]:
                wrong.append(row)
            number += 2

    clients = [threading.Thread(target=ask, args=(first,)) for first in range(2)]
    for client in clients:
        client.start()
    time.sleep(seconds / 3)
    process = next(one.process for one in remote.describe() if one is not None)
    killed = time.perf_counter() - began
    os.kill(process, signal.SIGKILL)
    for client in clients:
        client.join()
    if wrong:
        raise AssertionError(f"certified answers were wrong for queries {wrong}")
    before = [took for at, took, _ in answers if at + took < killed]
    after = [(at, took, certified) for at, took, certified in answers if at + took >= killed]
    late = [at + took for at, took, certified in after if not certified or took > 10 * float(np.median(before))]
    return {
        "answers_before": len(before),
        "answers_after": len(after),
        "ms_before": _percentiles([1e3 * took for took in before]),
        "longest_answer_ms": 1e3 * max(took for _, took, _ in after),
        "not_certified": sum(not certified for *_, certified in answers),
        "seconds_until_as_before": max(late, default=killed) - killed,
    }


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 90, 99)}


@click.command()
@click.option("--images", default=4000, show_default=True, help="Number of images.")
@click.option("--queries", default=100, show_default=True, help="Number of captions.")
@click.option("--shards", multiple=True, type=int, default=(1, 2, 4), show_default=True, help="Numbers of shards.")
@click.option(
    "--seconds",
    type=values.NUMBER,
    default=30.0,
    show_default=True,
    help="Length of the load during which a process is killed.",
)
@click.option("-o", "--out", type=values.NEW_FILE, help="File for the record.")
def main(images: int, queries: int, shards: tuple[int, ...], seconds: float, out: Path | None) -> None:
    """Measure searches of shards in processes of Ray."""
    found = measure(images, queries, shards, seconds)
    for count, figures in found["shards"].items():
        click.echo(f"{count} shards: " + json.dumps({name: figures[name] for name in figures if name != "shard_ms"}))
    click.echo("a process was killed: " + json.dumps(found["killed"]))
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
