"""`chan index --embeddings`: take embeddings of another model into a gallery on disk."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..runtime.counts import counted
from . import options
from .terminal import echo, print_json, progress_bar, report_skipped, skipped_as_dicts, visible

if TYPE_CHECKING:
    from ..runtime.gallery.prepare import Preparation
    from ..runtime.indexing.embedding_source import EmbeddingSource
    from .index import IndexOptions


def index_files(asked: IndexOptions) -> None:
    """Bring the gallery up to date with files of embeddings."""
    from ..runtime.contract import AlignmentConfig
    from ..runtime.indexing.embedding_source import embedding_source, read_embeddings
    from ..runtime.indexing.index_embeddings import index_embeddings, prepare_embeddings
    from ..runtime.session import embedding_settings, open_writer

    readers = options.vector_readers()
    source = embedding_source([Path(file) for file in asked.arguments], asked.metadata, readers)
    alignment = AlignmentConfig(asked.coding, asked.pooling)
    settings = embedding_settings(source.dim(), alignment, asked.kind, fine=asked.fine)
    queries = None if asked.queries is None else read_embeddings([asked.queries], settings.dim, readers)[1]
    with open_writer(asked.out, settings) as writer:
        with progress_bar("index", len(source.ids)) as progress:
            result = index_embeddings(writer, source, max_bad=asked.max_bad, progress=progress)
        prepared = prepare_embeddings(writer, queries)
        held = writer.describe()
    low, high = result.norms
    if asked.as_json:
        facts = asdict(result)
        facts["skipped"] = skipped_as_dicts(result.skipped)
        prepared_text = None if prepared is None else prepared.describe()
        print_json(
            {
                "gallery": str(asked.out),
                **facts,
                "rounded": bool(source.rounded),
                "ids_made_up": sum(map(len, source.made_up)),
                "prepared": prepared_text,
            }
        )
    else:
        echo(f"{result.added + result.refreshed} added, {result.unchanged + result.relabeled} already there")
        for count, text in (
            (result.refreshed, "of these took the place of rows with the same id and other vectors"),
            (result.relabeled, "of those that were there have other metadata now"),
            (result.padding, "vectors of zeros were left out as padding"),
        ):
            if count:
                echo(f"{count} {text}")
        unit = 0.999 < low <= high < 1.001
        measured = "vectors have length 1" if unit else f"vectors have lengths from {low:.4g} to {high:.4g}"
        products = (
            "cosines" if unit else "inner products: if cosines are meant, scale rows and queries to length 1 first"
        )
        echo(f"{measured}; a score is {asked.coding} and {asked.pooling} of {products}")
        if source.made_up:
            echo(_made_up(source))
        if source.rounded:
            echo(f"{' and '.join(source.rounded)} values were rounded to float32")
        report_preparation(prepared, asked.queries)
        echo(f"{asked.out}: {held}")
    report_skipped(result.skipped)
    if asked.strict and result.skipped:
        raise click.exceptions.Exit(1)


def _made_up(source: EmbeddingSource) -> str:
    """What the ids are of rows that nothing names."""
    first = source.made_up[0]
    ids = visible(source.ids[first[0]]) + (f" to {visible(source.ids[first[-1]])}" if len(first) > 1 else "")
    others = counted(len(source.made_up) - 1, "other file")
    more = f", and so on for {others}" if len(source.made_up) > 1 else ""
    made = counted(sum(map(len, source.made_up)), "row has", "rows have")
    return (
        f"{made} no id in the files, so ids are the file's name and the row's number: {ids}{more}. Under another name "
        "the same file would be added again; `ids` in it, or a column `id` of --metadata, name its rows for good"
    )


def report_preparation(prepared: Preparation | None, queries: Path | None) -> None:
    """Print how search was fitted to the queries, or why it was not."""
    if prepared is not None:
        echo(prepared.describe())
        if prepared.kept:
            echo("search stays as an earlier run fitted it; --queries fits it again")
    elif queries is not None:
        echo(
            f"search is not fitted to {queries}, because the gallery has fewer than 256 rows, keeps no fine copy, or "
            "scores with VSA"
        )
