"""Before a gallery is trusted to a GPU, its kernels are asked what is known: right ones pass, broken ones do not.

On a device made of host memory, where numpy stands for the kernels; see test_resident.py.
"""

from typing import Any

import numpy as np
import pytest

from chan_rt.runtime.backends.fake import FakeDevice
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import BackendError
from chan_rt.runtime.gallery import cuda
from chan_rt.runtime.gallery.cuda import check_kernels, open_resident
from chan_rt.runtime.gallery.cuda.kernels import POOLINGS
from chan_rt.runtime.gpu import Gpu, GpuReport

from . import test_resident
from .test_resident import KERNELS, open_scan

ONLY_SAVE_TIME = {"kth_best", "reach_64", "reach_256"}  # without them lists are longer, and hold what they must
of_numpy = pytest.mark.skipif(KERNELS != "numpy", reason="breaks kernels that numpy stands for")


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("precision", "dim", "form"),
    [("int8", 24, "float32"), ("int8", 200, "float16"), ("float16", 70, "float32"), ("int8", 1024, "fixed16")],
)
def test_kernels_that_compute_the_truth_pass_and_nothing_is_left(
    precision: str, dim: int, form: str, pooling: str
) -> None:
    alignment = AlignmentConfig(pooling=pooling)
    scan, device = open_scan(precision, dim, alignment)
    before = len(device.memory)
    check_kernels(scan, dim, alignment, form)
    scan.close()
    assert before == 0
    assert device.empty


@pytest.mark.parametrize("temperature", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("dim", [1, 150, 300])
def test_kernels_pass_at_any_temperature(dim: int, temperature: float) -> None:
    """Otherwise a gallery whose kernels are right would be refused."""
    alignment = AlignmentConfig(pooling_temperature=temperature)
    scan, _ = open_scan("int8", dim, alignment)
    check_kernels(scan, dim, alignment, "fixed16")
    scan.close()


@of_numpy
def test_every_kernel_is_asked() -> None:
    scan, device = open_scan("int8", 200, AlignmentConfig())
    check_kernels(scan, 200, AlignmentConfig(), "fixed16")
    assert set(device.launched) == set(scan._record.functions) - {"decide_float32", "decide_float16"}


def broken(monkeypatch: pytest.MonkeyPatch, name: str, instead: Any) -> tuple[Any, FakeDevice]:
    """A scan one of whose kernels is `instead`, given what it stands for."""
    real = test_resident.kernels

    def kernels(*of: Any) -> dict[str, Any]:
        every = real(*of)
        return every | {name: instead(every[name])}

    monkeypatch.setattr(test_resident, "kernels", kernels)
    return open_scan("int8", 200, AlignmentConfig())


@of_numpy
@pytest.mark.parametrize(
    "name",
    sorted({*test_resident.kernels("int8", 256, "LSE")} - ONLY_SAVE_TIME - {"decide_float32", "decide_float16"}),
)
def test_a_kernel_that_writes_nothing_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, _ = broken(monkeypatch, name, lambda real: lambda *arguments: None)
    if name in ("best_rows", "quantize"):  # what comes next reads what nobody wrote, and fails by itself
        with pytest.raises((IndexError, RuntimeWarning)):
            check_kernels(scan, 200, AlignmentConfig(), "fixed16")
        return
    with pytest.raises(BackendError, match=r"computes wrong numbers on this GPU, the .* of a test among them"):
        check_kernels(scan, 200, AlignmentConfig(), "fixed16")


@of_numpy
@pytest.mark.parametrize("best", [True, False])
@pytest.mark.parametrize("name", ["scan_16", "scan_64", "pairs_16", "pairs_32", "pairs_64"])
def test_one_wrong_score_is_found(name: str, best: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best row's is too small, or the worst one's too large."""

    def instead(real: Any) -> Any:
        def run(device: FakeDevice, blocks: int, *arguments: Any) -> None:
            real(device, blocks, *arguments)
            scores = device.array(arguments[8], np.float64)[: int(arguments[9])]
            most, least = int(scores.argmax()), int(scores.argmin())
            scores[most if best else least] = scores[least] if best else scores[most] * 1.1

        return run

    scan, _ = broken(monkeypatch, name, instead)
    with pytest.raises(BackendError, match="computes wrong numbers on this GPU"):
        check_kernels(scan, 200, AlignmentConfig(), "fixed16")


def test_a_gallery_whose_kernels_are_wrong_does_not_open(
    gallery_path: Any, make_settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the GPU is given back."""
    scan, device = open_scan("int8", 24, AlignmentConfig())
    monkeypatch.setattr("chan_rt.runtime.gpu.examine_gpu", lambda: GpuReport((Gpu("NVIDIA H100", (9, 0), 80 << 30),)))
    monkeypatch.setattr(cuda, "find_kernels", lambda *arguments: (scan._record, {}))
    monkeypatch.setattr(cuda, "CudaDevice", lambda index: device)
    monkeypatch.setattr(cuda, "KernelScan", lambda *arguments: scan)

    def wrong(*arguments: Any) -> None:
        raise BackendError("triton int8 computes wrong numbers on this GPU")

    monkeypatch.setattr(cuda, "check_kernels", wrong)
    with pytest.raises(BackendError, match="computes wrong numbers"):
        open_resident(gallery_path, make_settings(dim=24), "int8")
    assert device.empty
