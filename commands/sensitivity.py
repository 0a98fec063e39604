"""`chan sensitivity`: measure what int8 costs and saves layer by layer, and find a mixed-precision plan."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ..calibration.sensitivity import Effect


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--split", default="dev", show_default=True, help="Split of DATA to measure on.")
@click.option(
    "--samples",
    default=200,
    show_default=True,
    help="Number of images, spread evenly over the split, with all their captions.",
)
@click.option(
    "--scheme",
    type=click.Choice(["x86", "tensorrt"]),
    default="x86",
    show_default=True,
    help="Int8 artifact to measure: x86 (onnxruntime) or tensorrt (Q/DQ, run by onnxruntime here; ignore its speed).",
)
@click.option("--by-scope", is_flag=True, help="Quantize one whole scope (an attention, a BERT layer) at a time.")
@click.option(
    "--max-rsum-drop", type=float, help="Find the plan with the most int8 that loses at most this many points of rsum."
)
@click.option(
    "--plan", "plan_file", type=click.Path(path_type=Path), help="File to write that plan to, for chan export --plan."
)
@click.option(
    "--plot", "plot_file", type=click.Path(path_type=Path), help="Write a plot of the table (PNG, SVG or PDF)."
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="Number of threads of onnxruntime; 0 lets it choose."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
def command(
    bundle: Path,
    data: Path,
    split: str,
    samples: int,
    scheme: str,
    by_scope: bool,
    max_rsum_drop: float | None,
    plan_file: Path | None,
    plot_file: Path | None,
    threads: int,
    as_json: bool,
) -> None:
    """Quantize one layer of BUNDLE at a time and measure the effect on DATA. The most harmful layer is listed first."""
    from chan_rt.calibration.calibrate import load_calibration
    from chan_rt.calibration.sensitivity import Sensitivity
    from chan_rt.commands.samples import open_samples
    from chan_rt.runtime.contract import Manifest

    if plan_file is not None and max_rsum_drop is None:
        raise click.UsageError("--plan needs --max-rsum-drop, the points of rsum that the plan may lose")
    images, chosen = open_samples(bundle, data, split, samples)
    calibration = load_calibration(bundle, Manifest.load(bundle))
    study = Sensitivity(bundle, calibration, chosen, images.image_of_caption, scheme, threads)  # type: ignore[arg-type]
    stderr = sys.stderr
    with click.progressbar(study.groups(by_scope), label="layers", file=stderr) as groups:
        effects = study.measure_all(groups)
    record: dict[str, Any] = {"scheme": scheme, "effects": [asdict(effect) for effect in effects]}
    if not as_json:
        _print_table(effects)
    if plot_file is not None:
        from chan_rt.calibration.plot import plot_effects

        plot_effects(effects, plot_file)
    if max_rsum_drop is not None:
        with click.progressbar(length=len(effects), label="plan", file=stderr) as bar:
            found = study.search(effects, max_rsum_drop, lambda done, total: bar.update(done - bar.pos))
        record["plan"] = {"rsum_change": found.rsum_change, "int8": found.quantized, "layers": found.total}
        record["plan"]["exclude"] = {graph: list(nodes) for graph, nodes in found.plan.exclude.items()}
        if plan_file is not None:
            plan_file.write_text(found.plan.to_json(), encoding="utf-8")
        if not as_json:
            where = f", written to {plan_file}" if plan_file is not None else ""
            change = f"rsum {found.rsum_change:+.1f}"
            click.echo(
                f"\nplan: {found.quantized} of {found.total} in int8, {change} (at most -{max_rsum_drop:g}){where}"
            )
    if as_json:
        click.echo(json.dumps(record, indent=2, sort_keys=True))


def _print_table(effects: list[Effect]) -> None:
    click.echo(f"{'score error':>11} {'cosine':>9} {'rsum':>6} {'saved KiB':>9} {'speed':>6}  layer")
    for effect in effects:
        numbers = f"{effect.score_error:11.5f} {effect.cosine:9.6f} {effect.rsum_change:+6.1f}"
        click.echo(f"{numbers} {effect.bytes_saved / 1024:9.0f} {effect.speedup:5.2f}x  {effect.group.name}")
