"""`chan evaluate`: recalls of checkpoints or bundles on a data set."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.argument("data", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--split",
    type=click.Choice(["train", "dev", "test", "testall"]),
    default="test",
    show_default=True,
    help="Of DATA.",
)
@click.option(
    "--folds",
    type=click.IntRange(min=2),
    help="Mean over so many blocks of images; 5 on testall is COCO's 1K protocol.",
)
@click.option("--backend", default="auto", show_default=True, help="Of bundles; checkpoints run in PyTorch.")
@click.option("--precision", default="fp32", show_default=True, help="Of bundles.")
@click.option(
    "--ties",
    type=click.Choice(["lower", "published"]),
    default="lower",
    show_default=True,
    help="Which of equal scores ranks first: the lower index, or the higher as in the published code.",
)
@click.option("--eccv", is_flag=True, help="Also CxC and ECCV Caption, on COCO's testall with its ids.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def command(
    models: tuple[str, ...],
    data: str,
    split: Any,
    folds: int | None,
    backend: str,
    precision: str,
    ties: Any,
    eccv: bool,
    as_json: bool,
) -> None:
    """Recalls of MODELS (checkpoints or bundles) over a split of DATA.

    Several models are an ensemble: the mean of their scores, log-sum-exp ones multiplied by their temperature so that
    all are on one scale.
    """
    import numpy as np

    from ..runtime.data.images import CaptionedImages
    from ..runtime.errors import InputError
    from ..runtime.evaluation import metrics
    from ..runtime.evaluation.coco import check_split, extended_metrics
    from ..runtime.evaluation.streaming import common_scale, score_blocks

    if eccv and folds is not None:
        raise InputError("--eccv needs all images at once: leave --folds out")
    images = CaptionedImages.open(data, split)
    owner = images.image_of_caption
    if eccv and images.image_ids is None:
        where = split if images.files is None else images.files.ids
        raise InputError(f"--eccv needs COCO's image ids: {where} is missing")
    if eccv and images.image_ids is not None:  # a COCO-sized split takes minutes to score
        check_split(images.image_ids, owner)
    blocks = metrics.fold_slices(owner, images.num_images, folds or 1)
    for path in models:  # all of them before the first is at work
        images.check_width(_region_dim(path), path)
    total: list[Any] = []
    start = time.perf_counter()
    for number, path in enumerate(models):
        label = f"Scoring {images.num_images} x {images.num_captions} with {Path(path).name}"
        with _open(path, backend, precision) as (encoder, packed):
            bar = click.progressbar(length=100, label=label, file=sys.stderr)
            with bar:
                streamed = score_blocks(
                    encoder,
                    images,
                    blocks,
                    packed=packed,
                    on_progress=lambda done, all_, bar=bar: bar.update(100 * done // all_ - bar.pos),
                )
                for place, scores in enumerate(streamed):
                    scaled = common_scale(scores, encoder.alignment) if len(models) > 1 else scores
                    if number == 0:
                        total.append(scaled)
                    else:
                        total[place] += scaled
    for scores in total:
        scores /= np.float32(len(models))
    seconds = time.perf_counter() - start

    def mean(order: metrics.Ties) -> metrics.Metrics:
        parts = zip(total, blocks, strict=True)
        return metrics.mean_metrics(
            [metrics.evaluate(scores, owner[columns] - rows.start, order) for scores, (rows, columns) in parts]
        )

    result = mean(ties)
    more = extended_metrics(total[0], images.image_ids, owner) if eccv and images.image_ids is not None else {}
    record = {
        "models": list(models),
        "split": split,
        "images": images.num_images,
        "captions": images.num_captions,
        "folds": folds or 1,
        "ties": ties,
        "seconds": seconds,
        "i2t": vars(result.i2t),
        "t2i": vars(result.t2i),
        "rsum": result.rsum,
        "rsum_bounds": {name: mean(name).rsum for name in ("optimistic", "pessimistic")},
        "extended": {name: vars(both) for name, both in more.items()},
    }
    click.echo(json.dumps(record, indent=2) if as_json else _table(record))


def _table(record: dict[str, Any]) -> str:
    """The same figures for people."""
    of_folds = f", mean of {record['folds']} folds" if record["folds"] > 1 else ""
    lines = [
        f"{record['images']} images, {record['captions']} captions of {record['split']}{of_folds}; "
        f"{record['seconds']:.1f} s",
        f"{'':14}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'medr':>7}{'meanr':>8}",
    ]
    for name, way in (("image-to-text", record["i2t"]), ("text-to-image", record["t2i"])):
        recalls = "".join(f"{way[key]:7.1f}" for key in ("r1", "r5", "r10", "medr"))
        lines.append(f"{name:14}{recalls}{way['meanr']:8.1f}")
    lines.append(f"rsum {record['rsum']:.1f}")
    bounds = record["rsum_bounds"]
    if bounds["optimistic"] != bounds["pessimistic"]:
        lines.append(f"ties leave rsum between {bounds['pessimistic']:.1f} and {bounds['optimistic']:.1f}")
    for name, both in record["extended"].items():
        lines.append(f"{name:18}image-to-text {both['i2t']:5.1f}   text-to-image {both['t2i']:5.1f}")
    return "\n".join(lines)


def _region_dim(path: str) -> int:
    """The width of region features that a bundle or a checkpoint reads."""
    from ..runtime.contract import MANIFEST, Manifest
    from ..runtime.errors import InputError

    if (Path(path) / MANIFEST).is_file():
        return Manifest.load(path).region_dim
    if (Path(path) / "config.json").is_file():
        from ..chan_ref.checkpoint import read_config

        return read_config(path).region_dim
    raise InputError(f"{path} is neither a checkpoint (config.json) nor a bundle ({MANIFEST})")


def _open(path: str, backend: str, precision: str) -> Any:
    """A context that gives the encoder of a bundle or a checkpoint, and whether the packed scorer stands for its own.

    The packed scorer computes in float32 on the CPU what the fp32 graph on onnxruntime's CPU does; everything else is
    scored by its own graph, because that graph is part of what is evaluated.
    """
    from contextlib import contextmanager

    from ..runtime.contract import MANIFEST
    from ..runtime.matcher import Matcher

    @contextmanager
    def opened() -> Any:
        if (Path(path) / MANIFEST).is_file():
            with Matcher.open(path, backend, precision) as matcher:
                yield matcher, matcher.backend == "onnxruntime" and precision == "fp32"
        else:
            from ..chan_ref.inference import ReferenceMatcher

            yield ReferenceMatcher.open(path), True

    return opened()
