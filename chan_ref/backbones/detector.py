"""The regions of a Faster R-CNN of torchvision: 36 proposals by the rule of bottom-up attention, with their features.

The rule (Anderson et al., CVPR 2018, and the tool that made the published features): of 300 proposals, each class keeps
those that non-maximum suppression at 0.3 keeps; a proposal's confidence is its largest probability among the classes
that keep it; the 36 proposals of the highest confidence are the regions. Features are those that the classifier reads,
and boxes are the proposals', not moved for any class.

torchvision's own code makes tensors whose sizes depend on the picture. Here all sizes are fixed, so that the network
becomes one ONNX graph for batches: what is dropped gets a score below all others, every level of the pyramid is read
for every proposal, and one level's values are taken.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...runtime.errors import InputError
from .base import CLASS_SCORES
from .suppression import keep_boxes

REGIONS = 36
PROPOSALS = 300  # that bottom-up attention reads of its region proposal network
OVERLAP = 0.3  # intersection over union of two boxes of one class
_FARTHEST = math.log(1000 / 16)  # of a width's logarithm, as in torchvision's BoxCoder
_SMALLEST = 1e-3  # pixels of a proposal's side, as in torchvision's RegionProposalNetwork


class DetectorRegions(nn.Module):
    """Pixels [B, 3, S, S] -> regions [B, 36, F], boxes [B, 36, 4] and class_scores [B, 36, C], by falling confidence.

    Args:
        detector: torchvision's FasterRCNN.
        size: S.

    Raises:
        InputError: the detector has other parts than a Faster R-CNN.
    """

    def __init__(self, detector: Any, size: int) -> None:
        super().__init__()
        for part in ("backbone", "rpn", "roi_heads"):
            if not hasattr(detector, part):
                raise InputError(f"a detector must be a Faster R-CNN, got {type(detector).__name__} without {part}")
        self.backbone = detector.backbone
        self.rpn_head = detector.rpn.head
        self.box_head = detector.roi_heads.box_head
        self.box_predictor = detector.roi_heads.box_predictor
        with torch.inference_mode():
            levels = self.backbone(torch.zeros(1, 3, size, size))
        pooling = detector.roi_heads.box_roi_pool
        names = list(levels)
        self.read = [names.index(name) for name in pooling.featmap_names if name in levels]
        shapes = [tuple(level.shape[-2:]) for level in levels.values()]
        self.propose = Proposals(detector.rpn, shapes, size)
        self.pool = RegionPooling(pooling, [shapes[level] for level in self.read], size)
        self.choose = BestRegions(size)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the regions of each picture."""
        found: Mapping[str, Tensor] = self.backbone(pixels)
        levels = list(found.values())
        objectness, deltas = self.rpn_head(levels)
        proposals = self.propose(objectness, deltas)  # [B, N, 4]
        pooled = self.pool([levels[level] for level in self.read], proposals)  # [B N, C, P, P]
        features = self.box_head(pooled)  # [B N, F]
        logits, _ = self.box_predictor(features)  # [B N, classes]
        count = proposals.shape[1]
        rows, chances = features.reshape(-1, count, features.shape[1]), logits.reshape(-1, count, logits.shape[1])
        best: dict[str, Tensor] = self.choose(rows, chances, proposals)
        return best


