"""Evaluation of a full-size test split against the published loop, in one run: python -m chan_rt.bench.evaluate

The features, captions and weights are made up: only time and memory are measured, at the sizes of Flickr30K's test
(1,000 images, 5,000 captions) or COCO's 5K test (`--size coco5k`), 36 regions of 2048 features, 1024-d. The longest
caption has 4.8 times the words of the mean: docs/published-model.md says how much padding wastes.

The published loop encodes pairs of image and caption 128 at a time, so every image five times, then scores them
(published.py). It runs between two runs of this package's evaluation, each in a process of its own.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from ..chan_ref import checkpoint
from ..chan_ref.config import ModelConfig
from ..chan_ref.inference import ReferenceMatcher
from ..chan_ref.model import ChanModel
from ..runtime.data.images import CaptionedImages
from ..runtime.data.layout import SplitFiles
from ..runtime.embeddings import Embeddings
from ..runtime.evaluation import metrics
from ..runtime.evaluation.streaming import score_blocks
from ..runtime.text import ScanTokenizer, build_scan_vocabulary
from . import published
from .measure import machine

SIZES = {"f30k": 1000, "coco5k": 5000}
MEDIAN_WORDS = {"f30k": 11.4, "coco5k": 9.7}  # the marks of start and end not counted; COCO's captions are shorter
REGIONS, FEATURES, VOCABULARY, LONGEST = 36, 2048, 8000, 67
PAIRS = 128  # encoded at once by the published loop
PACKAGES = ("numpy", "torch")


@click.command()
@click.option(
    "--size", type=click.Choice(list(SIZES)), default="f30k", show_default=True, help="Data set whose size is measured."
)
@click.option(
    "--images", type=click.IntRange(min=1), help="Number of images, where fewer than that size has are enough."
)
@click.option(
    "--published/--no-published", "with_published", default=True, show_default=True, help="Also run the published loop."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the figures to this file.")
def main(size: str, images: int | None, with_published: bool, json_file: Path | None) -> None:
    """Time and memory of `chan evaluate` on a made-up test split, beside the published loop."""
    record: dict[str, Any] = {"machine": machine(PACKAGES), "size": size}
    click.echo(", ".join(f"{name} {value}" for name, value in record["machine"].items()))
    with TemporaryDirectory(prefix="chan-bench-") as folder:
        root = Path(folder)
        record.update(make_split(root, images or SIZES[size], MEDIAN_WORDS[size]))
        click.echo(
            f"{record['images']} images x {record['captions']} captions of {record['mean_words']:.1f} words, "
            f"the longest of {record['longest']}"
        )
        runs = [("chan", evaluate), ("published", evaluate_as_published), ("chan", evaluate)]
        for name, call in runs if with_published else runs[:1]:
            figures = _in_process(call, root)
            record.setdefault(name, []).append(figures)
            click.echo(
                f"{name:10}{figures['seconds']:8.1f} s ({figures['cpu_seconds']:.1f} s of CPU), of which "
                f"{figures['encoding']:.1f} s encoding; {figures['peak_bytes'] / 2**30:.2f} GiB at most; "
                f"rsum {figures['rsum']:.2f}"
            )
        if with_published:
            record["ratio"], record["cpu_ratio"] = (
                record["published"][0][clock] / np.mean([run[clock] for run in record["chan"]])
                for clock in ("seconds", "cpu_seconds")
            )
            difference = np.abs(np.load(root / "chan.npy") - np.load(root / "published.npy")).max()
            record["max_difference"] = float(difference)
            click.echo(
                f"{record['ratio']:.1f} times as fast as the published loop ({record['cpu_ratio']:.1f} by CPU time); "
                f"scores differ by at most {difference:.1e}"
            )
    if json_file is not None:
        json_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def make_split(root: Path, num_images: int, median_words: float) -> dict[str, Any]:
    """Write a test split and a checkpoint below ROOT, and return their sizes."""
    rng = np.random.default_rng(0)
    files = SplitFiles.below(root, "test")
    files.folder.mkdir(parents=True)
    shape = (num_images, REGIONS, FEATURES)
    features = np.lib.format.open_memmap(files.features(), "w+", np.float32, shape)
    for row in range(num_images):
        # Like a detector's features: not negative, most of them small.
        features[row] = np.maximum(rng.standard_normal(shape[1:], np.float32), 0) ** 2
    features.flush()
    lengths = np.clip(np.rint(rng.lognormal(np.log(median_words), 0.4, 5 * num_images)), 2, LONGEST).astype(int)
    lengths[0] = LONGEST
    captions = [" ".join(f"w{word}" for word in rng.integers(0, VOCABULARY, length)) for length in lengths]
    files.captions.write_text("\n".join(captions) + "\n", encoding="utf-8")
    vocabulary = build_scan_vocabulary(captions, 1)
    torch.manual_seed(0)
    model = ChanModel(ModelConfig(vocab_size=ScanTokenizer(vocabulary["word2idx"]).vocab_size))
    checkpoint.save(root / "checkpoint", model, {"vocab.json": json.dumps(vocabulary).encode()}, {})
    return {
        "images": num_images,
        "captions": len(captions),
        "mean_words": float(lengths.mean()) + 2,  # with <start> and <end>
        "longest": int(lengths.max()) + 2,
    }


def evaluate(root: Path) -> dict[str, float]:
    """What `chan evaluate ROOT/checkpoint ROOT` does."""
    start = time.perf_counter()
    split = CaptionedImages.open(root, "test")
    matcher = _Timed(ReferenceMatcher.open(root / "checkpoint"))
    everything = [(slice(0, split.num_images), slice(0, split.num_captions))]
    (scores,) = score_blocks(matcher, split, everything, packed=True)
    rsum = metrics.evaluate(scores, split.image_of_caption).rsum
    seconds = time.perf_counter() - start
    np.save(root / "chan.npy", scores)
    return {"seconds": seconds, "encoding": matcher.seconds, "rsum": rsum}


def evaluate_as_published(root: Path) -> dict[str, float]:
    """The published loop, on the CPU."""
    start = time.perf_counter()
    split = CaptionedImages.open(root, "test")
    matcher = _Timed(ReferenceMatcher.open(root / "checkpoint"))
    temperature = matcher.alignment.pooling_temperature
    longest = max(len(row) for row in matcher.inner.tokenizer.rows(split.captions))
    images = np.zeros((split.num_captions, REGIONS, matcher.inner.model.config.embed_dim), np.float32)
    words = np.zeros((split.num_captions, longest, images.shape[2]), np.float32)
    lengths = np.zeros(split.num_captions, np.int64)
    for first in range(0, split.num_captions, PAIRS):
        pairs = np.arange(first, min(first + PAIRS, split.num_captions))
        images[pairs] = matcher.encode_images(*split.regions(split.image_of_caption[pairs])).vectors
        texts = matcher.encode_texts([split.captions[pair] for pair in pairs])
        words[pairs, : texts.vectors.shape[1]] = texts.vectors
        lengths[pairs] = texts.lengths
    once = torch.from_numpy(images[::5].copy())
    scores = published.scores(once, torch.from_numpy(words), torch.from_numpy(lengths), temperature).numpy()
    rsum = metrics.evaluate(scores, split.image_of_caption, ties="published").rsum
    seconds = time.perf_counter() - start
    np.save(root / "published.npy", scores)
    return {"seconds": seconds, "encoding": matcher.seconds, "rsum": rsum}


class _Timed:
    """A matcher that adds up the time it spends encoding."""

    def __init__(self, inner: ReferenceMatcher) -> None:
        self.inner = inner
        self.alignment = inner.alignment
        self.seconds = 0.0

    def encode_images(self, regions: NDArray[np.float32], lengths: NDArray[np.int32]) -> Embeddings:
        start = time.perf_counter()
        found = self.inner.encode_images(regions, lengths)
        self.seconds += time.perf_counter() - start
        return found

    def encode_texts(self, captions: Sequence[str]) -> Embeddings:
        start = time.perf_counter()
        found = self.inner.encode_texts(captions)
        self.seconds += time.perf_counter() - start
        return found

    def score(self, images: Embeddings, texts: Embeddings) -> NDArray[np.float32]:
        return self.inner.score(images, texts)


def _in_process(call: Callable[[Path], dict[str, float]], root: Path) -> dict[str, float]:
    """Run `call` in a new process, and add the time and memory that the process used."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        figures = pool.submit(call, root).result()
        return {**figures, **pool.submit(_used).result()}


def _used() -> dict[str, float]:
    """This process' CPU time, and its resident memory at the largest (mapped pages included; Linux counts in KiB)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_bytes": 1024.0 * used.ru_maxrss}


if __name__ == "__main__":
    main()
