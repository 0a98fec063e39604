"""`chan index`: encode images or captions into a gallery on disk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from ..runtime.gallery import GalleryWriter
    from ..runtime.matcher import Matcher
    from .gallery_sources import Source

# Rows encoded and committed at once: what an interrupted run loses at most. 256 rows of 36 x 1024 regions are 48 MB.
COMMIT_ROWS = 256
# Captions that choose and measure the fast scan, evenly spread: a recall of 0.999 over 100 x 10 hits is one miss.
FAST_QUERIES = 200


@click.command("index", short_help="Encode images or captions into a gallery for `chan search`.")
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("sources", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="New folder, or a gallery to add to.")
@click.option("--split", default="test", show_default=True, help="Of a data folder: train, dev, test or testall.")
@click.option("--captions", is_flag=True, help="Index captions: a data folder's, or the lines of text files.")
@click.option("--replace", is_flag=True, help="Encode rows the gallery has again instead of skipping them.")
@click.option("--fine", type=click.Choice(["float32", "float16", "none"]), default="float32", show_default=True,
    help="The copy exact search ranks by. With none only int8 is kept, and nothing is certified.")  # fmt: skip
@click.option("--queries", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Captions, one a line, that measure fast search; a data folder brings its own.")  # fmt: skip
@click.option("--backend", default="auto", show_default=True, help="auto, or a name that `chan doctor` lists.")
@click.option("--precision", default="fp32", show_default=True, help="Of the bundle's graphs.")
def command(
    bundle: Path, sources: tuple[Path, ...], out: Path, split: str, captions: bool, replace: bool, fine: str,
    queries: Path | None, backend: str, precision: str,
) -> None:  # fmt: skip
    """Encode SOURCES with BUNDLE and keep the embeddings in the gallery OUT.

    SOURCES are pictures and folders of them, or one data folder in the precomp layout; with --captions a data folder
    or text files. Rows the gallery already has are skipped, so the same command goes on where an interrupted one
    stopped and adds what is new. `chan gallery` deletes, compacts and verifies.
    """
    from ..runtime.contract import Manifest
    from ..runtime.gallery import GallerySettings, GalleryWriter, fingerprint, is_gallery
    from ..runtime.matcher import Matcher
    from .gallery_sources import open_source, read_lines

    source = open_source(sources, split, captions=captions)
    manifest = Manifest.load(bundle)
    settings = GallerySettings(
        kind="captions" if captions else "images",
        dim=manifest.embed_dim,
        alignment=manifest.alignment,
        model=fingerprint(manifest, precision),
        fine=fine,  # type: ignore[arg-type] - click.Choice has checked it
        bundle=str(bundle.resolve()),
        precision=precision,
    )
    exists = is_gallery(out)
    with GalleryWriter.open(out) if exists else GalleryWriter.create(out, settings) as writer:
        writer.check(settings)
        with Matcher.open(bundle, backend, precision) as matcher:
            _add(writer, source, matcher, replace)
            texts = source.queries if queries is None else read_lines(queries)
            _prepare(writer, matcher, texts)
        click.echo(f"{out}: {writer.describe()}")


def _add(writer: GalleryWriter, source: Source, matcher: Matcher, replace: bool) -> None:
    """Encode and commit what the gallery does not have, or everything with `replace`."""
    known = set() if replace else writer.ids(source.ids)
    rows = [row for row, id in enumerate(source.ids) if id not in known]
    with click.progressbar(length=len(rows), label="index", file=sys.stderr) as bar:
        for begin in range(0, len(rows), COMMIT_ROWS):
            part = rows[begin : begin + COMMIT_ROWS]
            embeddings = source.encode(matcher, part)
            ids, metadata = [source.ids[row] for row in part], [source.metadata[row] for row in part]
            writer.add(ids, embeddings, metadata, overwrite=replace)
            bar.update(len(part))
    click.echo(f"{len(rows)} rows encoded, {len(source.ids) - len(rows)} were already there")
    if rows:
        writer.compact()


def _prepare(writer: GalleryWriter, matcher: Matcher, texts: list[str]) -> None:
    """Fit and measure the fast scan where the gallery is large enough to gain from it."""
    from ..runtime.gallery.prepare import MIN_ROWS

    if len(writer) < MIN_ROWS or writer.settings.alignment.coding == "VSA":
        return
    chosen = texts[:: max(1, len(texts) // FAST_QUERIES)][:FAST_QUERIES]
    queries = matcher.encode_texts(chosen) if chosen and writer.settings.kind == "images" else None
    fast = writer.prepare_fast(queries)
    recall = "not measured (give --queries)" if fast.recall is None else f"{fast.recall:.4f} of the exact top {fast.k}"
    click.echo(f"fast search: rescores {fast.share:.0%} of the rows, recall {recall}, {fast.queries} held-out queries")
