"""Vectors of other models come in through one door: nothing of them is lost or changed without a word."""

import re
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chan_rt.runtime import AlignmentConfig, Embeddings, Gallery, GalleryError, GalleryWriter, InputError
from chan_rt.runtime.gallery import GallerySettings
from chan_rt.runtime.session import open_matcher, open_writer

MAXSIM = AlignmentConfig.maxsim()
RNG = np.random.default_rng(7)


def made(*lengths: int, dim: int = 4, dtype: Any = np.float32) -> list[Any]:
    return [np.random.default_rng(length).standard_normal((length, dim)).astype(dtype) for length in lengths]


@pytest.mark.parametrize("name", ["vectors", "lengths", "boxes"])
def test_a_list_where_an_array_belongs_is_named(name: str) -> None:
    arrays: dict[str, Any] = {"vectors": np.ones((1, 2, 4), np.float32), "lengths": np.array([2], np.int32)}
    with pytest.raises(InputError, match=f"{name}: must be a numpy array, got list"):
        Embeddings(**{**arrays, name: [2]})


def test_embeddings_are_printed_without_their_numbers() -> None:
    found = Embeddings.from_rows(made(3, 1))
    assert repr(found) == "Embeddings(rows [2, 3, 4])"
    boxes = np.zeros((2, 3, 4), np.float32)
    assert repr(Embeddings(found.vectors, found.lengths, "images", boxes)) == "Embeddings(images [2, 3, 4], with boxes)"


def test_rows_of_any_length_are_padded() -> None:
    rows = made(3, 1, 2)
    found = Embeddings.from_rows(rows)
    assert found.lengths.tolist() == [3, 1, 2]
    assert found.vectors.shape == (3, 3, 4)
    assert not found.vectors[1, 1:].any()
    for row, kept in zip(rows, found.rows(), strict=True):
        np.testing.assert_array_equal(row, kept)


@pytest.mark.parametrize(
    "rows",
    [
        RNG.standard_normal((5, 3, 4)),
        RNG.standard_normal((5, 4)).astype(np.float32),
        list(RNG.standard_normal((5, 4)).astype(np.float16)),
        np.asfortranarray(RNG.standard_normal((5, 3, 4))),
        RNG.standard_normal((5, 3, 4)).astype(">f4"),
        torch.from_numpy(RNG.standard_normal((5, 3, 4))),
        list(torch.from_numpy(RNG.standard_normal((5, 3, 4))).bfloat16().requires_grad_()),
        list(torch.from_numpy(RNG.standard_normal((5, 3, 4))).to(torch.float8_e4m3fn)),
        torch.from_numpy(RNG.standard_normal((5, 3, 4)) * 1j).conj().imag,
        RNG.standard_normal((5, 3, 4)).astype(ml_dtypes.bfloat16),
        RNG.standard_normal((5, 3, 4)).astype(ml_dtypes.float8_e5m2),
    ],
    ids=[
        "float64",
        "one vector a row",
        "float16",
        "Fortran order",
        "big-endian",
        "tensor",
        "bfloat16 tensors",
        "float8 tensors",
        "a negative view",
        "bfloat16 of JAX",
        "float8 of JAX",
    ],
)
def test_every_floating_point_number_is_the_nearest_float32(rows: Any) -> None:
    found = Embeddings.from_rows(rows)
    exact = [np.asarray(row.detach().resolve_neg().double()) if torch.is_tensor(row) else row for row in rows]
    assert found.vectors.dtype == np.float32
    for row, kept in zip(exact, found.rows(), strict=True):
        np.testing.assert_array_equal(np.atleast_2d(row).astype(np.float32), kept)


def broken(change: Any) -> list[Any]:
    rows = made(3, 2)
    change(rows)
    return rows


def put(value: float) -> Any:
    return lambda rows: rows[1].__setitem__((1, 2), value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "rows: must hold at least one row, got none"),
        (broken(put(np.nan)), "rows[1][1, 2]: must be finite, got nan"),
        (broken(put(-np.inf)), "rows[1][1, 2]: must be finite, got -inf"),
        ([made(2, dtype=np.float64)[0] * 1e300], "rows[0][0, 0]: must be at most 3.4e+38 in size, as float32 is, got "),
        (broken(lambda rows: rows[1].__setitem__(0, 0)), "rows[1][0]: must not be a vector of zeros"),
        (broken(lambda rows: rows.append(np.zeros((0, 4), np.float32))), "rows[2]: must be vectors [L, D], neither 0"),
        (broken(lambda rows: rows.append(made(2, dim=5)[0])), "rows[2]: D must be 4, as in the rows before, got 5"),
        ([np.ones((2, 3), np.int8)], "rows[0]: must be floating-point numbers; multiply quantized ones by their scale"),
        ([np.ones((2, 3), np.complex64)], "rows[0]: must be floating-point numbers"),
        ([np.array([[1.0, None]])], "rows[0]: must be floating-point numbers"),
        ([[[1.0, 2.0], [3.0]]], "rows[0]: must be an array of numbers, got list"),
        (["text"], "rows[0]: must be floating-point numbers"),
        ([np.ones((1, 2, 3, 4), np.float32)], "rows[0]: must be vectors [L, D], neither 0, or one vector [D], got [1,"),
        *((rows, "rows[0]: must be vectors [L, D] or one vector [D]; where the rows are one vector, pass [vector]")
          for rows in ([np.float32(1)], np.ones(4, np.float32), torch.ones(4), [0.5, 1.0])),
    ],
)  # fmt: skip
def test_what_is_no_row_is_refused_by_its_number(rows: Any, message: str) -> None:
    with pytest.raises(InputError, match="^" + re.escape(message)):
        Embeddings.from_rows(rows)


