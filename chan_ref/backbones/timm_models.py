"""`timm:NAME`: the last feature map of a timm network, or its patch tokens, as a grid of regions."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from torch import nn

from ...runtime.contract import Preprocess
from ...runtime.errors import InputError
from ...runtime.extras import needs
from .base import Backbone, GridFeatures, frozen, grid_of
from .names import PRETRAINED, RANDOM
from .operators import declare_operators
from .weights import from_hub, load_weights, seeded


class _Features(nn.Module):
    """A timm network without its pooling and classifier."""

    def __init__(self, network: Any) -> None:  # timm's networks share no class with `forward_features`
        super().__init__()
        self.network = network

    def forward(self, pixels: Any) -> Any:
        return self.network.forward_features(pixels)


def open_timm(name: str, weights: str | Path) -> Backbone:
    """Open a timm network.

    Pictures have the size, mean and deviation that timm has for it. They are stretched to a square with bicubic
    interpolation, and never cropped.

    Args:
        name: as timm calls it, such as `resnet50.a1_in1k` or `vit_base_patch16_384`.
        weights: a file, `pretrained` or `random`.

    Raises:
        InputError: timm has no such network, or it has no square feature map; the weights do not fit or cannot be had.
        MissingExtra: timm is not installed.
    """
    called = f"timm:{name}"
    with needs("timm", f"the backbone {called}"):
        declare_operators()
        import timm
    if not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name.partition(".")[0], timm.list_models(), 3)
        hint = f", perhaps {' or '.join(near)}" if near else "; `timm.list_models()` in Python lists them"
        raise InputError(f"timm has no network {name!r}{hint}")
    if weights == PRETRAINED:
        with from_hub(called, "huggingface.co"):
            network = timm.create_model(name, pretrained=True, num_classes=0)
    else:
        try:
            with seeded():
                network = timm.create_model(name, pretrained=False, num_classes=0)
        except Exception as error:  # as of a tag that the network does not have
            raise InputError(f"timm cannot make the network {name!r}: {error}") from error
        if weights != RANDOM:
            load_weights(network, Path(weights), called, _classifier(network))
    settings = network.pretrained_cfg
    size = settings["input_size"][-1]
    channels_last = getattr(network, "output_fmt", "NCHW") == "NHWC"
    module = GridFeatures(_Features(network), getattr(network, "num_prefix_tokens", 0), channels_last)
    frozen(module)
    preprocess = Preprocess(size, tuple(settings["mean"]), tuple(settings["std"]), grid_of(module, size, called))
    return Backbone(module, preprocess, called)


def _classifier(network: Any) -> tuple[str, ...]:
    """Beginnings of the names of the classifier's weights, which the network was made without."""
    names = network.pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
