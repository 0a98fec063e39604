"""`chan gallery split`, `merge` and `rebalance`: the rows of a gallery in other shards, or in one folder."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime.counts import counted
from . import options, values
from .terminal import print_result, progress_bar, visible

_shards_option = click.option(
    "--shards", type=values.COUNT, required=True, help="Number of shards to cut the rows into."
)


@click.command("split", short_help="Write the rows of a gallery to a new gallery in shards.")
@options.read_gallery_argument
@options.out_option(values.NEW_FOLDER, "Folder of the new gallery in shards.")
@_shards_option
@options.json_option
def split(gallery: Path, out: Path, shards: int, as_json: bool) -> None:
    """Write the rows of GALLERY to a new gallery in shards, each an ordinary gallery in a folder of OUT.

    Nothing is encoded again, and every search of OUT finds what a search of GALLERY finds. Files that stay whole are
    not copied where the disk can hold them under two names.
    """
    from ..runtime.gallery import split_gallery
    from ..runtime.gallery.sharded.manifest import describe_shards

    with progress_bar("split", 0) as progress:
        made = split_gallery(gallery, out, shards, progress=progress)
    rows = [shard.rows for shard in made.shards]
    text = f"{visible(out)}: {counted(sum(rows), 'row')} in {describe_shards(rows)}"
    print_result(out, as_json, text, rows=sum(rows), shards={shard.name: shard.rows for shard in made.shards})


@click.command("merge", short_help="Write the rows of all shards to a gallery in one folder.")
@options.read_gallery_argument
@options.out_option(values.NEW_FOLDER, "Folder of the new gallery.")
@options.json_option
def merge(gallery: Path, out: Path, as_json: bool) -> None:
    """Write the rows of a GALLERY in shards to a new gallery in one folder. Nothing is encoded again."""
    from ..runtime.gallery import merge_gallery

    with progress_bar("merge", 0) as progress:
        rows = merge_gallery(gallery, out, progress=progress)
    print_result(out, as_json, f"{visible(out)}: {counted(rows, 'row')}", rows=rows)


@click.command("rebalance", short_help="Cut a gallery in shards into another number of shards.")
@options.gallery_argument
@_shards_option
@options.json_option
def rebalance(gallery: Path, shards: int, as_json: bool) -> None:
    """Cut the rows of a GALLERY in shards into another number of shards, each with the same number of rows.

    Searches may go on meanwhile. They find the rows in the old shards or in the new ones, and the results are the same.
    """
    from ..runtime.gallery import ShardedWriter

    with ShardedWriter.open(gallery) as writer:
        with progress_bar("rebalance", 0) as progress:
            writer.rebalance(shards, progress=progress)
        print_result(gallery, as_json, f"{visible(gallery)}: {writer.describe()}", rows=len(writer), shards=shards)
