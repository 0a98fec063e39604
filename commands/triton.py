"""`chan triton`: write and check a model repository for NVIDIA Triton."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ..runtime.errors import quoted
from . import options, values
from .terminal import echo, print_json, visible

_WRITING = ("out", "gallery", "gallery_place", "precision", "backend", "instances", "queue", "force")


@click.command("triton", short_help="Write a model repository for NVIDIA Triton Inference Server.")
@click.argument("bundle", type=values.FOLDER, required=False)
@click.option("-o", "--out", type=values.NEW_FOLDER, help="Folder of the new model repository.")
@click.option(
    "--gallery",
    type=values.TEXT,
    metavar="GALLERY|URL",
    help="Gallery that the model chan_search searches. Its rows must be encoded with BUNDLE. Without it, the "
    "repository has no search.",
)
@click.option(
    "--gallery-place",
    type=values.TEXT,
    metavar="PATH|URL",
    help="Where the server finds the gallery, if that is not where this command finds it.",
)
@options.precision_option
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "tensorrt"]),
    default="onnxruntime",
    show_default=True,
    help="Backend of Triton that runs the graphs. tensorrt needs the engines of `chan build --backend tensorrt`.",
)
@click.option(
    "--instances",
    type=values.COUNT,
    default=1,
    show_default=True,
    help="Number of instances of each model, which work at the same time.",
)
@click.option(
    "--queue",
    type=values.COUNT,
    default=128,
    show_default=True,
    help="Number of requests that may wait for each model. One more is refused.",
)
@options.force_option("Replace a model repository at OUT.")
@click.option(
    "--validate",
    type=values.FOLDER,
    metavar="REPOSITORY",
    help="Check every configuration in REPOSITORY, and write nothing. Needs the extra triton-server.",
)
@options.json_option
@click.pass_context
def command(
    context: click.Context,
    bundle: Path | None,
    out: Path | None,
    gallery: str | None,
    gallery_place: str | None,
    precision: str,
    backend: str,
    instances: int,
    queue: int,
    force: bool,
    validate: Path | None,
    as_json: bool,
) -> None:
    """Write a model repository with the graphs of BUNDLE to OUT, and with the search of a gallery.

    NVIDIA Triton Inference Server serves it: `tritonserver --model-repository=OUT`. With --validate the command checks
    a repository instead, and exits with status 1 if Triton could not serve it.
    """
    from ..scale.triton import Served, write_repository

    if validate is not None:
        if bundle is not None:
            raise click.UsageError("give BUNDLE or --validate, not both")
        options.refuse_given(context, _WRITING, "with --validate")
        _validate(context, validate, as_json)
        return
    if bundle is None:
        raise click.UsageError("give BUNDLE and --out OUT, or --validate REPOSITORY")
    if out is None:
        raise click.UsageError("give --out OUT, the folder of the new model repository")
    if gallery is None:
        options.refuse_given(context, ("gallery_place",), "without --gallery")
    elif gallery_place is None and "://" in gallery:
        gallery_place = gallery
    models = write_repository(
        bundle,
        out,
        gallery=None if gallery is None else values.local_gallery(gallery),
        gallery_place=gallery_place,
        precision=precision,
        backend=backend,
        served=Served(instances, queue),
        force=force,
    )
    if as_json:
        print_json({"repository": str(out), "models": [asdict(model) for model in models]})
        return
    echo(f"{'model':<22}{'backend':<14}{'batch':>6}{'MB':>9}")
    for model in models:
        batch = str(model.batch) if model.batch else "-"
        echo(f"{model.name:<22}{model.backend:<14}{batch:>6}{model.bytes / 1e6:>9.2f}")
    echo(f"serve it with: tritonserver --model-repository={visible(quoted(out))}")


def _validate(context: click.Context, repository: Path, as_json: bool) -> None:
    from ..scale.triton import check_repository

    checks = check_repository(repository)
    if as_json:
        print_json({"repository": str(repository), "models": [asdict(check) for check in checks]})
    else:
        for check in checks:
            echo(f"{check.name:<22}{check.backend:<14}{'wrong' if check.problems else 'valid'}")
            for problem in check.problems:
                echo(f"  {visible(problem)}")
            for unchecked in check.unchecked:
                echo(f"  not checked: {visible(unchecked)}")
    if any(check.problems for check in checks):
        context.exit(1)
