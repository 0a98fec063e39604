"""What the CUDA driver says of the GPUs, and what to install for the CUDA that it serves."""

import json
import subprocess
import sys
import tomllib
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from chan_rt.runtime import gpu
from chan_rt.runtime.backends.probe import examine_backend
from chan_rt.runtime.gpu import Gpu, GpuReport, examine_gpu

ROOT = Path(__file__).parents[2]


class Status(IntEnum):
    cudaSuccess = 0
    cudaErrorNoDevice = 100


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch):
    """A driver of some version that serves a CUDA, and the cuda-python for another, with H100s as devices."""

    def install(version: str, serves: int, library: int, count: int = 1) -> None:
        cudart = ModuleType("cuda.bindings.runtime")
        cudart.cudaDriverGetVersion = lambda: (Status(0), serves)
        cudart.cudaRuntimeGetVersion = lambda: (Status(0), library)
        cudart.cudaGetDeviceCount = lambda: (Status(0 if count else 100), count)
        cudart.cudaGetErrorString = lambda status: (Status(0), b"no CUDA-capable device is detected")
        h100 = SimpleNamespace(name=b"NVIDIA H100 80GB HBM3\0", major=9, minor=0, totalGlobalMem=80 << 30)
        cudart.cudaGetDeviceProperties = lambda index: (Status(0), h100)
        bindings = ModuleType("cuda.bindings")
        bindings.runtime = cudart
        monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cudart)
        monkeypatch.setattr(gpu, "ctypes", SimpleNamespace(CDLL=lambda name: None))
        monkeypatch.setattr(gpu, "_driver_version", lambda: version)

    return install


def test_every_device_is_reported(driver) -> None:
    driver("580.65.06", 13000, 13040, 2)
    found = examine_gpu()
    assert found == GpuReport((Gpu("NVIDIA H100 80GB HBM3", (9, 0), 80 << 30),) * 2, "580.65.06", "13.0")
    assert found.gpus[0].architecture == "sm_90"
    assert found.extra == "gpu-cu13"


def test_a_driver_before_r580_is_named_with_the_cuda_it_serves_and_what_to_install(driver) -> None:
    driver("550.54.15", 12040, 13040)
    found = examine_gpu()
    assert found.gpus == ()
    assert found.problem == "driver 550.54.15 serves CUDA 12.4, cuda-python here is for CUDA 13"
    assert found.remedy == "install NVIDIA driver R580 or newer, or: pip install 'chan-rt[gpu-cu12]'"


def test_a_driver_before_r580_works_with_libraries_of_its_cuda(driver) -> None:
    driver("550.54.15", 12040, 12090)
    found = examine_gpu()
    assert found.problem is None
    assert len(found.gpus) == 1
    assert found.extra == "gpu-cu12"


def test_a_driver_too_old_for_either_extra_must_be_replaced(driver) -> None:
    driver("470.57.02", 11040, 13040)
    assert examine_gpu().remedy == "install NVIDIA driver R580 or newer"


def test_hidden_devices_are_no_fault_of_the_driver(driver) -> None:
    driver("580.65.06", 13000, 13040, 0)
    found = examine_gpu()
    assert (found.problem, found.remedy) == ("no CUDA-capable device is detected", None)


def test_backends_repeat_the_remedy_of_the_driver(driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver("550.54.15", 12040, 13040)
    monkeypatch.setattr("chan_rt.runtime.backends.probe.package_version", lambda package: "1.0")
    for name in ("tensorrt_rtx", "onnxruntime_cuda", "onnxruntime_rtx"):
        report = examine_backend(name, examine_gpu())
        assert not report.runs
        assert "serves CUDA 12.4" in (report.problem or "")
        assert "chan-rt[gpu-cu12]" in (report.remedy or "")


def test_an_engine_library_for_a_newer_cuda_than_the_drivers_is_refused(driver) -> None:
    pytest.importorskip("tensorrt_rtx")
    driver("550.54.15", 12040, 12090)
    report = examine_backend("tensorrt_rtx", examine_gpu())
    assert report.problem == "driver 550.54.15 serves CUDA 12.4, tensorrt-rtx-cu13 here is for CUDA 13"
    assert "pip install tensorrt-rtx-cu12" in (report.remedy or "")


@pytest.mark.nightly
@pytest.mark.parametrize(("extra", "major", "provider"), [("gpu-cu12", "12", "cu12"), ("gpu-cu13", "13", "cu13")])
def test_the_extras_of_both_cudas_resolve(extra: str, major: str, provider: str, tmp_path: Path) -> None:
    """Against the package index, for CPython 3.12 on x86-64; every library they bring is for the one CUDA."""
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"][extra]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--report", "-"]
    command += ["--only-binary=:all:", "--python-version", "3.12", "--target", str(tmp_path)]
    for tag in ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"):
        command += ["--platform", tag]
    done = subprocess.run([*command, *needs], check=False, capture_output=True, text=True)
    if done.returncode != 0 and "Could not find a version" in done.stderr and "from versions: none" in done.stderr:
        pytest.skip(f"no package index here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in json.loads(done.stdout)["install"]}
    assert found["cuda-python"].partition(".")[0] == major
    assert f"nvidia-cudnn-{provider}" in found
    assert not [name for name in found if name.endswith(("-cu12", "-cu13")) and not name.endswith(provider)]
