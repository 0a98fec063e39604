"""`chan calibrate`: find the ranges that int8 graphs are made with, from real samples."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.counts import counted
from ..runtime.errors import quoted
from . import options
from .terminal import echo, progress_bar, say_next

if TYPE_CHECKING:
    from ..calibration.ranges import TensorRange

_SHOWN = 3  # tensors of each graph; a bundle with a backbone has a hundred


@click.command()
@options.bundle_argument
@options.data_argument
@options.split_option("train", "Split of DATA to calibrate on. Do not use the split that you test on.")
@options.samples_option(256, options.CALIBRATION_SAMPLES)
@click.option(
    "--method",
    type=click.Choice(["minmax", "percentile", "entropy", "mse"]),
    default="minmax",
    show_default=True,
    help="How a clipping range is chosen from the values that were seen. minmax lost the least recall where it was "
    "measured (docs/int8-figures.md).",
)
@click.option(
    "--all", "all_tensors", is_flag=True, help=f"Print the range of every tensor, not of {_SHOWN} in each graph only."
)
@options.threads_option
@options.json_option
def command(
    bundle: Path,
    data: Path,
    split: str,
    samples: int,
    method: Any,
    all_tensors: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Calibrate BUNDLE on real samples of DATA.

    The samples run through the float32 graphs, a histogram is kept of every tensor that enters a matrix product, and
    the ranges are written to BUNDLE/calibration/ranges.json. The same command continues a run that was stopped.
    BUNDLE/calibration/directions.npz keeps the directions of the samples' words and regions, to which `chan index` fits
    search where it has no queries.

    Of each graph the tensors are printed of which the most values are clipped, and the widest where none are.
    """
    from chan_rt.calibration.calibrate import calibrate
    from chan_rt.commands.samples import open_samples

    _, chosen = open_samples(bundle, data, split, samples)
    with progress_bar("calibrating") as progress:
        found = calibrate(
            bundle,
            chosen,
            method,
            threads,
            lambda graph, done, total: progress(done, total, graph),
        )
    if as_json:
        echo(found.to_json(), nl=False)
        return
    echo(
        f"{counted(found.data['images'], 'image')}, {counted(found.data['captions'], 'caption')}, method {found.method}"
    )
    for graph, (_, tensors) in found.graphs.items():
        most = len(tensors) if all_tensors else _SHOWN
        cut = f", of which these {most} are the most clipped or the widest" if len(tensors) > most else ""
        echo(f"\n{graph}: {counted(len(tensors), 'tensor')}{cut}")
        echo(f"  {'low':>10} {'high':>10} {'seen min':>10} {'seen max':>10} {'clipped':>9}  tensor")
        for tensor, item in sorted(tensors.items(), key=_importance)[:most]:
            values = asdict(item)
            row = " ".join(f"{values[name]:10.4f}" for name in ("low", "high", "minimum", "maximum"))
            echo(f"  {row} {item.clipped:9.2e}  {tensor}")
    echo()
    export = f"chan export CHECKPOINT -o {quoted(bundle)} --data {quoted(data)}"
    say_next(bundle, f"{export} --precision int8 --precision int8_x86")


def _importance(entry: tuple[str, TensorRange]) -> tuple[float, float]:
    """Of a tensor with its range, for sorting: the most clipped first, and then the widest."""
    _, item = entry
    return -item.clipped, item.low - item.high
