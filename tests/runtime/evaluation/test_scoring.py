"""The packed scorer against the published values and the reference, for every coding and pooling."""

from pathlib import Path

import numpy as np
import pytest
import torch

from chan_rt.chan_ref import alignment as reference
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import TensorError
from chan_rt.runtime.evaluation import scoring
from chan_rt.runtime.evaluation.scoring import PackedWords

GOLDEN = Path(__file__).parents[2] / "golden"
CODINGS = ["VHA", "THA", "VSA"]
POOLINGS = ["Max", "Mean", "Sum", "LSE", "Softmax"]


def _random(rng: np.random.Generator, count: int, width: int, dim: int = 24, ragged: bool = True) -> Embeddings:
    vectors = rng.standard_normal((count, width, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    lengths = (rng.integers(1, width + 1, count) if ragged else np.full(count, width)).astype(np.int32)
    vectors[np.arange(width) >= lengths[:, None]] = 0
    return Embeddings(vectors, lengths)


@pytest.mark.parametrize("name", ["bigru_basic_vha_mean", "bigru_selfattention_vha_lse", "bigru_selfattention_ragged"])
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_published_scores(name: str, coding: str, pooling: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz")
    images = Embeddings(golden["image_embeddings"], golden["image_lengths"].astype(np.int32))
    texts = Embeddings(golden["caption_embeddings"], golden["caption_lengths"].astype(np.int32))
    config = AlignmentConfig(coding, pooling)  # type: ignore[arg-type]
    found = scoring.score(images, PackedWords.pack([texts]), config)
    published = golden[f"scores/{coding}Coding/{pooling}Pooling"]
    # Softmax pooling as published is NaN wherever an entry is padding; here it never is.
    known = np.isfinite(published) if pooling == "Softmax" else np.ones_like(published, bool)
    assert known.any()
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[known], published[known], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("ragged", [True, False])
def test_equals_the_reference_in_any_blocks(
    coding: str, pooling: str, ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    images, texts = _random(rng, 11, 6, ragged=ragged), _random(rng, 17, 9, ragged=ragged)
    config = AlignmentConfig(coding, pooling, 0.2, 0.05)  # type: ignore[arg-type]
    monkeypatch.setattr(scoring, "_IMAGES", 4)
    monkeypatch.setattr(scoring, "_BLOCK", 4 * 6 * 20)
    found = scoring.score(images, PackedWords.pack([texts[:5], texts[5:6].trimmed(), texts[6:]]), config)
    arrays = (images.vectors, images.lengths, texts.vectors, texts.lengths)
    expected = reference.score(*(torch.from_numpy(array) for array in arrays), config)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=2e-6)


def test_padding_is_never_read() -> None:
    rng = np.random.default_rng(2)
    images, texts = _random(rng, 5, 6), _random(rng, 7, 9)
    config = AlignmentConfig("THA", "LSE")
    clean = scoring.score(images, PackedWords.pack([texts]), config)
    images.vectors[np.arange(6) >= images.lengths[:, None]] = 9
    texts.vectors[np.arange(9) >= texts.lengths[:, None]] = 9
    for coding in CODINGS:
        config = AlignmentConfig(coding, "LSE")  # type: ignore[arg-type]
        packed = PackedWords.pack([texts])
        assert np.abs(packed.vectors).max() <= 1
        assert np.isfinite(scoring.score(images, packed, config)).all()
    np.testing.assert_array_equal(
        scoring.score(images, PackedWords.pack([texts]), AlignmentConfig("THA", "LSE")), clean
    )


def test_a_caption_longer_than_a_block_is_a_block_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_BLOCK", 1)
    rng = np.random.default_rng(3)
    images, texts = _random(rng, 3, 4), _random(rng, 4, 8)
    config = AlignmentConfig()
    found = scoring.score(images, PackedWords.pack([texts]), config)
    for column in range(4):
        alone = scoring.score(images, PackedWords.pack([texts[column]]), config)
        np.testing.assert_allclose(found[:, column], alone[:, 0], rtol=1e-6)


def test_what_does_not_fit_is_named() -> None:
    rng = np.random.default_rng(4)
    with pytest.raises(TensorError, match="D must be 16, as the words', got 24"):
        scoring.score(_random(rng, 2, 2), PackedWords.pack([_random(rng, 2, 2, dim=16)]), AlignmentConfig())
    with pytest.raises(TensorError, match="at least one caption"):
        PackedWords.pack([])
