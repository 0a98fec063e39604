"""The losses against the published values and against loops one can read."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from chan_rt.chan_ref.loss import hinge, infonce
from chan_rt.runtime.errors import TensorError

GOLDEN = Path(__file__).parents[1] / "golden"
POOLING = {
    "bert_basic_vha_mean": "Mean",
    "bigru_basic_vha_mean": "Mean",
    "bigru_selfattention_ragged": "LSE",
    "bigru_selfattention_vha_lse": "LSE",
    "bigru_word2idx": "LSE",
}


@pytest.mark.parametrize("name", POOLING)
def test_losses_are_the_published_ones(name: str):
    golden = np.load(GOLDEN / f"{name}.npz")
    scores = torch.from_numpy(golden[f"scores/VHACoding/{POOLING[name]}Pooling"][:6, :6])
    values = {
        "hinge_sum": hinge(scores),
        "hinge_max": hinge(scores, hardest=True),
        "infonce": infonce(scores, match_published=True),
    }
    for key, value in values.items():
        np.testing.assert_allclose(value.item(), golden[f"loss/{key}"], rtol=1e-5, atol=1e-5)
    assert math.isinf(values["infonce"]) == (POOLING[name] == "LSE")
    assert infonce(scores).isfinite()


def test_losses_equal_plain_loops():
    s = np.random.default_rng(7).normal(size=(5, 5)) * 0.3
    sums, hardest, nce = 0.0, 0.0, 0.0
    for matrix in (s, s.T):
        for i in range(5):
            violations = [max(0.0, 0.2 + matrix[i, j] - matrix[i, i]) for j in range(5) if j != i]
            sums += sum(violations)
            hardest += max(violations)
            nce -= math.log(math.exp(matrix[i, i] / 0.5) / sum(math.exp(x / 0.5) for x in matrix[i])) / 5
    scores = torch.from_numpy(s)
    assert hinge(scores, margin=0.2).item() == pytest.approx(sums)
    assert hinge(scores, margin=0.2, hardest=True).item() == pytest.approx(hardest)
    assert infonce(scores, temperature=0.5).item() == pytest.approx(nce)
    assert infonce(scores, temperature=0.5, match_published=True).item() == pytest.approx(nce)


def test_gradients_are_finite_where_the_published_loss_overflows():
    scores = torch.full((3, 3), 5.0, requires_grad=True)
    infonce(scores).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("loss", [hinge, infonce])
def test_scores_must_be_square(loss):
    with pytest.raises(TensorError, match=r"scores: must be square.*got \(2, 3\)"):
        loss(torch.zeros(2, 3))
