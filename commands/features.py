"""`chan features`: region features from pictures, or from features in another form."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..runtime.counts import counted
from . import options, values
from .terminal import echo, print_json, progress_bar, report_skipped, skipped_as_dicts, visible, warn

if TYPE_CHECKING:
    from ..chan_ref.backbones.base import Backbone


@click.command("features", short_help="Make region features from pictures, or convert those of bottom-up attention.")
@click.argument("images", nargs=-1, type=values.PATH)
@options.out_option(
    values.NEW_FOLDER, "Folder to write the features and the names of their rows to; of a data folder, that folder."
)
@options.backbone_options("Network that turns pictures into regions. The default is efficientnet-lite0.")
@click.option(
    "--from",
    "source",
    type=values.EXISTING,
    help="Convert the features in this file or folder instead of making some: .tsv, .npz, .npy, .h5, an LMDB, or a "
    "folder of one .npz or .npy for each image.",
)
@options.force_option("Replace the features in OUT.")
@options.skipping_options
@options.json_option
@click.pass_context
def command(
    context: click.Context,
    images: tuple[Path, ...],
    out: Path,
    backbone: str | None,
    weights: str,
    source: Path | None,
    force: bool,
    max_bad: int,
    strict: bool,
    as_json: bool,
) -> None:
    """Encode IMAGES (picture files, and folders of them) into OUT.

    The default backbone writes OUT/ims.npy, an array [N, 36, 1280] of float32. A backbone whose regions have boxes
    writes OUT/ims.npz with the boxes, and with the class scores of a detector. OUT/names.txt has the path of the
    picture for each row. A picture that cannot be read is skipped and listed at the end. The same command continues
    after an interruption.

    IMAGES may also be a data folder that `chan data` wrote. Then OUT must be this folder, and each split gets its
    precomp/SPLIT_ims.npy, or .npz.

    With --from, features that others made are written to OUT/ims.npz, with their boxes, and the image ids to
    OUT/ids.txt: those that the file names, or else numbers from 0.
    """
    if source is not None:
        if images:
            raise click.UsageError("give IMAGES or --from, not both")
        options.refuse_given(context, ("backbone", "weights", "max_bad", "strict"), "with --from")
        _convert(source, out, force, as_json)
        return
    if not images:
        raise click.UsageError("give IMAGES, or --from with features to convert")
    from ..runtime.pictures.load import list_pictures
    from ..runtime.skipped import Skipped, SkippedItem

    if len(images) == 1 and images[0].is_dir() and (images[0] / "precomp").is_dir():
        _check_same(images[0], out)
        _encode_data(images[0], force, as_json, options.open_backbone(context, backbone, weights))
        return
    found = list_pictures(images)
    network = options.open_backbone(context, backbone, weights)
    from ..chan_ref.features import write_features  # torch is loaded here: what is wrong already is said before

    skipped = Skipped(max_bad)
    for folder, reason in found.unreadable.items():
        skipped.add(SkippedItem(str(folder), reason))
    unread = len(skipped)
    done = 0
    with progress_bar("features", len(found.files)) as progress:
        for finished in write_features(found.files, out, force, skipped, network, weights):
            done += finished
            progress(done, len(found.files))
    written = len(found.files) - len(skipped) + unread
    boxed = network is not None and network.preprocess.grid is None
    file = out / ("ims.npz" if boxed else "ims.npy")
    if as_json:
        items = skipped_as_dicts(skipped.items)
        print_json({"features": str(file), "rows": written, "skipped": items, "not_read": found.passed_over})
    else:
        echo(f"{visible(file)}: {counted(written, 'picture')}")
    report_skipped(skipped.items, found.passed_over)
    if strict and skipped.items:
        raise click.exceptions.Exit(1)


def _check_same(data: Path, out: Path) -> None:
    """A data folder keeps its features itself."""
    if not out.exists() or not out.samefile(data):
        raise click.UsageError(f"--out must be the data folder itself, {data}, got {out}")


def _encode_data(data: Path, force: bool, as_json: bool, network: Backbone | None) -> None:
    """The features of every split of a data folder."""
    from ..chan_ref.data_features import pictures_of, write_data_features

    splits = pictures_of(data)
    form = ".npz" if network is not None and network.preprocess.grid is None else ".npy"
    total, done = sum(len(split.pictures) for split in splits), 0
    with progress_bar("features", total) as progress:
        for finished in write_data_features(splits, force, network):
            done += finished
            progress(done, total)
    if as_json:
        print_json({split.files.split: str(split.files.features(form)) for split in splits})
    else:
        for split in splits:
            echo(f"{visible(split.files.features(form))}: {counted(len(split.pictures), 'picture')}")


def _convert(source: Path, out: Path, force: bool, as_json: bool) -> None:
    from ..runtime.data.convert import convert_features

    with progress_bar("features") as progress:
        done = convert_features(source, out, force, progress)
    if as_json:
        found = {"features": str(done.file), "rows": done.images, "regions": done.regions, "boxes": done.boxed}
        print_json(
            {**found, "left_out": done.left_out, "rounded": bool(done.rounded), "boxes_left_out": done.unplaced or None}
        )
    if done.unplaced:
        warn(f"boxes are left out: {done.unplaced}")
    if as_json:
        return
    boxes = "with their boxes" if done.boxed else "without boxes"
    echo(f"{visible(done.file)}: {counted(done.regions, 'region')} of {counted(done.images, 'image')}, {boxes}")
    if done.left_out:
        echo(f"left out: {', '.join(map(visible, done.left_out))}, which are neither features, nor boxes, nor ids")
    if done.rounded:
        echo(f"{' and '.join(done.rounded)} values were rounded to float32")
