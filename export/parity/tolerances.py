"""What `tolerances.json` allows each kind of backend at each precision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources

from ...runtime.backends.table import FLAVORS
from ...runtime.errors import ParityError
from .measures import MEASURES

Bounds = Mapping[str, Mapping[str, float]]  # part -> measure -> bound


def load_tolerances(backend: str, precision: str) -> Bounds:
    """What `tolerances.json` allows a backend at a precision.

    Raises:
        ParityError: nothing is written for it, or something is bounded that is not measured.
    """
    every = json.loads(resources.files("chan_rt.export").joinpath("tolerances.json").read_text("utf-8"))
    kind = "engine" if backend in FLAVORS else "onnxruntime"
    bounds: Bounds | None = every[kind].get(precision)
    if bounds is None:
        raise ParityError(f"tolerances.json has none for {kind} at {precision}, only at {', '.join(every[kind])}")
    for part, measures in bounds.items():
        if unknown := measures.keys() - MEASURES.keys():
            raise ParityError(f"tolerances.json: {kind} {precision} {part} bounds {', '.join(unknown)}: not measured")
    return bounds
