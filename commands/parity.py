"""`chan parity`: a bundle against the torch model it was made of."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..export.backbone import Backbone


@click.command(short_help="Compare every backend and precision with PyTorch; exit 1 where a tolerance is missed.")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--checkpoint",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The checkpoint BUNDLE was exported from: its torch model is the reference.",
)
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Region features and captions (precomp layout); with pictures, the backbone is checked too.",
)
@click.option("--split", default="test", show_default=True, help="Split of DATA.")
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Images, spread evenly over the split; all their captions.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    help="onnxruntime, onnxruntime_cuda, onnxruntime_rtx, tensorrt or tensorrt_rtx; repeatable. "
    "Default: onnxruntime and whatever engines were built, those that cannot run here being listed.",
)
@click.option("--precision", "precisions", multiple=True, help="Repeatable. Default: all BUNDLE has.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report as JSON; - prints it.",
)
@click.option(
    "--html",
    "html_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the report as one page with plots.",
)
@click.option("--record", is_flag=True, help="Note the verdicts in BUNDLE's manifest.")
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
    json_file: Path | None,
    html_file: Path | None,
    record: bool,
) -> None:
    """Prove that BUNDLE computes what its PyTorch model computes, stage by stage, over real data.

    Tolerances are those of export/tolerances.json. The exit status is 1 when one of them is missed.
    """
    from ..export.parity.report import page, table
    from ..export.parity.run import check_parity, record_verdict
    from ..runtime.data.images import open_sample
    from ..runtime.files import write_file

    sample = open_sample(data, split, samples, bundle)
    with click.progressbar(length=1, label="parity", file=sys.stderr, item_show_func=lambda text: text) as bar:

        def show(stage: str, done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos, stage)

        report = check_parity(bundle, checkpoint, sample, backends, precisions, _backbone(bundle), show)
    if json_file is not None and str(json_file) == "-":
        click.echo(report.to_json(), nl=False)
    else:
        click.echo("\n".join(table(report)))
        if json_file is not None:
            write_file(json_file, report.to_json())
    if html_file is not None:
        write_file(html_file, page(report))
    if record:
        record_verdict(bundle, report)
    context.exit(0 if report.passed else 1)


def _backbone(bundle: Path) -> Backbone | None:
    """The demo's network, which is what `chan export` puts into a bundle that reads pictures."""
    from ..runtime.contract import Manifest

    if "backbone" not in Manifest.load(bundle).graphs:
        return None
    from ..chan_ref.backbone import load_backbone
    from ..export.backbone import Backbone
    from ..runtime.errors import MissingExtra

    try:
        return Backbone(*load_backbone())
    except MissingExtra as error:  # the report notes that the backbone was left out
        click.echo(f"Warning: {error}", err=True)
        return None
