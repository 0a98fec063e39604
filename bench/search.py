"""`python -m chan_rt.bench.search`: one caption, and a thousand, against galleries in memory; peers side by side in
one run.

Embeddings are made up with the spectrum of trained ones (measured on 4,000 demo scenes: a first direction with 83 %
of the energy, 98 % in 16), because a bound's tightness and a prefix's recall depend on it; `--gallery` measures a
real one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..commands import values
from ..runtime.contract import AlignmentConfig
from ..runtime.embeddings import Embeddings
from ..runtime.gallery import Gallery, GallerySettings, GalleryWriter
from ..runtime.gallery.kernels.layout import stored_width
from . import published
from .measure import machine, read_bandwidth
from .search_measures import PART, BuiltGallery, K, growth, one_caption, rows_read, table, throughput
from .search_real import RealRows, measure_gallery

REGIONS, DIM, WORDS = 36, 1024, 12
Floats = NDArray[np.float32]


class Concepts:
    """Embeddings like those of demo scenes: 83 % of the energy is common to all, 15 % distinguishes concepts.

    An image shows four of 60 concepts before a background; a caption names three, its other words are in no image.

    Attributes:
        table: embeddings of the 81 concepts [81, D], about of unit length.
    """

    def __init__(self, seed: int, dim: int = DIM) -> None:
        self._seed, self._rng = seed, np.random.default_rng(seed)
        axes = np.linalg.qr(self._rng.standard_normal((dim, 64)))[0].astype(np.float32)  # [D, 64]
        fall = 1 / np.arange(1, 64, dtype=np.float32)
        own = self._rng.standard_normal((81, 63), np.float32) * np.sqrt(fall / fall.sum())
        self.table = np.sqrt(np.float32(0.83)) * axes[:, 0] + np.sqrt(np.float32(0.15)) * (own @ axes[:, 1:].T)

    def images(self, count: int, regions: int = REGIONS, part: int | None = None) -> Embeddings:
        """Region embeddings [count, regions, D]: others at each call, or those of a numbered part."""
        if part is not None:
            self._rng = np.random.default_rng([self._seed, part])
        shown = self._rng.integers(1, 61, (count, 4))
        chosen = self._rng.integers(0, 8, (count, regions))  # half of the regions are background
        named = np.where(chosen < 4, np.take_along_axis(shown, chosen % 4, axis=1), 0)
        return self._embed(named, np.full(count, regions, np.int32))

    def captions(self, lengths: NDArray[np.int32]) -> Embeddings:
        """Word embeddings [C, longest, D]."""
        return self._embed(self.words(len(lengths), int(lengths.max())), lengths)

    def words(self, count: int, length: int) -> NDArray[np.int64]:
        """The concept of each word of some captions [count, length]."""
        named = self._rng.integers(61, 81, (count, length))
        named[:, 1:4] = self._rng.integers(1, 61, (count, 3))
        return named

    def _embed(self, named: NDArray[np.int64], lengths: NDArray[np.int32]) -> Embeddings:
        dim = self.table.shape[1]
        vectors = self._rng.standard_normal((*named.shape, dim), np.float32)
        vectors *= np.sqrt(np.float32(0.02 / dim))
        vectors += self.table[named]
        vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
        vectors[np.arange(named.shape[1]) >= lengths[:, None]] = 0
        return Embeddings(vectors, lengths)


def build(folder: Path, count: int, source: Concepts) -> BuiltGallery:
    """Images in a gallery that is prepared with other captions, and 200 captions."""
    images, captions = source.images(count), source.captions(np.full(200, WORDS, np.int32))
    with GalleryWriter.create(folder, GallerySettings("images", DIM, AlignmentConfig(), model="bench")) as writer:
        for first in range(0, count, PART):
            part = images[first : first + PART]
            writer.add([str(i) for i in range(first, first + len(part))], part)
        writer.prepare(source.captions(np.full(200, WORDS, np.int32)))
    return BuiltGallery(folder, images, captions)


def bulk(captions: int, images: int, longest: int, threads: int, source: Concepts) -> dict[str, float]:
    """Seconds for the top 10 of many captions of 12 words and one of `longest`; the published loop is timed on 128."""
    import torch

    torch.set_num_threads(threads)
    lengths = np.full(captions, WORDS, np.int32)
    lengths[0] = longest  # the published loop pads every caption to the longest
    texts, pictures = source.captions(lengths), source.images(images)
    part = min(captions, published.BLOCK)
    regions, words, counts = map(torch.from_numpy, (pictures.vectors, texts.vectors[:part], lengths[:part]))
    start = time.perf_counter()
    published.scores(regions, words, counts, 0.1)
    loop = (time.perf_counter() - start) * captions / part
    with tempfile.TemporaryDirectory() as scratch:
        settings = GallerySettings("images", DIM, AlignmentConfig(), model="bench")
        with GalleryWriter.create(Path(scratch, "g"), settings) as writer:
            writer.add([str(i) for i in range(images)], pictures)
            writer.prepare(source.captions(np.full(200, WORDS, np.int32)))
        with Gallery.open(Path(scratch, "g"), threads=threads) as gallery:
            gallery.search(texts[0], K)
            start = time.perf_counter()
            results = gallery.search(texts, K)
            exact = time.perf_counter() - start
    rescored = float(np.mean([result.rescored for result in results]))
    return {"published_s": loop, "exact_s": exact, "ratio": loop / exact, "longest": longest, "rescored": rescored}


class MadeUpRows:
    """Images and captions of 12 words from `Concepts`."""

    def __init__(self) -> None:
        self._source = Concepts(0)

    def part(self, number: int, count: int) -> Embeddings:
        """As `GrowingRows`."""
        return self._source.images(count, part=number * PART)

    def captions(self) -> tuple[Embeddings, Embeddings]:
        """As `GrowingRows`."""
        asked, others = (self._source.captions(np.full(count, WORDS, np.int32)) for count in (100, 200))
        return asked, others


@click.command()
@click.option(
    "--images",
    "sizes",
    multiple=True,
    type=int,
    default=(1000, 4000, 10_000),
    show_default=True,
    help="Number of images in the gallery; repeatable.",
)
@click.option("--threads", default=2, show_default=True, help="CPU threads of every candidate.")
@click.option(
    "--seconds",
    type=values.NUMBER,
    default=15.0,
    show_default=True,
    help="Seconds for each size, all candidates together.",
)
@click.option(
    "--bulk",
    "bulk_size",
    type=(int, int),
    default=(1000, 5000),
    show_default=True,
    help="Numbers of captions and images of the bulk search.",
)
@click.option("--grow", multiple=True, type=int, help="Measure how a gallery grows to these sizes instead; repeatable.")
@click.option("--kept", type=values.NEW_FOLDER, help="Folder of the gallery that grows, to be kept and continued.")
@click.option(
    "--gallery",
    type=values.FOLDER,
    help="Measure this gallery of images instead; with --grow, galleries of images that mix the regions of two of its.",
)
@click.option("--queries", type=values.FILE, help="File of captions for --gallery, one per line.")
@click.option("--json", "out", type=values.NEW_FILE, help="Also write the figures to this file.")
def main(
    sizes: tuple[int, ...], threads: int, seconds: float, bulk_size: tuple[int, int], grow: tuple[int, ...],
    kept: Path | None, gallery: Path | None, queries: Path | None, out: Path | None,
) -> None:  # fmt: skip
    """Measure search on this machine."""
    source = Concepts(0)
    report: dict[str, Any] = {"machine": machine(("numpy", "onnxruntime", "torch", "fast-maxsim"))}
    if gallery is not None:
        with RealRows(gallery, queries, threads) as rows:
            if grow:
                report["growth"] = growth(sorted(grow), rows, kept)
            else:
                report["gallery"] = measure_gallery(rows, threads, seconds)
    elif grow:
        report["growth"] = growth(sorted(grow), MadeUpRows(), kept)
    else:
        bandwidth = read_bandwidth(threads)
        report["read_bytes_a_second"] = bandwidth
        click.echo(f"reading memory: {bandwidth / 1e9:.1f} GB/s with {threads} threads")
        for count in sizes:
            report[f"{count} images"] = _one_size(count, threads, seconds, bandwidth, source)
        captions, images = bulk_size
        report["bulk"] = [bulk(captions, images, longest, threads, source) for longest in (WORDS, 50)]
        for row in report["bulk"]:
            times = (
                f"published {row['published_s']:.1f} s, exact {row['exact_s']:.1f} s, {row['ratio']:.1f} times as fast"
            )
            click.echo(f"{captions} captions of up to {row['longest']} words x {images}: {times}")
    if gallery is not None or grow:
        click.echo(json.dumps(report, indent=2))
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _one_size(count: int, threads: int, seconds: float, bandwidth: float, source: Concepts) -> dict[str, Any]:
    """Build, measure and print one size."""
    with tempfile.TemporaryDirectory() as scratch:
        built = build(Path(scratch, "g"), count, source)
        with Gallery.open(built.folder, threads=threads) as gallery:
            read = rows_read(gallery, built.captions)  # first, so that every page needed is in memory
            latencies = one_caption(built, gallery, threads, seconds)
        speed = throughput(built.folder, built.captions, seconds / 5)
    click.echo(f"\n{count} images x {REGIONS} x {DIM}, {WORDS} words")
    return table(count * REGIONS * stored_width(DIM) / bandwidth * 1e3, latencies, read) | {
        "throughput": speed,
        **read,
    }


if __name__ == "__main__":
    sys.exit(main())
