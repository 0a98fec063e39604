"""`chan scenes`: draw the data of the demo."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime.errors import quoted
from . import values
from .terminal import echo, progress_bar, say_next, visible

_COUNT = click.IntRange(0, 10_000_000)


@click.command("scenes", short_help="Draw scenes of known content, with captions, boxes and region features.")
@click.argument("out", type=values.NEW_FOLDER)
@click.option("--train", type=_COUNT, default=3000, show_default=True, help="Number of scenes to train on.")
@click.option("--dev", type=_COUNT, default=500, show_default=True, help="Number of scenes to validate on.")
@click.option("--test", type=_COUNT, default=500, show_default=True, help="Number of scenes to test on.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the drawing. The same seed draws the same bytes.",
)
def command(out: Path, train: int, dev: int, test: int, seed: int) -> None:
    """Draw scenes into the new folder OUT: pictures with five captions each, boxes.json, and region features.

    The layout is that of published image-text data (precomp/SPLIT_ims.npy, SPLIT_caps.txt, SPLIT_ids.txt). The
    drawings are by OpenMoji, CC BY-SA 4.0. Nothing is downloaded.
    """
    from ..demo.dataset import write_scenes

    total, done = train + dev + test, 0
    with progress_bar("scenes", total) as progress:
        for finished in write_scenes(out, {"train": train, "dev": dev, "test": test}, seed):
            done += finished
            progress(done, total)
    echo(f"{visible(out)}: {train} training, {dev} validation and {test} test scenes")
    if train:
        say_next(out, f"chan train {quoted(out)} -o run")
    elif test or dev:
        evaluate = "chan evaluate MODEL" if test else "chan evaluate MODEL --split dev"
        say_next(out, f"{evaluate} {quoted(out)}", " of a checkpoint or bundle")
