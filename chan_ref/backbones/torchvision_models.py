"""`torchvision:NAME`: the last feature map of a classifier as a grid, or the regions of a Faster R-CNN."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.contract import Preprocess
from ...runtime.errors import InputError
from ...runtime.extras import needs
from .base import Backbone, GridFeatures, frozen, grid_of
from .detector import DetectorRegions
from .names import PRETRAINED, RANDOM
from .operators import declare_operators
from .weights import from_hub, load_weights, seeded

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of all torchvision's weights for pictures
_CELL = 32  # pixels of the squares of a random picture
_MULTIPLE = 32  # of a detector's size: the coarsest stride of its pyramid but for the last, pooled level


def open_torchvision(name: str, weights: str | Path) -> Backbone:
    """Open a torchvision network.

    A classifier reads pictures of the size its weights were made for. A detector reads squares whose side is the
    shorter side that it was trained with (800, or 320). Both are stretched with bicubic interpolation, not cropped.

    Args:
        name: as torchvision calls it, such as `resnet50` or `fasterrcnn_resnet50_fpn`.
        weights: a file, `pretrained` or `random`.

    Raises:
        InputError: torchvision has no such network, or it has neither a feature map nor is a Faster R-CNN; the weights
            do not fit or cannot be had.
        MissingExtra: torchvision is not installed.
    """
    called = f"torchvision:{name}"
    with needs("torchvision", f"the backbone {called}"):
        declare_operators()
        from torchvision import models
    if name not in models.list_models():
        near = difflib.get_close_matches(name, models.list_models(), 3)
        hint = f", perhaps {' or '.join(near)}" if near else "; `torchvision.models.list_models()` in Python lists them"
        raise InputError(f"torchvision has no network {name!r}{hint}")
    detector = name in models.list_models(models.detection)
    if detector and not name.startswith("fasterrcnn"):
        raise InputError(f"a torchvision detector must be a Faster R-CNN (fasterrcnn_...), got {name}")
    if not detector and name not in models.list_models(models):
        raise InputError(f"torchvision's {name} must be a classifier of pictures or a Faster R-CNN")
    known = models.get_model_weights(name).DEFAULT
    if weights == PRETRAINED:
        with from_hub(called, "download.pytorch.org"):
            network = models.get_model(name, weights=known)
    else:
        bare = {"weights_backbone": None} if detector else {}
        with seeded():
            network = models.get_model(name, weights=None, **bare)
        if weights != RANDOM:
            load_weights(network, Path(weights), called)
    frozen(network)
    if detector:
        size = -(-int(network.transform.min_size[0]) // _MULTIPLE) * _MULTIPLE
        mean, std = tuple(network.transform.image_mean), tuple(network.transform.image_std)
        regions = DetectorRegions(network, size)
        frozen(regions)
        if weights == RANDOM:
            _spread(regions, size)
        return Backbone(regions, Preprocess(size, mean, std, None), called)
    size = known.transforms().crop_size[0]
    module = frozen_grid(network, name)
    return Backbone(module, Preprocess(size, _MEAN, _STD, grid_of(module, size, called)), called)


def _spread(detector: DetectorRegions, size: int) -> None:
    """Let random weights tell boxes apart: scale the scores of a random picture to a deviation of 1.

    Those of torchvision are so small that rounding decides which boxes are best.
    """
    with seeded():
        pixels = torch.rand(1, 3, size // _CELL, size // _CELL).repeat_interleave(_CELL, 2).repeat_interleave(_CELL, 3)
    heads: list[Any] = [detector.rpn_head.cls_logits, detector.box_predictor.cls_score]
    for head in heads:
        scores: list[Tensor] = []
        hook = head.register_forward_hook(lambda module, inputs, output, kept=scores: kept.append(output))
        with torch.inference_mode():
            detector(pixels)
        hook.remove()
        deviation = float(torch.cat([score.flatten() for score in scores]).std())
        with torch.no_grad():
            head.weight.mul_(1 / max(deviation, 1e-30))


def frozen_grid(network: Any, name: str) -> GridFeatures:
    """The part of a classifier up to its last feature map.

    Raises:
        InputError: it has neither `features`, nor the stages of a ResNet, nor the tokens of a vision transformer.
    """
    if hasattr(network, "conv_proj") and hasattr(network, "encoder"):
        module = GridFeatures(_Tokens(network), prefix=1)
    elif hasattr(network, "avgpool") and hasattr(network, "layer4"):
        children = list(network.children())
        module = GridFeatures(nn.Sequential(*children[: children.index(network.avgpool)]))
    elif hasattr(network, "features"):
        norm = [network.norm] if hasattr(network, "permute") else []  # a Swin transformer, its channels last
        module = GridFeatures(nn.Sequential(network.features, *norm), channels_last=bool(norm))
    else:
        raise InputError(f"torchvision's {name} has no feature map that is known here; timm may have the network")
    frozen(module)
    return module


class _Tokens(nn.Module):
    """A vision transformer without its classifier: pixels -> tokens [B, 1 + G * G, F]."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.network._process_input(pixels)
        token = self.network.class_token.expand(patches.shape[0], -1, -1)
        found: Tensor = self.network.encoder(torch.cat([token, patches], dim=1))
        return found
