"""`python -m chan_rt.bench.search`: one caption, and a thousand, against galleries in memory; peers side by side in
one run.

Embeddings are made up with the spectrum of trained ones (measured on 4,000 demo scenes: a first direction with 83 %
of the energy, 98 % in 16), because a bound's tightness and a prefix's recall depend on it; `--gallery` measures a
real one.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np
from numpy.typing import NDArray

from ..commands import values
from ..runtime.contract import AlignmentConfig
from ..runtime.embeddings import Embeddings
from ..runtime.gallery import Gallery, GallerySettings, GalleryWriter
from ..runtime.gallery.kernels.layout import stored_width
from ..runtime.gallery.settings import FINE_DTYPES
from ..runtime.session import open_writer
from . import published
from .measure import Latency, machine, read_bandwidth, take_turns

REGIONS, DIM, WORDS, K = 36, 1024, 12, 10
PART = 1000  # images that are made, and added to a gallery, at a time
PUBLISHED = "published (torch float32, padded)"
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


def packed(regions: Any, words: Any) -> Any:
    """The fastest PyTorch for one caption: one matrix product of all regions with the caption's own words."""
    import torch

    products = regions.reshape(-1, regions.shape[2]) @ words.T.contiguous()
    best = products.reshape(len(regions), regions.shape[1], -1).amax(dim=1).float()
    return torch.topk(torch.logsumexp(best / 0.1, dim=1), K)


@dataclass(frozen=True)
class BuiltGallery:
    """A gallery on disk, the embeddings of its images in memory, and those of captions to search with."""

    folder: Path
    images: Embeddings
    captions: Embeddings


def build(folder: Path, count: int, source: Concepts) -> BuiltGallery:
    """Images in a gallery that is prepared with other captions, and 200 captions."""
    images, captions = source.images(count), source.captions(np.full(200, WORDS, np.int32))
    with GalleryWriter.create(folder, GallerySettings("images", DIM, AlignmentConfig(), model="bench")) as writer:
        for first in range(0, count, PART):
            part = images[first : first + PART]
            writer.add([str(i) for i in range(first, first + len(part))], part)
        writer.prepare(source.captions(np.full(200, WORDS, np.int32)))
    return BuiltGallery(folder, images, captions)


def each(captions: Embeddings, score: Callable[[int], Any]) -> Callable[[], Any]:
    """Score the next caption at each call, and the first again after the last."""
    turns = itertools.cycle(range(len(captions)))
    return lambda: score(next(turns))


def asking(gallery: Gallery, captions: Embeddings) -> Callable[[], Any]:
    """Search with another of the captions at each call."""
    return each(captions, lambda i: gallery.search(captions[i : i + 1], K))


def one_caption(
    built: BuiltGallery,
    gallery: Gallery,
    threads: int,
    seconds: float,
    encode: Callable[[int], Embeddings] | None = None,
) -> dict[str, Latency]:
    """Latencies of one caption with all images, another caption at each call, each candidate in turn.

    encode: makes the embeddings of the i-th caption, where a whole query from its text to its hits is measured, too.
    """
    import torch

    torch.set_num_threads(threads)
    captions = built.captions
    regions = torch.from_numpy(built.images.vectors)
    half = regions.bfloat16()
    vectors = [captions.vectors[i, :length] for i, length in enumerate(captions.lengths)]
    words = [torch.from_numpy(each) for each in vectors]
    half_words = [each.bfloat16() for each in words]
    lengths = [torch.tensor([len(each)]) for each in vectors]
    candidates: dict[str, Callable[[], Any]] = {
        PUBLISHED: each(captions, lambda i: published.scores(regions, words[i][None], lengths[i], 0.1)),
        "torch float32, packed": each(captions, lambda i: packed(regions, words[i])),
        "torch bfloat16, packed": each(captions, lambda i: packed(half, half_words[i])),
    }
    if importlib.util.find_spec("fast_maxsim") is not None:
        import fast_maxsim

        candidates["fast-maxsim (sum of max)"] = each(
            captions, lambda i: fast_maxsim.maxsim_scores(vectors[i], built.images.vectors)
        )
    candidates["this (exact, certified)"] = asking(gallery, captions)
    if encode is not None:
        candidates["this, from text to hits"] = each(captions, lambda i: gallery.search(encode(i), K))
    return take_turns(candidates, seconds, in_a_row=5)


def throughput(gallery_folder: Path, captions: Embeddings, seconds: float) -> dict[str, float]:
    """Searches a second of 1 and of 8 threads that ask one gallery at once, each search on its own thread."""
    found = {}
    with Gallery.open(gallery_folder, threads=1) as gallery:
        gallery.search(captions, K)
        for askers in (1, 8):
            done = [0] * askers
            until = time.perf_counter() + seconds

            def ask(asker: int, done: list[int] = done, until: float = until) -> None:
                while not done[asker] or time.perf_counter() < until:
                    i = (asker * 25 + done[asker]) % len(captions)
                    gallery.search(captions[i : i + 1], K)
                    done[asker] += 1

            threads = [threading.Thread(target=ask, args=(asker,)) for asker in range(askers)]
            start = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            found[f"{askers}_threads"] = sum(done) / (time.perf_counter() - start)
    return found | {"ratio": found["8_threads"] / found["1_threads"]}


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


