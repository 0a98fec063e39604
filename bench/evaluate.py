"""Evaluation of a full-size test split against the published loop, in one run: python -m chan_rt.bench.evaluate

Without `--checkpoint` and `--data`, features, captions and weights are made up, at the sizes of Flickr30K's test (1,000
images, 5,000 captions) or COCO's 5K test (`--size coco5k`), 36 regions of 2048 features, 1024-d. The longest caption
has 4.8 times the words of the mean: docs/published-model.md says how much padding wastes. Such a model ranks as chance
does, so half of all pairs reach a threshold: that is the worst case of ranking by bounds. A trained checkpoint with
log-sum-exp pooling over words and its data measure the usual one.

The published loop encodes pairs of image and caption 128 at a time, so every image five times, then scores them
(published.py). It runs between two runs of this package's evaluation, each in a process of its own. Ranks are compared:
where two differ, the published one must be within what float32 rounding of scores can change.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
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
from ..commands import values
from ..runtime.data.images import CaptionedImages
from ..runtime.data.layout import SplitFiles
from ..runtime.data.npy import new_npy
from ..runtime.embeddings import Embeddings
from ..runtime.evaluation import metrics
from ..runtime.evaluation.ranking import rank_blocks
from ..runtime.text import ScanTokenizer, build_scan_vocabulary
from . import published
from .measure import machine

SIZES = {"f30k": 1000, "coco5k": 5000}
MEDIAN_WORDS = {"f30k": 11.4, "coco5k": 9.7}  # the marks of start and end not counted; COCO's captions are shorter
REGIONS, FEATURES, VOCABULARY, LONGEST = 36, 2048, 8000, 67
PAIRS = 128  # encoded at once by the published loop
ROUNDING = 2e-5  # more than float32 changes a score of log-sum-exp pooling
PACKAGES = ("numpy", "torch")


@dataclass(frozen=True)
class Job:
    """What both loops evaluate: a checkpoint over a split of a data folder; ranks are written to `out`."""

    checkpoint: Path
    data: Path
    split: str
    out: Path

    def images(self) -> CaptionedImages:
        """The split."""
        return CaptionedImages.open(self.data, self.split)


@click.command()
@click.option(
    "--size", type=click.Choice(list(SIZES)), default="f30k", show_default=True, help="Data set whose size is measured."
)
@click.option(
    "--images", type=click.IntRange(min=1), help="Number of images, where fewer than that size has are enough."
)
@click.option(
    "--checkpoint",
    "checkpoint_path",
    type=values.EXISTING,
    help="Trained checkpoint to evaluate.",
)
@click.option("--data", type=values.EXISTING, help="Data folder of that checkpoint.")
@click.option("--split", type=values.SPLIT, default="test", show_default=True, help="Split of that data folder.")
@click.option(
    "--published/--no-published", "with_published", default=True, show_default=True, help="Also run the published loop."
)
@click.option("--json", "json_file", type=values.NEW_FILE, help="Also write the figures to this file.")
def main(
    size: str,
    images: int | None,
    checkpoint_path: Path | None,
    data: Path | None,
    split: str,
    with_published: bool,
    json_file: Path | None,
) -> None:
    """Time and memory of `chan evaluate` on a test split, beside the published loop."""
    if (checkpoint_path is None) != (data is None):
        raise click.UsageError("--checkpoint and --data belong together: give both or none")
    record: dict[str, Any] = {"machine": machine(PACKAGES), "size": size if data is None else str(data.name)}
    click.echo(", ".join(f"{name} {value}" for name, value in record["machine"].items()))
    with TemporaryDirectory(prefix="chan-bench-") as folder:
        root = Path(folder)
        if checkpoint_path is None or data is None:
            record.update(make_split(root, images or SIZES[size], MEDIAN_WORDS[size]))
            job = Job(root / "checkpoint", root, "test", root)
        else:
            job = Job(checkpoint_path, data, split, root)
            record.update(_sizes(job))
        click.echo(
            f"{record['images']} images x {record['captions']} captions of {record['mean_words']:.1f} words, "
            f"the longest of {record['longest']}"
        )
        runs = [("chan", evaluate), ("published", evaluate_as_published), ("chan", evaluate)]
        for name, call in runs if with_published else runs[:1]:
            figures = _in_process(call, job)
            record.setdefault(name, []).append(figures)
            click.echo(
                f"{name:10}{figures['seconds']:8.1f} s ({figures['cpu_seconds']:.1f} s of CPU), of which "
                f"{figures['encoding']:.1f} s encoding; {figures['peak_bytes'] / 1e9:.2f} GB at most; "
                f"rsum {figures['rsum']:.2f}"
            )
        if with_published:
            record.update(_compare(record["chan"], record["published"][0], root))
            click.echo(
                f"{record['ratio']:.1f} times as fast as the published loop ({record['cpu_ratio']:.1f} by CPU time; "
                f"{record['ranking_ratio']:.1f} without encoding)\n"
                f"{record['different']} of {record['ranks']} ranks differ, by at most {record['largest_difference']}; "
                f"{record['unexplained']} by more than rounding can change"
            )
    if json_file is not None:
        json_file.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _compare(ours: Sequence[dict[str, float]], theirs: dict[str, float], root: Path) -> dict[str, float]:
    """Ratios of the times of both loops, and how their ranks differ."""
    found: dict[str, float] = {
        name: float(theirs[clock] / np.mean([run[clock] for run in ours]))
        for name, clock in (("ratio", "seconds"), ("cpu_ratio", "cpu_seconds"))
    }
    rest = np.mean([run["seconds"] - run["encoding"] for run in ours])
    found["ranking_ratio"] = float((theirs["seconds"] - theirs["encoding"]) / rest)
    with np.load(root / "chan.npz") as mine, np.load(root / "published.npz") as published_ranks:
        ranks, expected, least, most = mine["ranks"], *(published_ranks[name] for name in ("ranks", "least", "most"))
    found |= {
        "ranks": len(ranks),
        "different": int(np.count_nonzero(ranks != expected)),
        "largest_difference": int(np.abs(ranks - expected).max()),
        "unexplained": int(np.count_nonzero((ranks < least) | (ranks > most))),
    }
    return found


def _sizes(job: Job) -> dict[str, Any]:
    """Numbers of images, captions and words of a split."""
    split = job.images()
    rows = ReferenceMatcher.open(job.checkpoint).tokenizer.rows(split.captions)
    lengths = [len(row) for row in rows]
    return {
        "images": split.num_images,
        "captions": split.num_captions,
        "mean_words": float(np.mean(lengths)),
        "longest": max(lengths),
    }


def make_split(root: Path, num_images: int, median_words: float) -> dict[str, Any]:
    """Write a test split and a checkpoint below ROOT, and return their sizes."""
    rng = np.random.default_rng(0)
    files = SplitFiles.below(root, "test")
    files.folder.mkdir(parents=True)
    shape = (num_images, REGIONS, FEATURES)
    features = new_npy(files.features(), shape)
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


def evaluate(job: Job) -> dict[str, float]:
    """What `chan evaluate` does."""
    start = time.perf_counter()
    split = job.images()
    matcher = _Timed(ReferenceMatcher.open(job.checkpoint))
    everything = [(slice(0, split.num_images), slice(0, split.num_captions))]
    (standings,) = rank_blocks(matcher, split, everything)
    ranks = standings.ranks("lower")
    rsum = metrics.Metrics(*map(metrics.recalls, ranks)).rsum
    seconds = time.perf_counter() - start
    np.savez(job.out / "chan.npz", ranks=np.concatenate(ranks))
    return {"seconds": seconds, "encoding": matcher.seconds, "rsum": rsum}


def evaluate_as_published(job: Job) -> dict[str, float]:
    """The published loop, on the CPU."""
    start = time.perf_counter()
    split = job.images()
    matcher = _Timed(ReferenceMatcher.open(job.checkpoint))
    temperature = matcher.alignment.pooling_temperature
    longest = max(len(row) for row in matcher.inner.tokenizer.rows(split.captions))
    regions = split.regions([0])[0].shape[1]
    images = np.zeros((split.num_captions, regions, matcher.inner.model.config.embed_dim), np.float32)
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
    owner = split.image_of_caption
    ranks = metrics.ranks(scores, owner)
    rsum = metrics.Metrics(*map(metrics.recalls, ranks)).rsum
    seconds = time.perf_counter() - start
    own = (owner, np.arange(len(owner)))
    scores[own] += ROUNDING
    least = np.concatenate(metrics.ranks(scores, owner, "optimistic"))
    scores[own] -= 2 * ROUNDING
    most = np.concatenate(metrics.ranks(scores, owner, "pessimistic"))
    np.savez(job.out / "published.npz", ranks=np.concatenate(ranks), least=least, most=most)
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


def _in_process(call: Callable[[Job], dict[str, float]], job: Job) -> dict[str, float]:
    """Run `call` in a new process, and add the time and memory that the process used."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        figures = pool.submit(call, job).result()
        return {**figures, **pool.submit(_used).result()}


def _used() -> dict[str, float]:
    """This process' CPU time, and its resident memory at the largest (mapped pages included; Linux counts in KiB)."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_bytes": 1024.0 * used.ru_maxrss}


if __name__ == "__main__":
    main()
