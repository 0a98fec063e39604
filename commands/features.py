"""`chan features`: region features from pictures."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("features", short_help="Make 36 grid regions from each picture with the ImageNet backbone.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for ims.npy and names.txt.",
)
@click.option("--force", is_flag=True, help="Replace the features in OUT.")
def command(images: tuple[Path, ...], out: Path, force: bool) -> None:
    """Encode IMAGES (JPEG, PNG or WebP files, and folders of them) into OUT/ims.npy [N, 36, 1280].

    OUT/names.txt has the picture's path for each row.
    """
    from ..chan_ref.features import write_features
    from ..runtime.pictures.load import find_pictures

    files = find_pictures(images)
    with click.progressbar(length=len(files), label="features", file=sys.stderr) as bar:
        for finished in write_features(files, out, force):
            bar.update(finished)
    click.echo(f"{out / 'ims.npy'}: {len(files)} pictures")
