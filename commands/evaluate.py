"""`chan evaluate`: compute the recalls of checkpoints or bundles on a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..runtime.counts import counted
from . import options, values
from .terminal import echo, print_json, progress_bar, report_skipped, skipped_as_dicts


@click.command(short_help="Compute the recalls of checkpoints or bundles over a split of data.")
@click.argument("models", nargs=-1, required=True, type=values.CHECKPOINT)
@options.data_argument
@options.split_option("test", "Split of DATA to evaluate.")
@options.folds_option
@options.backend_option
@options.device_option
@options.precision_option
@options.ties_option
@click.option(
    "--eccv", is_flag=True, help="Also compute CxC and ECCV Caption. This needs the testall split of COCO with its ids."
)
@options.strict_captions_option
@options.json_option
@click.pass_context
def command(
    context: click.Context,
    /,
    models: tuple[Path, ...],
    data: Path,
    split: Any,
    folds: int | None,
    backend: str,
    device: str,
    precision: str,
    ties: Any,
    eccv: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Compute the recalls of MODELS (checkpoints or bundles) over a split of DATA.

    Several models are an ensemble: the mean of their scores is evaluated. Scores of log-sum-exp pooling are multiplied
    by their temperature first, so that all scores are on one scale. Checkpoints run in PyTorch.
    """
    from ..chan_ref.evaluation import evaluate_models
    from ..runtime.data.images import CaptionedImages

    if eccv and folds is not None:
        raise click.UsageError("--eccv needs all images at once: leave --folds out")
    options.refuse_without_bundle(context, models)
    images = CaptionedImages.open(data, split, strict=strict)
    pairs = f"{images.num_images} x {images.num_captions}"
    with progress_bar(f"Scoring {pairs}", 100 * len(models)) as progress:
        found = evaluate_models(
            models,
            images,
            folds=folds or 1,
            backend=backend,
            device=device,
            precision=precision,
            ties=ties,
            extended=eccv,
            strict=strict,
            on_progress=lambda number, done, total: progress(
                100 * number + 100 * done // total, 100 * len(models), models[number].name
            ),
        )
    record = {
        "models": [str(path) for path in models],
        "split": split,
        "images": images.num_images,
        "captions": images.num_captions,
        "folds": folds or 1,
        "ties": ties,
        "seconds": found.seconds,
        "i2t": vars(found.metrics.i2t),
        "t2i": vars(found.metrics.t2i),
        "rsum": found.metrics.rsum,
        "rsum_bounds": found.rsum_bounds,
        "extended": {name: vars(both) for name, both in found.extended.items()},
        "skipped": skipped_as_dicts(images.skipped),
        "cut": dict(zip(map(str, models), found.cut, strict=True)),
    }
    report_skipped(images.skipped)
    if as_json:
        print_json(record)
    else:
        echo(_table(record))


def _table(record: dict[str, Any]) -> str:
    """The same figures for people."""
    models = record["models"]
    of_models = f"ensemble of {len(models)} models: " if len(models) > 1 else ""
    of_folds = f", mean of {counted(record['folds'], 'fold')}" if record["folds"] > 1 else ""
    lines = [
        f"{of_models}{counted(record['images'], 'image')}, {counted(record['captions'], 'caption')} of "
        f"{record['split']}{of_folds}; "
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
    for model, count in record["cut"].items():
        if count:
            lines.append(f"captions that were cut because they are longer than {model} takes: {count}")
    for name, both in record["extended"].items():
        lines.append(f"{name:18}image-to-text {both['i2t']:5.1f}   text-to-image {both['t2i']:5.1f}")
    return "\n".join(lines)
