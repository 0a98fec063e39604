"""`chan export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..export.backbone import Backbone
    from ..export.bundle import ExportedGraph


@click.command(short_help="Turn a checkpoint into a bundle: ONNX graphs, tokenizer, manifest.")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The bundle's directory: made, or for int8 added to.",
)
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=("fp32", "fp16"),
    show_default=True,
    help="fp32, fp16; or int8 (TensorRT) and int8_x86 (onnxruntime), added to a calibrated bundle. Repeatable.",
)
@click.option(
    "--backbone/--no-backbone",
    "wanted",
    default=None,
    help="The demo's network from pictures to regions. Default: where it is installed and fits the model.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="int8: data of the parity check that the new graphs must pass.",
)
@click.option("--split", default="test", show_default=True, help="int8: its split.")
@click.option("--samples", default=500, show_default=True, help="int8: its images, spread evenly over the split.")
@click.option(
    "--plan",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="int8: which layers stay float32, from chan sensitivity.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace a bundle at OUT, with all that was calibrated and built in it; int8: add graphs that missed parity.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the graphs as JSON.")
def command(
    checkpoint: Path,
    out: Path,
    precisions: tuple[str, ...],
    wanted: bool | None,
    data: Path | None,
    split: str,
    samples: int,
    plan: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write CHECKPOINT's graphs, tokenizer and manifest to a new bundle, each graph checked against PyTorch.

    With --precision int8 or int8_x86: quantize the graphs of a bundle that `chan calibrate` has seen, and add them if
    they pass parity on --data. The verdict is in the manifest.
    """
    from ..chan_ref.checkpoint import load
    from ..chan_ref.inference import open_tokenizer
    from ..export.bundle import export_bundle
    from ..export.int8 import SCHEMES

    if set(precisions) & set(SCHEMES):
        if not set(precisions) <= set(SCHEMES):
            raise click.UsageError("int8 needs a calibrated bundle: export fp32 and fp16, chan calibrate, then int8")
        if data is None:
            raise click.UsageError("int8 is kept only if it passes parity: give --data")
        exported = _add_int8(checkpoint, out, precisions, data, split, samples, plan, force)
        _print(exported, out, "as it was", as_json)
        return
    open_tokenizer(load(checkpoint), checkpoint)  # a bundle with another model's words would score nonsense
    backbone, said = _find_backbone(checkpoint, wanted)
    with click.progressbar(length=1, label="Exporting", file=sys.stderr, item_show_func=lambda text: text) as bar:

        def show(graph: str, total: int) -> None:
            bar.length = total
            bar.update(1, graph)

        _, exported = export_bundle(checkpoint, out, precisions, backbone, force, show)
    _print(exported, out, said, as_json)


def _print(exported: Sequence[ExportedGraph], out: Path, backbone: str, as_json: bool) -> None:
    if as_json:
        rows = [
            {
                "graph": one.name,
                "precision": one.precision,
                "file": str(out / one.spec.file),
                "sha256": one.spec.sha256,
                "bytes": one.size,
                "error": one.error,
            }
            for one in exported
        ]
        click.echo(json.dumps({"bundle": str(out), "backbone": backbone, "graphs": rows}, indent=2))
        return
    click.echo(f"{'graph':<16}{'precision':<10}{'MB':>9}{'error':>10}  file")
    for one in exported:
        size = one.size / 1e6
        error = "by parity" if one.error is None else f"{one.error:.1e}"
        click.echo(f"{one.name:<16}{one.precision:<10}{size:>9.2f}{error:>10}  {out / one.spec.file}")
    click.echo("error: norm of the difference from PyTorch over PyTorch's norm, on random inputs")
    click.echo(f"backbone: {backbone}")


def _add_int8(
    checkpoint: Path,
    bundle: Path,
    precisions: Sequence[str],
    data: Path,
    split: str,
    samples: int,
    plan: Path | None,
    force: bool,
) -> list[ExportedGraph]:
    from ..calibration.plan import Plan
    from ..export.int8 import add_int8
    from ..export.parity.run import check_parity, record_verdict
    from ..runtime.data.images import open_sample

    sample = open_sample(data, split, samples, bundle)

    def prove(added: Sequence[str]) -> list[str]:
        with click.progressbar(length=1, label="Parity", file=sys.stderr, item_show_func=lambda text: text) as bar:

            def show(stage: str, done: int, total: int) -> None:
                bar.length = total
                bar.update(done - bar.pos, stage)

            report = check_parity(bundle, checkpoint, sample, ("onnxruntime",), added, progress=show)
        record_verdict(bundle, report)
        return report.misses()

    return add_int8(bundle, prove, precisions, None if plan is None else Plan.from_file(plan), force)  # type: ignore[arg-type]


def _find_backbone(checkpoint: Path, wanted: bool | None) -> tuple[Backbone | None, str]:
    """The demo's backbone where it is wanted, or possible when nothing was said; and what was done, in words."""
    from ..chan_ref.checkpoint import read_config
    from ..export.backbone import Backbone
    from ..runtime.errors import InputError

    if wanted is False:
        return None, "left out as asked; the bundle reads region features"
    from ..chan_ref.backbone import REGION_DIM, load_backbone

    width = read_config(checkpoint).region_dim
    if width != REGION_DIM and not wanted:
        return None, f"left out: this model reads {width}-d regions, the demo's backbone makes {REGION_DIM}-d ones"
    try:
        backbone = Backbone(*load_backbone())
    except InputError as error:
        if wanted:
            raise
        return None, f"left out: {error}"
    return backbone, f"included; the bundle reads pictures too ({width}-d regions)"
