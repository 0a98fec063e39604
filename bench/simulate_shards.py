"""`python -m chan_rt.bench.simulate_shards`: galleries of 10^6 to 10^9 images on many nodes, simulated, not measured.

What is simulated is driven by a record of bench/ray_shards.py: the times in which shards of several sizes answered the
same queries, and the CPU time that the router took for a query of one shard and of several. Assumed are, and are in the
record of the simulation as such:

- A shard's time grows with its rows as the recorded medians do (a straight line through them), and its spread is that
  of the recorded times: a query draws one recorded query, which is slow or fast in all shards, and each shard one of
  the recorded shards.
- Each node has one shard, or one replica of it, and searches it with all its cores with an efficiency of `efficiency`.
- A node keeps the levels and the int8 codes in memory (docs/search.md has their bytes), and reads the rest from disk.
- One answer in `1 / straggling` takes `slowdown` times as long: a collection of garbage, a neighbor, a lost packet.
- Queries come at random (Poisson) at `load` of what the busiest part can do, and each node answers one after the other.
  A shard that is late is asked again at its replica after `hedge` times the 99th percentile of the recorded times, and
  what has not begun when the other replica answers is never begun.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..commands import values

Floats = NDArray[np.float64]
_BUSY = 0.5
_EARLY = 0.3  # of the 99th percentile, which is less than hard captions take everywhere
RECORD = Path(__file__).parent / "results" / "ray-shards-zen4-2-cores.json"


@dataclass(frozen=True)
class Assumed:
    """What is not measured.

    Attributes:
        cores, memory_gb, price: of a node; the price in dollars an hour.
        usable: share of a node's memory for the gallery.
        efficiency: of a search with all cores of a node.
        image_bytes, disk_bytes: of an image in memory (levels and int8 codes) and on the disk (all).
        straggling, slowdown: share of answers that take this many times as long.
        hedge: a shard is late after this many times the 99th percentile of its recorded times.
        load: share of what the busiest part can do.
    """

    cores: int = 16
    memory_gb: float = 128.0
    price: float = 1.0
    usable: float = 0.8
    efficiency: float = 0.8
    image_bytes: int = 50_900
    disk_bytes: int = 124_600
    straggling: float = 0.001
    slowdown: float = 10.0
    hedge: float = 2.0
    load: float = 0.2


@dataclass(frozen=True)
class Recorded:
    """What was measured.

    Attributes:
        per_image, fixed: milliseconds of one thread of a shard, for each image and for each query.
        spread: [shards, queries], the times of the largest shards as multiples of their median.
        router_fixed, router_per_shard: CPU milliseconds of the router for each query, and for each shard of it.
    """

    per_image: float
    fixed: float
    spread: Floats
    router_fixed: float
    router_per_shard: float

    @classmethod
    def read(cls, path: Path) -> Recorded:
        """From a record of bench/ray_shards.py, which has at least two numbers of shards."""
        record = json.loads(path.read_text(encoding="utf-8"))
        counts = sorted(map(int, record["shards"]))
        figures = [record["shards"][str(count)] for count in counts]
        sizes = [record["images"] / count for count in counts]
        medians = [float(np.median(one["shard_ms"])) for one in figures]
        per_image, fixed = np.polyfit(sizes, medians, 1)
        per_shard, router = np.polyfit(counts, [one["router_cpu_ms"] for one in figures], 1)
        times = np.array(figures[min(1, len(figures) - 1)]["shard_ms"])
        return cls(
            float(per_image),
            max(0.0, float(fixed)),
            times / np.median(times),
            max(0.0, float(router)),
            float(per_shard),
        )


@dataclass(frozen=True)
class _Cluster:
    """What a simulation runs on.

    Attributes:
        replicas, shards: how many replicas each shard has, and how many shards there are.
        median: milliseconds that a shard takes for a query.
        router: milliseconds that the router does.
        every: milliseconds from one query to the next, in the mean.
        hedge: milliseconds after which a shard is asked again; None where none is.
    """

    replicas: int
    shards: int
    median: float
    router: float
    every: float
    hedge: float | None


def simulate(
    images: int, replicas: int, hedged: bool, recorded: Recorded, assumed: Assumed, queries: int
) -> dict[str, Any]:
    """Nodes, memory, times and cost of a gallery.

    Args:
        images: of the gallery.
        replicas: of each shard.
        hedged: whether a shard that is late is asked again at another replica.
        recorded, assumed: what drives the simulation.
        queries: how many are simulated.
    """
    shards = max(1, int(np.ceil(images * assumed.image_bytes / (assumed.memory_gb * 1e9 * assumed.usable))))
    rows = images / shards
    median = (recorded.fixed + recorded.per_image * rows) / (assumed.cores * assumed.efficiency)
    mean = median * float(recorded.spread.mean()) * (1 + assumed.straggling * (assumed.slowdown - 1))
    router = recorded.router_fixed + recorded.router_per_shard * shards
    every = max(mean / replicas, router) / assumed.load
    hedge = assumed.hedge * median * float(np.percentile(recorded.spread, 99)) if hedged and replicas > 1 else None
    cluster = _Cluster(replicas, shards, median, router, every, hedge)
    times, again = _answer_times(cluster, recorded, assumed, queries)
    nodes = shards * replicas
    rate = 1e3 / every
    limits = {"router": 1e3 / router, "nodes": 1e3 * replicas / mean}
    return {
        "images": images,
        "replicas": replicas,
        "hedged": hedged,
        "nodes": nodes,
        "images_per_node": round(rows),
        "memory_tb": round(images * replicas * assumed.image_bytes / 1e12, 2),
        "disk_tb": round(images * replicas * assumed.disk_bytes / 1e12, 2),
        "shard_median_ms": round(median, 1),
        "router_ms": round(router, 1),
        "queries_per_second": round(rate, 2),
        "p50_ms": round(float(np.percentile(times, 50)), 1),
        "p99_ms": round(float(np.percentile(times, 99)), 1),
        "asked_again": round(again / (queries * shards), 5),
        "dollars_per_hour": round(nodes * assumed.price, 2),
        "dollars_per_1000_queries": round(nodes * assumed.price / (rate * 3.6), 3),
        "limit": min(limits, key=lambda name: limits[name]),
    }


def _answer_times(cluster: _Cluster, recorded: Recorded, assumed: Assumed, queries: int) -> tuple[Floats, int]:
    """Milliseconds of each query's answer, and how many shards were asked again in all."""
    rng = np.random.default_rng(0)
    replicas, shards, hedge = cluster.replicas, cluster.shards, cluster.hedge
    waiting = np.zeros((replicas, shards))  # milliseconds of work that each replica has left
    behind = 0.0  # that the router has left
    times, again = np.empty(queries), 0
    everyone = np.arange(shards)
    for number in range(queries):
        passed = rng.exponential(cluster.every)
        waiting = np.maximum(0.0, waiting - passed)
        behind = max(0.0, behind - passed) + cluster.router
        query = int(rng.integers(recorded.spread.shape[1]))
        first = waiting.argmin(0)
        work = _service(rng, recorded, assumed, cluster.median, query, shards)
        waiting[first, everyone] += work
        answer = waiting[first, everyone].copy()
        if hedge is not None:
            late = np.flatnonzero(answer > hedge)
            second = (first[late] + 1) % replicas
            begins = np.maximum(hedge, waiting[second, late])
            late, second, begins = (some[begins < answer[late]] for some in (late, second, begins))
            more = _service(rng, recorded, assumed, cluster.median, query, len(late))
            ends = begins + more
            again += len(late)
            waiting[second, late] += more  # what comes before it begins finds it there, which errs on the slow side
            spared = ends < answer[late] - work[late]  # the first replica has not begun, and need not any more
            waiting[first[late[spared]], late[spared]] -= work[late[spared]]
            answer[late] = np.minimum(answer[late], ends)
        times[number] = behind + answer.max()
    return times, again


