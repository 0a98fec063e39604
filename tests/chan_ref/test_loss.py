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
        "infonce": infonce(scores, margin=0, match_published=True),
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
            others = [math.exp((0.2 + matrix[i, j] - matrix[i, i]) / 0.5) for j in range(5) if j != i]
            nce += math.log(1 + sum(others)) / 5
    scores = torch.from_numpy(s)
    assert hinge(scores, margin=0.2).item() == pytest.approx(sums)
    assert hinge(scores, margin=0.2, hardest=True).item() == pytest.approx(hardest)
    assert infonce(scores, 0.5, margin=0.2).item() == pytest.approx(nce)
    assert infonce(scores, 0.5, margin=0.2, match_published=True).item() == pytest.approx(nce)
    plain = sum(-torch.log_softmax(scores / 0.5, dim).diagonal().mean() for dim in (0, 1))
    assert infonce(scores, 0.5, margin=0).item() == pytest.approx(plain.item())


def test_gradients_are_finite_where_the_published_loss_overflows():
    scores = (2 * torch.ones(3, 3) - 2 * torch.eye(3)).requires_grad_()
    assert infonce(scores, match_published=True).isinf()
    infonce(scores).backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_large_scores_overflow_only_where_the_published_loss_does():
    """It subtracts the positive before the exponential: the height of the scores alone never overflows."""
    scores = 1000 + 0.1 * torch.eye(4)
    for matrix in (scores, -scores):
        found = infonce(matrix, match_published=True)
        assert found.item() == pytest.approx(infonce(matrix.double()).item(), abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_both_orders_agree_with_float64(seed: int):
    scores = torch.from_numpy(np.random.default_rng(seed).normal(size=(6, 6)) * 0.05)
    exact = infonce(scores, match_published=True)
    for published in (True, False):
        given = scores.float().requires_grad_()
        found = infonce(given, match_published=published)
        found.backward()
        assert found.item() == pytest.approx(exact.item(), rel=1e-5)
        precise = scores.clone().requires_grad_()
        infonce(precise).backward()
        torch.testing.assert_close(given.grad, precise.grad.float(), rtol=1e-4, atol=1e-4)


def test_of_equal_negatives_one_alone_has_the_gradient():
    scores = torch.tensor([[0.5, 0.6, 0.6], [0.6, 0.5, 0.6], [0.6, 0.6, 0.5]], requires_grad=True)
    hinge(scores, hardest=True).backward()
    off_diagonal = scores.grad - torch.diag(scores.grad.diagonal())
    assert sorted(set(off_diagonal.flatten().tolist())) == [0, 1, 2]
    assert off_diagonal.sum() == 6
    assert scores.grad.diagonal().tolist() == [-2, -2, -2]


@pytest.mark.parametrize("loss", [hinge, infonce])
def test_scores_must_be_square(loss):
    with pytest.raises(TensorError, match=r"scores: must be square.*got \(2, 3\)"):
        loss(torch.zeros(2, 3))
