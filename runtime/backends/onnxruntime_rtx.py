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
from ..gpu import GpuReport, examine_gpu, parse_bus
from ..onnx_session import open_session
from .base import Backend
from .onnxruntime_gpu import GpuSession
from .rtx_gpus import INSTEAD, why_not_served
from .tf32 import forbid_tf32

ALONE = "start the process with that GPU alone in CUDA_VISIBLE_DEVICES, and use cuda:0"
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
        chosen = device_of(devices(ort), int(provider[1]["device_id"]), examine_gpu())
        return open_session(file, self.threads, provider=provider, devices=[chosen])


def device_of(found: list[Any], index: int, shown: GpuReport) -> Any:
    """The plugin's device of a GPU.

    The plugin computes on the GPU to which CUDA gives the device's number, its option `device_id`. But it counts
    onnxruntime's list, which has no order, and leaves out GPUs that it does not run on. So the PCI address of the
    device with this number must be that of CUDA's GPU; where one of the two is not known, there must be only one GPU.
    (nv_provider_factory.cc of onnxruntime, `GetSupportedDevicesImpl` and `CreateIExecutionProvider`.)

    Args:
        found: the plugin's devices.
        index: the GPU's number, as CUDA counts those it shows.
        shown: those that it shows.

    Raises:
        BackendError: there is no such device, or it is not sure which one it is.
    """
    numbers = [int(device.ep_options.get("device_id", place)) for place, device in enumerate(found)]
    if index not in numbers:
        known = ", ".join(f"cuda:{number}" for number in sorted(numbers))
        raise BackendError(f"onnxruntime's TensorRT-RTX plugin can use {known}, not cuda:{index}")
    chosen = found[numbers.index(index)]
    expected = shown.gpus[index].bus if index < len(shown.gpus) else None
    listed = parse_bus(chosen.device.metadata.get("pci_bus_id"))
    alone = len(found) == 1 and len(shown.gpus) <= 1
    sure = expected == listed if expected and listed else alone
    if not sure:
        raise BackendError(
            f"onnxruntime's TensorRT-RTX plugin numbers GPUs in an order of its own, and its number {index} is not "
            f"surely cuda:{index}; {ALONE}"
        )
    return chosen


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
