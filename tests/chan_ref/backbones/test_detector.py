"""The regions of a Faster R-CNN against torchvision's own parts, and as a graph. `make test-backbones` runs it."""

from __future__ import annotations

import importlib.util
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from chan_rt.chan_ref.backbones.base import Backbone, frozen
from chan_rt.chan_ref.backbones.detector import DetectorRegions, move_boxes
from chan_rt.chan_ref.backbones.operators import declare_operators
from chan_rt.chan_ref.backbones.suppression import keep_boxes, overlaps
from chan_rt.export.backbone import backbone as graph_of
from chan_rt.export.precision import to_half
from chan_rt.export.region_match import match_regions
from chan_rt.runtime.contract import Preprocess
from chan_rt.runtime.onnx_session import open_session
from chan_rt.runtime.regions import Regions

SIZE = 64
PREPROCESS = Preprocess(SIZE, (0.5,) * 3, (0.5,) * 3, None)
needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed: make test-backbones"
)


class _Pyramid(nn.Module):
    """Two levels, at strides 4 and 8."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 4, stride=4), nn.Conv2d(16, 16, 2, stride=2)

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        first = self.first(pixels).relu()
        return OrderedDict([("0", first), ("1", self.second(first).relu())])


def make_detector() -> Any:
    """A Faster R-CNN of torchvision with 4 classes, and random weights that tell boxes apart."""
    declare_operators()
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    with torch.random.fork_rng():
        torch.manual_seed(0)
        anchors = AnchorGenerator(((8,), (16,)), ((0.5, 1.0, 2.0),) * 2)
        pooling = MultiScaleRoIAlign(["0", "1"], 7, 2)
        detector = FasterRCNN(_Pyramid(), num_classes=5, rpn_anchor_generator=anchors, box_roi_pool=pooling)
    with torch.no_grad():
        heads = detector.rpn.head.cls_logits, detector.rpn.head.bbox_pred, detector.roi_heads.box_predictor.cls_score
        for head in heads:
            head.weight.mul_(30)
    return frozen(detector)


def squares(count: int = 2) -> np.ndarray:
    cells = np.random.default_rng(0).uniform(-1, 1, (count, 3, 8, 8)).astype(np.float32)
    return cells.repeat(8, 2).repeat(8, 3)


def slowly(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Greedy suppression as it is written down: the best box is kept, and what overlaps it is dropped."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    for picture, label in np.ndindex(*scores.shape[:2]):
        left = sorted(range(scores.shape[2]), key=lambda box: -float(scores[picture, label, box]))
        near = overlaps(boxes[picture])
        while left:
            best = left.pop(0)
            kept[picture, label, best] = True
            left = [box for box in left if not near[best, box] > threshold]
    return kept


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_suppression_is_the_greedy_one(threshold: float) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.rand(2, 40, 2, generator=generator)
    boxes = torch.cat([start, start + torch.rand(2, 40, 2, generator=generator) * 0.5], dim=2)
    boxes[1, 3:6] = boxes[1, 2]  # the same box four times
    boxes[0, 7, 2:] = boxes[0, 7, :2]  # one without an area
    scores = torch.rand(2, 3, 40, generator=generator)
    scores[0, 0] = 0.5  # all alike: the lower index comes first
    assert torch.equal(keep_boxes(boxes, scores, threshold), slowly(boxes, scores, threshold))


def test_boxes_are_moved() -> None:
    box, delta = torch.tensor([[10.0, 20.0, 30.0, 60.0]]), torch.tensor([[0.5, -0.25, 0.0, float(np.log(2.0))]])
    torch.testing.assert_close(move_boxes(box, delta), torch.tensor([[20.0, -10.0, 40.0, 70.0]]))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(frozen(DetectorRegions(make_detector(), SIZE)), PREPROCESS, "test:detector")


@needs_torchvision
def test_pooling_is_that_of_torchvision(backbone: Backbone) -> None:
    from torchvision.ops.poolers import LevelMapper
    from torchvision.ops.roi_align import _roi_align

    levels = [torch.randn(1, 16, 16, 16), torch.randn(1, 16, 8, 8)]
    start = torch.rand(50, 2) * 50
    boxes = torch.cat([start, torch.minimum(start + torch.rand(50, 2) * 60, torch.tensor(float(SIZE)))], dim=1)
    boxes[0] = torch.tensor([0.0, 0.0, SIZE, SIZE])
    boxes[1] = torch.tensor([5.0, 5.0, 5.0, 5.0])
    pool: Any = backbone.module.pool
    pool.canonical = 32.0, 3.0  # boxes of 32 pixels and more are read from the second level
    found = pool(levels, boxes[None])
    level = LevelMapper(2, 3, canonical_scale=32, canonical_level=3)([boxes])
    rois = torch.cat([torch.zeros(50, 1), boxes], dim=1)
    pooled = [_roi_align(features, rois, 0.25 / (number + 1), 7, 7, 2, False) for number, features in enumerate(levels)]
    expected = torch.where((level == 1)[:, None, None, None], pooled[1], pooled[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    pool.canonical = 224.0, 4.0
    assert 0 < int((level == 1).sum()) < 50


@needs_torchvision
def test_proposals_are_those_of_torchvision(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own filter, with suppression of a level by the reference in place of its compiled operator."""
    from torchvision.models.detection.image_list import ImageList
    from torchvision.ops import boxes as box_ops

    def batched(boxes: Tensor, scores: Tensor, levels: Tensor, threshold: float) -> Tensor:
        mask = torch.zeros(len(boxes), dtype=torch.bool)
        for level in levels.unique():
            rows = (levels == level).nonzero()[:, 0]
            mask[rows] = keep_boxes(boxes[None, rows], scores[None, None, rows], threshold)[0, 0]
        kept = mask.nonzero()[:, 0]
        return kept[scores[kept].argsort(descending=True)]

    monkeypatch.setattr(box_ops, "batched_nms", batched)
    detector = make_detector()
    detector.rpn._post_nms_top_n = {"training": 300, "testing": 300}
    pixels = torch.from_numpy(squares())
    features = detector.backbone(pixels)
    expected, _ = detector.rpn(ImageList(pixels, [(SIZE, SIZE)] * 2), features)
    module: Any = backbone.module
    found = module.propose(*module.rpn_head(list(features.values())))
    for picture in range(2):
        assert len(expected[picture]) > 36
        # Confidences that are equal in float32 may be ordered otherwise: the same boxes, whatever their order.
        apart = (expected[picture][:, None] - found[picture][None]).abs().amax(2).amin(1)
        assert float(apart.max()) < 1e-2
        first = expected[picture][:36]
        torch.testing.assert_close(found[picture, :36], first, rtol=1e-4, atol=1e-2)