def _service(
    rng: np.random.Generator, recorded: Recorded, assumed: Assumed, median: float, query: int, count: int
) -> Floats:
    """Milliseconds of work of some shards for one query."""
    drawn = recorded.spread[rng.integers(recorded.spread.shape[0], size=count), query] * median
    slow = np.where(rng.random(count) < assumed.straggling, assumed.slowdown, 1.0)
    found: Floats = drawn * slow
    return found


def table(recorded: Recorded, assumed: Assumed, queries: int) -> list[dict[str, Any]]:
    """10^6 to 10^9 images: without replicas, with two, and with two and hedging."""
    ways = [(1, False), (2, False), (2, True)]
    return [
        simulate(10**power, replicas, hedged, recorded, assumed, queries)
        for power in (6, 7, 8, 9)
        for replicas, hedged in ways
    ]


@click.command()
@click.option("--record", default=RECORD, show_default=True, type=values.FILE, help="Measured times.")
@click.option("--queries", default=5000, show_default=True, help="Number of queries of each simulation.")
@click.option("--cores", default=Assumed.cores, show_default=True, help="Cores of a node.")
@click.option("--memory-gb", type=values.NUMBER, default=Assumed.memory_gb, show_default=True, help="Memory of a node.")
@click.option(
    "--price",
    type=values.NUMBER,
    default=Assumed.price,
    show_default=True,
    help="Dollars that a node costs in an hour.",
)
@click.option(
    "--load",
    type=values.NUMBER,
    default=Assumed.load,
    show_default=True,
    help="Load as a share of what the nodes can do.",
)
@click.option("-o", "--out", type=values.NEW_FILE, help="File for the record.")
def main(record: Path, queries: int, cores: int, memory_gb: float, price: float, load: float, out: Path | None) -> None:
    """Simulate galleries of 10^6 to 10^9 images on many nodes."""
    assumed = Assumed(cores=cores, memory_gb=memory_gb, price=price, load=load)
    recorded = Recorded.read(record)
    found = table(recorded, assumed, queries)
    busy = replace(assumed, load=_BUSY)
    beyond = {
        f"hedged_at_{_EARLY}_under_load_{_BUSY}": simulate(
            10**7, 2, True, recorded, replace(busy, hedge=_EARLY), queries
        ),
        f"under_load_{_BUSY}": simulate(10**8, 2, False, recorded, busy, queries),
        f"hedged_under_load_{_BUSY}": simulate(10**8, 2, True, recorded, busy, queries),
    }
    names = [name for name in found[0] if name != "hedged"]
    click.echo("  ".join([*names, "hedged"]))
    for row in found:
        click.echo("  ".join(str(row[name]) for name in [*names, "hedged"]))
    if out is not None:
        driven = {"record": record.name, **{k: v for k, v in asdict(recorded).items() if k != "spread"}}
        text = json.dumps(
            {"simulated": found, "beyond": beyond, "assumed": asdict(assumed), "measured": driven}, indent=1
        )
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
