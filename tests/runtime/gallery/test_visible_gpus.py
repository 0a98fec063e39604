"""CUDA_VISIBLE_DEVICES: a number stands for one GPU where the driver is examined and where a gallery is opened."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest

from chan_rt.runtime import gpu
from chan_rt.runtime.backends.device import CudaDevice
from chan_rt.runtime.errors import InputError
from chan_rt.runtime.gallery import Gallery, cuda
from chan_rt.runtime.gallery.cuda.kernels import KernelRecord
from chan_rt.runtime.gpu import Gpu

from ..fake_driver import FakeDriver, visible

cudart = pytest.importorskip("cuda.bindings.runtime")
BUILT_IN = [Gpu("L4", (8, 9), 23 << 30), Gpu("A100", (8, 0), 40 << 30), Gpu("H100", (9, 0), 80 << 30)]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Gpu]:
    """A driver and a runtime that both honor the variable; the GPUs that the runtime was told to use, in order."""
    calls: list[Gpu] = []
    success, invalid = cudart.cudaError_t.cudaSuccess, cudart.cudaError_t.cudaErrorInvalidDevice

    def set_device(index: int) -> tuple[Any]:
        shown = visible(BUILT_IN)
        if index >= len(shown):
            return (invalid,)
        calls.append(shown[index])
        return (success,)

    monkeypatch.setattr(cudart, "cudaSetDevice", set_device)
    monkeypatch.setattr(cudart, "cudaThreadExchangeStreamCaptureMode", lambda mode: (success, mode))
    monkeypatch.setattr(CudaDevice, "_threads", threading.local())
    monkeypatch.setattr(gpu, "_load", FakeDriver("580.65.06", 13000, BUILT_IN).load)
    monkeypatch.setattr(gpu, "_cuda_of_bindings", lambda: 13)
    return calls


@pytest.mark.parametrize(
    ("shown", "names"),
    [(None, ["L4", "A100", "H100"]), ("2,0", ["H100", "L4"]), ("1", ["A100"]), ("1,7,2", ["A100"])],
)
def test_a_gallery_is_opened_on_the_gpu_that_was_examined(
    gallery_path: Path, used: list[Gpu], monkeypatch: pytest.MonkeyPatch, shown: str | None, names: list[str]
) -> None:
    if shown is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    capabilities: list[tuple[int, int]] = []

    def find_kernels(*arguments: Any) -> tuple[KernelRecord, dict[str, bytes]]:
        capabilities.append(arguments[-1])
        return KernelRecord("int8", 64, "LSE", "sm_80", "none", "", {}), {}

    monkeypatch.setattr(cuda, "find_kernels", find_kernels)
    monkeypatch.setattr(cuda, "KernelScan", lambda record, code, device, *rest: device)
    monkeypatch.setattr(cuda, "check_kernels", lambda *arguments: None)
    wanted = [next(each for each in BUILT_IN if each.name == name) for name in names]
    with Gallery.open(gallery_path) as gallery:
        for index in range(len(wanted)):
            cuda.open_resident(gallery_path, gallery.settings, "int8", index)
        assert used == wanted
        assert capabilities == [each.capability for each in wanted]
        known = ", ".join(f"cuda:{index} ({name})" for index, name in enumerate(names))
        with pytest.raises(InputError, match=re.escape(f"{known}, got cuda:{len(names)}")):
            cuda.open_resident(gallery_path, gallery.settings, "int8", len(names))
    assert used == wanted
