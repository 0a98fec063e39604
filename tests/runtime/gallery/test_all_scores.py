"""Scores of every pair from the compiled core: those of float64, with every instruction set, in any pieces."""

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import all_scores as module
from chan_rt.runtime.gallery.all_scores import all_scores, can_score
from chan_rt.runtime.gallery.compiled import CoreThreads, need_core
from chan_rt.runtime.gallery.proof.true_score import true_row

CODINGS = ["VHA", "THA"]
POOLINGS = ["Max", "Mean", "Sum", "LSE", "Softmax"]
THREADS = CoreThreads(2)

pytest.importorskip("chan_rt.runtime.gallery._core", reason="the search core is not compiled here")


def _random(seed: int, count: int, longest: int, dim: int) -> Embeddings:
    """Unit vectors, and past each length numbers that must not matter."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((count, longest, dim)) + 2 * rng.standard_normal(dim)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    lengths = rng.integers(1, longest + 1, count).astype(np.int32)
    vectors[np.arange(longest) >= lengths[:, None]] = 1e30
    return Embeddings(vectors.astype(np.float32), lengths)


def _expected(images: Embeddings, captions: Embeddings, alignment: AlignmentConfig) -> np.ndarray:
    """Every score in float64, one pair at a time."""
    rows, queries = (
        [row[:length] for row, length in zip(each.vectors, each.lengths, strict=True)] for each in (images, captions)
    )
    return np.array([[true_row(row, query, "images", alignment).score for query in queries] for row in rows])


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("regions", "words", "dim"), [(7, 6, 80), (3, 20, 33), (36, 13, 17), (1, 1, 1)])
def test_scores_are_those_of_float64(
    coding: str, pooling: str, regions: int, words: int, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, captions = _random(dim, 11, regions, dim), _random(dim + 1, 70, words, dim)
    alignment = AlignmentConfig(coding, pooling, pooling_temperature=0.05)  # type: ignore[arg-type]
    found = [all_scores(images, captions, alignment, THREADS, name) for name in need_core().features()]
    np.testing.assert_allclose(found[0], _expected(images, captions, alignment), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(module, "_PAIRS", 50)
    found.append(all_scores(images, captions, alignment, THREADS))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_products_beyond_float32_are_not_hidden() -> None:
    """A caller refuses scores that are not finite (`Matcher.score`)."""
    images, captions = (Embeddings(np.full((2, 1, 3), 1e30, np.float32), np.ones(2, np.int32)) for _ in range(2))
    assert not np.isfinite(all_scores(images, captions, AlignmentConfig(), THREADS)).any()


def test_only_hard_codings_are_scored_so() -> None:
    assert not can_score(AlignmentConfig("VSA", "Mean"))
