"""Pages of hits and of explanations: pictures with the regions that words chose. One file, nothing to load besides."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..contract import AlignmentConfig
from ..counts import counted
from ..errors import InputError
from ..explanation import MARKS, Explanation, word_shares
from ..gallery.result import Hit, SearchResult
from ..regions import Box, region_box
from ..skipped import SkippedItem
from .document import readable, render_document
from .load import Picture, open_picture

SIDE = 480  # pixels of a hit's longer side
LARGE_SIDE = 960  # of an explained picture's


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
    result: SearchResult,
    words: Sequence[HitWords],
    caption: str | None,
    image: Path | None,
    grid: int | None,
    alignment: AlignmentConfig,
    boxes: object = None,
) -> tuple[str, list[SkippedItem]]:
    """The hits as one HTML file.

    Args:
        result: of one query.
        words: for each hit, the words its `word_regions` belong to.
        caption, image: the query, one of them.
        grid: regions are a grid x grid raster of the picture; None where that is not known: then no boxes are drawn.
        alignment: of the model, for the words' shares of the score.
        boxes: of the query picture's regions, as `regions.region_box` takes them; those of a hit are in its metadata.

    A hit's picture is the query's, or the file its metadata names as `path`; without one the words stand alone.

    Returns:
        The page, and the pictures of hits that could not be read; the page shows the reason in their place.

    Raises:
        InputError: the query's picture cannot be read.
        MissingExtra: Pillow or jinja2 is missing.
    """
    title = caption if caption is not None else Path(str(image)).name
    shown, skipped = result_data(result, words, caption, image, grid, alignment, boxes)
    rows = counted(result.rows, "caption" if image is not None else "picture")
    summary = f"The {len(result.hits)} best of {rows}, by exact search."
    values = {"summary": summary, "result": shown}
    return render_document("hits.html", title, values, kind="wide", data={"result": shown}), skipped


def render_explanation(
    picture: Picture | None, caption: str, explanation: Explanation, *, title: str | None = None
) -> str:
    """An explanation as one HTML file: the picture with the region of each word, and the table of shares.

    Args:
        picture: the one that was explained; None where there is none, only its regions.
        caption: likewise.
        explanation: of both. Without a grid or boxes of its regions the page has no boxes.
        title: what the page calls the picture; None takes the name of its file.

    Raises:
        InputError: the picture cannot be read.
        MissingExtra: Pillow or jinja2 is missing.
    """
    shown = explanation_data(picture, explanation)
    name = title or (Path(str(picture)).name if isinstance(picture, str | Path) else "a picture")
    summary = f"The region of {readable(name)} that each word chose, and the word's share of the score."
    values = {"summary": summary, "explanation": shown}
    return render_document("explanation.html", caption, values, data={"explanation": shown})


def result_data(
    result: SearchResult,
    words: Sequence[HitWords],
    caption: str | None,
    image: Path | None,
    grid: int | None,
    alignment: AlignmentConfig,
    boxes: object = None,
) -> tuple[dict[str, Any], list[SkippedItem]]:
    """What the components draw of a search, in the form of the server's answers, with the pictures inside.

    Arguments, results and errors are those of `render_page`.
    """
    skipped: list[SkippedItem] = []
    hits = []
    for hit, spoken in zip(result.hits, words, strict=True):
        picture, lost = _hit_picture(hit, skipped) if image is None else (None, "")
        known = word_shares(hit.word_scores, alignment)
        shares = [None] * len(spoken.words) if known is None else known.tolist()
        own = hit.metadata.get("boxes") if image is None else boxes
        parts = zip(
            spoken.words, hit.word_regions.tolist(), hit.word_scores.tolist(), shares, spoken.known, strict=True
        )
        hits.append(
            {
                "id": readable(hit.id),
                "score": hit.score,
                "metadata": {key: value for key, value in hit.metadata.items() if key != "boxes"},
                "picture": picture,
                "lost": lost,
                "words": [word_data(*part, box=region_box(part[1], grid, own)) for part in parts],
            }
        )
    query_words = words[0] if caption is not None and words else HitWords((), ())
    shown = {
        "certified": result.certified,
        "reason": result.reason,
        "rows": result.rows,
        "rescored": result.rescored,
        "rescored_share": result.rescored_share,
        "picture": None if image is None else data_url(image),
        "words": [
            {"word": word, "known": known, "mark": word in MARKS}
            for word, known in zip(query_words.words, query_words.known, strict=True)
        ],
        "hits": hits,
    }
    return shown, skipped


def explanation_data(picture: Picture | None, explanation: Explanation) -> dict[str, Any]:
    """What the components draw of an explanation, with its picture inside if there is one.

    Raises:
        InputError: the picture cannot be read.
    """
    name = Path(str(picture)).name if isinstance(picture, str | Path) else "picture"
    return {
        "id": readable(name),
        "score": explanation.score,
        "metadata": {},
        "picture": None if picture is None else data_url(picture, LARGE_SIDE),
        "words": [
            word_data(match.word, match.region, match.similarity, match.share, match.known, box=explanation.box(match))
            for match in explanation.words
        ],
    }


def word_data(
    word: str, region: int, similarity: float, share: float | None, known: bool, *, box: Box | None
) -> dict[str, Any]:
    """One word of a hit, in the form of the server's answers; `box` is None where the region has no place."""
    return {
        "word": readable(word),
        "region": region,
        "box": box,
        "similarity": similarity,
        "share": share,
        "known": known,
        "mark": word in MARKS,
    }


def _hit_picture(hit: Hit, skipped: list[SkippedItem]) -> tuple[str | None, str]:
    path = hit.metadata.get("path")
    if path is None:
        return None, ""
    try:
        return data_url(Path(str(path))), ""
    except InputError as error:
        reason = str(error).removeprefix(f"{path} ")
        skipped.append(SkippedItem(str(path), reason))
        return None, readable(f"{path} {reason}")


def data_url(picture: Picture, side: int = SIDE) -> str:
    """A picture as JPEG inside a URL, its longer side at most `side` pixels.

    Raises:
        InputError: it cannot be read.
    """
    opened = open_picture(picture)
    opened.thumbnail((side, side))
    data = io.BytesIO()
    opened.convert("RGB").save(data, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
