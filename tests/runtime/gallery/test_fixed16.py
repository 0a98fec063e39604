"""Fixed-point numbers of 16 bits: how near they are, that rounding again changes nothing, what their bytes restore."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import Gallery, GalleryWriter
from chan_rt.runtime.gallery.kernels.layout import store_codes
from chan_rt.runtime.gallery.proof.bounds import MAX_VALUE
from chan_rt.runtime.gallery.proof.fixed16 import from_fixed, join_bytes, round_to_fixed, split_bytes
from chan_rt.runtime.gallery.proof.rows import kept_vectors

LARGEST = 2.0**49
NUMBERS = st.floats(-LARGEST, LARGEST, width=32) | st.sampled_from([0.0, 1.0, -1.0, 1e-45, -1e-38, MAX_VALUE])
ROWS = st.lists(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=4), min_size=1, max_size=4)


def packed(rows: list[list[list[float]]]) -> tuple[np.ndarray, np.ndarray]:
    starts = np.cumsum([0] + [len(row) for row in rows], dtype=np.int64)
    return np.array([vector for row in rows for vector in row], np.float32), starts


@given(rows=ROWS)
def test_numbers_are_near_and_rounding_them_again_changes_nothing(rows) -> None:
    vectors, starts = packed(rows)
    integers, scale = round_to_fixed(vectors, starts)
    each = np.repeat(scale, np.diff(starts))
    held = from_fixed(integers, each)
    # exact in float32, so that whatever multiplies them has the same numbers
    assert (held == integers * (each.astype(np.float64) / 256)[:, None]).all()
    unit = each.astype(np.float64)[:, None] / 256
    peak = np.repeat(np.maximum.reduceat(np.abs(vectors).max(axis=1), starts[:-1]), np.diff(starts))[:, None]
    off = np.abs(held.astype(np.float64) - vectors)
    assert (off <= np.where(np.abs(vectors) == peak, unit, unit / 2)).all()
    assert (unit * 32512 <= np.maximum(peak * np.float64(1 + 2**-7), 32512 * 2.0**-108)).all()
    again, same = round_to_fixed(held, starts)
    np.testing.assert_array_equal(again, integers)
    np.testing.assert_array_equal(same, scale)


@given(rows=ROWS)
def test_codes_and_the_bytes_below_them_restore_the_numbers(rows) -> None:
    vectors, starts = packed(rows)
    integers, scale = round_to_fixed(vectors, starts)
    codes, low = split_bytes(integers)
    assert codes.min() >= -127
    each = np.repeat(scale, np.diff(starts))
    np.testing.assert_array_equal(join_bytes(store_codes(codes)[:, :3], low, each), from_fixed(integers, each))


def test_every_integer_has_two_bytes() -> None:
    integers = np.arange(-32512, 32513, dtype=np.int16)[None]
    codes, low = split_bytes(integers)
    joined = join_bytes((codes.astype(np.int32) + 128).astype(np.uint8), low, np.array([256], np.float32))
    np.testing.assert_array_equal(joined, integers)


def test_it_is_nearer_than_float16_in_the_same_bytes() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((36, 1024)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    starts = np.array([0, 36])
    off = [np.linalg.norm(kept_vectors(vectors, starts, form) - vectors, axis=1) for form in ("fixed16", "float16")]
    assert 4 * off[0].max() < off[1].min()


def test_a_gallery_gives_back_what_another_gave_it(tmp_path: Path, make_embeddings, make_settings) -> None:
    rows = make_embeddings(3, 30)
    names = [str(i) for i in range(30)]
    given = rows
    for name in ("first", "second"):
        with GalleryWriter.create(tmp_path / name, make_settings(fine="fixed16")) as writer:
            writer.add(names, given)
        with Gallery.open(tmp_path / name) as gallery:
            held = gallery.embeddings(names)
        if name == "second":
            np.testing.assert_array_equal(held.vectors, given.vectors)
        given = Embeddings(held.vectors, held.lengths, held.kind)
    sizes = [sum(f.stat().st_size for f in (tmp_path / n / "segments").iterdir()) for n in ("first", "second")]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("scan", ["compiled", "onnxruntime", "numpy"])
def test_answers_are_those_of_the_numbers_it_holds(tmp_path: Path, make_embeddings, make_settings, scan: str) -> None:
    rows, queries = make_embeddings(5, 60), make_embeddings(6, 5)
    names = [str(i) for i in range(60)]
    with GalleryWriter.create(tmp_path / "fixed", make_settings(fine="fixed16")) as writer:
        writer.add(names, rows)
    with Gallery.open(tmp_path / "fixed", scan=scan) as gallery:
        held, found = gallery.embeddings(names), gallery.search(queries, 60)
    with GalleryWriter.create(tmp_path / "exact", make_settings(fine="float32")) as writer:
        writer.add(names, Embeddings(held.vectors, held.lengths, held.kind))
    with Gallery.open(tmp_path / "exact") as gallery:
        expected = gallery.search(queries, 60)
    for one, other in zip(found, expected, strict=True):
        assert one.certified
        assert [(hit.id, hit.score) for hit in one.hits] == [(hit.id, hit.score) for hit in other.hits]
