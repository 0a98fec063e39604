"""Recalls of models over a data set: bundles, checkpoints, or an ensemble of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.contract import MANIFEST, Manifest
from ..runtime.data.fitting import fit_captions
from ..runtime.data.images import CaptionedImages
from ..runtime.errors import InputError
from ..runtime.evaluation import metrics
from ..runtime.evaluation.coco import check_split, extended_metrics
from ..runtime.evaluation.ranking import is_faster, rank_blocks
from ..runtime.evaluation.streaming import common_scale, score_blocks
from ..runtime.matcher import Matcher
from .checkpoint_config import read_config

if TYPE_CHECKING:
    from .inference import ReferenceMatcher

# Called with the number of the model at work, how much of its work is done, and how much there is.
OnProgress = Callable[[int, int, int], None]
# Ranks of one block in an order of ties, as `metrics.ranks` returns them.
Ranks = Callable[[metrics.Ties], tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass(frozen=True)
class Evaluation:
    """What a split says of some models.

    Attributes:
        metrics: recalls, with ties as asked for; the mean over the folds.
        rsum_bounds: the rsum with every tie lost (`pessimistic`) and every tie won (`optimistic`).
        extended: CxC and ECCV Caption by name; empty unless they were asked for.
        cut: for each model, how many captions were cut because it does not take so many words.
        seconds: that encoding and scoring took.
    """

    metrics: metrics.Metrics
    rsum_bounds: dict[str, float]
    extended: dict[str, Any]
    cut: tuple[int, ...]
    seconds: float


def evaluate_models(
    models: Sequence[str | Path],
    images: CaptionedImages,
    *,
    folds: int = 1,
    backend: str = "auto",
    precision: str = "fp32",
    device: str = "cuda",
    ties: metrics.Ties = "lower",
    extended: bool = False,
    strict: bool = False,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Recalls over one split; several models are an ensemble, which scores with the mean of their scores.

    The scores of an ensemble are brought to one scale first (`streaming.common_scale`). One model alone is ranked by
    the compiled core where that is faster, without a score for every pair (`ranking.rank_blocks`), unless `extended`
    needs the scores or the model's own graph scores.

    Args:
        models: folders of bundles and checkpoints.
        images: the split.
        folds: blocks of images that are evaluated apart; 5 on COCO's testall is its 1K protocol.
        backend, precision, device: of bundles, as in `Matcher.open`; checkpoints run in PyTorch.
        ties: which of equal scores ranks first.
        extended: also CxC and ECCV Caption, for COCO's testall with its ids, in one fold.
        strict: refuse captions of more words than a model takes; otherwise they are cut.
        on_progress: called with the place of a model in `models`, how much of its work is done, and how much there is.

    Raises:
        InputError: no model, a folder that is neither bundle nor checkpoint, features of another width, folds or
            extended that do not fit the split.
        ChanError: as opening and running the models raise it.
    """
    if not models:
        raise InputError("models must hold at least one bundle or checkpoint, got none")
    owner = images.image_of_caption
    ids = _extended_ids(images, folds) if extended else None  # before a COCO-sized split is scored: that takes minutes
    blocks = metrics.fold_slices(owner, images.num_images, folds)
    for path in models:  # all of them before the first one runs
        check_fits(images, path)
    start = time.perf_counter()
    opening = partial(open_encoder, backend=backend, precision=precision, device=device)
    ranked, scores, cut = rank_models(models, opening, images, blocks, strict, not extended, on_progress)
    seconds = time.perf_counter() - start

    def mean(order: metrics.Ties) -> metrics.Metrics:
        return metrics.mean_metrics([metrics.Metrics(*map(metrics.recalls, ranks(order))) for ranks in ranked])

    return Evaluation(
        metrics=mean(ties),
        rsum_bounds={"optimistic": mean("optimistic").rsum, "pessimistic": mean("pessimistic").rsum},
        extended={} if ids is None else extended_metrics(scores[0], ids, owner),
        cut=cut,
        seconds=seconds,
    )


