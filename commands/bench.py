"""`chan bench`: measure how fast a bundle is here, beside torch and the limits of the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from . import options, values
from .terminal import describe_placement, echo, print_json

if TYPE_CHECKING:
    from ..bench.latency import LatencyReport


@click.command(short_help="Measure how fast a bundle encodes, scores and answers queries here.")
@options.bundle_argument
@options.backends_option("The default is every backend.")
@options.precisions_option
@click.option(
    "--checkpoint",
    type=values.CHECKPOINT,
    help="Checkpoint that BUNDLE was exported from. With it, torch eager and torch.compile are measured too.",
)
@click.option(
    "--images",
    type=values.COUNT,
    default=1000,
    show_default=True,
    help="Number of images that a caption is scored against.",
)
@click.option("--regions", type=values.COUNT, default=36, show_default=True, help="Number of regions in each image.")
@click.option(
    "--words",
    type=click.IntRange(min=3),
    default=12,
    show_default=True,
    help="Number of words in each caption, with its start and end.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=values.COUNT,
    default=(1, 64),
    show_default=True,
    help="Batch size of the encoders; may be repeated.",
)
@click.option(
    "--seconds",
    type=values.NumberRange(min=0, max=86_400, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds to spend on each operation, for all candidates together.",
)
@options.device_option
@options.threads_option
@options.json_option
@options.output_json_option
@options.plot_option
def command(
    bundle: Path,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    checkpoint: Path | None,
    images: int,
    regions: int,
    words: int,
    batches: tuple[int, ...],
    seconds: float,
    device: str,
    threads: int | None,
    as_json: bool,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure how fast BUNDLE encodes, scores and answers a whole query on this machine.

    The candidates take turns in one run. A backend that does not run here is listed with the reason.
    """
    from chan_rt.chan_ref.checkpoint_config import read_config
    from chan_rt.runtime.backends import BACKENDS
    from chan_rt.runtime.contract import Manifest
    from chan_rt.runtime.files import write_file

    manifest = Manifest.load(bundle)
    manifest.check_precisions(precisions)
    if checkpoint is not None:
        read_config(checkpoint)
    from chan_rt.bench.latency import Setting, run  # torch is loaded here

    setting = Setting(images, regions, words, batches, seconds, threads, device)
    report = run(
        bundle,
        backends or tuple(BACKENDS),
        precisions or tuple(manifest.graphs["text_encoder"]),
        checkpoint,
        setting,
        progress=lambda message: echo(f"... {message}", err=True),
    )
    if as_json:
        print_json(report.to_dict())
    else:
        _print(report)
    if json_file is not None:
        write_file(json_file, json.dumps(report.to_dict(), indent=2, sort_keys=True) + "\n")
    if plot_file is not None:
        from chan_rt.bench.plot import plot_report

        plot_report(report, plot_file)


def _print(report: LatencyReport) -> None:
    echo(", ".join(f"{name} {value}" for name, value in report.machine.items()))
    bandwidth, flops = report.limits["read_bytes_per_second"] / 1e9, report.limits["float32_flops"] / 1e9
    echo(f"limits in this run: {bandwidth:.1f} GB/s read, {flops:.0f} GFLOP/s float32; peak memory "
               f"{report.peak_memory / 2**20:.0f} MiB")  # fmt: skip
    if report.gpu:
        for when in ("before", "after"):
            state = ", ".join(f"{name} {value}" for name, value in report.gpu[f"state {when}"].items())
            echo(f"GPU {when}: {state or 'nvidia-smi is not installed'}")
        echo(f"GPU memory, copying: {report.gpu['copy_bytes_per_second'] / 1e9:.0f} GB/s read and written")
    for line in (line for placement in report.placements for line in describe_placement(placement)):
        echo(line)
    for operation, latencies in report.latencies.items():
        bound = report.bound.get(operation)
        limit = f"  (float32 limit {bound:.2f} ms)" if bound is not None else ""
        echo(f"\n{operation}{limit}")
        first = next(iter(latencies.values())).p50
        echo(f"  {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} {'calls / s':>10} {'ratio':>6}")
        for name, item in latencies.items():
            row = f"{item.p50:9.2f} {item.p90:9.2f} {item.p99:9.2f} {1e3 / item.p50:10.1f} {first / item.p50:5.2f}x"
            echo(f"  {row}  {name}")
    echo("\nuntil the first answer, seconds (opened cold, opened again)")
    for name, start in report.starts.items():
        echo(f"  {start.cold:8.2f} {start.warm:8.2f}  {name}")
    for name, reason in report.skipped.items():
        echo(f"not run: {name}: {reason}")
