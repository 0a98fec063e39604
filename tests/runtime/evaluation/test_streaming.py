"""Streaming evaluation: nothing is lost, doubled or reordered by the blocks, and ensembles share one scale."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from chan_rt.chan_ref import alignment as reference
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.evaluation import metrics, streaming

NUM_IMAGES, NUM_REGIONS, DIM = 10, 4, 8


class FakeEncoder:
    """Words are `axis` numbers, regions are unit vectors already; counts what it is asked for."""

    alignment = AlignmentConfig()

    def __init__(self) -> None:
        self.images = 0
        self.captions: list[str] = []

    def encode_images(self, regions: np.ndarray, lengths: np.ndarray) -> Embeddings:
        self.images += len(regions)
        return Embeddings(regions, lengths)

    def encode_texts(self, captions: Sequence[str]) -> Embeddings:
        self.captions += captions
        rows = [[int(word) for word in caption.split()] for caption in captions]
        lengths = np.array([len(row) for row in rows], np.int32)
        vectors = np.zeros((len(rows), lengths.max(), DIM), np.float32)
        for place, row in enumerate(rows):
            vectors[place, : len(row)] = np.eye(DIM, dtype=np.float32)[row]
        return Embeddings(vectors, lengths)

    def score(self, images: Embeddings, texts: Embeddings) -> np.ndarray:
        arrays = (images.vectors, images.lengths, texts.vectors, texts.lengths)
        return reference.score(*(torch.from_numpy(array) for array in arrays), self.alignment).numpy()


def _images(captions: Sequence[str], owner: np.ndarray) -> CaptionedImages:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((NUM_IMAGES, NUM_REGIONS, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return CaptionedImages.from_arrays(vectors, captions, owner, rng.integers(1, NUM_REGIONS + 1, NUM_IMAGES))


def _captions() -> list[str]:
    rng = np.random.default_rng(1)
    return [" ".join(map(str, rng.integers(0, DIM, rng.integers(1, 7)))) for _ in range(5 * NUM_IMAGES)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("folds", [1, 5])
def test_blocks_give_the_whole_matrix_once(packed: bool, folds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "IMAGES", 3)
    monkeypatch.setattr(streaming, "_CAPTIONS", 7)
    encoder, captions, owner = FakeEncoder(), _captions(), np.arange(50) // 5
    images = _images(captions, owner)
    blocks = metrics.fold_slices(owner, NUM_IMAGES, folds)
    told: list[tuple[int, int]] = []
    found = list(
        streaming.score_blocks(encoder, images, blocks, packed=packed, on_progress=lambda *step: told.append(step))
    )
    assert encoder.images == NUM_IMAGES
    assert sorted(encoder.captions) == sorted(captions)
    whole = FakeEncoder().score(Embeddings(*images.regions(slice(None))), FakeEncoder().encode_texts(captions))
    assert len(found) == folds
    for scores, (rows, columns) in zip(found, blocks, strict=True):
        np.testing.assert_allclose(scores, whole[rows, columns], rtol=1e-5, atol=1e-6)
    assert told[-1] == (500 // folds, 500 // folds)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_models_of_an_ensemble_share_one_scale() -> None:
    """Log-sum-exp pooling of a sharp temperature is its largest similarity, as Max pooling has it."""
    images = _images(_captions(), np.arange(50) // 5)
    blocks = [(slice(0, NUM_IMAGES), slice(0, 50))]
    scores = {}
    for pooling, temperature in (("LSE", 0.01), ("Max", 0.1), ("Mean", 0.1)):
        encoder = FakeEncoder()
        encoder.alignment = AlignmentConfig(pooling=pooling, pooling_temperature=temperature)  # type: ignore[arg-type]
        (found,) = streaming.score_blocks(encoder, images, blocks, packed=True)
        scores[pooling] = streaming.common_scale(found, encoder.alignment)
    np.testing.assert_allclose(scores["LSE"], scores["Max"], atol=0.01 * np.log(7))
    assert np.abs(scores["Mean"]).max() <= 1
