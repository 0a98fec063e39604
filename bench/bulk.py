"""`python -m chan_rt.bench.bulk BUNDLE SOURCES...`: what a Ray cluster costs beside `chan index` in one process.

The cluster has two nodes of one CPU each and runs on this machine. Every run fills a new gallery, and the ways take
turns. A run with one actor does what one process with one thread does, so the difference is what the cluster costs:
connecting, starting an actor, which opens the bundle, and one commit more for each shard.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from ..commands import values
from ..runtime.gallery import Gallery, GalleryWriter
from ..runtime.indexing.data_sources import open_source
from ..runtime.indexing.index import index_source, prepare_search
from ..runtime.indexing.sources import Source
from ..runtime.matcher import Matcher
from ..runtime.session import gallery_settings
from ..scale.bulk import Encoding, index_on_cluster
from .measure import machine
from .own_cluster import own_cluster

NODES = 2


def measure(
    bundle: Path, source: Source, actors: Sequence[int], shard_rows: int, runs: int, address: str | None = None
) -> dict[str, Any]:
    """Seconds of wall time to fill a gallery, and rows a second, for each way.

    Args:
        bundle: the bundle's folder.
        source: the rows.
        actors: numbers of actors.
        shard_rows: rows of a shard.
        runs: how often each way is run; the medians count.
        address: of a cluster; None to start one on this machine.

    Raises:
        AssertionError: two ways gave other rows, or rows of other bits.
    """
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="chan-bench-") as scratch, _cluster(address) as address:
        ways: dict[str, Callable[[Path], None]] = {
            "one process, one thread": partial(_plain, bundle, source, 1),
            "one process, all threads": partial(_plain, bundle, source, None),
        }
        for count in actors:
            name = f"{count} actor{'s'[: count != 1]}"
            ways[name] = partial(_bulk, bundle, source, address, count, shard_rows)
        expected = None
        for run in range(runs):
            for number, (name, fill) in enumerate(ways.items()):
                out = Path(scratch, f"{number}-{run}")
                begin = time.perf_counter()
                fill(out)
                seconds.setdefault(name, []).append(time.perf_counter() - begin)
                expected = _check(out, expected, name)
    rows = len(source.ids)
    return {
        "machine": machine(("numpy", "onnxruntime", "ray")),
        "rows": rows,
        "shard_rows": shard_rows,
        "runs": runs,
        "ways": {
            name: {"seconds": median(took), "rows_per_second": rows / median(took)} for name, took in seconds.items()
        },
    }


def _plain(bundle: Path, source: Source, threads: int | None, out: Path) -> None:
    settings = gallery_settings(bundle, source.kind)
    with GalleryWriter.create(out, settings) as writer, Matcher.open(bundle, threads=threads) as matcher:
        index_source(writer, matcher, source)
        prepare_search(writer, matcher, source.queries)


def _bulk(bundle: Path, source: Source, address: str, actors: int, shard_rows: int, out: Path) -> None:
    settings = gallery_settings(bundle, source.kind)
    index_on_cluster(bundle, source, out, settings, Encoding(address, actors, shard_rows))


def _check(out: Path, expected: tuple[list[str], bytes] | None, name: str) -> tuple[list[str], bytes]:
    """The ids and vectors of a gallery, which must be the expected ones."""
    with Gallery.open(out) as gallery:
        ids = [row.id for row in gallery.rows()]
        vectors = [np.ascontiguousarray(row) for row in gallery.embeddings(ids).rows()]
    found = ids, b"".join(row.tobytes() for row in vectors)
    if expected is not None and found != expected:
        raise AssertionError(f"{name} gave other rows than the ways before it")
    return found


@contextmanager
def _cluster(address: str | None) -> Iterator[str]:
    """The address of a cluster for a block: the one that is given, or one on this machine."""
    if address is not None:
        yield address
        return
    with own_cluster(NODES) as cluster:
        yield str(cluster.address)


@click.command()
@click.argument("bundle", type=values.FOLDER)
@click.argument("sources", nargs=-1, required=True, type=values.EXISTING)
@click.option("--captions", is_flag=True, help="Encode captions, not images.")
@click.option("--split", type=values.SPLIT, default="test", show_default=True, help="Split of a data folder.")
@click.option(
    "--actors",
    multiple=True,
    type=click.IntRange(1, NODES),
    default=(1, 2),
    show_default=True,
    help="Numbers of actors.",
)
@click.option("--shard-rows", default=512, show_default=True, help="Number of rows of each shard.")
@click.option("--runs", default=3, show_default=True, help="Number of runs of each way.")
@click.option("-o", "--out", type=values.NEW_FILE, help="File for the record.")
def main(
    bundle: Path,
    sources: tuple[Path, ...],
    captions: bool,
    split: str,
    actors: tuple[int, ...],
    shard_rows: int,
    runs: int,
    out: Path | None,
) -> None:
    """Measure how long SOURCES take to encode with BUNDLE, in one process and on a cluster of this machine."""
    found = measure(bundle, open_source(sources, split, captions=captions), actors, shard_rows, runs)
    for way, figures in found["ways"].items():
        click.echo(f"{way:<26}" + "  ".join(f"{name} {value:.2f}" for name, value in figures.items()))
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
