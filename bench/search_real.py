"""What `python -m chan_rt.bench.search --gallery` measures: real embeddings, one caption and many."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import click
import numpy as np

from ..runtime.embeddings import Embeddings
from ..runtime.errors import InputError
from ..runtime.gallery import Gallery
from ..runtime.gallery.kernels.layout import stored_width
from ..runtime.matcher import Matcher
from . import published
from .measure import read_bandwidth
from .search_measures import PART, BuiltGallery, K, one_caption, rows_read, table, throughput


class RealRows:
    """The images of a gallery that names its bundle, and captions that the bundle encodes.

    Args:
        path: the gallery.
        queries: file of captions, one per line.
        threads: of every candidate.

    Attributes:
        gallery: as it was opened.
        texts: the captions.
        matcher: the bundle.
        encoded: embeddings of the captions.

    Raises:
        InputError: another kind of gallery, or no captions.
    """

    def __init__(self, path: Path, queries: Path | None, threads: int) -> None:
        self.gallery = Gallery.open(path, threads=threads)
        settings = self.gallery.settings
        if queries is None or settings.bundle is None or settings.kind != "images":
            self.gallery.close()
            raise InputError("--gallery must be a gallery of images that names its bundle, and needs --queries")
        self.texts = queries.read_text(encoding="utf-8").splitlines()
        self.matcher = Matcher.open(settings.bundle, precision=settings.precision or "fp32", threads=threads)
        self.encoded = self.matcher.encode_texts(self.texts)
        self._ids = [row.id for row in self.gallery.rows()]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.matcher.close()
        self.gallery.close()

    def images(self) -> Embeddings:
        """All images."""
        return self.gallery.embeddings(self._ids)

    def part(self, number: int, count: int) -> Embeddings:
        """As `GrowingRows`: images that have every second region from one image and the others from another one."""
        chosen = np.random.default_rng(number).integers(0, len(self._ids), (2, PART))[:, :count]
        even, odd = (self.gallery.embeddings(self._ids[i] for i in some) for some in chosen)
        vectors = even.vectors.copy()
        vectors[:, 1::2] = odd.vectors[:, 1::2]
        return Embeddings(vectors, np.minimum(even.lengths, odd.lengths))

    def captions(self) -> tuple[Embeddings, Embeddings]:
        """As `GrowingRows`: the first half of the captions, and the others."""
        half = len(self.encoded) // 2
        return self.encoded[:half], self.encoded[half:]


def measure_gallery(rows: RealRows, threads: int, seconds: float) -> dict[str, Any]:
    """Measure and print one caption at a time, many askers, and all captions at once."""
    gallery, images, captions = rows.gallery, rows.images(), rows.encoded
    read = rows_read(gallery, captions)
    built = BuiltGallery(gallery.path, images, captions)
    latencies = one_caption(built, gallery, threads, seconds, lambda i: rows.matcher.encode_texts([rows.texts[i]]))
    limit = images.vectors[..., 0].size * stored_width(images.dim) / read_bandwidth(threads) * 1e3
    click.echo(f"\n{len(images)} images of {gallery.path}, {len(captions)} captions")
    found = table(limit, latencies, read)
    speed = throughput(gallery.path, captions, seconds / 5)
    together = all_at_once(gallery, images, captions, threads)
    click.echo(f"8 threads that ask: {speed['ratio']:.2f} times as many answers as one")
    click.echo(
        f"all at once: published {together['published_s']:.1f} s, exact {together['exact_s']:.1f} s, "
        f"{together['ratio']:.1f} times as fast"
    )
    return found | {"dim": images.dim, "throughput": speed, "bulk": together, **read}


def all_at_once(gallery: Gallery, images: Embeddings, captions: Embeddings, threads: int) -> dict[str, float]:
    """Seconds for the top 10 of all captions, and for the published loop, in blocks of captions of like lengths.

    So the loop is spared most of its padding, which as published goes up to the longest caption of all.
    """
    import torch

    torch.set_num_threads(threads)
    regions = torch.from_numpy(images.vectors)
    words = 0
    start = time.perf_counter()
    for block in blocks_by_length(captions):
        published.scores(regions, torch.from_numpy(block.vectors), torch.from_numpy(block.lengths), 0.1)
        words += block.vectors[..., 0].size
    loop = time.perf_counter() - start
    gallery.search(captions[:1], K)
    start = time.perf_counter()
    gallery.search(captions, K)
    exact = time.perf_counter() - start
    padding = 1 - int(captions.lengths.sum()) / words
    return {"captions": len(captions), "published_s": loop, "exact_s": exact, "ratio": loop / exact, "padding": padding}


def blocks_by_length(captions: Embeddings) -> Iterator[Embeddings]:
    """Captions in order of their lengths, in blocks that are each padded to their own longest."""
    order = np.argsort(captions.lengths, kind="stable")
    for first in range(0, len(order), published.BLOCK):
        some = order[first : first + published.BLOCK]
        lengths = captions.lengths[some]
        yield Embeddings(np.ascontiguousarray(captions.vectors[some, : lengths.max()]), lengths)