@needs_torchvision
def test_the_36_best_by_the_published_rule(backbone: Backbone) -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.rand(1, 60, 2, generator=generator) * 40
    boxes = torch.cat([start, start + 24 * torch.rand(1, 60, 2, generator=generator)], dim=2)
    logits, features = torch.randn(1, 60, 5, generator=generator) * 3, torch.randn(1, 60, 7, generator=generator)
    module: Any = backbone.module
    chosen = module.choose(features, logits, boxes)
    found, places = chosen["regions"], chosen["boxes"]
    scores = logits[0].softmax(1)
    confidence = np.zeros(60)
    for label in range(1, 5):  # as the published tool does, class by class
        kept = slowly(boxes, scores[None, None, :, label], 0.3)[0, 0].numpy()
        own = scores[:, label].numpy()
        confidence[kept] = np.where(own[kept] > confidence[kept], own[kept], confidence[kept])
    best = np.argsort(-confidence, kind="stable")[:36]
    torch.testing.assert_close(found[0], features[0, torch.from_numpy(best)])
    np.testing.assert_allclose(places[0, :, :2] * SIZE, boxes[0, best, :2], rtol=1e-5)
    torch.testing.assert_close(chosen["class_scores"][0], scores[torch.from_numpy(best), 1:])


@needs_torchvision
@pytest.mark.parametrize("convert", [lambda model: model, to_half], ids=["fp32", "fp16"])
def test_the_graph_finds_the_same_regions(
    backbone: Backbone, convert: Callable[[onnx.ModelProto], onnx.ModelProto], tmp_path: Path
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert(graph_of(backbone, 1024))
    assert [item.name for item in model.graph.output] == ["regions", "boxes"]
    onnx.save(model, tmp_path / "x.onnx")
    session = open_session(tmp_path / "x.onnx")
    pixels = squares(3)
    found = dict(zip(["regions", "boxes"], session.run(["regions", "boxes"], {"pixels": pixels}), strict=True))
    Regions.of_outputs(found, PREPROCESS, 3)
    matched = match_regions(backbone.outputs(pixels), found)
    half = convert is to_half
    assert matched.found >= (90 if half else 100)
    np.testing.assert_allclose(matched.candidate, matched.reference, atol=1e-2 if half else 1e-5)


@needs_torchvision
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_a_picture_of_one_color_has_regions_too(backbone: Backbone, value: float) -> None:
    found = backbone.regions(np.full((1, 3, SIZE, SIZE), value, np.float32))
    assert found.class_scores is not None
    assert found.class_scores.shape == (1, 36, 4)
    assert found.features.shape == (1, 36, 1024)
