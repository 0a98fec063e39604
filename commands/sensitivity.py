"""`chan sensitivity`: measure what int8 costs and gains layer by layer, and search a mixed-precision plan."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.counts import counted
from . import options, values
from .terminal import echo, print_json, progress_bar

if TYPE_CHECKING:
    from ..calibration.sensitivity import Effect


@click.command(short_help="Quantize one layer of a bundle at a time, and measure what that costs.")
@options.bundle_argument
@options.data_argument
@options.split_option("dev", "Split of DATA to measure on.")
@options.samples_option(200, options.CALIBRATION_SAMPLES)
@click.option(
    "--scheme",
    type=click.Choice(["x86", "tensorrt"]),
    default="x86",
    show_default=True,
    help="Form of int8 to measure: that of onnxruntime on x86, or the Q/DQ form of TensorRT. Both run in onnxruntime, "
    "so the speed of the TensorRT form means nothing here.",
)
@click.option(
    "--by-scope", is_flag=True, help="Quantize a whole scope at a time, such as one attention or one BERT layer."
)
@click.option(
    "--max-rsum-drop",
    type=values.NumberRange(min=0),
    help="Search the plan that computes as much as possible in int8 and loses at most this much rsum.",
)
@click.option(
    "--plan", "plan_file", type=values.NEW_FILE, help="Write that plan to this file, for `chan export --plan`."
)
@options.plot_option
@options.threads_option
@options.json_option
def command(
    bundle: Path,
    data: Path,
    split: str,
    samples: int,
    scheme: Any,
    by_scope: bool,
    max_rsum_drop: float | None,
    plan_file: Path | None,
    plot_file: Path | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Quantize one layer of BUNDLE at a time, and measure what that costs on DATA. The costliest layer comes first."""
    from chan_rt.calibration.calibrate import load_calibration
    from chan_rt.calibration.sensitivity import Sensitivity
    from chan_rt.commands.samples import open_samples
    from chan_rt.runtime.contract import Manifest
    from chan_rt.runtime.files import write_file

    if plan_file is not None and max_rsum_drop is None:
        raise click.UsageError("--plan needs --max-rsum-drop, which limits how much rsum the plan may lose")
    images, chosen = open_samples(bundle, data, split, samples)
    calibration = load_calibration(bundle, Manifest.load(bundle))
    study = Sensitivity(bundle, calibration, chosen, images.image_of_caption, scheme, threads)
    groups = study.groups(by_scope)
    with progress_bar("layers", len(groups)) as progress:
        effects = study.measure_all(groups, progress)
    record: dict[str, Any] = {"scheme": scheme, "effects": [asdict(effect) for effect in effects]}
    if not as_json:
        _print_table(effects)
    if plot_file is not None:
        from chan_rt.calibration.plot import plot_effects

        plot_effects(effects, plot_file)
    if max_rsum_drop is not None:
        with progress_bar("plan", len(effects)) as progress:
            found = study.search(effects, max_rsum_drop, progress)
        record["plan"] = {"rsum_change": found.rsum_change, "int8": found.quantized, "layers": found.total}
        record["plan"]["exclude"] = {graph: list(nodes) for graph, nodes in found.plan.exclude.items()}
        if plan_file is not None:
            write_file(plan_file, found.plan.to_json())
        if not as_json:
            where = f", written to {plan_file}" if plan_file is not None else ""
            layers = f"{found.quantized} of {counted(found.total, 'layer')} in int8"
            change = f"rsum {found.rsum_change:+.1f} (a loss of {max_rsum_drop:g} is allowed)"
            echo(f"\nplan: {layers}, {change}{where}")
    if as_json:
        print_json(record)


def _print_table(effects: list[Effect]) -> None:
    echo(f"{'score error':>11} {'cosine':>9} {'rsum':>6} {'saved KiB':>9} {'speed':>6}  layer")
    for effect in effects:
        numbers = f"{effect.score_error:11.5f} {effect.cosine:9.6f} {effect.rsum_change:+6.1f}"
        echo(f"{numbers} {effect.bytes_saved / 1024:9.0f} {effect.speedup:5.2f}x  {effect.group.name}")
