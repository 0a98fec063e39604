"""A gallery's embeddings back out while a writer changes the gallery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime import AlignmentConfig, Embeddings, Gallery, GalleryWriter
from chan_rt.runtime.data.vectors import open_vectors
from chan_rt.runtime.indexing import export


def rows(lengths: list[int], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((length, 8)).astype(np.float32) for length in lengths]


@pytest.mark.parametrize("suffix", export.SUFFIXES)
@pytest.mark.parametrize("lengths", [[3, 3], [5, 5], [2, 4]], ids=["of-one-size", "longer", "of-one-sum"])
def test_rows_that_are_replaced_meanwhile_are_written_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, lengths: list[int]
) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    before = rows([3] * 40, seed=0)
    with GalleryWriter.create(tmp_path / "gallery", dim=8, alignment=AlignmentConfig.maxsim()) as writer:
        writer.add(range(40), Embeddings.from_rows(before), [{"commit": 1}] * 40)
    monkeypatch.setattr(export, "BYTES_AT_ONCE", 4 * 8 * 3 * 10)  # four pieces
    read, calls = Gallery.embeddings, 0

    def replacing(gallery: Gallery, ids: list[str]) -> Embeddings:
        nonlocal calls
        calls += 1
        if calls == 2:
            with GalleryWriter.open(tmp_path / "gallery") as writer:
                writer.add([20, 21], Embeddings.from_rows(rows(lengths, seed=1)), [{"commit": 2}] * 2, overwrite=True)
                writer.delete([30])
                writer.compact()
        return read(gallery, ids)

    monkeypatch.setattr(Gallery, "embeddings", replacing)
    with Gallery.open(tmp_path / "gallery") as gallery:
        done = export.export_embeddings(gallery, tmp_path / f"out{suffix}")
        assert len(gallery) == 39  # it has seen the change
    assert (calls, done.rows, done.vectors) == (4, 40, 120)
    (file,) = open_vectors(tmp_path / f"out{suffix}")
    assert file.ids is not None
    assert list(file.ids) == [str(id) for id in range(40)]
    for row, vectors in zip(file.read(), before, strict=True):
        assert row.metadata == {"commit": 1}
        np.testing.assert_array_equal(np.asarray(row.vectors, np.float32), vectors)
