"""`chan features`: region features from pictures."""

from __future__ import annotations

from pathlib import Path

import click

from . import options
from .terminal import echo, print_json, progress_bar, report_skipped, skipped_as_dicts, visible


@click.command("features", short_help="Make 36 grid regions from each picture with the ImageNet backbone.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.out_option(options.NEW_FOLDER, "Folder to write ims.npy and names.txt to; of a data folder, that folder.")
@options.force_option("Replace the features in OUT.")
@options.skipping_options
@options.json_option
def command(images: tuple[Path, ...], out: Path, force: bool, max_bad: int, strict: bool, as_json: bool) -> None:
    """Encode IMAGES (picture files, and folders of them) into OUT/ims.npy, an array [N, 36, 1280] of float32.

    OUT/names.txt has the path of the picture for each row. A picture that cannot be read is skipped and listed at the
    end. The same command continues after an interruption.

    IMAGES may also be a data folder that `chan data` wrote. Then OUT must be this folder, and each split gets its
    precomp/SPLIT_ims.npy.
    """
    if len(images) == 1 and images[0].is_dir() and (images[0] / "precomp").is_dir():
        _encode_data(images[0], out, force, as_json)
        return
    from ..chan_ref.features import write_features
    from ..runtime.pictures.load import list_pictures
    from ..runtime.skipped import Skipped, SkippedItem

    found = list_pictures(images)
    skipped = Skipped(max_bad)
    for folder, reason in found.unreadable.items():
        skipped.add(SkippedItem(str(folder), reason))
    unread = len(skipped)
    done = 0
    with progress_bar("features", len(found.files)) as progress:
        for finished in write_features(found.files, out, force, skipped):
            done += finished
            progress(done, len(found.files))
    written = len(found.files) - len(skipped) + unread
    if as_json:
        items = skipped_as_dicts(skipped.items)
        print_json({"features": str(out / "ims.npy"), "rows": written, "skipped": items, "not_read": found.passed_over})
    else:
        echo(f"{visible(out / 'ims.npy')}: {written} pictures")
    report_skipped(skipped.items, found.passed_over)
    if strict and skipped.items:
        raise click.exceptions.Exit(1)


def _encode_data(data: Path, out: Path, force: bool, as_json: bool) -> None:
    """The features of every split of a data folder."""
    from ..chan_ref.data_features import pictures_of, write_data_features

    if not out.exists() or not out.samefile(data):
        raise click.UsageError(f"--out must be the data folder itself, {data}, got {out}")
    splits = pictures_of(data)
    total, done = sum(len(split.pictures) for split in splits), 0
    with progress_bar("features", total) as progress:
        for finished in write_data_features(splits, force):
            done += finished
            progress(done, total)
    if as_json:
        print_json({split.files.split: str(split.files.features()) for split in splits})
    else:
        for split in splits:
            echo(f"{visible(split.files.features())}: {len(split.pictures)} pictures")
