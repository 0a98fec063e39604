"""Pointing accuracy, by hand on two small scenes."""

import json
from pathlib import Path

import numpy as np
import pytest

from chan_rt.demo.pointing import chosen_regions, pointing_accuracy
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import InputError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A canvas of 4 x 4 cells of 10 pixels; two scenes of one and two captions."""
    left_half, thin, corner = [0, 0, 20, 40], [21, 0, 24, 40], [30, 30, 40, 40]
    scenes = [
        {
            "boxes": [{"name": "cat", "box": left_half}, {"name": "pencil", "box": thin}],
            # "a cat and a pencil": the cat is word 1, the pencil word 4
            "mentions": [[{"start": 1, "stop": 2, "box": 0}, {"start": 4, "stop": 5, "box": 1}]],
        },
        {
            "boxes": [{"name": "teddy_bear", "box": corner}],
            # "a teddy bear": words 1 and 2
            "mentions": [[{"start": 1, "stop": 3, "box": 0}], []],
        },
    ]
    (tmp_path / "boxes.json").write_text(json.dumps({"canvas": 40, "splits": {"test": scenes}}))
    return tmp_path


def chosen(cat: int, pencil: int, teddy: int, bear: int) -> list[np.ndarray]:
    """Regions by token, `<start>` and `<end>` included; -1 stands for padding."""
    return [np.array([0, 0, cat, 0, 0, pencil, 0]), np.array([0, 0, teddy, bear, 0]), np.array([3, -1, -1])]


def test_counts_mentions_whose_cell_center_lies_in_the_box(data: Path) -> None:
    # Cells 13 (third row of the left half) and 15 (bottom right corner) are hits; no cell's center is in the pencil.
    found = pointing_accuracy(chosen(13, 2, 0, 15), data, "test", grid=4)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.chance == pytest.approx((8 / 16 + 0 + 1 / 16) / 3)
    assert found.ceiling == pytest.approx(2 / 3)
    assert found.mentions == 3


def test_noun_points_for_a_name_of_several_words(data: Path) -> None:
    assert pointing_accuracy(chosen(2, 0, 15, 0), data, "test", grid=4).accuracy == 0
    assert pointing_accuracy(chosen(2, 0, 0, 15), data, "test", grid=4).accuracy == pytest.approx(1 / 3)


def test_rows_and_columns_are_not_mixed_up(data: Path) -> None:
    # Row 2 of column 0 (cell 8) is in the left half, column 2 of row 0 (cell 2) is not.
    assert pointing_accuracy(chosen(8, 0, 0, 0), data, "test", grid=4).accuracy == pytest.approx(1 / 3)
    assert pointing_accuracy(chosen(2, 0, 0, 0), data, "test", grid=4).accuracy == 0


def test_wrong_rows_and_missing_boxes_are_errors(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="each of 3 captions, got 2"):
        pointing_accuracy(chosen(0, 0, 0, 0)[:2], data, "test", grid=4)
    with pytest.raises(InputError, match="0 to 15"):
        pointing_accuracy(chosen(16, 0, 0, 0), data, "test", grid=4)
    with pytest.raises(InputError, match="0 to 15"):
        pointing_accuracy(chosen(-1, 0, 0, 0), data, "test", grid=4)
    with pytest.raises(InputError, match="boxes of 'dev'"):
        pointing_accuracy(chosen(0, 0, 0, 0), data, "dev", grid=4)
    with pytest.raises(InputError, match=r"boxes\.json must hold"):
        pointing_accuracy([], tmp_path / "nothing", "test", grid=4)


def test_words_choose_their_best_region_among_the_real_ones() -> None:
    images = Embeddings(
        np.array([[[1, 0], [0, 1], [0, 9]], [[0, 2], [0, 2], [3, 0]]], np.float32), np.array([2, 3], np.int32)
    )
    texts = Embeddings(np.array([[[0, 1], [1, 0]], [[0, 1], [1, 0]]], np.float32), np.array([2, 1], np.int32))
    first, second = chosen_regions(images, texts, np.array([0, 1]))
    assert first.tolist() == [1, 0]  # region 2 of the first image is padding
    assert second.tolist() == [0]  # a tie goes to the lower region; the second word is padding
