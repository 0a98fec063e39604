"""`chan search`: find the images that fit a caption best, or the captions that fit a picture."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..runtime.counts import counted
from ..runtime.skipped import Skipped
from . import options, values
from .terminal import echo, print_json, report_skipped, skipped_as_dicts, visible, warn_of_unknown

if TYPE_CHECKING:
    from ..runtime.embeddings import Embeddings
    from ..runtime.gallery import Gallery, SearchResult
    from ..runtime.matcher import Matcher
    from ..runtime.pictures.page import HitWords


@click.command("search", short_help="Find the images that fit a caption, or the captions that fit a picture.")
@click.argument(
    "arguments", nargs=-1, required=True, type=values.TEXT, metavar="GALLERY|URL [CAPTION] | BUNDLE IMAGES... CAPTION"
)
@click.option("--image", type=values.FILE, help="Picture to search with: its captions, or pictures like it.")
@click.option(
    "--like", type=values.ID, metavar="ID", help="Search with the row of this id, which is not among the hits."
)
@click.option(
    "--embeddings",
    "vectors",
    type=values.EXISTING,
    help="File of embeddings to search with, one query for each of its rows, as `chan index --embeddings` reads them.",
)
@click.option("-k", default=10, show_default=True, type=values.COUNT, help="Number of hits to find.")
@options.where_option
@options.json_option
@click.option("--html", type=values.NEW_FILE, help="Also write the hits to this file, as a page with their alignments.")
@options.moved_bundle_option
@options.backend_option
@options.encoder_device_option
@options.threads_option
@click.option(
    "--device",
    type=values.DEVICE,
    default="cpu",
    show_default=True,
    help="Device that scans a GALLERY; cuda needs the GPU kernels of `chan gallery kernel`.",
)
@click.option(
    "--skip-damaged", is_flag=True, help="Search the readable rows of a damaged GALLERY; nothing is certified."
)
@options.skipping_options
def command(
    arguments: tuple[str, ...], image: Path | None, like: str | None, vectors: Path | None, k: int, where: Any,
    as_json: bool, html: Path | None, moved: Path | None, backend: str,
    encoder_device: str, threads: int | None,
    device: str, skip_damaged: bool, max_bad: int, strict: bool,
) -> None:  # fmt: skip
    """Rank a GALLERY that `chan index` made, or IMAGES (files and folders) that are encoded only for this search.

    \b
    chan search GALLERY "a red apple and a strawberry"
    chan search GALLERY --image picture.jpg
    chan search GALLERY --like photos/picture.jpg
    chan search GALLERY --embeddings queries.npy
    chan search BUNDLE photos/ "a red apple and a strawberry"

    URL is the address of a gallery in object storage, where `chan gallery push` has put it. A copy is kept in a cache.

    A gallery without a bundle is searched with --embeddings or --like. A picture that searches pictures takes the place
    of a caption, and a caption that searches captions that of a picture.
    """
    from ..runtime.gallery import Gallery, is_gallery
    from ..runtime.session import open_gallery_with_matcher

    query = _Query(k, where, as_json, html, Skipped(max_bad))
    first, *rest = arguments
    first = values.local_gallery(first)
    if is_gallery(first):
        given = len(rest) + sum(query is not None for query in (image, like, vectors))
        if given != 1:
            hint = ". Put a caption of several words in quotes" if len(rest) > 1 else ""
            raise click.UsageError(f"{first} is a gallery: give one caption, --image, --like or --embeddings{hint}")
        damaged: Literal["refuse", "skip"] = "skip" if skip_damaged else "refuse"
        if like is not None or vectors is not None:
            refused = ("html", "moved", "backend", "encoder_device", "max_bad", "strict")
            options.refuse_given(click.get_current_context(), refused, "with --like or --embeddings")
            with Gallery.open(first, threads=threads, device=device, damaged=damaged) as gallery:
                query.answer_vectors(gallery, like, vectors)
            return
        opened = open_gallery_with_matcher(
            first, bundle=moved, backend=backend, threads=threads, device=device, damaged=damaged,
            encoder_device=encoder_device,
        )  # fmt: skip
        with opened as (gallery, matcher):
            query.answer(gallery, matcher, rest[0] if rest else None, image)
    else:
        if len(rest) < 2 or any(query is not None for query in (image, like, vectors)):
            what = "is not a gallery" if os.path.lexists(first) else "does not exist"
            raise click.UsageError(f"{first} {what}; to search pictures give BUNDLE IMAGES... CAPTION")
        for flag, given in (("--device cuda", device != "cpu"), ("--where", bool(where)), ("--bundle", bool(moved)),
                            ("--skip-damaged", skip_damaged)):  # fmt: skip
            if given:
                raise click.UsageError(f"{flag} needs a gallery; make one of the pictures with `chan index`")
        _search_pictures(Path(first), rest[:-1], rest[-1], query, backend, threads, encoder_device)
    if strict and len(query.skipped):
        raise click.exceptions.Exit(1)


def _search_pictures(
    bundle: Path,
    paths: Sequence[str],
    caption: str,
    query: _Query,
    backend: str,
    threads: int | None,
    device: str,
) -> None:
    """Index pictures in a folder that is removed afterwards, and search it."""
    from ..runtime.gallery import Gallery
    from ..runtime.indexing.index import index_source
    from ..runtime.indexing.sources import picture_source
    from ..runtime.matcher import Matcher
    from ..runtime.session import gallery_settings, open_writer

    source = picture_source(paths)
    with (
        tempfile.TemporaryDirectory(prefix="chan-search-") as scratch,
        Matcher.open(bundle, backend, threads=threads, device=device) as matcher,
    ):
        with open_writer(Path(scratch, "gallery"), gallery_settings(bundle)) as writer:
            done = index_source(writer, matcher, source, max_bad=query.skipped.limit)
        for item in done.skipped:
            query.skipped.add(item)
        query.passed_over = source.passed_over
        with Gallery.open(Path(scratch, "gallery"), threads=threads) as gallery:
            query.answer(gallery, matcher, caption, None)


@dataclass
class _Query:
    """What is asked, and how the answer is printed; and what could not be read on the way."""

    k: int
    where: Any
    as_json: bool
    html: Path | None
    skipped: Skipped
    passed_over: Mapping[str, int] = field(default_factory=dict)

    def answer(self, gallery: Gallery, matcher: Matcher, caption: str | None, image: Path | None) -> None:
        """Search the gallery with a caption or a picture, and print the hits."""
        from ..runtime.files import write_file
        from ..runtime.pictures.page import HitWords, render_page

        _check_not_empty(gallery)
        same_kind = (gallery.settings.kind == "images") == (image is not None)
        if same_kind and self.html is not None:
            raise click.UsageError("--html shows words in pictures, and this search compares no caption with a picture")
        queries = matcher.encode_pictures([image]) if image is not None else matcher.encode_texts([caption or ""])
        (result,) = gallery.search(queries, self.k, where=self.where, same_kind=same_kind)
        texts = [] if same_kind else [caption or str(hit.metadata.get("caption", "")) for hit in result.hits]
        words = [HitWords(matcher.tokenizer.tokens(text), matcher.tokenizer.known(text)) for text in texts]
        unknown = matcher.unknown_words(caption) if caption is not None else []
        if self.html is not None:
            preprocess = matcher.manifest.preprocess
            grid = None if preprocess is None else preprocess.grid
            boxes = None if queries.boxes is None else queries.boxes[0]
            page, lost = render_page(result, words, caption, image, grid, matcher.alignment, boxes)
            write_file(self.html, page)
            for item in lost:
                self.skipped.add(item)
        if self.as_json:
            asked = caption if caption is not None else str(image)
            skipped = skipped_as_dicts(self.skipped.items)
            print_json(
                {**_as_dict(result, words or None), "query": asked, "unknown_words": unknown, "skipped": skipped}
            )
        else:
            self._print(result)
        warn_of_unknown(unknown, [] if caption is None else matcher.tokenizer.known(caption))
        report_skipped(self.skipped.items, self.passed_over)

    def answer_vectors(self, gallery: Gallery, like: str | None, vectors: Path | None) -> None:
        """Search the gallery with one of its rows, or with embeddings from a file, and print the hits of each query."""
        from ..runtime.indexing.embedding_source import embedding_source

        _check_not_empty(gallery)
        names: Sequence[str]
        rounded: Sequence[str] = ()
        if like is not None:
            queries = gallery.embeddings([like])
            found = gallery.search(queries, self.k + 1, where=self.where, same_kind=True)
            names, results = [like], [found[0].without(like, self.k)]
        else:
            assert vectors is not None
            source = embedding_source([vectors], readers=options.vector_readers())
            names, rounded = source.ids, source.rounded
            queries = source.embeddings(gallery.settings.dim)
            results = gallery.search(queries, self.k, where=self.where)
            _say_if_words_are_queries(vectors, queries, gallery, results)
        if self.as_json:
            facts = {} if vectors is None else {"rounded": bool(rounded)}
            answers = [
                {**_as_dict(result), "query": name, **facts} for name, result in zip(names, results, strict=True)
            ]
            print_json(answers[0] if like is not None else answers)
            return
        for name, result in zip(names, results, strict=True):
            if len(names) > 1:
                echo(visible(name))
            self._print(result)
        if rounded:
            echo(f"{' and '.join(rounded)} values were rounded to float32")

    def _print(self, result: SearchResult) -> None:
        for rank, hit in enumerate(result.hits, 1):
            text = str(hit.metadata.get("caption") or hit.metadata.get("path") or "")
            shown = hit.id if text in ("", hit.id) or text.endswith(f"/{hit.id}") else f"{hit.id}  {text}"
            echo(f"{rank:>4}  {hit.score:>10.4f}  {visible(shown)}")
        verdict = "certified" if result.certified else "not certified"
        echo(f"{verdict}: {result.reason}; {result.rescored} of {counted(result.rows, 'row')} rescored")
        if self.html is not None:
            echo(f"page: {visible(self.html)}")


def _say_if_words_are_queries(
    file: Path, queries: Embeddings, gallery: Gallery, results: Sequence[SearchResult]
) -> None:
    """Say that each vector was a query, where rows have several: the file may be meant as one query [L, D]."""
    if len(queries) == 1 or int(queries.lengths.max()) > 1 or not results[0].hits:
        return
    if gallery.embeddings([results[0].hits[0].id]).lengths[0] > 1:
        read = f"{visible(file)} holds {counted(len(queries), 'query')} of one vector each"
        echo(f"{read}; one query of all these vectors is an array [1, L, D]", err=True)


def _check_not_empty(gallery: Gallery) -> None:
    from ..runtime.errors import InputError

    if not len(gallery):
        lost = gallery.info()["lost_rows"]
        raise InputError(
            f"no row of the gallery can be read: all {lost} are damaged"
            if lost
            else "the gallery is empty: chan index adds rows"
        )


def _as_dict(result: SearchResult, words: Sequence[HitWords] | None = None) -> dict[str, Any]:
    """A result for JSON; without the words of each hit, what their vectors chose has no names."""
    return {
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
                    {"region": int(region), "similarity": round(float(similarity), 6)}
                    | ({} if words is None else {"word": words[rank].words[i], "known": words[rank].known[i]})
                    for i, (region, similarity) in enumerate(zip(hit.word_regions, hit.word_scores, strict=True))
                ],
            }
            for rank, hit in enumerate(result.hits)
        ],
    }
