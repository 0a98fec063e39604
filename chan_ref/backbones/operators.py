"""torchvision's compiled operators, where they do not load.

The torchvision of PyPI is compiled for torch with CUDA. Beside a torch for CPUs its compiled operators do not load, and
`import torchvision` then fails, because it registers the shapes of operators that nobody declared. No backbone here
runs them: `suppression` and `detector` compute what they do. So they are declared without an implementation.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import torch

_SUPPRESSION = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def declare_operators() -> torch.library.Library | None:
    """Declare the operators that `import torchvision` needs, unless its own are there.

    Returns:
        What keeps the declarations alive; None where nothing had to be declared.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return None
    for library in sorted(Path(found.origin).parent.glob("_C*.so")):
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            continue
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    declared = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        declared.define(name + _SUPPRESSION)  # type: ignore[no-untyped-call]
    return declared
