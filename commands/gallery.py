"""`chan gallery`: inspect and maintain a gallery that `chan index` made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..runtime.counts import counted
from . import options, values
from .gallery_shards import merge, rebalance, split
from .gallery_storage import pull, push
from .terminal import echo, print_json, print_result, progress_bar, visible, warn


@click.group(
    "gallery",
    short_help="Inspect and maintain a gallery: info, list, export, delete, compact, verify, repair, prepare, kernel, "
    "split, merge, rebalance, push, pull.",
)
def command() -> None:
    """Inspect and maintain a GALLERY that `chan index` made. Searches may read it while one command writes.

    A URL is the address of a gallery in object storage, where `push` has put it.
    """


@command.command("info", short_help="Show rows, bytes and model, and how search was prepared.")
@options.read_gallery_argument
@options.json_option
def info(gallery: Path, as_json: bool) -> None:
    """Show the rows, bytes and model of GALLERY, and how search was prepared."""
    from ..runtime.gallery import Gallery

    with Gallery.open(gallery) as opened:
        facts = opened.info()
    if as_json:
        print_json(facts)
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        echo(f"{key:<{width}}  {visible(value if isinstance(value, str) else json.dumps(value))}")


@command.command("list")
@options.read_gallery_argument
@options.where_option
@options.json_option
def list_rows(gallery: Path, where: Any, as_json: bool) -> None:
    """List the ids of the rows in the order of addition. --json prints their metadata too."""
    from ..runtime.gallery import Gallery

    with Gallery.open(gallery) as opened:
        rows = opened.rows(where)
    if as_json:
        print_json([{"id": row.id, "metadata": dict(row.metadata)} for row in rows])
        return
    for row in rows:
        echo(visible(row.id))


@command.command("delete", short_help="Delete rows by their ids, or by a filter.")
@options.gallery_argument
@click.argument("ids", nargs=-1, type=values.ID)
@options.where_option
@options.json_option
def delete(gallery: Path, ids: tuple[str, ...], where: Any, as_json: bool) -> None:
    """Delete the rows with these IDS, or those that pass --where: all of them or none.

    `chan gallery list --where` shows which ones a filter takes. `chan gallery compact` frees their bytes.
    """
    from ..runtime.gallery import Gallery, open_for_writing

    if bool(ids) == (where is not None):
        raise click.UsageError("give the IDS of the rows to delete, or --where")
    with open_for_writing(gallery) as writer:
        wanted = set(ids)
        if where is not None:
            with Gallery.open(writer.path, threads=1) as opened:  # nobody else writes meanwhile
                wanted = {row.id for row in opened.rows(where)}
        writer.delete(sorted(wanted))
        text = f"{len(wanted)} deleted; {visible(gallery)}: {writer.describe()}"
        print_result(gallery, as_json, text, deleted=len(wanted), rows=len(writer))


@command.command("compact")
@options.gallery_argument
@options.json_option
def compact(gallery: Path, as_json: bool) -> None:
    """Merge small segments and drop deleted rows. This needs disk space for a second copy of what is rewritten."""
    from ..runtime.gallery import open_for_writing

    with open_for_writing(gallery) as writer:
        with progress_bar("compact", 0) as progress:
            writer.compact(progress=progress)
        print_result(gallery, as_json, f"{visible(gallery)}: {writer.describe()}", rows=len(writer))


@command.command("verify")
@options.read_gallery_argument
@options.json_option
@click.pass_context
def verify(context: click.Context, gallery: Path, as_json: bool) -> None:
    """Read every byte of GALLERY and name what is damaged. The exit status is 1 if anything is."""
    from ..runtime.errors import GalleryCorrupt
    from ..runtime.gallery import Gallery, verify_gallery

    with progress_bar("verify", 0) as progress:
        damaged = verify_gallery(gallery, progress=progress)
    if damaged and not as_json:
        raise GalleryCorrupt("damaged:\n" + "\n".join(damaged))
    name = values.as_given(gallery)
    if damaged:
        print_result(name, as_json, "", damaged=damaged)
        context.exit(1)
    with Gallery.open(gallery) as opened:
        text = f"{visible(name)}: {counted(len(opened), 'row')}, every byte is as it was committed"
        print_result(name, as_json, text, rows=len(opened), damaged=[])


@command.command("repair", short_help="Save the readable rows of damaged files, and list the lost ones.")
@options.gallery_argument
@click.option(
    "--give-up-missing",
    is_flag=True,
    help="Take shards that are missing, or whose catalogue is damaged, out of GALLERY. Their rows are lost.",
)
@options.json_option
def repair(gallery: Path, give_up_missing: bool, as_json: bool) -> None:
    """Save the readable rows of damaged files, and list the ids of the rows that are lost.

    Damaged files are moved to the folder `damaged` in GALLERY. Nothing is changed where nothing is damaged.
    """
    from ..runtime.gallery import repair_gallery

    result = repair_gallery(gallery, give_up_missing=give_up_missing)
    if as_json:
        print_json(asdict(result))
        return
    for text in result.given_up:
        echo(f"given up: {visible(text)}")
    for text in result.damage:
        echo(f"damaged: {visible(text)}")
    for id in result.lost:
        echo(f"lost: {visible(id)}")
    changes = f"{len(result.lost)} lost, {result.saved} written again" if result.damage else "nothing was damaged"
    if result.given_up:
        changes += f"; {counted(len(result.given_up), 'shard')} given up"
    echo(f"{gallery}: {counted(result.kept, 'row')}; {changes}")


@command.command("prepare", short_help="Fit search to a gallery as it is now and to its queries.")
@options.gallery_argument
@options.queries_option
@options.moved_bundle_option
@options.json_option
def prepare(gallery: Path, queries: Path | None, moved: Path | None, as_json: bool) -> None:
    """Fit search to GALLERY as it is now and to its queries, and measure what it reads.

    Without --queries, search is fitted to the directions that a calibrated bundle keeps, and nothing is measured.
    """
    from ..runtime.gallery import open_for_writing
    from ..runtime.gallery.settings import NO_MODEL
    from ..runtime.indexing.embedding_source import read_embeddings
    from ..runtime.indexing.index import encode_queries, kept_preparation
    from ..runtime.indexing.sources import read_lines
    from ..runtime.session import gallery_directions, open_matcher

    with open_for_writing(gallery) as writer, progress_bar("prepare", 0) as progress:
        if queries is None:
            if kept_preparation(writer) is not None:
                warn("the fit to queries of an earlier run is replaced, and nothing is measured: --queries does both")
            prepared = writer.prepare(directions=gallery_directions(writer, moved), progress=progress)
        elif writer.settings.model == NO_MODEL:
            options.refuse_given(click.get_current_context(), ("moved",), "on a gallery of no known model")
            _, asked = read_embeddings([queries], writer.settings.dim, options.vector_readers())
            prepared = writer.prepare(asked, progress=progress)
        else:
            with open_matcher(writer, moved) as matcher:
                prepared = writer.prepare(encode_queries(matcher, read_lines(queries)), progress=progress)
    print_result(gallery, as_json, prepared.describe(), prepared=prepared.describe())


@command.command("export", short_help="Write ids, metadata and embeddings to a file.")
@options.read_gallery_argument
@options.out_option(values.NEW_FILE, "File to write: it ends in .safetensors, .npz or .parquet.")
@options.where_option
@options.json_option
def export(gallery: Path, out: Path, where: Any, as_json: bool) -> None:
    """Write the ids, metadata and embeddings of GALLERY to a file, which `chan index --embeddings` reads.

    Embeddings are written as GALLERY keeps them: exactly those of its float32 or float16 copy. Where it keeps none,
    they are what the int8 codes stand for.
    """
    from ..runtime.gallery import Gallery
    from ..runtime.indexing.export import export_embeddings

    with Gallery.open(gallery) as opened:
        done = export_embeddings(opened, out, where)
    if as_json:
        print_json({"file": str(out), **asdict(done)})
        return
    kept = {0.0: "exactly as they were added", None: "exactly as the gallery keeps them, rounded to float16"}
    how = kept.get(done.error) or f"restored from int8 codes, within {done.error:.4g} of those that were added"
    echo(f"{visible(out)}: {counted(done.rows, 'row')} with {counted(done.vectors, 'vector')} of {done.dtype}, {how}")


@command.command("kernel", short_help="Compile the GPU kernels of `chan search --device cuda`.")
@options.gallery_argument
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(["int8", "float16"]),
    default=("int8",),
    show_default=True,
    help="Precision of the vectors that the GPU holds; may be repeated. Answers are certified with int8 only.",
)
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    type=values.GPU,
    help="Architecture of the GPU that will search; may be repeated. The default is the GPU of this machine.",
)
@options.json_option
def kernel(gallery: Path, precisions: tuple[str, ...], gpus: tuple[str, ...], as_json: bool) -> None:
    """Compile the GPU kernels of `chan search --device cuda` for GALLERY, with Triton.

    No GPU is needed where --gpu names one.
    """
    from ..export.kernels import build_kernels
    from ..runtime.errors import InputError
    from ..runtime.gallery import Gallery
    from ..runtime.gallery.cuda import check_settings
    from ..runtime.gallery.cuda.kernels import GPUS
    from ..runtime.gallery.sharded.manifest import is_sharded
    from ..runtime.gpu import examine_gpu

    if is_sharded(gallery):
        raise InputError(f"{gallery} is a gallery in shards, which is searched on the CPU")
    with Gallery.open(gallery) as opened:
        settings = opened.settings
    check_settings(settings)
    if not gpus:
        found = examine_gpu()
        if found.problem is not None:
            raise InputError(f"gpu must be one of {', '.join(GPUS)}: this machine has none to go by ({found.problem})")
        gpus = (found.gpus[0].architecture,)
    kernels = []
    for precision in precisions:
        for gpu in gpus:
            record, cached = build_kernels(gallery, settings.dim, settings.alignment.pooling, precision, gpu)
            kernels.append({"precision": precision, "gpu": gpu, "name": record.stem, "compiled": not cached})
            if not as_json:
                how = "already there" if cached else f"compiled by triton {record.compiler}"
                echo(f"{precision} for {gpu}: {record.stem}, {how}")
    if as_json:
        print_json({"gallery": str(gallery), "kernels": kernels})


for one in (split, merge, rebalance, push, pull):
    command.add_command(one)
