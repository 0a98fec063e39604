"""An explanation as a picture: a box and a color per word, and its similarity beside it. Needs Pillow."""

from __future__ import annotations

from bisect import bisect
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from ..errors import InputError
from ..explanation import Explanation, WordMatch
from ..regions import Box
from .load import Picture, open_picture

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

Color: TypeAlias = tuple[int, int, int]

# Twelve colors that stay apart on light and dark pictures, with a contrast of 4.5 to 1 with white text; then darker.
PALETTE: tuple[Color, ...] = (
    (214, 39, 40),
    (31, 119, 180),
    (23, 135, 23),
    (148, 70, 189),
    (185, 80, 0),
    (0, 122, 122),
    (199, 21, 133),
    (110, 80, 20),
    (70, 70, 200),
    (105, 114, 0),
    (90, 100, 115),
    (150, 0, 30),
)
PALETTE += tuple((red // 2, green // 2, blue // 2) for red, green, blue in PALETTE)
INK, FAINT, PAPER = (30, 30, 35), (95, 98, 106), (255, 255, 255)
LONGEST_SIDE = 720
LEGEND_WIDTH = 420
MARGIN = 20
ROW = 30
SMALLEST_TAG = 10  # pixels of height: a smaller name cannot be read


def draw_explanation(picture: Picture, caption: str, explanation: Explanation) -> Image.Image:
    """The picture with a box around each word's region, and a legend of words, similarities and shares beside it.

    Boxes of words that chose one region are nested, the largest share outermost, their names stacked in it. A thick
    line is at least half the largest share. Marks of a caption's start and end have no box and are gray in the legend.

    Args:
        picture: the one that was explained.
        caption: likewise.
        explanation: of both, whose regions have boxes or are a grid.

    Raises:
        InputError: it is not known where the regions are, or the picture cannot be read, or Pillow is missing.
    """
    words = [match for match in explanation.words if not match.is_mark]
    boxes = {match.region: explanation.box(match) for match in words}
    if None in boxes.values():
        raise InputError(
            "explanation: its regions must be a grid over the picture or have boxes, got regions of unknown place"
        )
    image = open_picture(picture)
    scale = LONGEST_SIDE / max(image.size)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    by_share = sorted(words, key=lambda match: -match.share)
    colors = {id(match): PALETTE[number % len(PALETTE)] for number, match in enumerate(by_share)}
    lines = _wrap(caption, _font(20), LEGEND_WIDTH)
    legend_height = 2 * MARGIN + 28 * len(lines) + 76 + ROW * len(explanation.words)
    width = MARGIN + image.width + MARGIN + LEGEND_WIDTH + MARGIN
    sheet, draw = _sheet(width, max(image.height + 2 * MARGIN, legend_height))
    sheet.paste(image, (MARGIN, MARGIN))
    if explanation.grid is not None:
        _draw_grid(sheet, image.size, explanation.grid)
    _draw_boxes(draw, by_share, colors, {region: _in_pixels(box, image.size) for region, box in boxes.items() if box})
    _draw_legend(draw, (MARGIN + image.width + MARGIN, MARGIN), lines, explanation, colors)
    return sheet


def _draw_grid(sheet: Image.Image, size: tuple[int, int], grid: int) -> None:
    """Faint lines between regions, as light over dark and dark over light."""
    from PIL import Image, ImageDraw

    lines = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(lines)
    for step in range(1, grid):
        x, y = size[0] * step / grid, size[1] * step / grid
        for offset, shade in ((0, (255, 255, 255, 110)), (1, (0, 0, 0, 50))):
            draw.line([(x + offset, 0), (x + offset, size[1])], shade)
            draw.line([(0, y + offset), (size[0], y + offset)], shade)
    sheet.paste(lines, (MARGIN, MARGIN), lines)


def _in_pixels(box: Box, size: tuple[int, int]) -> Box:
    """Left, top, right and bottom on the sheet of a box in fractions of the picture, at least a pixel wide."""
    left, top = MARGIN + box[0] * size[0], MARGIN + box[1] * size[1]
    return left, top, left + max(box[2] * size[0], 1.0), top + max(box[3] * size[1], 1.0)


def _draw_boxes(
    draw: ImageDraw.ImageDraw, words: list[WordMatch], colors: dict[int, Color], boxes: Mapping[int, Box]
) -> None:
    """Words are given by falling share, boxes in pixels by region; large boxes are drawn first."""
    by_region: dict[int, list[WordMatch]] = defaultdict(list)
    for match in words:
        by_region[match.region].append(match)
    strongest = max((match.share for match in words), default=1.0)
    for region in sorted(by_region, key=lambda region: -_area(boxes[region])):
        matches = by_region[region]
        left, top, right, bottom = boxes[region]
        cell = (right - left, bottom - top)
        # Outermost is the word with the largest share; each further one lies inside, at most to a third of the cell.
        first = min(2.0, min(cell) / 6)
        step = min(6.0, (min(cell) / 3 - first) / len(matches))
        for depth, match in enumerate(matches):
            inset = first + depth * step
            line = 5 if match.share >= 0.5 * strongest else 2
            line = max(1, min(line, int(step)))
            box = (left + inset, top + inset, right - inset, bottom - inset)
            draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline=PAPER)
            draw.rectangle(box, outline=colors[id(match)], width=line)
        _draw_tags(draw, matches, colors, boxes[region])


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _draw_tags(draw: ImageDraw.ImageDraw, matches: list[WordMatch], colors: dict[int, Color], cell: Box) -> None:
    """Names and similarities stacked in the cell, in a size that all of them fit in; a long one is cut.

    Where the cell is too small for all of them, those of the largest share are named; the legend has the others.
    """
    left, top, right, bottom = cell[0] + 7, cell[1] + 7, cell[2] - 7, cell[3] - 7
    matches = matches[: max(0, int((bottom - top) / SMALLEST_TAG))]
    if not matches or right - left < SMALLEST_TAG:
        return
    height = min(20.0, (bottom - top) / len(matches))
    font = _font(max(8, round(height * 0.72)))
    for number, match in enumerate(matches):
        text = f"{match.word} {match.similarity:.2f}"
        if font.getlength(text) > right - left - 6:
            text = _shorten(match.word, font, right - left - 6)
        y = top + number * height
        draw.rectangle((left, y, left + font.getlength(text) + 6, y + height - 2), fill=colors[id(match)])
        draw.text((left + 3, y + (height - 2) / 2), text, PAPER, font, anchor="lm")


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    lines: list[str],
    explanation: Explanation,
    colors: dict[int, Color],
) -> None:
    x, y = corner
    for line in lines:
        draw.text((x, y), line, INK, _font(20))
        y += 28
    draw.text((x, y + 4), f"score {explanation.score:.3f}", INK, _font(16))
    y += 46
    bar_left, bar_width, share_right = x + 170, 110, x + LEGEND_WIDTH
    for left, title in ((x + 26, "word"), (bar_left, "similarity")):
        draw.text((left, y), title, FAINT, _font(14))
    draw.text((share_right, y), "share of score", FAINT, _font(14), anchor="ra")
    y += 26
    largest = max(max(abs(match.similarity) for match in explanation.words), 1e-6)
    for match in explanation.words:
        ink = FAINT if match.is_mark else INK
        color = colors.get(id(match), (215, 215, 220))
        middle = y + ROW / 2
        draw.rounded_rectangle((x, y + 6, x + 18, y + ROW - 6), 3, fill=color)
        draw.text(
            (x + 26, middle),
            _shorten(match.word if match.known else f"{match.word} (unknown)", _font(17), 136),
            ink,
            _font(17),
            anchor="lm",
        )
        length = bar_width * abs(match.similarity) / largest
        draw.rectangle((bar_left, y + 9, bar_left + max(length, 1), y + ROW - 9), fill=color)
        draw.text((bar_left + bar_width + 8, middle), f"{match.similarity:+.2f}", ink, _font(16), anchor="lm")
        draw.text((share_right, middle), f"{match.share:.0%}", ink, _font(16), anchor="rm")
        y += ROW


def _sheet(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    from PIL import Image, ImageDraw

    sheet = Image.new("RGB", (width, height), PAPER)
    return sheet, ImageDraw.Draw(sheet)


def _font(size: int) -> Any:
    """Pillow's own font: the same everywhere; letters it lacks show as empty boxes."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _wrap(text: str, font: Any, width: float) -> list[str]:
    """Lines no wider than `width`, at most six; a word that is wider is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_shorten(word, font, width))
    lines = [line for line in lines if line]
    return lines if len(lines) <= 6 else [*lines[:5], _shorten(f"{lines[5]} ...", font, width)]


def _shorten(text: str, font: Any, width: float) -> str:
    """The longest beginning of the text that fits with two dots behind it; the text where all of it fits."""
    text = text[: int(width)]  # no letter is narrower than a pixel
    if font.getlength(text) <= width:
        return text
    return text[: max(1, bisect(range(1, len(text)), width, key=lambda n: font.getlength(text[:n] + "..")))] + ".."
