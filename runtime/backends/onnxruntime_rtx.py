"""onnxruntime with NVIDIA's TensorRT-RTX plugin: the ONNX file is compiled for the GPU as it is opened, so no engine is
built beforehand, and the CPU's onnxruntime is enough.

https://onnxruntime.ai/docs/execution-providers/plugin-ep-libraries/usage.html
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from ..contract import GraphSpec
from ..errors import BackendError
from ..extras import needs
from ..gpu import examine_gpu
from ..onnx_session import open_session
from .base import Backend
from .onnxruntime_gpu import GpuSession
from .rtx_gpus import INSTEAD, why_not_served
from .tf32 import forbid_tf32

_registering = threading.Lock()
_registered: set[str] = set()


def open_file(file: Path, spec: GraphSpec, threads: int | None, gpu: int = 0) -> Backend:
    """Open an ONNX file on a GPU; `threads` serve what little stays on the CPU.

    Raises:
        BackendError: TensorRT-RTX does not run on the GPU here, or as in `devices`.
    """
    if (problem := why_not_served(examine_gpu().only(gpu))) is not None:
        raise BackendError(f"onnxruntime_rtx cannot run here: {problem}; {INSTEAD}")
    provider = plugin().get_ep_name(), {"device_id": str(gpu)}
    return PluginBackend("onnxruntime_rtx", file, spec, provider, threads, extra="cpu")


class PluginBackend(GpuSession):
    """An onnxruntime session on the plugin's device that the provider's `device_id` names; see `GpuSession`."""

    def _start(self, ort: Any, file: Path, provider: tuple[str, dict[str, str]], extra: str) -> Any:
        return open_session(
            file, self.threads, provider=provider, devices=[device_of(devices(ort), int(provider[1]["device_id"]))]
        )


def device_of(found: list[Any], index: int) -> Any:
    """The plugin's device of a GPU; BackendError where the plugin has none. The plugin gives each CUDA's number."""
    numbers = [int(device.ep_options.get("device_id", place)) for place, device in enumerate(found)]
    if index not in numbers:
        known = ", ".join(f"cuda:{number}" for number in numbers)
        raise BackendError(f"onnxruntime's TensorRT-RTX plugin can use {known}, not cuda:{index}")
    return found[numbers.index(index)]


def plugin() -> Any:
    """The plugin's package; MissingExtra names the extra that brings it."""
    extra = examine_gpu().extra_for("rtx-plugin")
    with needs("onnxruntime_ep_nv_tensorrt_rtx", "the backend onnxruntime_rtx", extra):
        import onnxruntime_ep_nv_tensorrt_rtx
    return onnxruntime_ep_nv_tensorrt_rtx


def devices(ort: Any) -> list[Any]:
    """The devices the plugin runs on, at least one; it is loaded once a process.

    Raises:
        BackendError: the plugin is not installed, does not load, or finds no GPU, or onnxruntime is too old for it.
    """
    package = plugin()
    if not hasattr(ort, "register_execution_provider_library"):
        raise BackendError(f"the backend onnxruntime_rtx needs onnxruntime 1.23 or newer, got {ort.__version__}")
    name = package.get_ep_name()
    with _registering:
        if name not in _registered:
            forbid_tf32()
            try:
                ort.register_execution_provider_library(name, package.get_library_path())
            except Exception as error:  # onnxruntime's exceptions have no common base but Exception
                raise BackendError(f"onnxruntime's TensorRT-RTX plugin does not load: {error}") from error
            _registered.add(name)
    found = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if not found:
        raise BackendError("onnxruntime's TensorRT-RTX plugin finds no GPU it can use")
    return found
