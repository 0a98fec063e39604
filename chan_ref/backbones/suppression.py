"""Non-maximum suppression with sizes that do not depend on the values: a mask of the boxes that are kept.

As a torch operator it is the reference. `export/backbone.py` writes it as ONNX's NonMaxSuppression.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.custom_op("chan_rt::keep_boxes", mutates_args=())
def keep_boxes(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Which boxes greedy suppression keeps, for each class by itself.

    The box of the highest score is kept, those that overlap it by more than `threshold` are dropped, and so on with
    what is left. Of equal scores the lower index comes first.

    Args:
        boxes: [B, N, 4], left, top, right and bottom.
        scores: [B, C, N] of each class.
        threshold: intersection over union.

    Returns:
        [B, C, N] bool.
    """
    kept = torch.zeros(scores.shape, dtype=torch.bool)
    for picture in range(boxes.shape[0]):
        near = overlaps(boxes[picture]) > threshold  # [N, N]
        order = scores[picture].argsort(dim=1, descending=True, stable=True)  # [C, N]
        rows = torch.arange(order.shape[0])
        alive = torch.ones(order.shape, dtype=torch.bool)
        for rank in range(order.shape[1]):
            best = order[:, rank]
            chosen = alive[rows, best]
            kept[picture, rows, best] = chosen
            alive &= ~(near[best] & chosen[:, None])
    return kept


@keep_boxes.register_fake
def _(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


def overlaps(boxes: Tensor) -> Tensor:
    """Intersection over union of every two boxes: [N, 4] -> [N, N]; 0 where both are empty."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    start = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    end = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    size = (end - start).clamp(min=0)
    shared = size[..., 0] * size[..., 1]
    union = area[:, None] + area[None] - shared
    return torch.where(union > 0, shared / union, 0)
