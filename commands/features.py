"""`chan features`: region features from pictures."""

from __future__ import annotations

from pathlib import Path

import click

from . import options
from .terminal import echo, progress_bar


@click.command("features", short_help="Make 36 grid regions from each picture with the ImageNet backbone.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.out_option(options.NEW_FOLDER, "Folder to write ims.npy and names.txt to.")
@options.force_option("Replace the features in OUT.")
def command(images: tuple[Path, ...], out: Path, force: bool) -> None:
    """Encode IMAGES (JPEG, PNG or WebP files, and folders of them) into OUT/ims.npy [N, 36, 1280].

    OUT/names.txt has the picture's path for each row.
    """
    from ..chan_ref.features import write_features
    from ..runtime.pictures.load import find_pictures

    files = find_pictures(images)
    done = 0
    with progress_bar("features", len(files)) as progress:
        for finished in write_features(files, out, force):
            done += finished
            progress(done, len(files))
    echo(f"{out / 'ims.npy'}: {len(files)} pictures")
