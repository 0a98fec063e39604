"""`chan export`: a checkpoint becomes a bundle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..export.backbone import Backbone


@click.command(short_help="Turn a checkpoint into a bundle: ONNX graphs, tokenizer, manifest.")
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The bundle's directory, to be made.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=("fp32", "fp16"),
    show_default=True,
    help="fp32 or fp16; repeatable.",
)
@click.option(
    "--backbone/--no-backbone",
    "wanted",
    default=None,
    help="The demo's network from pictures to regions. Default: where it is installed and fits the model.",
)
@click.option("--force", is_flag=True, help="Replace a bundle at OUT, with all that was calibrated and built in it.")
@click.option("--json", "as_json", is_flag=True, help="Print the graphs as JSON.")
def command(
    checkpoint: Path, out: Path, precisions: tuple[str, ...], wanted: bool | None, force: bool, as_json: bool
) -> None:
    """Write CHECKPOINT's graphs, tokenizer and manifest to a new bundle, each graph checked against PyTorch."""
    from ..export.bundle import export_bundle

    backbone, said = _find_backbone(checkpoint, wanted)
    with click.progressbar(length=1, label="Exporting", file=sys.stderr, item_show_func=lambda text: text) as bar:

        def show(graph: str, total: int) -> None:
            bar.length = total
            bar.update(1, graph)

        _, exported = export_bundle(checkpoint, out, precisions, backbone, force, show)
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
        click.echo(json.dumps({"bundle": str(out), "backbone": said, "graphs": rows}, indent=2))
        return
    click.echo(f"{'graph':<16}{'precision':<10}{'MB':>9}{'error':>10}  file")
    for one in exported:
        size = one.size / 1e6
        click.echo(f"{one.name:<16}{one.precision:<10}{size:>9.2f}{one.error:>10.1e}  {out / one.spec.file}")
    click.echo("error: norm of the difference from PyTorch over PyTorch's norm, on random inputs")
    click.echo(f"backbone: {said}")


def _find_backbone(checkpoint: Path, wanted: bool | None) -> tuple[Backbone | None, str]:
    """The demo's backbone where it is wanted, or possible when nothing was said; and what was done, in words."""
    from ..chan_ref.checkpoint import load
    from ..export.backbone import Backbone
    from ..runtime.errors import InputError

    if wanted is False:
        return None, "left out as asked; the bundle reads region features"
    from ..demo.backbone import REGION_DIM, load_backbone

    width = load(checkpoint).model.config.region_dim
    if width != REGION_DIM and not wanted:
        return None, f"left out: this model reads {width}-d regions, the demo's backbone makes {REGION_DIM}-d ones"
    try:
        backbone = Backbone(*load_backbone())
    except InputError as error:
        if wanted:
            raise
        return None, f"left out: {error}"
    return backbone, f"included; the bundle reads pictures too ({width}-d regions)"
