"""Drawn explanations: the right cells in the right colors, and a legend for every word."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies
from PIL import Image

from chan_rt.runtime.errors import InputError
from chan_rt.runtime.explanation import Explanation, WordMatch
from chan_rt.runtime.pictures.draw import FAINT, INK, LEGEND_WIDTH, LONGEST_SIDE, MARGIN, PALETTE, draw_explanation

EXPLANATION = Explanation(
    score=7.5,
    words=(
        WordMatch("<start>", 0, 0.1, 0.05),
        WordMatch("cat", 5, 0.8, 0.6),
        WordMatch("on", 5, 0.3, 0.1),
        WordMatch("mat", 10, 0.5, 0.25),
    ),
    grid=4,
)


def _draw(size: tuple[int, int] = (80, 40), explanation: Explanation = EXPLANATION) -> np.ndarray:
    return np.asarray(draw_explanation(Image.new("RGB", size, (90, 160, 90)), "a cat on a mat", explanation))


def _cell(sheet: np.ndarray, size: tuple[int, int], region: int, grid: int = 4) -> np.ndarray:
    scale = LONGEST_SIDE / max(size)
    width, height = size[0] * scale / grid, size[1] * scale / grid
    row, column = divmod(region, grid)
    left, top = MARGIN + column * width, MARGIN + row * height
    return sheet[round(top) : round(top + height), round(left) : round(left + width)]


def _has(pixels: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((pixels == color).all(axis=-1).any())


@pytest.mark.parametrize("size", [(80, 40), (40, 80), (384, 384), (2000, 1500)])
def test_each_word_is_in_its_cell_and_only_there(size: tuple[int, int]) -> None:
    sheet = _draw(size)
    cat, mat, on = PALETTE[:3]  # by falling share
    found = {region: [_has(_cell(sheet, size, region), color) for color in (cat, mat, on)] for region in range(16)}
    expected = {region: [False, False, False] for region in range(16)}
    expected |= {5: [True, False, True], 10: [False, True, False]}
    assert found == expected


def test_words_of_one_cell_do_not_hide_one_another() -> None:
    """The right edges of nested boxes: the larger share outermost, and thicker."""
    cell = _cell(_draw((384, 384)), (384, 384), 5)
    row = cell[len(cell) // 2 + 30]
    cat = np.flatnonzero((row == PALETTE[0]).all(axis=-1))
    on = np.flatnonzero((row == PALETTE[2]).all(axis=-1))
    assert cat.max() > on.max() > cat[cat < on.max()].max()
    assert len(cat) > len(on) > 0


def test_the_legend_names_every_color_and_grays_the_marks() -> None:
    sheet = _draw((384, 384))
    legend = sheet[:, -LEGEND_WIDTH - MARGIN :]
    for color in PALETTE[:3]:
        assert _has(legend, color)
    assert not _has(legend, PALETTE[3])
    assert _has(legend, (215, 215, 220))
    assert sheet.shape[1] == MARGIN + LONGEST_SIDE + MARGIN + LEGEND_WIDTH + MARGIN


def test_thirty_words_in_one_cell_of_a_thin_picture() -> None:
    words = tuple(WordMatch(f"word{number}", 0, 0.5, 1 / 30) for number in range(30))
    sheet = _draw((30, 300), Explanation(1.0, words, 6))
    assert sheet.shape[0] > 30 * 30


def test_very_long_words_and_captions_are_cut() -> None:
    words = (WordMatch("x" * 5000, 3, -0.5, -1.0),)
    sheet = draw_explanation(Image.new("L", (50, 50)), "y" * 3000 + " z" * 3000, Explanation(1.0, words, 2))
    assert sheet.width == 3 * MARGIN + LONGEST_SIDE + LEGEND_WIDTH


def test_regions_without_a_place_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="its regions must be a grid"):
        _draw(explanation=Explanation(1.0, EXPLANATION.words, None))


def test_a_picture_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(InputError, match=r"x\.png cannot be read as a picture"):
        draw_explanation(tmp_path / "x.png", "cat", EXPLANATION)


@settings(max_examples=60, deadline=None)
@given(
    width=strategies.sampled_from([1, 3, 40, 100, 640, 1000]),
    height=strategies.sampled_from([1, 3, 40, 100, 480, 1000]),
    grid=strategies.sampled_from([1, 6, 7, 24]),
    regions=strategies.lists(strategies.integers(0, 10_000), min_size=1, max_size=120),
)
@example(width=1000, height=100, grid=6, regions=[0])
@example(width=100, height=1000, grid=6, regions=[5] * 12)
@example(width=640, height=480, grid=6, regions=[35] * 60)
def test_any_picture_and_number_of_words_can_be_drawn(width: int, height: int, grid: int, regions: list[int]) -> None:
    words = tuple(WordMatch("word", region % grid**2, 0.5, 1 / len(regions)) for region in regions)
    sheet = draw_explanation(Image.new("RGB", (width, height)), "caption", Explanation(1.0, words, grid))
    assert sheet.width > LONGEST_SIDE * min(1, width / height) + LEGEND_WIDTH
    assert sheet.height > 30 * len(words)


def test_names_do_not_leave_a_narrow_cell() -> None:
    size = (40, 1000)
    words = (WordMatch("strawberry", 4, 0.5, 1.0),)
    sheet = _draw(size, Explanation(1.0, words, 4))
    found = {region for region in range(16) if _has(_cell(sheet, size, region), PALETTE[0])}
    assert found == {4}


def test_texts_stand_out() -> None:
    def luminance(color: tuple[int, int, int]) -> float:
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in np.divide(color, 255)
        ]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    for color in (*PALETTE, FAINT, INK):
        assert 1.05 / (luminance(color) + 0.05) >= 4.5, color


def test_an_unknown_word_is_marked_in_the_legend() -> None:
    def legend(known: bool) -> np.ndarray:
        words = (WordMatch("zzyzzx", 0, 0.5, 1.0, known),)
        return _draw(explanation=Explanation(1.0, words, 4))

    assert not np.array_equal(legend(True), legend(False))
