"""`chan export`: turn a checkpoint into a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..runtime.errors import quoted
from . import options, values
from .terminal import echo, print_json, progress_bar, say_next

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from ..export.bundle import ExportedGraph


@click.command(short_help="Turn a checkpoint into a bundle: ONNX graphs, tokenizer, manifest.")
@click.argument("checkpoint", type=values.CHECKPOINT)
@options.out_option(values.NEW_FOLDER, "Folder of the new bundle. With an int8 precision, the bundle to add graphs to.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=values.PRECISION,
    default=("fp32", "fp16"),
    show_default=True,
    help="Precision of the graphs; may be repeated. int8 (TensorRT) and int8_x86 (onnxruntime) need calibration.",
)
@options.backbone_options(
    "Network from pictures to regions that the bundle has. The default is efficientnet-lite0, where it is installed "
    "and fits the model. With an int8 precision, the network that the bundle's backbone was exported from."
)
@click.option(
    "--no-backbone",
    is_flag=True,
    help="Leave the backbone out. The bundle then reads region "
    "features only. With an int8 precision, leave the backbone as it is.",
)
@click.option(
    "--data",
    type=values.FOLDER,
    help=f"Data folder for the parity check that int8 graphs must pass: {options.DATA_FILES}. Needed with an int8 "
    "precision.",
)
@options.split_option("test", "Split of the data for the parity check of int8 graphs.")
@options.samples_option(500)
@click.option(
    "--plan",
    type=values.FILE,
    help="File from `chan sensitivity --plan` with the layers that stay float32 (int8 only).",
)
@click.option(
    "--max-regions",
    type=click.IntRange(min=1, max=65_536),
    help="Largest number of regions of an image that the graphs take. By default 100, or those of a backbone that has "
    "more. More regions need more memory in engines.",
)
@click.option(
    "--max-words",
    type=click.IntRange(min=3, max=65_536),
    help="Largest number of words of a caption, start and end included. By default 128, or the positions of BERT where "
    "these are fewer. Longer captions are cut when they are evaluated.",
)
@options.force_option(
    "Replace a bundle at OUT, with its calibration and engines. With an int8 precision, add graphs that missed parity."
)
@options.json_option
@click.pass_context
def command(
    context: click.Context,
    checkpoint: Path,
    out: Path,
    precisions: tuple[str, ...],
    backbone: str | None,
    weights: str,
    no_backbone: bool,
    data: Path | None,
    split: str,
    samples: int,
    plan: Path | None,
    max_regions: int | None,
    max_words: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Write the graphs, tokenizer and manifest of CHECKPOINT to a new bundle. Each graph is checked against PyTorch.

    With --precision int8 or int8_x86 the graphs of a bundle that `chan calibrate` has calibrated are quantized, and
    added to it if they pass parity on --data. The verdict is recorded in the manifest. A backbone is quantized for
    int8_x86, if it was calibrated and --data has pictures.
    """
    from ..chan_ref.checkpoint_config import read_config
    from ..export.place import check_place
    from ..runtime.contract import FINER

    if backbone is not None and no_backbone:
        raise click.UsageError("give --backbone or --no-backbone, not both")
    int8 = set(FINER)
    if set(precisions) & int8:
        if not set(precisions) <= int8:
            raise click.UsageError("int8 needs a calibrated bundle: export fp32 and fp16, calibrate, then export int8")
        if data is None:
            raise click.UsageError("int8 graphs are kept only if they pass parity: give --data")
        kept = ("max_regions", "max_words")
        options.refuse_given(context, kept, "with an int8 precision: the bundle keeps what it was exported with")
        read_config(checkpoint)
        exported = _add_int8(context, checkpoint, out, precisions, data, split, samples, plan, force)
        quantized = any(item.name == "backbone" for item in exported)
        _print(exported, out, "quantized for onnxruntime" if quantized else "as it was", as_json)
        return
    options.refuse_given(context, ("data", "split", "samples", "plan"), "without --precision int8 or int8_x86")
    region_dim = read_config(checkpoint).region_dim
    check_place(out, force)
    network = options.open_backbone(context, backbone, weights)
    from ..export.backbone import (  # torch is loaded here: what is wrong already is said before
        choose_backbone,
        included,
    )
    from ..export.bundle import export_bundle

    if network is None:
        network, decision = choose_backbone(region_dim, False if no_backbone else None)
    else:
        decision = included(network, region_dim)
    done = 0
    with progress_bar("Exporting") as progress:

        def show(graph: str, total: int) -> None:
            nonlocal done
            done += 1
            progress(done, total, graph)

        _, exported = export_bundle(
            checkpoint, out, precisions, network, force, show, max_regions=max_regions, max_words=max_words
        )
    _print(exported, out, decision, as_json)


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
        print_json({"bundle": str(out), "backbone": backbone, "graphs": rows})
        return
    echo(f"{'graph':<16}{'precision':<10}{'MB':>9}{'error':>10}  file")
    for one in exported:
        size = one.size / 1e6
        error = "by parity" if one.error is None else f"{one.error:.1e}"
        echo(f"{one.name:<16}{one.precision:<10}{size:>9.2f}{error:>10}  {out / one.spec.file}")
    if any(one.error is not None for one in exported):
        echo("error: norm of the difference from PyTorch over PyTorch's norm, on random inputs")
    echo(f"backbone: {backbone}")
    say_next(out, _next_command(out, {one.precision for one in exported}, {one.name for one in exported}))


def _next_command(bundle: Path, precisions: Collection[str], graphs: Collection[str]) -> str:
    """What goes on with a bundle to which graphs of these precisions and names were written."""
    if "int8_x86" in precisions:
        return f"chan index {quoted(bundle)} SOURCES -o gallery --precision int8_x86"
    if "int8" in precisions:
        return f"chan build {quoted(bundle)} --precision int8"
    if "backbone" in graphs:
        return f"chan index {quoted(bundle)} PICTURES -o gallery"
    return f"chan index {quoted(bundle)} DATA -o gallery"


def _add_int8(
    context: click.Context,
    checkpoint: Path,
    bundle: Path,
    precisions: Sequence[str],
    data: Path,
    split: str,
    samples: int,
    plan: Path | None,
    force: bool,
) -> list[ExportedGraph]:
    from ..calibration.calibrate import load_calibration
    from ..calibration.plan import Plan
    from ..runtime.contract import Manifest
    from ..runtime.data.images import open_sample

    manifest = Manifest.load(bundle)
    load_calibration(bundle, manifest)
    sample = open_sample(data, split, samples, bundle)
    chosen = None if plan is None else Plan.from_file(plan)
    network = options.open_backbone(context, context.params["backbone"], context.params["weights"])
    from ..export.backbone import backbone_of  # torch is loaded here: what is wrong already is said before
    from ..export.int8 import export_int8

    if network is None and not context.params["no_backbone"]:
        network = backbone_of(manifest)
    with progress_bar("Parity") as progress:
        return export_int8(
            bundle,
            checkpoint,
            sample,
            precisions,
            chosen,
            force,
            lambda stage, done, total: progress(done, total, stage),
            network,
        )
