"""The ground truth of hard alignment: how region-word similarities become a score (CHAN, CVPR 2023, section 3).

Slow and plain on purpose; every faster path in this package is tested against it. Symbols: I images, R regions,
C captions, W words, D embedding. A length says how many leading rows are real; what lies past it, NaN included, never
matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.contract import AlignmentConfig
from ..runtime.errors import TensorError

EPSILON = 1e-8  # added to every L2 norm before dividing by it, as published


def length_mask(lengths: Tensor, size: int, name: str = "lengths") -> Tensor:
    """True where a row is real: [B] lengths -> [B, size] bool.

    Raises:
        TensorError: a length is not in 1..size, or `lengths` is not a vector.
    """
    if lengths.ndim != 1:
        raise TensorError(name, "must be a vector", f"shape {tuple(lengths.shape)}")
    if lengths.numel() and (int(lengths.min()) < 1 or int(lengths.max()) > size):
        raise TensorError(name, f"must lie in 1..{size}", f"{int(lengths.min())}..{int(lengths.max())}")
    return torch.arange(size, device=lengths.device) < lengths[:, None]  # [B, size]


def zero_padding(rows: Tensor, mask: Tensor) -> Tensor:
    """Exact zeros where `mask` [B, L] is False: [B, L, D] -> [B, L, D]; unlike a product, also over NaN."""
    return torch.where(mask[..., None], rows, 0.0)


def similarities(region_embeddings: Tensor, word_embeddings: Tensor) -> Tensor:
    """`s[i, c, r, w] = region_ir . word_cw`: [I, R, D], [C, W, D] -> [I, C, R, W].

    Raises:
        TensorError: the embeddings are not three-dimensional or their widths differ.
    """
    for name, embeddings in (("region_embeddings", region_embeddings), ("word_embeddings", word_embeddings)):
        if embeddings.ndim != 3:
            raise TensorError(name, "must have three dimensions", f"shape {tuple(embeddings.shape)}")
    if region_embeddings.shape[2] != word_embeddings.shape[2]:
        width = region_embeddings.shape[2]
        raise TensorError("word_embeddings", f"must be {width} wide, as the regions", word_embeddings.shape[2])
    return torch.einsum("ird,cwd->icrw", region_embeddings, word_embeddings)


def code(
    region_embeddings: Tensor,
    region_lengths: Tensor,
    word_embeddings: Tensor,
    word_lengths: Tensor,
    config: AlignmentConfig,
) -> tuple[Tensor, Tensor]:
    """Reduce similarities to one number per word (VHA) or per region (THA, VSA).

    * VHA: each word takes its best region, `max_r s[r, w]` (the paper's).
    * THA: each region takes its best word, `max_w s[r, w]`.
    * VSA: each region attends over the words, `a = softmax_w(s / attention_temperature)`, `v = sum_w a_w word_w`, and
      is compared with what it saw: `region . v / (||v|| + 1e-8)`.

    Args:
        region_embeddings: [I, R, D].
        region_lengths: [I], integers in 1..R.
        word_embeddings: [C, W, D].
        word_lengths: [C], integers in 1..W.
        config: coding and its temperature.

    Returns:
        The coding [I, C, L] and its validity [I, C, L] bool, where L is W for VHA and R otherwise.

    Raises:
        TensorError: a shape or a length breaks its rule.
    """
    region_mask = length_mask(region_lengths, region_embeddings.shape[1], "region_lengths")  # [I, R]
    word_mask = length_mask(word_lengths, word_embeddings.shape[1], "word_lengths")  # [C, W]
    regions = zero_padding(region_embeddings, region_mask)
    words = zero_padding(word_embeddings, word_mask)
    s = similarities(regions, words)  # [I, C, R, W]
    images, captions, num_regions, num_words = s.shape
    if config.coding == "VHA":
        coding = s.masked_fill(~region_mask[:, None, :, None], -torch.inf).amax(2)  # [I, C, W]
        return coding, word_mask.expand(images, captions, num_words)
    valid = region_mask[:, None].expand(images, captions, num_regions)
    hidden_words = ~word_mask[None, :, None]  # [1, C, 1, W]
    if config.coding == "THA":
        return s.masked_fill(hidden_words, -torch.inf).amax(3), valid  # [I, C, R]
    weights = (s / config.attention_temperature).masked_fill(hidden_words, -torch.inf).softmax(3)
    attended = torch.einsum("icrw,cwd->icrd", weights, words)
    direction = attended / (attended.norm(dim=3, keepdim=True) + EPSILON)
    return torch.einsum("ird,icrd->icr", regions, direction), valid


def pool(coding: Tensor, valid: Tensor, config: AlignmentConfig) -> Tensor:
    """Reduce a coding's valid entries to the score: [..., L], [..., L] bool -> [...].

    Max, Mean and Sum are what they say. With `x = coding` and `t = pooling_temperature`: LSE is `log sum exp(x / t)`
    (as published, without a factor t in front) and Softmax is `sum softmax(x / t) x` (the
    published code gives NaN for it wherever there is padding).
    """
    hidden = coding.masked_fill(~valid, -torch.inf)
    real = torch.where(valid, coding, 0.0)
    if config.pooling == "Max":
        return hidden.amax(-1)
    if config.pooling == "LSE":
        return (hidden / config.pooling_temperature).logsumexp(-1)
    if config.pooling == "Softmax":
        return ((hidden / config.pooling_temperature).softmax(-1) * real).sum(-1)
    total = real.sum(-1)
    return total if config.pooling == "Sum" else total / valid.sum(-1)


def score(
    region_embeddings: Tensor,
    region_lengths: Tensor,
    word_embeddings: Tensor,
    word_lengths: Tensor,
    config: AlignmentConfig,
) -> Tensor:
    """Score every image with every caption: [I, R, D], [I], [C, W, D], [C] -> [I, C].

    Holds all I x C x R x W similarities at once: feed it blocks where that is too much.

    Raises:
        TensorError: a shape or a length breaks its rule.
    """
    return pool(*code(region_embeddings, region_lengths, word_embeddings, word_lengths, config), config)


def align(
    region_embeddings: Tensor, region_lengths: Tensor, word_embeddings: Tensor, word_lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Tell which region each word chooses: [I, R, D], [I], [C, W, D], [C] -> two [I, C, W].

    Returns:
        `word_scores`, the similarity of each word with its best real region, and `word_regions` (int32), that region's
        index; of equal regions the lower. Past a caption's length they are 0 and -1.

    Raises:
        TensorError: a shape or a length breaks its rule.
    """
    region_mask = length_mask(region_lengths, region_embeddings.shape[1], "region_lengths")
    word_mask = length_mask(word_lengths, word_embeddings.shape[1], "word_lengths")
    s = similarities(zero_padding(region_embeddings, region_mask), zero_padding(word_embeddings, word_mask))
    best = s.masked_fill(~region_mask[:, None, :, None], -torch.inf).max(2)  # torch.max gives the first of equals
    return torch.where(word_mask, best.values, 0.0), torch.where(word_mask, best.indices, -1).int()
