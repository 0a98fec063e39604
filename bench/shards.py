"""`python -m chan_rt.bench.shards`: what cutting a gallery into shards costs a search, and what known scores spare it.

The same embeddings are searched in one folder and in shards, and the shards also each by itself, as if none knew the
scores that the others found. Time is CPU time of this process, which other work on the machine disturbs less.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from ..commands import values
from ..runtime.contract import AlignmentConfig
from ..runtime.embeddings import Embeddings
from ..runtime.gallery import Gallery, GallerySettings, GalleryWriter, SearchResult, split_gallery
from ..runtime.gallery.merge import merge_results
from .measure import machine
from .search import DIM, WORDS, Concepts
from .search_measures import K


def make_gallery(folder: Path, images: int, concepts: Concepts, queries: Embeddings) -> None:
    """A gallery of made-up images, prepared with queries."""
    settings = GallerySettings("images", concepts.table.shape[1], AlignmentConfig(), "bench")
    with GalleryWriter.create(folder, settings) as writer:
        for first in range(0, images, 500):
            rows = range(first, min(first + 500, images))
            writer.add([str(row) for row in rows], concepts.images(len(rows)))
        writer.prepare(queries)


def measure(images: int, queries: int, shards: tuple[int, ...], dim: int = DIM) -> dict[str, Any]:
    """Milliseconds of CPU time and rows read for each query: in one folder, in shards, and by shards that know nothing.

    Args:
        images: rows, with the regions of `Concepts.images`.
        queries: captions of 12 words; as many others fit search before the gallery is cut.
        shards: numbers of shards.
        dim: D.
    """
    concepts = Concepts(0, dim)
    lengths = np.full(queries, WORDS, np.int32)
    fitted, asked = concepts.captions(lengths), concepts.captions(lengths)
    found: dict[str, Any] = {
        "machine": machine(("numpy",)),
        "images": images,
        "dim": dim,
        "queries": queries,
        "ways": {},
    }
    with tempfile.TemporaryDirectory(prefix="chan-bench-") as scratch:
        one = Path(scratch, "one")
        make_gallery(one, images, concepts, fitted)
        with Gallery.open(one, threads=1) as gallery:
            expected, found["ways"]["one folder"] = _run(lambda query: gallery.search(query, K)[0], asked)
        for count in shards:
            many = Path(scratch, f"shards-{count}")
            split_gallery(one, many, count)
            with Gallery.open(many, threads=1) as gallery:
                hits, found["ways"][f"{count} shards"] = _run(lambda query: gallery.search(query, K)[0], asked)
            with ExitStack() as closing:
                opened = [closing.enter_context(Gallery.open(p, threads=1)) for p in sorted(many.glob("shard-*"))]
                alone, found["ways"][f"{count} shards that know nothing of each other"] = _run(
                    partial(_ask_each, opened), asked
                )
            if not expected == hits == alone:
                raise AssertionError(f"{count} shards found other hits than one folder")
    return found


def _ask_each(shards: Sequence[Gallery], query: Embeddings) -> SearchResult:
    return merge_results([shard.search(query, K)[0] for shard in shards], K)


def _run(
    search: Callable[[Embeddings], SearchResult], queries: Embeddings
) -> tuple[list[list[tuple[str, float]]], dict[str, float]]:
    """The hits of each query, and medians of what a search took and read."""
    search(queries[0])  # what is read once is read now
    results, seconds = [], []
    for query in range(len(queries)):
        begin = time.process_time()
        results.append(search(queries[query]))
        seconds.append(time.process_time() - begin)
    measured = {
        "cpu_ms": 1e3 * median(seconds),
        "second_level_rows": median(result.second for result in results),
        "int8_rows": median(result.codes for result in results),
        "rescored_rows": median(result.rescored for result in results),
    }
    if not all(result.certified for result in results):
        raise AssertionError("an answer is not certified")
    return [[(hit.id, hit.score) for hit in result.hits] for result in results], measured


@click.command()
@click.option("--images", default=4000, show_default=True, help="Number of images.")
@click.option("--queries", default=100, show_default=True, help="Number of captions.")
@click.option("--shards", multiple=True, type=int, default=(2, 4), show_default=True, help="Numbers of shards.")
@click.option("-o", "--out", type=values.NEW_FILE, help="File for the record.")
def main(images: int, queries: int, shards: tuple[int, ...], out: Path | None) -> None:
    """Measure searches of one gallery in one folder and in shards."""
    found = measure(images, queries, shards)
    for way, figures in found["ways"].items():
        click.echo(f"{way:<45}" + "  ".join(f"{name} {value:.2f}" for name, value in figures.items()))
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
