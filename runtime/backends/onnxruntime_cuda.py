"""onnxruntime on an NVIDIA GPU."""

from __future__ import annotations

from pathlib import Path

from ..contract import GraphSpec
from .base import Backend
from .onnxruntime import OnnxRuntimeBackend

# TensorFloat-32 keeps 10 bits of a float32's 23: an fp32 graph would not be one.
_OPTIONS = {"use_tf32": "0"}


def open_file(file: Path, spec: GraphSpec, threads: int | None) -> Backend:
    """Open an ONNX file on the first GPU; `threads` serve what little stays on the CPU."""
    provider = ("CUDAExecutionProvider", dict(_OPTIONS))
    return OnnxRuntimeBackend("onnxruntime_cuda", file, spec, provider, threads, extra="gpu")