def test_a_kind_that_is_neither_is_refused() -> None:
    with pytest.raises(InputError, match=r"^kind must be one of images, captions, got .image."):
        Embeddings.from_rows(made(2), kind="image")  # type: ignore[arg-type]


def test_rows_that_are_a_tensor_of_integers_are_refused() -> None:
    with pytest.raises(InputError, match="must be floating-point numbers"):
        Embeddings.from_rows(torch.ones((2, 3), dtype=torch.int8))


def truth(rows: list[Any], query: Any) -> list[float]:
    """MaxSim in float64: of each word's vector the best inner product, summed."""
    return [float((query.astype(np.float64) @ row.astype(np.float64).T).max(1).sum()) for row in rows]


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_gallery_without_a_bundle_finds_the_exact_maxsim(data: st.DataObject) -> None:
    """Of vectors of any length: unit ones, and ones of which some are 1000 times as long as others."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    dim = data.draw(st.integers(1, 40))
    spread = data.draw(st.sampled_from([0.0, 1.0, 3.0]))
    rows = [
        (rng.standard_normal((length, dim)) * 10 ** rng.uniform(-spread, spread, (length, 1))).astype(np.float32)
        for length in data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    ]
    queries = [rng.standard_normal((length, dim)).astype(np.float32) for length in (1, 4)]
    with tempfile.TemporaryDirectory() as folder:
        with GalleryWriter.create(Path(folder, "gallery"), dim=dim, alignment=MAXSIM) as writer:
            writer.add(range(len(rows)), Embeddings.from_rows(rows))
        with Gallery.open(Path(folder, "gallery"), threads=1) as gallery:
            results = gallery.search(Embeddings.from_rows(queries), k=5)
    for query, result in zip(queries, results, strict=True):
        scores = truth(rows, query)
        best = sorted(range(len(rows)), key=lambda row: (-scores[row], row))[:5]
        assert result.certified
        found = [hit.score for hit in result.hits]
        np.testing.assert_allclose(found, [scores[row] for row in best], rtol=1e-12, atol=1e-9)
        assert [hit.id for hit in result.hits] == [str(row) for row in best]


def test_create_takes_settings_or_what_they_are_made_of(tmp_path: Path) -> None:
    made_with = GallerySettings("images", 4, MAXSIM, "m")
    with pytest.raises(InputError, match="needs settings, or dim and alignment"):
        GalleryWriter.create(tmp_path / "a")  # type: ignore[call-overload]
    with pytest.raises(InputError, match="needs settings, or dim and alignment"):
        GalleryWriter.create(tmp_path / "a", dim=4)  # type: ignore[call-overload]
    with pytest.raises(InputError, match="settings have dim and alignment already"):
        GalleryWriter.create(tmp_path / "a", made_with, dim=4)  # type: ignore[call-overload]
    assert not (tmp_path / "a").exists()
    with GalleryWriter.create(tmp_path / "a", dim=4, alignment=MAXSIM, kind="captions", fine="float16") as writer:
        assert writer.settings == GallerySettings("captions", 4, MAXSIM, "", "float16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 5}, "dim must be this gallery's 4, got 5"),
        ({"alignment": AlignmentConfig("THA", "Sum")}, "coding must be this gallery's VHA, got THA"),
        ({"alignment": AlignmentConfig("VHA", "Mean")}, "pooling must be this gallery's Sum, got Mean"),
        ({"kind": "captions"}, "kind must be this gallery's images, got captions"),
    ],
)
def test_rows_that_would_be_scored_otherwise_do_not_enter(tmp_path: Path, changes: dict, message: str) -> None:
    with GalleryWriter.create(tmp_path / "a", dim=4, alignment=MAXSIM):
        pass
    values: dict = {"kind": "images", "dim": 4, "alignment": MAXSIM, "model": "", **changes}
    with pytest.raises(InputError, match=message):
        open_writer(tmp_path / "a", GallerySettings(**values))


def test_embeddings_of_a_bundle_and_of_no_model_do_not_mix(tmp_path: Path) -> None:
    for name, model, other in (("own", "", "m"), ("bundled", "m", "")):
        with GalleryWriter.create(tmp_path / name, GallerySettings("images", 4, MAXSIM, model)):
            pass
        with pytest.raises(GalleryError, match="embeddings of no known model"):
            open_writer(tmp_path / name, GallerySettings("images", 4, MAXSIM, other))


def test_a_gallery_without_a_bundle_knows_no_words(tmp_path: Path) -> None:
    with GalleryWriter.create(tmp_path / "a", dim=4, alignment=MAXSIM) as writer:
        writer.add(["x"], Embeddings.from_rows(made(2)))
    with Gallery.open(tmp_path / "a") as gallery, pytest.raises(InputError, match="chan search GALLERY --embeddings"):
        open_matcher(gallery)
