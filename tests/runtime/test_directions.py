"""The directions that a bundle keeps: what is read, what is refused, and that search is fitted to them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig, Manifest, TokenizerSpec, sha256_file
from chan_rt.runtime.directions import DIRECTIONS_FILE, directions_of, read_directions
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import BundleError, InputError
from chan_rt.runtime.gallery import GallerySettings, GalleryWriter

DIM = 192
MANIFEST = Manifest({"embed_dim": DIM}, AlignmentConfig(), {}, TokenizerSpec("scan", {}))


def bundle_with(folder: Path, **arrays: np.ndarray) -> Manifest:
    """Write a bundle's directions; returns the manifest that has their hash."""
    path = folder / DIRECTIONS_FILE
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)
    return replace(MANIFEST, calibration={DIRECTIONS_FILE: sha256_file(path)})


def test_each_kind_has_its_own(tmp_path: Path) -> None:
    words, regions = np.ones((3, DIM), np.float32), np.zeros((5, DIM), np.float32)
    manifest = bundle_with(tmp_path, words=words, regions=regions)
    np.testing.assert_array_equal(read_directions(tmp_path, manifest, "captions"), words)
    np.testing.assert_array_equal(read_directions(tmp_path, manifest, "images"), regions)


def test_a_bundle_that_was_not_calibrated_has_none(tmp_path: Path) -> None:
    assert read_directions(tmp_path, MANIFEST, "captions") is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (np.ones((3, 8), np.float32), r"words must be float32 \[directions, 192\], got float32 \(3, 8\)"),
        (np.ones((3, DIM)), r"words must be float32 \[directions, 192\], got float64 \(3, 192\)"),
        (np.ones(DIM, np.float32), r"got float32 \(192,\)"),
        (np.full((3, DIM), np.nan, np.float32), "words must be finite"),
        (np.array([None]), "cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, words: np.ndarray, message: str) -> None:
    manifest = bundle_with(tmp_path, words=words)
    with pytest.raises(BundleError, match=message):
        read_directions(tmp_path, manifest, "captions")
    with pytest.raises(BundleError, match="cannot be read"):
        read_directions(tmp_path, manifest, "images")


def test_altered_or_unreadable_directions_are_refused(tmp_path: Path) -> None:
    manifest = bundle_with(tmp_path, words=np.ones((3, DIM), np.float32))
    (tmp_path / DIRECTIONS_FILE).write_bytes(b"PK nonsense")
    with pytest.raises(BundleError, match="was altered"):
        read_directions(tmp_path, manifest, "captions")
    manifest = replace(MANIFEST, calibration={DIRECTIONS_FILE: sha256_file(tmp_path / DIRECTIONS_FILE)})
    with pytest.raises(BundleError, match="cannot be read"):
        read_directions(tmp_path, manifest, "captions")


def test_directions_keep_the_most_of_a_moment() -> None:
    energy = np.r_[np.linspace(1, 0.5, 256), np.full(44, 1e-3)]
    found = directions_of(np.diag(energy))
    assert found.shape == (256, 300)
    np.testing.assert_allclose(np.diag(found.T @ found), np.r_[energy[:256], np.zeros(44)] / energy.sum(), atol=1e-7)


def test_axes_are_fitted_to_directions_where_there_are_no_queries(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    settings = GallerySettings(kind="images", dim=DIM, alignment=AlignmentConfig(), model="m" * 64)
    direction = np.eye(1, DIM, 7, dtype=np.float32)
    with GalleryWriter.create(tmp_path / "g", settings) as writer:
        rows = Embeddings(rng.standard_normal((40, 3, DIM)).astype(np.float32), np.full(40, 3, np.int32))
        writer.add(range(40), rows)
        assert abs(writer.prepare(directions=direction).plan.axes.basis[0, 7]) > 0.99
        assert abs(writer.prepare().plan.axes.basis[0, 7]) < 0.9
        queries = Embeddings(np.eye(1, DIM, 9, dtype=np.float32)[None], np.ones(1, np.int32))
        assert abs(writer.prepare(queries, direction).plan.axes.basis[0, 9]) > 0.99
        with pytest.raises(InputError, match=r"directions: shape must be \[r, 192\], got \[1, 191\]"):
            writer.prepare(directions=direction[:, 1:])
