"""TensorRT-RTX engines: the implementation is `tensorrt`'s."""

from __future__ import annotations

from pathlib import Path

from ..contract import GraphSpec
from .base import Backend
from .tensorrt import TensorRTBackend


def open_file(file: Path, spec: GraphSpec, threads: int | None, gpu: int = 0) -> Backend:
    """Open an engine of TensorRT-RTX on a GPU; `threads` concerns CPU backends only."""
    return TensorRTBackend("tensorrt_rtx", file, spec, gpu=gpu)