def _extended_ids(images: CaptionedImages, folds: int) -> list[str]:
    """COCO's ids of the images; InputError unless CxC and ECCV Caption can be computed."""
    if folds > 1:
        raise InputError(f"extended metrics need all images at once: folds must be 1, got {folds}")
    if images.image_ids is None:
        missing = "images in memory have none" if images.files is None else f"{images.files.ids} is missing"
        raise InputError(f"extended metrics need COCO's image ids: {missing}")
    check_split(images.image_ids, images.image_of_caption)
    return images.image_ids


def is_bundle(path: str | Path) -> bool:
    """Whether a model's folder is a bundle; a checkpoint else."""
    return (Path(path) / MANIFEST).is_file()


def check_fits(images: CaptionedImages, path: str | Path) -> None:
    """InputError unless a folder is a bundle or a checkpoint that reads these region features."""
    if is_bundle(path):
        images.check_bundle(Manifest.load(path), path)
    elif (Path(path) / "config.json").is_file():
        images.check_width(read_config(path).region_dim, path)
    elif (Path(path) / "best" / "config.json").is_file():
        raise InputError(f"{path} is the folder of a run: give its checkpoint, {Path(path) / 'best'}")
    else:
        raise InputError(f"{path} is neither a checkpoint (config.json) nor a bundle ({MANIFEST})")


def rank_models(
    models: Sequence[str | Path],
    opening: Callable[[str | Path], AbstractContextManager[tuple[Matcher | ReferenceMatcher, bool]]],
    images: CaptionedImages,
    blocks: Sequence[tuple[slice, slice]],
    strict: bool,
    without_scores: bool,
    on_progress: OnProgress | None,
) -> tuple[list[Ranks], list[NDArray[np.float32]], tuple[int, ...]]:
    """For each block its ranks and the mean scores of the models, and how many captions were cut for each model.

    There are no scores where ranks alone were computed, which `without_scores` allows for one model. `opening` opens
    each model, as `open_encoder` does.
    """
    total: list[NDArray[np.float32]] = []
    cut: list[int] = []
    for number, path in enumerate(models):

        def show(done: int, pairs: int, number: int = number) -> None:
            if on_progress is not None:
                on_progress(number, done, pairs)

        with opening(path) as (encoder, packed):
            fitted = fit_captions(images, encoder.tokenizer, encoder.max_words, strict=strict)
            cut.append(len(fitted.cut_rows))
            if without_scores and packed and len(models) == 1 and is_faster(encoder.alignment):
                found = rank_blocks(encoder, fitted, blocks, on_progress=show)
                return [standings.ranks for standings in found], [], tuple(cut)
            streamed = score_blocks(encoder, fitted, blocks, packed=packed, on_progress=show)
            for place, scores in enumerate(streamed):
                scaled = common_scale(scores, encoder.alignment) if len(models) > 1 else scores
                if number == 0:
                    total.append(scaled)
                else:
                    total[place] += scaled
    for scores in total:
        scores /= np.float32(len(models))
    owners = [images.image_of_caption[columns] - rows.start for rows, columns in blocks]
    ranked: list[Ranks] = [partial(metrics.ranks, scores, owner) for scores, owner in zip(total, owners, strict=True)]
    return ranked, total, tuple(cut)


@contextmanager
def open_encoder(
    path: str | Path, backend: str, precision: str, device: str = "cuda"
) -> Iterator[tuple[Matcher | ReferenceMatcher, bool]]:
    """The encoder of a bundle or a checkpoint, and whether this package may score its embeddings on the CPU.

    That gives what the fp32 graph on onnxruntime's CPU gives. Everything else is scored by its own graph, because that
    graph is part of what is evaluated.
    """
    if is_bundle(path):
        with Matcher.open(path, backend, precision, device=device) as matcher:
            yield matcher, matcher.backend == "onnxruntime" and precision == "fp32"
    else:
        from .inference import ReferenceMatcher  # torch is needed for checkpoints alone

        yield ReferenceMatcher.open(path), True
