"""`chan calibrate`: find the ranges that int8 graphs need, on real samples."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--split", default="train", show_default=True, help="Split of DATA to calibrate on; do not use the one you test on."
)
@click.option(
    "--samples",
    default=256,
    show_default=True,
    help="Number of images, spread evenly over the split, with all their captions.",
)
@click.option(
    "--method",
    type=click.Choice(["minmax", "percentile", "entropy", "mse"]),
    default="minmax",
    show_default=True,
    help="How clipping ranges are chosen; minmax lost the least in the measurements (docs/int8.md).",
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="Number of threads of onnxruntime; 0 lets it choose."
)
@click.option("--json", "as_json", is_flag=True, help="Print the ranges as JSON instead of a table.")
def command(bundle: Path, data: Path, split: str, samples: int, method: str, threads: int, as_json: bool) -> None:
    """Calibrate BUNDLE on real samples of DATA (SCAN / VSE-infinity layout).

    The command runs the samples through the float32 graphs, keeps a histogram of every tensor that enters a matrix
    product, and writes the ranges to BUNDLE/calibration/ranges.json. A run that was stopped continues where it was.
    """
    from chan_rt.calibration.calibrate import calibrate
    from chan_rt.commands.samples import open_samples

    _, chosen = open_samples(bundle, data, split, samples)
    with click.progressbar(length=1, label="calibrating", file=sys.stderr) as bar:

        def progress(graph: str, done: int, total: int) -> None:
            bar.length = total
            bar.label = graph
            bar.update(done - bar.pos)

        found = calibrate(bundle, chosen, method, threads, progress)  # type: ignore[arg-type]
    if as_json:
        click.echo(found.to_json(), nl=False)
        return
    click.echo(f"{found.data['images']} images, {found.data['captions']} captions, method {found.method}")
    for graph, (_, tensors) in found.graphs.items():
        click.echo(f"\n{graph}")
        click.echo(f"  {'low':>10} {'high':>10} {'seen min':>10} {'seen max':>10} {'clipped':>9}  tensor")
        for tensor, item in tensors.items():
            values = asdict(item)
            row = " ".join(f"{values[name]:10.4f}" for name in ("low", "high", "minimum", "maximum"))
            click.echo(f"  {row} {item.clipped:9.2e}  {tensor}")
