"""TensorRT-RTX engines: the implementation is `tensorrt`'s."""

from __future__ import annotations

from pathlib import Path

from ..contract import GraphSpec
from .base import Backend
from .tensorrt import TensorRTBackend


def open_file(file: Path, spec: GraphSpec, threads: int | None) -> Backend:
    """Open an engine of TensorRT-RTX on the first GPU; `threads` concerns CPU backends only."""
    return TensorRTBackend("tensorrt_rtx", file, spec)
