"""`chan index`: encode images or captions into a gallery on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from . import options
from .terminal import echo, print_json, progress_bar, report_skipped, skipped_as_dicts, warn


@click.command("index", short_help="Encode images or captions into a gallery for `chan search`.")
@options.bundle_argument
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@options.out_option(options.NEW_FOLDER, "Folder of a new gallery, or of a gallery to add to.")
@options.split_option("test", "Split of a data folder to index.")
@click.option("--captions", is_flag=True, help="Index the captions of a data folder, or the lines of text files.")
@click.option("--replace", is_flag=True, help="Encode the rows that the gallery already has again.")
@click.option(
    "--fine",
    type=click.Choice(["float32", "float16", "none"]),
    default="float32",
    show_default=True,
    help="Copy of the vectors that exact search ranks by. With none only int8 codes are kept: nothing is certified.",
)
@click.option("--prune", is_flag=True, help="Remove the rows of SOURCES whose picture or data row is gone.")
@click.option(
    "--metadata",
    type=options.FILE,
    help="Metadata of pictures, to filter by: a CSV file with a header, or JSON lines. Each line names its `path`.",
)
@options.queries_option
@options.backend_option
@options.precision_option
@options.skipping_options
@options.json_option
def command(
    bundle: Path,
    sources: tuple[Path, ...],
    out: Path,
    split: Any,
    captions: bool,
    replace: bool,
    fine: Any,
    prune: bool,
    metadata: Path | None,
    queries: Path | None,
    backend: str,
    precision: str,
    max_bad: int,
    strict: bool,
    as_json: bool,
) -> None:
    """Encode SOURCES with BUNDLE and keep the embeddings in the gallery OUT.

    SOURCES are pictures and folders of pictures, or one data folder in the precomp layout. With --captions they are a
    data folder or text files.

    Run the same command again to continue after an interruption and to bring the gallery up to date: what is new is
    added, what changed is encoded again, what moved within SOURCES is renamed, and with --prune what is gone is
    removed. The id of a row is the name of its folder and the path below it. A picture that cannot be read is skipped
    and listed at the end.
    """
    from ..runtime.indexing.data_sources import open_source
    from ..runtime.indexing.index import index_source, prepare_search
    from ..runtime.indexing.metadata_file import read_metadata, with_metadata
    from ..runtime.indexing.sources import read_lines
    from ..runtime.matcher import Matcher
    from ..runtime.session import gallery_settings, open_writer

    settings = gallery_settings(bundle, "captions" if captions else "images", precision=precision, fine=fine)
    source = open_source(sources, split, captions=captions)
    unmatched: list[str] = []
    if metadata is not None:
        source, unmatched = with_metadata(source, read_metadata(metadata))
    texts = source.queries if queries is None else read_lines(queries)
    with open_writer(out, settings) as writer, Matcher.open(bundle, backend, precision) as matcher:
        with progress_bar("index", len(source.ids)) as progress:
            result = index_source(
                writer, matcher, source, replace=replace, prune=prune, max_bad=max_bad, progress=progress
            )
        prepared = prepare_search(writer, matcher, texts)
        held = writer.describe()
    if as_json:
        print_json(
            {
                "gallery": str(out),
                "encoded": result.encoded,
                "added": result.added,
                "refreshed": result.refreshed,
                "moved": result.moved,
                "already_there": result.unchanged,
                "missing": list(result.missing),
                "removed": len(result.missing) if result.removed else 0,
                "metadata_without_picture": unmatched,
                "skipped": skipped_as_dicts(result.skipped),
                "not_read": dict(source.passed_over),
                "prepared": None if prepared is None else prepared.describe(),
            }
        )
    else:
        echo(f"{result.encoded} encoded, {result.unchanged} already there")
        for count, text in (
            (result.refreshed, "of these encoded again, because the content changed or --replace was given"),
            (result.moved, "renamed, because the same content lies elsewhere now"),
            (len(result.missing) * prune, "removed, because the item is gone"),
        ):
            if count:
                echo(f"{count} {text}")
        if result.missing and not prune:
            gone = f"{len(result.missing)} kept although the item is gone"
            echo(f"{gone}, such as {result.missing[0]}; --prune removes these")
        if prepared is not None:
            echo(prepared.describe())
        echo(f"{out}: {held}")
    if unmatched:
        warn(f"{len(unmatched)} lines of {metadata} name no picture of SOURCES, such as {unmatched[0]}")
    report_skipped(result.skipped, source.passed_over)
    if strict and result.skipped:
        raise click.exceptions.Exit(1)
