"""Losses over a square score matrix whose diagonal holds the true pairs: row i is image i, column i its caption."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.errors import TensorError

MARGIN = 0.05
TEMPERATURE = 0.01


def hinge(scores: Tensor, margin: float = MARGIN, hardest: bool = False) -> Tensor:
    """Hinge triplet loss, both ways: `sum max(0, margin + negative - positive)` over all negatives of every query.

    Args:
        scores: [N, N].
        margin: by how much a true pair must win.
        hardest: only the hardest negative of each query (VSE++), which is how training goes on after its first epoch.

    Raises:
        TensorError: the scores are not square.
    """
    positives = _positives(scores)
    diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    captions = (margin + scores - positives[:, None]).clamp(min=0).masked_fill(diagonal, 0)
    images = (margin + scores - positives[None, :]).clamp(min=0).masked_fill(diagonal, 0)
    if hardest:
        return captions.amax(1).sum() + images.amax(0).sum()
    return captions.sum() + images.sum()


def infonce(scores: Tensor, temperature: float = TEMPERATURE, match_published: bool = False) -> Tensor:
    """InfoNCE, both ways: the mean of `log sum_j exp(s_ij / t) - s_ii / t` over rows plus the same over columns.

    Args:
        scores: [N, N].
        temperature: t.
        match_published: sum the exponentials in the scores' own precision, as published: inf as soon as one score
            exceeds 88 t in float32, which log-sum-exp pooling does at once. The default shifts by the largest first.

    Raises:
        TensorError: the scores are not square.
    """
    positives = _positives(scores) / temperature
    logits = scores / temperature
    if match_published:
        exponentials = logits.exp()
        return (exponentials.sum(1).log() - positives).mean() + (exponentials.sum(0).log() - positives).mean()
    return (logits.logsumexp(1) - positives).mean() + (logits.logsumexp(0) - positives).mean()


def _positives(scores: Tensor) -> Tensor:
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) == 0:
        raise TensorError("scores", "must be square, row i and column i a true pair", tuple(scores.shape))
    return scores.diagonal()
