"""`chan compare`: say how far the recalls of two models differ on a data set, and how sure that is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.counts import counted
from . import options, values
from .terminal import echo, print_json, progress_bar, report_skipped, skipped_as_dicts, visible, warn

if TYPE_CHECKING:
    from ..chan_ref.comparison import Comparison
    from ..runtime.data.images import CaptionedImages
    from ..runtime.evaluation.paired import Difference

_DIRECTIONS = {"i2t": "image-to-text", "t2i": "text-to-image"}


@click.command(short_help="Compare the recalls of two models, with intervals that say whether they differ.")
@click.argument("base", type=values.CHECKPOINT)
@click.argument("other", type=values.CHECKPOINT)
@options.data_argument
@options.split_option("test", "Split of DATA to compare on.")
@click.option(
    "--other-data",
    type=values.FOLDER,
    help="Data folder for OTHER, where it reads other region features. Its images and captions must be those of DATA.",
)
@options.folds_option
@options.backend_option
@options.device_option
@options.precision_option
@click.option("--other-precision", type=values.PRECISION, help="Precision of OTHER. The default is that of BASE.")
@options.ties_option
@click.option(
    "--resamples",
    type=click.IntRange(100, 10_000_000),
    default=10_000,
    show_default=True,
    help="Number of times that the images are drawn anew for the intervals.",
)
@click.option(
    "--margin",
    type=values.NumberRange(min=0),
    help="Exit with status 1 unless OTHER's rsum is shown to be less than this below that of BASE: the whole interval "
    "must lie above minus this number.",
)
@click.option(
    "--show",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="Number of captions to list whose image fell furthest, and whose image rose furthest.",
)
@options.strict_captions_option
@options.json_option
@click.pass_context
def command(
    context: click.Context,
    base: Path,
    other: Path,
    data: Path,
    split: str,
    other_data: Path | None,
    folds: int | None,
    backend: str,
    device: str,
    precision: str,
    other_precision: str | None,
    ties: Any,
    resamples: int,
    margin: float | None,
    show: int,
    strict: bool,
    as_json: bool,
) -> None:
    """Compare the recalls of BASE and OTHER (checkpoints or bundles) over a split of DATA.

    Both answer the same queries. The intervals say how the differences would vary with other images: in 95 of 100
    resamples of the images they lie inside. They do not say how a model varies with the seed of its training. `only
    base` and `only other` count the queries that one model alone answers right.

    What none of these images shows could still happen with others. So a resample also has, on average, half an image
    that BASE alone answers right, and half of one that OTHER alone does. Where both answer all of N images alike, the
    interval of rsum is thus about -1200/N to +1200/N: a smaller --margin needs more images.
    """
    from ..chan_ref.comparison import Candidate, compare_models
    from ..chan_ref.evaluation import is_bundle
    from ..runtime.data.images import CaptionedImages

    options.refuse_without_bundle(context, (base, other))
    if not is_bundle(other):
        options.refuse_given(context, ("other_precision",), "on a checkpoint, which runs in PyTorch")
    images = CaptionedImages.open(data, split, strict=strict)
    others = images if other_data is None else CaptionedImages.open(other_data, split, strict=strict)
    report_skipped(images.skipped)
    models = {
        "base": Candidate(base, images, backend, precision, device),
        "other": Candidate(other, others, backend, other_precision or precision, device),
    }
    with progress_bar(f"Scoring {images.num_images} x {images.num_captions}", 200) as progress:
        found = compare_models(
            *models.values(),
            folds=folds or 1,
            ties=ties,
            strict=strict,
            resamples=resamples,
            on_progress=lambda number, done, total: progress(
                100 * number + 100 * done // total, 200, (base, other)[number].name
            ),
        )
    for name, count in zip(models, found.cut, strict=True):
        if count:
            warn(f"captions that were cut because they are longer than {name} takes: {count}")
    fell, rose = found.moved(show)
    held = None if margin is None else found.differences["rsum"].low > -margin
    record = {
        **{
            name: {"model": str(each.path), "precision": each.precision if is_bundle(each.path) else None}
            for name, each in models.items()
        },
        "split": split,
        "images": images.num_images,
        "captions": images.num_captions,
        "folds": folds or 1,
        "ties": ties,
        "resamples": resamples,
        "seconds": found.seconds,
        "differences": {
            name: asdict(each) | {"difference": each.difference} for name, each in found.differences.items()
        },
        "margin": margin,
        "held": held,
        "fell": [_caption(images, found, place) for place in fell],
        "rose": [_caption(images, found, place) for place in rose],
        "cut": dict(zip(models, found.cut, strict=True)),
        "skipped": skipped_as_dicts(images.skipped),
    }
    if as_json:
        print_json(record)
    else:
        echo(_table(record, found.differences))
    if held is False:
        context.exit(1)


def _caption(images: CaptionedImages, found: Comparison, place: int) -> dict[str, Any]:
    """A caption, its image, and that image's ranks by both models, counted from 1."""
    image = int(images.image_of_caption[place])
    return {
        "caption": images.captions[place],
        "image": int(images.image_rows[image]) if images.image_ids is None else images.image_ids[image],
        "ranks": (found.ranks[:, place] + 1).tolist(),
    }


def _table(record: dict[str, Any], differences: dict[str, Difference]) -> str:
    """The same figures for people."""
    from ..runtime.evaluation.paired import RSUM, rsum_if_alike

    lines = [
        f"{name:7}{visible(record[name]['model'])}, {record[name]['precision'] or 'PyTorch'}"
        for name in ("base", "other")
    ]
    lines += [
        "",
        f"{'':21}{'base':>7}{'other':>8}{'difference':>12}{'interval':>20}{'only base':>11}{'only other':>12}",
    ]
    for name, each in differences.items():
        direction, _, cut = name.partition(" ")
        label = f"{_DIRECTIONS[direction]} {cut}" if cut else name
        line = f"{label:21}{each.base:7.2f}{each.other:8.2f}{each.difference:+12.2f}"
        line += f"{f'{each.low:+.2f} to {each.high:+.2f}':>20}"
        lines.append(line if each.only_base is None else f"{line}{each.only_base:11}{each.only_other:12}")
    rsum = differences[RSUM]
    if rsum.low <= 0 <= rsum.high:
        verdict = "the interval of rsum holds 0, so these images do not show which model is better"
    else:
        better = "other" if rsum.low > 0 else "base"
        verdict = f"{better} has the higher rsum, by more than the choice of images explains"
    of_folds = f", means of {counted(record['folds'], 'fold')}" if record["folds"] > 1 else ""
    queries = f"{counted(record['images'], 'image')}, {counted(record['captions'], 'caption')} of {record['split']}"
    lines += ["", f"{queries}{of_folds}: {verdict}."]
    if record["held"]:
        lines.append(f"Shown: other's rsum is less than {record['margin']:g} below base's.")
    elif record["margin"] is not None:
        lines.append(f"Not shown: that other's rsum is less than {record['margin']:g} below base's.")
        alike = rsum_if_alike(record["images"], record["folds"])
        if record["margin"] <= alike:
            lines.append(
                f"These images are too few for that: where two models answer all of them alike, the interval of rsum "
                f"is about {-alike:+.2f} to {alike:+.2f}."
            )
    for name, way in (("fell", "worse"), ("rose", "better")):
        if record[name]:
            lines += ["", f"Captions whose image ranks {way} by other (rank by base -> by other, image, caption):"]
            for each in record[name]:
                before, after = each["ranks"]
                lines.append(f"  {before} -> {after}  {visible(each['image'])}  {visible(each['caption'])}")
    return "\n".join(lines)
