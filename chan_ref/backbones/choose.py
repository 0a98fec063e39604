"""A backbone by its name, as the commands take it."""

from __future__ import annotations

import importlib
from pathlib import Path

from ...runtime.errors import InputError
from ..backbone import load_backbone
from .base import Backbone, frozen
from .names import LITES, PRETRAINED, check_name


def open_backbone(name: str, weights: str | Path = PRETRAINED) -> Backbone:
    """Open a backbone.

    Args:
        name: `efficientnet-lite0` to 2, `timm:NAME`, `torchvision:NAME`, `onnx:FILE`, or `MODULE:FUNCTION`, a function
            without arguments that returns a `Backbone`. The last imports MODULE, which runs its code: name only a
            module that you trust. No name of that form is ever taken from a bundle.
        weights: of a timm or torchvision network: a local file, `pretrained` for those of its library's hub, or
            `random`.

    Raises:
        InputError: no such backbone, weights that do not fit it or cannot be had, or a function that returns something
            else.
        MissingExtra: a library that it needs is not installed.
    """
    check_name(name, weights)
    family, _, rest = name.partition(":")
    if family == "timm":
        from .timm_models import open_timm

        return open_timm(rest, weights)
    if family == "torchvision":
        from .torchvision_models import open_torchvision

        return open_torchvision(rest, weights)
    if name in LITES:
        return Backbone(*load_backbone(name), name)
    if family == "onnx":
        from .onnx_files import open_onnx

        return open_onnx(Path(rest))
    return _from_function(family, rest)


def _from_function(module: str, function: str) -> Backbone:
    name = f"{module}:{function}"
    try:
        made = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"backbone {name} must name a function of a module that Python finds, and does not: {error}. For a file in "
            "this folder run with PYTHONPATH=."
        ) from error
    try:
        backbone = made()
    except (Exception, SystemExit) as error:  # the function is anybody's
        raise InputError(f"backbone {name} failed: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(backbone, Backbone):
        wanted = "chan_rt.chan_ref.backbones.base.Backbone"
        raise InputError(f"backbone {name} must return a {wanted}, got {type(backbone).__name__}")
    return Backbone(frozen(backbone.module), backbone.preprocess, name)
