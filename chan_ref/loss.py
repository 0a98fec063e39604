"""Losses over a square score matrix whose diagonal holds the true pairs: row i is image i, column i its caption."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.errors import TensorError
from .train_config import TEMPERATURE

MARGIN = 0.05


def hinge(scores: Tensor, margin: float = MARGIN, hardest: bool = False) -> Tensor:
    """Hinge triplet loss, both ways: `sum max(0, margin + negative - positive)` over all negatives of every query.

    Args:
        scores: [N, N].
        margin: by how much a true pair must win.
        hardest: count only the hardest negative of each query (VSE++), as in training after its first epochs. Of equal
            ones, one alone has the gradient, as published.

    Raises:
        TensorError: the scores are not square.
    """
    positives = _positives(scores)
    diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    captions = (margin + scores - positives[:, None]).clamp(min=0).masked_fill(diagonal, 0)
    images = (margin + scores - positives[None, :]).clamp(min=0).masked_fill(diagonal, 0)
    if hardest:
        return captions.max(1).values.sum() + images.max(0).values.sum()
    return captions.sum() + images.sum()


def infonce(
    scores: Tensor, temperature: float = TEMPERATURE, margin: float = MARGIN, match_published: bool = False
) -> Tensor:
    """InfoNCE, both ways: the mean over rows of `log sum_j exp((s_ij + m_ij - s_ii) / t)`, plus that over columns.

    `m_ij` is the margin for negatives and 0 for the true pair. With margin 0 this is the negative log-likelihood of
    the true pairs.

    Args:
        scores: [N, N].
        temperature: t.
        margin: by how much a true pair must win.
        match_published: sum the exponentials as they are, as published: inf as soon as a negative exceeds its positive
            by 88 t in float32. The default shifts by the largest first.

    Raises:
        TensorError: the scores are not square.
    """
    positives = _positives(scores)
    negatives = 1 - torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
    total = torch.zeros((), dtype=scores.dtype, device=scores.device)
    for dim, true in ((1, positives[:, None]), (0, positives[None, :])):
        logits = (scores + margin * negatives - true) / temperature
        total = total + (logits.exp().sum(dim).log() if match_published else logits.logsumexp(dim)).mean()
    return total


def _positives(scores: Tensor) -> Tensor:
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) == 0:
        raise TensorError("scores", "must be square, row i and column i a true pair", tuple(scores.shape))
    return scores.diagonal()
