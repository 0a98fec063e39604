"""`chan scenes`: draw the demo's data."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("scenes", short_help="Draw scenes of known content, with captions, boxes and region features.")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--train", default=3000, show_default=True, help="Scenes to train on.")
@click.option("--dev", default=500, show_default=True, help="Scenes to validate on.")
@click.option("--test", default=500, show_default=True, help="Scenes to test on.")
@click.option("--seed", default=0, show_default=True, help="The same seed draws the same bytes.")
def command(out: Path, train: int, dev: int, test: int, seed: int) -> None:
    """Draw scenes into the new folder OUT: pictures, five captions each, boxes.json, and region features.

    The layout is that of published image-text data (precomp/SPLIT_ims.npy, _caps.txt, _ids.txt). The pictures are
    OpenMoji's, CC BY-SA 4.0. Nothing is downloaded.
    """
    from ..demo.dataset import write_scenes

    with click.progressbar(length=train + dev + test, label="scenes", file=sys.stderr) as bar:
        for finished in write_scenes(out, {"train": train, "dev": dev, "test": test}, seed):
            bar.update(finished)
    click.echo(f"{out}: {train} training, {dev} validation and {test} test scenes")
