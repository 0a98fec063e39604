"""What `python -m chan_rt.bench.search` measures of a gallery: one caption beside its peers, many askers, the rows that
are read, and growth.
"""

from __future__ import annotations

import importlib.util
import itertools
import resource
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

from ..runtime.contract import AlignmentConfig
from ..runtime.embeddings import Embeddings
from ..runtime.gallery import Gallery, GallerySettings
from ..runtime.gallery.kernels.layout import stored_width
from ..runtime.gallery.settings import FINE_DTYPES
from ..runtime.session import open_writer
from . import published
from .measure import Latency, take_turns

K = 10
PART = 1000  # images that are made, and added to a gallery, at a time
PUBLISHED = "published (torch float32, padded)"


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
