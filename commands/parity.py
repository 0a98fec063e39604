"""`chan parity`: compare a bundle with the torch model that it was made of."""

from __future__ import annotations

from pathlib import Path

import click

from . import options, values
from .terminal import echo, progress_bar, warn


@click.command(short_help="Compare every backend and precision with PyTorch; exit 1 where a tolerance is missed.")
@options.bundle_argument
@click.option(
    "--checkpoint",
    required=True,
    type=values.CHECKPOINT,
    help="Checkpoint that BUNDLE was exported from. Its torch model is the reference.",
)
@click.option(
    "--data",
    required=True,
    type=values.FOLDER,
    help=f"Data folder: {options.DATA_FILES}. If it has pictures, the backbone is checked too.",
)
@options.split_option("test", "Split of the data to compare on.")
@options.samples_option(500)
@options.backends_option(
    "The default is onnxruntime and every backend that engines were built for; those that cannot run here are listed."
)
@options.precisions_option
@options.device_option
@options.json_option
@options.output_json_option
@click.option(
    "--html", "html_file", type=values.NEW_FILE, help="Also write the report to this file, as a page with plots."
)
@options.backbone_options(
    "Network that the backbone of BUNDLE was exported from, where it is none of efficientnet-lite."
)
@click.option("--record", is_flag=True, help="Record the verdicts in the manifest of BUNDLE.")
@click.pass_context
def command(
    context: click.Context,
    bundle: Path,
    checkpoint: Path,
    data: Path,
    split: str,
    samples: int,
    backends: tuple[str, ...],
    precisions: tuple[str, ...],
    device: str,
    as_json: bool,
    backbone: str | None,
    weights: str,
    json_file: Path | None,
    html_file: Path | None,
    record: bool,
) -> None:
    """Check that BUNDLE computes what its PyTorch model computes, stage by stage, over real data.

    The tolerances are those of export/tolerances.json. The exit status is 1 if one of them is missed.
    """
    from ..chan_ref.checkpoint_config import read_config
    from ..runtime.contract import Manifest
    from ..runtime.data.images import open_sample
    from ..runtime.errors import MissingExtra
    from ..runtime.files import write_file

    read_config(checkpoint)
    Manifest.load(bundle).check_precisions(precisions)
    sample = open_sample(data, split, samples, bundle)
    from ..export.backbone import backbone_of  # torch is loaded here: what is wrong already is said before
    from ..export.parity import check_parity, record_verdict, table
    from ..export.parity.page import page

    try:
        network = options.open_backbone(context, backbone, weights) or backbone_of(Manifest.load(bundle))
    except MissingExtra as error:  # the report notes that the backbone was not checked
        warn(str(error))
        network = None
    with progress_bar("parity") as progress:
        report = check_parity(
            bundle,
            checkpoint,
            sample,
            backends,
            precisions,
            network,
            lambda stage, done, total: progress(done, total, stage),
            device,
        )
    if as_json:
        echo(report.to_json(), nl=False)
    else:
        echo("\n".join(table(report)))
    if json_file is not None:
        write_file(json_file, report.to_json())
    if html_file is not None:
        write_file(html_file, page(report))
    if record:
        record_verdict(bundle, report)
    context.exit(0 if report.passed else 1)
