"""`chan gallery`: look after a gallery that `chan index` made."""

from __future__ import annotations

import json
from pathlib import Path

import click

from . import options
from .terminal import echo, print_json, visible

_GALLERY = click.argument("gallery", type=click.Path(exists=True, file_okay=False, path_type=Path))


@click.group("gallery", short_help="Look after a gallery: info, list, delete, compact, verify, prepare, kernel.")
def command() -> None:
    """Look after a GALLERY that `chan index` made. One of these may write while any number of searches read."""


@command.command("info")
@_GALLERY
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def info(gallery: Path, as_json: bool) -> None:
    """Rows, bytes, model and the fast scan's measured recall."""
    from ..runtime.gallery import Gallery

    with Gallery.open(gallery) as opened:
        facts = opened.info()
    if as_json:
        click.echo(json.dumps(facts))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        click.echo(f"{key:<{width}}  {value if isinstance(value, str) else json.dumps(value)}")


@command.command("list")
@_GALLERY
@click.option("--where", multiple=True, metavar="CONDITION", help="List only rows that pass, as in `chan search`.")
@options.json_option
def list_rows(gallery: Path, where: tuple[str, ...], as_json: bool) -> None:
    """List the ids of the rows in order of addition; with --json their metadata, too."""
    from ..runtime.gallery import Gallery
    from ..runtime.gallery.where import parse_words

    with Gallery.open(gallery) as opened:
        rows = opened.rows(parse_words(where))
    if as_json:
        print_json([{"id": row.id, "metadata": dict(row.metadata)} for row in rows])
        return
    for row in rows:
        echo(visible(row.id))


@command.command("delete")
@_GALLERY
@click.argument("ids", nargs=-1, required=True)
def delete(gallery: Path, ids: tuple[str, ...]) -> None:
    """Delete rows by their IDS, all of them or none. Their bytes go with the next `compact`."""
    from ..runtime.gallery import GalleryWriter

    with GalleryWriter.open(gallery) as writer:
        writer.delete(list(ids))
        click.echo(f"{len(set(ids))} deleted; {gallery}: {writer.describe()}")


@command.command("compact")
@_GALLERY
def compact(gallery: Path) -> None:
    """Merge small segments and drop deleted rows. Needs disk for a second copy of what it rewrites."""
    from ..runtime.gallery import GalleryWriter

    with GalleryWriter.open(gallery) as writer:
        writer.compact()
        click.echo(f"{gallery}: {writer.describe()}")


@command.command("verify")
@_GALLERY
def verify(gallery: Path) -> None:
    """Read every byte and name what is damaged; exit status 1 if anything is."""
    from ..runtime.errors import GalleryCorrupt
    from ..runtime.gallery import Gallery, verify_gallery

    damaged = verify_gallery(gallery)
    if damaged:
        raise GalleryCorrupt("damaged:\n" + "\n".join(damaged))
    with Gallery.open(gallery) as opened:
        click.echo(f"{gallery}: {len(opened)} rows, every byte is as it was committed")


@command.command("prepare")
@_GALLERY
@click.option("--queries", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Captions, one a line: half choose how much to rescore, half measure the recall.")  # fmt: skip
@click.option("--bundle", type=click.Path(exists=True, file_okay=False, path_type=Path), help="If it was moved.")
def prepare(gallery: Path, queries: Path | None, bundle: Path | None) -> None:
    """Fit the fast scan to the gallery as it is now, and measure its recall."""
    from ..runtime.gallery import GalleryWriter
    from ..runtime.session import open_matcher
    from ..runtime.sources import read_lines
    from .index import describe_fast

    with GalleryWriter.open(gallery) as writer:
        embeddings = None
        if queries is not None:
            with open_matcher(writer, bundle) as matcher:
                embeddings = matcher.encode_texts(read_lines(queries))
        fast = writer.prepare_fast(embeddings)
    click.echo(describe_fast(fast))


@command.command("kernel")
@_GALLERY
@click.option("--precision", "precisions", multiple=True, type=click.Choice(["int8", "float16"]), default=("int8",),
    show_default=True, help="What the GPU will hold: int8 is certified, float16 is not; repeatable.")  # fmt: skip
@click.option("--gpu", "gpus", multiple=True,
    help="Architecture of the GPU that will search, such as sm_90; repeatable. Default: the GPU here.")  # fmt: skip
def kernel(gallery: Path, precisions: tuple[str, ...], gpus: tuple[str, ...]) -> None:
    """Compile the scan of `chan search --device cuda` for GALLERY, with Triton; needs no GPU where --gpu names one."""
    from ..export.kernels import GPUS, build_kernels
    from ..runtime.errors import InputError
    from ..runtime.gallery import Gallery
    from ..runtime.gallery.cuda import check_settings
    from ..runtime.gallery.cuda.kernels import architecture
    from ..runtime.gpu import examine_gpu

    with Gallery.open(gallery) as opened:
        settings = opened.settings
    check_settings(settings)
    if not gpus:
        found = examine_gpu()
        if found.problem is not None:
            raise InputError(f"gpu must be one of {', '.join(GPUS)}: this machine has none to go by ({found.problem})")
        gpus = (architecture(found.gpus[0].capability),)
    for precision in precisions:
        for gpu in gpus:
            record, cached = build_kernels(gallery, settings.dim, settings.alignment.pooling, precision, gpu)
            how = "already there" if cached else f"compiled by triton {record.compiler}"
            click.echo(f"{precision} for {gpu}: {record.stem}, {how}")