def rows_read(gallery: Gallery, captions: Embeddings) -> dict[str, Any]:
    """Of how many rows a certified top 10 read each level, and the bytes that this makes."""
    results = gallery.search(captions, K)
    rows, prepared = results[0].rows, gallery.prepared
    found: dict[str, Any] = {"rows": rows, "captions": len(results)}
    found["prepared"] = None if prepared is None else prepared.describe()
    edges = [0, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 10**9]
    for name in ("second", "codes", "rescored"):
        counts = np.array([getattr(result, name) for result in results])
        histogram = {f"{a + 1}-{b}": int(((counts > a) & (counts <= b)).sum()) for a, b in pairwise(edges)}
        found[name] = {
            "mean": float(counts.mean()),
            "p95": float(np.percentile(counts, 95)),
            "share": float(counts.mean() / rows),
            "histogram": {key: value for key, value in histogram.items() if value},
        }
    info = gallery.info()
    codes, fine = stored_width(info["dim"]), info["dim"] * np.dtype(FINE_DTYPES[info["fine"]]).itemsize
    widths = {"second": 0, "codes": codes, "rescored": fine}
    first = codes  # bytes of each row's vectors that every search reads
    if prepared is not None and prepared.plan.first is not None and prepared.plan.second is not None:
        first, widths["second"] = prepared.plan.first.width, prepared.plan.second.width
    read = first + sum(found[name]["share"] * width for name, width in widths.items())
    return found | {"bytes_a_vector": read, "share_of_int8": read / codes}


class GrowingRows(Protocol):
    """Images for a gallery that grows, and captions to search it with."""

    def part(self, number: int, count: int) -> Embeddings:
        """The first images of a numbered thousand, the same ones at each call."""

    def captions(self) -> tuple[Embeddings, Embeddings]:
        """Captions to search with, and others to prepare with."""


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


def growth(counts: list[int], source: GrowingRows, kept: Path | None) -> list[dict[str, Any]]:
    """Time, memory and bytes per image as a gallery grows, in the folder `kept` from the rows on that are there.

    Images are made a thousand at a time, so they take little of that memory. Search is prepared at the first size,
    and rows that are added later are written for it.
    """
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "g") if kept is None else kept
        captions, others = source.captions()
        settings = GallerySettings("images", captions.dim, AlignmentConfig(), model="bench", fine="fixed16")
        with open_writer(folder, settings) as writer:
            for count in counts:
                start = time.perf_counter()
                for first in range(len(writer), count, PART):
                    part = source.part(first // PART, min(PART, count - first))
                    writer.add([str(i) for i in range(first, first + len(part))], part)
                adding = time.perf_counter() - start
                with Gallery.open(folder) as gallery:
                    prepared = gallery.prepared
                if prepared is None:
                    writer.prepare(others)
                start = time.perf_counter()
                with Gallery.open(folder) as gallery:
                    opening = time.perf_counter() - start
                    start = time.perf_counter()
                    gallery.search(captions[:1], K)
                    first_search = time.perf_counter() - start
                    read = rows_read(gallery, captions)
                    latency = take_turns({"exact": asking(gallery, captions)}, 10.0)
                    size = gallery.info()["bytes"]
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # mapped pages count
                rows.append(
                    {"images": count, "fine": settings.fine, "bytes_an_image": size / count, "add_s": adding,
                     "open_ms": opening * 1e3,
                     "first_ms": first_search * 1e3, "exact_ms": latency["exact"].p50,
                     "peak_resident_bytes": peak, **read}
                )  # fmt: skip
    return rows


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
        from .search_real import RealRows, measure_gallery

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


def table(limit: float, latencies: dict[str, Latency], read: dict[str, Any]) -> dict[str, Any]:
    """Print latencies beside the time of reading the int8 codes once, `limit` ms, and return both."""
    reference = latencies[PUBLISHED].p50
    click.echo(f"reading the int8 codes alone: {limit:.1f} ms")
    click.echo(f"{'':<36}{'median':>9}{'best':>9}{'x limit':>9}{'x published':>13}")
    for name, found in latencies.items():
        times = f"{found.p50:>6.2f} ms{found.best:>6.2f} ms"
        click.echo(f"{name:<36}{times}{found.p50 / limit:>9.2f}{reference / found.p50:>13.1f}")
    shares = ", ".join(f"{name} {read[name]['share']:.1%}" for name in ("second", "codes", "rescored"))
    click.echo(f"rows read: {shares}; bytes: {read['share_of_int8']:.2f} of the int8 codes")
    return {"limit_ms": limit, "latency_ms": {name: vars(found) for name, found in latencies.items()}}


if __name__ == "__main__":
    sys.exit(main())
