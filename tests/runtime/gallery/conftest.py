"""Small galleries of made-up embeddings."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import GallerySettings, GalleryWriter

DIM = 24


def embeddings(seed: int, rows: int, longest: int = 6, even: bool = False, dim: int = DIM) -> Embeddings:
    """Unit vectors with random lengths, from a seed."""
    rng = np.random.default_rng(seed)
    lengths = np.full(rows, longest) if even else rng.integers(1, longest + 1, rows)
    vectors = rng.standard_normal((rows, longest, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    vectors[np.arange(longest) >= lengths[:, None]] = 0
    return Embeddings(vectors, lengths.astype(np.int32))


def settings(**changes: object) -> GallerySettings:
    """Settings of a small gallery of images."""
    values: dict = {"kind": "images", "dim": DIM, "alignment": AlignmentConfig(), "model": "m" * 64, **changes}
    return GallerySettings(**values)


@pytest.fixture
def gallery_path(tmp_path: Path) -> Path:
    """A gallery of 30 rows in 3 segments; row i has id `i` and metadata {"n": i, "even": ...}."""
    path = tmp_path / "gallery"
    with GalleryWriter.create(path, settings()) as writer:
        for i in range(0, 30, 10):
            ids = [str(n) for n in range(i, i + 10)]
            writer.add(ids, embeddings(i, 10), [{"n": n, "even": n % 2 == 0} for n in range(i, i + 10)])
    return path


@pytest.fixture
def make_embeddings() -> Callable[..., Embeddings]:
    """The function that makes embeddings from a seed."""
    return embeddings


@pytest.fixture
def make_settings() -> Callable[..., GallerySettings]:
    """The function that makes settings."""
    return settings
