"""`chan search`: find the images that fit a caption best, or the captions that fit a picture."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from . import options
from .terminal import echo, print_json, visible

if TYPE_CHECKING:
    from ..runtime.gallery import Gallery, SearchResult
    from ..runtime.matcher import Matcher


@click.command("search", short_help="Find the images that fit a caption, or the captions that fit a picture.")
@click.argument("arguments", nargs=-1, required=True, metavar="GALLERY [CAPTION] | BUNDLE IMAGES... CAPTION")
@click.option("--image", type=options.FILE, help="Picture to search a gallery of captions with.")
@click.option("-k", default=10, show_default=True, type=options.COUNT, help="Number of hits to find.")
@click.option(
    "--mode",
    type=click.Choice(["exact", "fast"]),
    default="exact",
    show_default=True,
    help="exact is certified. fast reads an eighth of the bytes, and its recall was measured when it was prepared.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="CONDITION",
    help="Search only rows whose metadata passes: KEY=VALUE, KEY!=VALUE, KEY<VALUE (also <=, >, >=), KEY~VALUE "
    "(contains), KEY (exists), !KEY, or a filter in JSON. May be repeated; all conditions must hold.",
)
@options.json_option
@click.option(
    "--html", type=options.NEW_FILE, help="Also write the hits to this file, as a page with their alignments."
)
@options.moved_bundle_option
@options.backend_option
@options.threads_option
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Device that scans a GALLERY; cuda needs the GPU kernels of `chan gallery kernel`.",
)
@options.skipping_options
def command(
    arguments: tuple[str, ...], image: Path | None, k: int, mode: str, where: tuple[str, ...], as_json: bool,
    html: Path | None, moved: Path | None, backend: str, threads: int | None, device: Literal["cpu", "cuda"],
    max_bad: int, strict: bool,
) -> None:  # fmt: skip
    """Rank a GALLERY that `chan index` made, or IMAGES (files and folders) that are encoded only for this search.

    \b
    chan search GALLERY "two red apples on a table"
    chan search GALLERY --image picture.jpg            (a gallery of captions)
    chan search BUNDLE photos/ "two red apples on a table"
    """
    from ..runtime.errors import InputError
    from ..runtime.gallery import is_gallery
    from ..runtime.session import open_gallery_with_matcher

    first, *rest = arguments
    if is_gallery(first):
        if len(rest) != (image is None):
            raise InputError(
                f"{first} is a gallery: give one caption or --image, got {len(rest) + (image is not None)}"
            )
        opened = open_gallery_with_matcher(first, bundle=moved, backend=backend, threads=threads, device=device)
        with opened as (gallery, matcher):
            _search(gallery, matcher, rest[0] if rest else None, image, k, mode, where, as_json, html)
        return
    if device != "cpu":
        raise InputError(f"device must be cpu for pictures encoded for one search, got {device}; chan index them first")
    if image is not None or len(rest) < 2:
        raise InputError(f"{first} is not a gallery; to search pictures give BUNDLE IMAGES... CAPTION")
    with tempfile.TemporaryDirectory(prefix="chan-search-") as scratch:
        _search_pictures(Path(first), [Path(path) for path in rest[:-1]], rest[-1], Path(scratch),
                         k=k, as_json=as_json, html=html, backend=backend, threads=threads)  # fmt: skip


def _search_pictures(
    bundle: Path, paths: Sequence[Path], caption: str, scratch: Path, *,
    k: int, as_json: bool, html: Path | None, backend: str, threads: int | None,
) -> None:  # fmt: skip
    """Index pictures in a folder that goes afterwards, and search it."""
    from ..runtime.gallery import Gallery
    from ..runtime.index import index_source
    from ..runtime.matcher import Matcher
    from ..runtime.session import gallery_settings, open_writer
    from ..runtime.sources import picture_source

    source = picture_source(paths)
    with Matcher.open(bundle, backend, threads=threads) as matcher:
        with open_writer(scratch / "gallery", gallery_settings(bundle)) as writer:
            index_source(writer, matcher, source)
        with Gallery.open(scratch / "gallery", threads=threads) as gallery:
            _search(gallery, matcher, caption, None, k, "exact", (), as_json, html)


def _search(
    gallery: Gallery, matcher: Matcher, caption: str | None, image: Path | None, k: int, mode: str,
    where: Sequence[str], as_json: bool, html: Path | None,
) -> None:  # fmt: skip
    from ..runtime.errors import InputError
    from ..runtime.files import write_file
    from ..runtime.gallery.where import parse_words
    from ..runtime.pictures.page import render_page

    if not len(gallery):
        raise InputError("the gallery is empty: chan index adds rows")
    kind = gallery.settings.kind
    if (kind == "images") != (caption is not None):
        wanted = "a caption" if kind == "images" else "--image"
        raise InputError(f"this gallery holds {kind}: search it with {wanted}")
    queries = matcher.encode_pictures([image]) if image is not None else matcher.encode_texts([caption or ""])
    (result,) = gallery.search(queries, k, mode=mode, where=parse_words(where) or None)  # type: ignore[arg-type]
    words = [matcher.tokenizer.tokens(caption or str(hit.metadata.get("caption", ""))) for hit in result.hits]
    if html is not None:
        preprocess = matcher.manifest.preprocess
        page = render_page(result, words, caption, image, None if preprocess is None else preprocess.grid)
        write_file(html, page)
    if as_json:
        print_json(_as_dict(result, words, caption, image))
        return
    for rank, hit in enumerate(result.hits, 1):
        text = hit.metadata.get("caption") or hit.metadata.get("path") or ""
        shown = hit.id if text in ("", hit.id) or text.endswith(f"/{hit.id}") else f"{hit.id}  {text}"
        echo(f"{rank:>4}  {hit.score:>10.4f}  {visible(shown)}")
    verdict = "certified" if result.certified else "not certified"
    echo(f"{result.mode}, {verdict}: {result.reason}; {result.rescored} of {result.rows} rows rescored")
    if html is not None:
        echo(f"page: {html}")


def _as_dict(
    result: SearchResult, words: Sequence[Sequence[str]], caption: str | None, image: Path | None
) -> dict[str, Any]:
    return {
        "query": caption if caption is not None else str(image),
        "mode": result.mode,
        "certified": result.certified,
        "reason": result.reason,
        "rows": result.rows,
        "rescored": result.rescored,
        "hits": [
            {
                "id": hit.id,
                "score": hit.score,
                "metadata": dict(hit.metadata),
                "words": [
                    {"word": word, "region": int(region), "similarity": round(float(similarity), 6)}
                    for word, region, similarity in zip(tokens, hit.word_regions, hit.word_scores, strict=True)
                ],
            }
            for hit, tokens in zip(result.hits, words, strict=True)
        ],
    }