class Proposals(nn.Module):
    """Objectness and deltas of anchors -> the best proposals [B, 300, 4] in pixels, by falling objectness."""

    single = True  # coordinates in half would be rounded to half a pixel

    def __init__(self, rpn: Any, shapes: Sequence[tuple[int, int]], size: int) -> None:
        super().__init__()
        generator = rpn.anchor_generator
        strides = [[torch.tensor(size // height), torch.tensor(size // width)] for height, width in shapes]
        generator.set_cell_anchors(torch.float32, torch.device("cpu"))
        self.anchors = [f"anchors{level}" for level in range(len(shapes))]
        for name, anchors in zip(self.anchors, generator.grid_anchors(list(shapes), strides), strict=True):
            self.register_buffer(name, anchors.clone())  # [H W A, 4]
        self.overlap = float(rpn.nms_thresh)
        self.before = int(rpn._pre_nms_top_n["testing"])
        self.size = float(size)

    def forward(self, objectness: Sequence[Tensor], deltas: Sequence[Tensor]) -> Tensor:
        """Compute the proposals of each picture.

        Args:
            objectness: for each level [B, A, H, W].
            deltas: for each level [B, 4 A, H, W].
        """
        boxes, scores = [], []
        for name, logit, delta in zip(self.anchors, objectness, deltas, strict=True):
            anchors: Tensor = getattr(self, name)
            score = logit.permute(0, 2, 3, 1).flatten(1)  # [B, H W A]
            split = delta.reshape(-1, logit.shape[1], 4, *delta.shape[2:])
            moves = split.permute(0, 3, 4, 1, 2).flatten(1, 3)  # [B, H W A, 4]
            best, index = score.topk(min(self.before, anchors.shape[0]), dim=1)
            chosen = index[:, :, None].expand(-1, -1, 4)
            box = move_boxes(anchors.expand(score.shape[0], -1, -1).gather(1, chosen), moves.gather(1, chosen))
            box = box.clamp(0.0, self.size)
            wide = ((box[:, :, 2:] - box[:, :, :2]) >= _SMALLEST).all(dim=2)
            best = torch.where(wide, best.sigmoid(), -1.0)
            kept = keep_boxes(box, best[:, None], self.overlap)[:, 0] & wide
            boxes.append(box)
            scores.append(torch.where(kept, best, -1.0))
        all_scores, all_boxes = torch.cat(scores, 1), torch.cat(boxes, 1)
        _, index = all_scores.topk(min(PROPOSALS, all_boxes.shape[1]), dim=1)
        return all_boxes.gather(1, index[:, :, None].expand(-1, -1, 4))


class RegionPooling(nn.Module):
    """RoIAlign over a pyramid: levels [B, C, H, W] and boxes [B, N, 4] -> [B N, C, P, P].

    It reads bilinear samples at the places of torchvision's MultiScaleRoIAlign (not aligned, 2 x 2 samples a bin), and
    equals it for boxes inside the picture.
    """

    single = True

    def __init__(self, pooling: Any, shapes: Sequence[tuple[int, int]], size: int) -> None:
        super().__init__()
        self.bins = int(pooling.output_size[0])
        self.samples = max(int(pooling.sampling_ratio), 1)
        self.scales = [2.0 ** round(math.log2(height / size)) for height, _ in shapes]
        self.canonical = float(pooling.canonical_scale), float(pooling.canonical_level)

    def forward(self, levels: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Read each box from its level."""
        width = boxes[:, :, 2:] - boxes[:, :, :2]
        scale, level = self.canonical
        place = torch.floor(level + torch.log2((width[..., 0] * width[..., 1]).sqrt() / scale + 1e-12) + 1e-6)
        first = -math.log2(self.scales[0])
        place = place.clamp(first, first + len(levels) - 1) - first  # [B, N]
        found = self._read(levels[0], boxes, self.scales[0])
        for number in range(1, len(levels)):
            here = (place == number).flatten()[:, None, None, None]
            found = torch.where(here, self._read(levels[number], boxes, self.scales[number]), found)
        return found

    def _read(self, level: Tensor, boxes: Tensor, scale: float) -> Tensor:
        points = self.bins * self.samples
        start = boxes[:, :, :2] * scale
        extent = (boxes[:, :, 2:] * scale - start).clamp(min=1.0)
        step = (torch.arange(points, dtype=torch.float32) + 0.5) / points
        places = start[:, :, None] + extent[:, :, None] * step[:, None]  # [B, N, points, 2] as x, y
        last = torch.tensor([level.shape[3] - 1, level.shape[2] - 1], dtype=torch.float32)
        places = 2 * places / last.clamp(min=1) - 1
        count = boxes.shape[1]
        x = places[:, :, None, :, 0].expand(-1, -1, points, -1)
        y = places[:, :, :, None, 1].expand(-1, -1, -1, points)
        grid = torch.stack([x, y], dim=-1).flatten(1, 2)  # [B, N points, points, 2]
        read = functional.grid_sample(level, grid, mode="bilinear", padding_mode="border", align_corners=True)
        read = functional.avg_pool2d(read, self.samples)  # [B, C, N P, P]
        split = read.reshape(-1, level.shape[1], count, self.bins, self.bins)
        return split.transpose(1, 2).flatten(0, 1)


class BestRegions(nn.Module):
    """The rule at the file's head: features [B, N, F], logits [B, N, 1 + C] and boxes [B, N, 4] of proposals -> 36."""

    single = True

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = float(size)

    def forward(self, features: Tensor, logits: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Choose the regions of each picture; class 0 is the background."""
        scores = logits.softmax(dim=2)[:, :, 1:].transpose(1, 2)  # [B, C, N]
        kept = keep_boxes(boxes, scores, OVERLAP)
        confidence = torch.where(kept, scores, 0.0).amax(dim=1)  # [B, N]
        _, index = confidence.topk(min(REGIONS, boxes.shape[1]), dim=1)
        index = index[:, :, None]
        found = boxes.gather(1, index.expand(-1, -1, 4)) / self.size
        start, end = found[:, :, :2], found[:, :, 2:]
        return {
            "regions": features.gather(1, index.expand(-1, -1, features.shape[2])),
            "boxes": torch.cat([start, end - start], dim=2),
            CLASS_SCORES: scores.transpose(1, 2).gather(1, index.expand(-1, -1, scores.shape[1])),
        }


def move_boxes(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Boxes [..., 4] moved and scaled by deltas [..., 4], as torchvision's BoxCoder with weights of 1 does."""
    size = boxes[..., 2:] - boxes[..., :2]
    center = boxes[..., :2] + 0.5 * size + deltas[..., :2] * size
    half = 0.5 * size * deltas[..., 2:].clamp(max=_FARTHEST).exp()
    return torch.cat([center - half, center + half], dim=-1)
