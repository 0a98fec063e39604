"""Every backend, in one table: what it runs, what it needs and which extra brings it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Flavor = Literal["tensorrt", "tensorrt_rtx"]


@dataclass(frozen=True)
class BackendInfo:
    """One backend; the module of its name in this package defines open_file(file, spec, threads, gpu) -> Backend.

    Attributes:
        runs: the file it opens: an engine built beforehand, or the bundle's ONNX file.
        gpu: whether it needs an NVIDIA GPU.
        extra: the extra that installs it.
        package: the package whose version is the backend's, as pip calls it.
        provider: the execution provider of onnxruntime it asks for, where it is one that onnxruntime was built with.
    """

    runs: Literal["engine", "onnx"]
    gpu: bool
    extra: str
    package: str
    provider: str | None = None


# In the order in which `auto` tries them.
BACKENDS: Mapping[str, BackendInfo] = {
    "tensorrt": BackendInfo("engine", True, "tensorrt", "tensorrt"),
    "tensorrt_rtx": BackendInfo("engine", True, "rtx", "tensorrt-rtx"),
    "onnxruntime_cuda": BackendInfo("onnx", True, "gpu-cu13", "onnxruntime-gpu", "CUDAExecutionProvider"),
    "onnxruntime_rtx": BackendInfo("onnx", True, "rtx-plugin", "onnxruntime-ep-nv-tensorrt-rtx"),
    "onnxruntime": BackendInfo("onnx", False, "cpu", "onnxruntime", "CPUExecutionProvider"),
}
CPU_BACKEND = "onnxruntime"  # which runs every graph
CPU_INT8 = "int8_x86"  # the int8 that it is fast at
FLAVORS: tuple[Flavor, ...] = get_args(Flavor)  # the backends that run engines; a test holds them against the table
ON_DEVICE = (*FLAVORS, "onnxruntime_cuda")  # the backends that take tensors of GPU memory (`on_device`)
