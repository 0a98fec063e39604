"""Shares mean what their table says."""

import numpy as np
import pytest
import torch

from chan_rt.chan_ref import alignment
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.explanation import shares

POOLINGS = ("Max", "Mean", "Sum", "LSE", "Softmax")


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit regions [6, 8], unit words [4, 8], and each word's best similarity."""
    rng = np.random.default_rng(5)
    regions, words = (rng.standard_normal((size, 8)) for size in (6, 4))
    regions, words = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (regions, words))
    return regions.astype(np.float32), words.astype(np.float32), (regions @ words.T).max(axis=0)


@pytest.mark.parametrize("coding", ["VHA", "THA", "VSA"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_shares_sum_to_one_where_nothing_cancels(pair: tuple, coding: str, pooling: str) -> None:
    regions, words, best = pair
    config = AlignmentConfig(coding, pooling, 0.2, 0.1)
    found = shares(np.abs(regions), np.abs(words), (np.abs(regions) @ np.abs(words).T).max(axis=0), config)
    assert found.shape == (4,)
    assert found.sum() == pytest.approx(1, abs=1e-6)
    assert np.abs(shares(regions, words, best, config)).sum() <= 1 + 1e-6


def test_vha_lse_share_is_how_much_the_score_moves_with_the_word(pair: tuple) -> None:
    config = AlignmentConfig("VHA", "LSE", pooling_temperature=0.1)
    coding = torch.tensor(pair[2], requires_grad=True)
    alignment.pool(coding, torch.ones(4, dtype=torch.bool), config).backward()
    np.testing.assert_allclose(shares(*pair, config), 0.1 * coding.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("pooling", ["Sum", "Mean"])
def test_vha_sum_share_is_the_words_part(pair: tuple, pooling: str) -> None:
    best = pair[2] * [1, -1, 1, 1]
    found = shares(pair[0], pair[1], best, AlignmentConfig("VHA", pooling))
    np.testing.assert_allclose(found, best / np.abs(best).sum(), atol=1e-6)
    assert found[1] < 0


def test_max_share_is_the_first_of_the_largest(pair: tuple) -> None:
    found = shares(pair[0], pair[1], [0.2, 0.7, 0.7, 0.1], AlignmentConfig("VHA", "Max"))
    assert found.tolist() == [0, 1, 0, 0]


def test_nothing_at_all_has_no_shares(pair: tuple) -> None:
    assert shares(pair[0], pair[1], [0.0] * 4, AlignmentConfig("VHA", "Sum")).tolist() == [0, 0, 0, 0]


def test_tha_share_is_that_of_the_regions_which_chose_the_word(pair: tuple) -> None:
    similarity = pair[0].astype(np.float64) @ pair[1].T
    expected = [similarity.max(axis=1)[similarity.argmax(axis=1) == word].sum() for word in range(4)]
    found = shares(*pair, AlignmentConfig("THA", "Sum"))
    np.testing.assert_allclose(found, np.array(expected) / np.abs(similarity.max(axis=1)).sum(), atol=1e-6)


@pytest.mark.parametrize("pooling", ["Sum", "Softmax"])
def test_vsa_shares_are_of_the_references_coding(pair: tuple, pooling: str) -> None:
    """A region's share is spread over the words by its attention."""
    regions, words, best = pair
    config = AlignmentConfig("VSA", pooling, attention_temperature=0.2, pooling_temperature=0.1)
    tensors = [torch.from_numpy(array)[None] for array in (regions, words)]
    coding, _ = alignment.code(tensors[0], torch.tensor([6]), tensors[1], torch.tensor([4]), config)
    x = coding[0, 0].double().numpy()
    terms = x * np.exp(x / 0.1) / np.exp(x / 0.1).sum() if pooling == "Softmax" else x
    attention = np.exp(regions.astype(np.float64) @ words.T / 0.2)
    attention /= attention.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares(regions, words, best, config), terms / np.abs(terms).sum() @ attention, atol=1e-6)
