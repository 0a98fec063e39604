"""`chan bench`: how fast a bundle is here, beside torch and the machine's own limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..bench.latency import LatencyReport

COUNT = click.IntRange(min=1)


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--backend", "backends", multiple=True, help="Backend to measure; repeatable. Default: every one.")
@click.option("--precision", "precisions", multiple=True, help="Precision; repeatable. Default: all in BUNDLE.")
@click.option(
    "--checkpoint",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The checkpoint behind BUNDLE: adds torch eager and torch.compile.",
)
@click.option("--images", type=COUNT, default=1000, show_default=True, help="Images a caption is scored against.")
@click.option("--regions", type=COUNT, default=36, show_default=True, help="Regions of each image.")
@click.option(
    "--words",
    type=click.IntRange(min=3),
    default=12,
    show_default=True,
    help="Words of each caption, start and end included.",
)
@click.option(
    "--batch",
    "batches",
    multiple=True,
    type=COUNT,
    default=(1, 64),
    show_default=True,
    help="Encoder batch; repeatable.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Time for each operation, all candidates together.",
)
@click.option("--threads", type=COUNT, help="CPU threads; default one per core this process may use.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Also write everything as JSON to this file."
)
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Also draw it (PNG, SVG or PDF).")
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
    threads: int | None,
    json_file: Path | None,
    plot_file: Path | None,
) -> None:
    """Measure BUNDLE on this machine: encoding, scoring, the whole query.

    Candidates take turns in one run. A backend that does not run here is listed with the reason, never left out in
    silence.
    """
    from chan_rt.bench.latency import Setting, run
    from chan_rt.runtime.backends import BACKENDS
    from chan_rt.runtime.contract import Manifest

    known = Manifest.load(bundle).graphs["text_encoder"]
    setting = Setting(images, regions, words, batches, seconds, threads)
    report = run(
        bundle,
        backends or tuple(BACKENDS),
        precisions or tuple(known),
        checkpoint,
        setting,
        progress=lambda message: click.echo(f"... {message}", err=True),
    )
    _print(report)
    if json_file is not None:
        json_file.write_text(json.dumps(report.to_dict(), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if plot_file is not None:
        from chan_rt.bench.plot import plot_report

        plot_report(report, plot_file)


def _print(report: LatencyReport) -> None:
    click.echo(", ".join(f"{name} {value}" for name, value in report.machine.items()))
    bandwidth, flops = report.limits["read_bytes_per_second"] / 1e9, report.limits["float32_flops"] / 1e9
    click.echo(f"limits in this run: {bandwidth:.1f} GB/s read, {flops:.0f} GFLOP/s float32; peak memory "
               f"{report.peak_memory / 2**20:.0f} MiB")  # fmt: skip
    if report.gpu:
        for when in ("before", "after"):
            state = ", ".join(f"{name} {value}" for name, value in report.gpu[f"state {when}"].items())
            click.echo(f"GPU {when}: {state or 'nvidia-smi is not installed'}")
        click.echo(f"GPU memory, copying: {report.gpu['copy_bytes_per_second'] / 1e9:.0f} GB/s read and written")
    for operation, latencies in report.latencies.items():
        bound = report.bound.get(operation)
        limit = f"  (float32 limit {bound:.2f} ms)" if bound is not None else ""
        click.echo(f"\n{operation}{limit}")
        first = next(iter(latencies.values())).p50
        click.echo(f"  {'p50 ms':>9} {'p90 ms':>9} {'p99 ms':>9} {'calls / s':>10} {'ratio':>6}")
        for name, item in latencies.items():
            row = f"{item.p50:9.2f} {item.p90:9.2f} {item.p99:9.2f} {1e3 / item.p50:10.1f} {first / item.p50:5.2f}x"
            click.echo(f"  {row}  {name}")
    click.echo("\nuntil the first answer, seconds (opened cold, opened again)")
    for name, start in report.starts.items():
        click.echo(f"  {start.cold:8.2f} {start.warm:8.2f}  {name}")
    for name, reason in report.skipped.items():
        click.echo(f"not run: {name}: {reason}")
