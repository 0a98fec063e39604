"""The published scoring, written from its description and not from its source: what this package is measured against.

Embeddings are padded to the longest caption; scores are computed by blocks of 128 images x 128 captions in float32,
padding marked by -1, in PyTorch.
"""

from __future__ import annotations

import torch

BLOCK = 128  # sides of a block of scores


def scores(regions: torch.Tensor, words: torch.Tensor, lengths: torch.Tensor, temperature: float) -> torch.Tensor:
    """VHA and log-sum-exp: regions [I, R, D], words [C, W, D] padded, lengths [C] -> scores [I, C]."""
    padding = torch.arange(words.shape[1]) >= lengths[:, None]
    found = torch.empty(len(regions), len(words))
    with torch.inference_mode():
        for row in range(0, len(regions), BLOCK):
            for column in range(0, len(words), BLOCK):
                rows, columns = slice(row, row + BLOCK), slice(column, column + BLOCK)
                similarities = torch.einsum("ird,cwd->icrw", regions[rows], words[columns])
                best = similarities.masked_fill(padding[columns][:, None], -1).amax(2)
                best = best.masked_fill(best == -1, -torch.inf)
                found[rows, columns] = (best / temperature).logsumexp(2)
    return found
