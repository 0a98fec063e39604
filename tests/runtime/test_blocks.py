"""Work is cut so that nothing is lost, nothing is too large, and padding is zero."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chan_rt.runtime.blocks import cut_rows, groups, padded, padded_width, pieces, take_rows
from chan_rt.runtime.contract import Range


@given(count=st.integers(1, 300), most=st.integers(1, 64))
def test_pieces_cover_everything_once_and_evenly(count: int, most: int) -> None:
    sizes = [piece.stop - piece.start for piece in pieces(count, Range(1, 1, most))]
    assert [row for piece in pieces(count, Range(1, 1, most)) for row in range(count)[piece]] == list(range(count))
    assert max(sizes) <= most
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-count // most)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60), most=st.integers(1, 30))
def test_groups_are_sorted_by_length(lengths: list[int], most: int) -> None:
    found = groups(np.array(lengths, np.int32), Range(2, 4, 16), most)
    rows = np.concatenate(found)
    assert sorted(rows.tolist()) == list(range(len(lengths)))
    assert (np.diff(np.array(lengths)[rows]) >= 0).all()
    assert max(map(len, found)) <= min(max(most, 2), 16)


@pytest.mark.parametrize("width", [3, 4, 6])
def test_what_lies_past_a_length_is_zero_whatever_it_was(width: int) -> None:
    rows = np.full((2, 4, 2), np.nan, np.float32)
    rows[0, :3], rows[1, :1] = 5, 7
    found = cut_rows(rows, np.array([3, 1], np.int32), width)
    expected = np.zeros((2, width, 2), np.float32)
    expected[0, :3], expected[1, :1] = 5, 7
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(rows[1, 2]).all()
    assert found.flags.c_contiguous


def test_full_rows_are_not_copied() -> None:
    rows = np.ones((2, 4, 2), np.float32)
    assert np.shares_memory(cut_rows(rows, np.array([4, 4], np.int32), 4), rows)
    assert np.shares_memory(padded(rows, 2), rows)


@pytest.mark.parametrize(
    ("rows", "viewed"), [([2, 3, 4], True), ([0], True), ([1, 3], False), ([4, 3, 2], False), ([1, 3, 2, 4], False)]
)
def test_rows_that_follow_each_other_are_not_copied(rows: list[int], viewed: bool) -> None:
    array = np.arange(10).reshape(5, 2)
    found = take_rows(array, np.array(rows))
    np.testing.assert_array_equal(found, array[rows])
    assert np.shares_memory(found, array) == viewed


def test_too_few_rows_are_filled_with_the_last() -> None:
    assert padded(np.array([1, 2]), 4).tolist() == [1, 2, 2, 2]


def test_widths_are_rounded_up_within_the_range() -> None:
    words = Range(3, 12, 30)
    assert [padded_width(longest, words, 8) for longest in (1, 8, 9, 24, 25, 30)] == [8, 8, 16, 24, 30, 30]
    assert [padded_width(longest, words, 1) for longest in (1, 7, 30)] == [3, 7, 30]
