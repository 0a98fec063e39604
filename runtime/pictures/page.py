"""A page of hits: each picture with a box for every word, the words beside it. One file, nothing to load besides."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..explanation import MARKS
from ..gallery.result import Hit, SearchResult
from ..skipped import SkippedItem
from .draw import PALETTE
from .load import open_picture

_SIDE = 360  # pixels of a picture's longer side
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #1e1e23; background: #f6f6f4; margin: 2rem auto; max-width: 76rem;
  padding: 0 1rem }
h1 { font-size: 1.5rem; margin: 0 0 .2rem } .how { color: #666; margin: 0 0 1.5rem }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(22rem, 1fr)); gap: 1.2rem }
figure { background: #fff; border-radius: .6rem; margin: 0; padding: 1rem; box-shadow: 0 1px 4px #0002 }
.picture { position: relative; line-height: 0 } .picture img { width: 100%; border-radius: .3rem }
.picture span { position: absolute; border: 2px solid; border-radius: 3px; box-sizing: border-box }
.picture i { position: absolute; left: 0; bottom: 100%; font: 600 11px/1.3 system-ui; color: #fff; padding: 0 .3em;
  white-space: nowrap; border-radius: 2px }
figcaption { margin-bottom: .6rem; overflow-wrap: anywhere } figcaption b { font-variant-numeric: tabular-nums }
.words { margin: .7rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem }
.words span { color: #fff; border-radius: .3rem; padding: .05rem .45rem; font-size: 13px }
.words .mark { background: #999 !important }
.words .unknown { text-decoration: line-through } .lost { color: #a33; overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class HitWords:
    """The words of one hit's caption, or of the query's.

    Attributes:
        words: those that the hit's `word_regions` belong to.
        known: for each, whether the model's vocabulary has it.
    """

    words: Sequence[str]
    known: Sequence[bool]


def render_page(
    result: SearchResult, words: Sequence[HitWords], caption: str | None, image: Path | None, grid: int | None
) -> tuple[str, list[SkippedItem]]:
    """The hits as one HTML file.

    Args:
        result: of one query.
        words: for each hit, the words its `word_regions` belong to.
        caption, image: the query, one of them.
        grid: regions are a grid x grid raster of the picture; None where that is not known: then no boxes are drawn.

    A hit's picture is the query's, or the file its metadata names as `path`; without one the words stand alone.

    Returns:
        The page, and the pictures of hits that could not be read; the page shows the reason in their place.

    Raises:
        InputError: the query's picture cannot be read.
        MissingExtra: Pillow is missing.
    """
    title = caption if caption is not None else Path(str(image)).name
    verdict = "certified top" if result.certified else "not certified:"
    how = (
        f"{result.mode} search, {verdict} {len(result.hits)} of {result.rows}; {result.reason}; "
        f"{result.rescored} rows rescored ({result.rescored_share:.2%})"
    )
    skipped: list[SkippedItem] = []
    figures = [
        _figure(rank, hit, spoken, image, grid, skipped)
        for rank, (hit, spoken) in enumerate(zip(result.hits, words, strict=True), 1)
    ]
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{_text(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{_text(title)}</h1>\n"
        f'<p class="how">{_text(how)}</p>\n<div class="hits">\n{"".join(figures)}</div>\n</html>\n'
    )
    return page, skipped


def _text(value: object) -> str:
    """Text for HTML; bytes of a file name that are not UTF-8 are shown as escapes."""
    return escape(str(value).encode("utf-8", "backslashreplace").decode())


def _figure(
    rank: int, hit: Hit, spoken: HitWords, image: Path | None, grid: int | None, skipped: list[SkippedItem]
) -> str:
    path = image if image is not None else hit.metadata.get("path")
    text = str(hit.metadata.get("caption", Path(hit.id).name if Path(hit.id).suffix else hit.id))
    words = spoken.words
    colors = ["#{:02x}{:02x}{:02x}".format(*PALETTE[i % len(PALETTE)]) for i in range(len(words))]
    picture = ""
    if path is not None:
        boxes = _boxes(hit, words, colors, grid) if grid is not None else ""
        try:
            picture = f'<div class="picture"><img alt="" src="{_data_url(Path(str(path)))}">{boxes}</div>\n'
        except InputError as error:
            if image is not None:
                raise
            reason = str(error).removeprefix(f"{path} ")
            skipped.append(SkippedItem(str(path), reason))
            picture = f'<p class="lost">{_text(path)} {_text(reason)}</p>\n'
    chips = "".join(
        f'<span{_class(word, known)} style="background:{color}">{_text(word)} {value:.2f}</span>'
        for word, known, color, value in zip(words, spoken.known, colors, hit.word_scores, strict=True)
    )
    return (
        f"<figure><figcaption><b>{rank}. {hit.score:.4f}</b> {_text(text)}</figcaption>\n"
        f'{picture}<div class="words">{chips}</div></figure>\n'
    )


def _class(word: str, known: bool) -> str:
    if word in MARKS:
        return " class=mark"
    return "" if known else ' class=unknown title="This word is not in the vocabulary of the model."'


def _data_url(path: Path) -> str:
    """A picture as JPEG inside a URL, its longer side at most 360 pixels."""
    opened = open_picture(path)
    opened.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    opened.convert("RGB").save(data, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _boxes(hit: Hit, words: Sequence[str], colors: Sequence[str], grid: int) -> str:
    """One box a region, in its first word's color, with the names of all the words that chose it."""
    out = []
    for region in np.unique(hit.word_regions).tolist():
        if not 0 <= region < grid * grid:
            return ""  # not the backbone's raster
        mine = [i for i in np.flatnonzero(hit.word_regions == region).tolist() if words[i] not in MARKS]
        if not mine:
            continue
        row, column = divmod(region, grid)
        cell, color = 100 / grid, colors[mine[0]]
        names = _text(" ".join(words[i] for i in mine))
        # In the top row the name goes inside the box, or the picture's edge would cut it.
        place = "top:0;bottom:auto" if row == 0 else ""
        out.append(
            f'<span style="border-color:{color};left:{column * cell:.2f}%;top:{row * cell:.2f}%;'
            f'width:{cell:.2f}%;height:{cell:.2f}%"><i style="background:{color};{place}">{names}</i></span>'
        )
    return "".join(out)
