"""`chan index --embeddings`: take embeddings of another model into a gallery on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from . import options
from .terminal import echo, print_json, progress_bar, report_skipped, skipped_as_dicts

if TYPE_CHECKING:
    from ..runtime.contract import Coding, Pooling
    from ..runtime.gallery.prepare import Preparation


def index_files(
    files: Sequence[Path],
    out: Path,
    alignment: tuple[Coding, Pooling],
    captions: bool,
    fine: Literal["float32", "fixed16", "float16", "none"],
    metadata: Path | None,
    queries: Path | None,
    max_bad: int,
    strict: bool,
    as_json: bool,
) -> None:
    """Bring the gallery up to date with files of embeddings."""
    from ..runtime.contract import AlignmentConfig
    from ..runtime.gallery.settings import NO_MODEL, GallerySettings
    from ..runtime.indexing.embedding_source import embedding_source, read_embeddings
    from ..runtime.indexing.index_embeddings import index_embeddings, prepare_embeddings
    from ..runtime.session import open_writer

    readers = options.vector_readers()
    source = embedding_source(files, metadata, readers)
    kind: Literal["images", "captions"] = "captions" if captions else "images"
    settings = GallerySettings(kind, source.dim(), AlignmentConfig(*alignment), NO_MODEL, fine)
    asked = None if queries is None else read_embeddings([queries], settings.dim, readers)[1]
    with open_writer(out, settings) as writer:
        with progress_bar("index", len(source.ids)) as progress:
            result = index_embeddings(writer, source, max_bad=max_bad, progress=progress)
        prepared = prepare_embeddings(writer, asked)
        held = writer.describe()
    low, high = result.norms
    if as_json:
        facts = asdict(result)
        facts["skipped"] = skipped_as_dicts(result.skipped)
        prepared_text = None if prepared is None else prepared.describe()
        print_json({"gallery": str(out), **facts, "rounded": bool(source.rounded), "prepared": prepared_text})
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
        echo(f"{measured}; a score is {alignment[0]} and {alignment[1]} of {'cosines' if unit else 'inner products'}")
        if source.rounded:
            echo(f"{' and '.join(source.rounded)} values were rounded to float32")
        report_preparation(prepared, queries)
        echo(f"{out}: {held}")
    report_skipped(result.skipped)
    if strict and result.skipped:
        raise click.exceptions.Exit(1)


def report_preparation(prepared: Preparation | None, queries: Path | None) -> None:
    """Print how search was fitted to the queries, or why it was not."""
    if prepared is not None:
        echo(prepared.describe())
    elif queries is not None:
        echo(
            f"search is not fitted to {queries}, because the gallery has fewer than 256 rows, keeps no fine copy, or "
            "scores with VSA"
        )
