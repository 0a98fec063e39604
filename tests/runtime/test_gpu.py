"""What the CUDA driver says of the GPUs, and what to install for the CUDA that it serves."""

import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from chan_rt.runtime import gpu
from chan_rt.runtime.backends import probe
from chan_rt.runtime.backends.device import CudaDevice
from chan_rt.runtime.backends.engine_staleness import capability_here, why_unusable
from chan_rt.runtime.backends.onnxruntime import OnnxRuntimeBackend
from chan_rt.runtime.backends.probe import examine_backend
from chan_rt.runtime.backends.rtx_gpus import KNOWN, portable_gpus
from chan_rt.runtime.backends.sidecar import Engine
from chan_rt.runtime.backends.table import BACKENDS
from chan_rt.runtime.errors import BackendError, MissingExtra
from chan_rt.runtime.gpu import Gpu, GpuReport, examine_gpu

from ..run_chan import chan
from .fake_driver import FakeDriver

ROOT = Path(__file__).parents[2]
H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 80 << 30)
L4 = Gpu("NVIDIA L4", (8, 9), 23 << 30)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch):
    """A driver of some version that serves a CUDA, and the cuda-python for another, or none for 0."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(
        version: str | None, serves: int, bindings: int, gpus: tuple[Gpu, ...] = (H100,), fails: str | None = None
    ) -> None:
        monkeypatch.setattr(gpu, "_load", FakeDriver(version, serves, list(gpus), fails).load)
        monkeypatch.setattr(gpu, "_cuda_of_bindings", lambda: bindings)

    return install


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Say which packages pip has installed, with the version 1.0."""

    def install(*packages: str) -> None:
        def version(package: str) -> str:
            if package not in packages:
                raise metadata.PackageNotFoundError(package)
            return "1.0"

        # Each module looks the function up in importlib.metadata.
        monkeypatch.setattr(metadata, "version", version)

    return install


def test_every_device_is_reported(driver) -> None:
    driver("580.65.06", 13000, 13, (H100, L4))
    found = examine_gpu()
    assert found == GpuReport((H100, L4), "580.65.06", "13.0")
    assert found.gpus[0].architecture == "sm_90"
    assert [found.extra_for(extra) for extra in ("gpu", "gpu-cu13", "tensorrt")] == ["gpu", "gpu-cu13", "tensorrt"]


def test_a_gpu_is_reported_with_its_place_on_pci(driver) -> None:
    placed = replace(L4, bus=(1, 0xCA, 0x1F, 7))
    driver("580.65.06", 13000, 13, (placed, H100))
    assert [each.bus for each in examine_gpu().gpus] == [(1, 0xCA, 0x1F, 7), None]


def test_a_gpu_is_examined_before_anything_is_installed(driver) -> None:
    driver(None, 12040, 0)
    assert examine_gpu() == GpuReport((H100,), None, "12.4")
    output = chan("doctor").output
    assert "driver   of unknown version, CUDA 12.4\n" in output
    assert "GPU      NVIDIA H100 80GB HBM3, compute capability 9.0, 80 GiB\n" in output


def test_a_driver_before_r580_is_named_with_the_cuda_it_serves_and_what_to_install(driver) -> None:
    driver("550.54.15", 12040, 13)
    found = examine_gpu()
    assert found.gpus == (H100,)
    assert found.problem == "driver 550.54.15 serves CUDA 12.4, cuda-python here is for CUDA 13"
    assert found.remedy == "install NVIDIA driver R580 or newer, or: pip install 'chan-rt[gpu-cu12]'"
    assert f"GPU      not usable: {found.problem}\n" in chan("doctor").output


def test_a_driver_before_r580_works_with_libraries_of_its_cuda(driver) -> None:
    driver("550.54.15", 12040, 12)
    found = examine_gpu()
    assert found.problem is None
    assert len(found.gpus) == 1
    wanted = [found.extra_for(extra) for extra in ("gpu", "gpu-cu13", "tensorrt", "rtx", "rtx-plugin")]
    assert wanted == ["gpu-cu12", "gpu-cu12", "tensorrt-cu12", "rtx-cu12", "rtx-plugin-cu12"]


def test_a_driver_for_cuda_11_needs_replacing(driver) -> None:
    driver("470.57.02", 11040, 13)
    assert examine_gpu().remedy == "install NVIDIA driver R580 or newer"


def test_the_cuda_of_cuda_python_is_that_of_its_package(installed) -> None:
    pytest.importorskip("cuda.bindings")
    from cuda.bindings import runtime

    assert gpu._cuda_of_bindings() == runtime.cudaRuntimeGetVersion()[1] // 1000
    installed()
    assert gpu._cuda_of_bindings() == 0


def test_hidden_devices_are_no_fault_of_the_driver(driver) -> None:
    driver("580.65.06", 13000, 13, ())
    found = examine_gpu()
    assert (found.problem, found.remedy) == ("no CUDA-capable device is detected", None)


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName"])
def test_what_fails_in_the_driver_is_named(driver, function: str) -> None:
    driver("580.65.06", 13000, 13, fails=function)
    found = examine_gpu()
    assert (found.gpus, found.problem) == ((), f"{function} failed with status 999")


@pytest.mark.parametrize(
    ("shown", "gpus"), [(None, (H100, L4)), ("1", (L4,)), ("1,0", (L4, H100)), ("0,7,1", (H100,)), ("", ()), ("-1", ())]
)
def test_devices_are_those_that_cuda_visible_devices_leaves_in_its_order(
    driver, monkeypatch: pytest.MonkeyPatch, shown: str | None, gpus: tuple[Gpu, ...]
) -> None:
    driver("580.65.06", 13000, 13, (H100, L4))
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert examine_gpu().gpus == gpus
    assert capability_here() == (gpus[0].capability if gpus else None)  # engines are for the first of these


DRIVER_550 = {
    "tensorrt": "tensorrt-cu12",
    "tensorrt_rtx": "rtx-cu12",
    "onnxruntime_cuda": "gpu-cu12",
    "onnxruntime_rtx": "rtx-plugin-cu12",
}


@pytest.mark.parametrize("bindings", [0, 12, 13])
@pytest.mark.parametrize(("name", "extra"), DRIVER_550.items())
def test_a_library_that_is_missing_is_advised_for_the_cuda_of_the_driver(
    driver, installed, name: str, extra: str, bindings: int
) -> None:
    installed()
    driver("550.54.15", 12040, bindings, (L4,))
    report = examine_backend(name, examine_gpu())
    assert not report.runs
    assert report.version is None
    assert "is not installed" in (report.problem or "")
    assert report.remedy == f"pip install 'chan-rt[{extra}]'"
    driver("580.65.06", 13000, bindings, (L4,))
    newest = BACKENDS[name].extra
    assert examine_backend(name, examine_gpu()).remedy == f"pip install 'chan-rt[{newest}]'"
    installed("onnxruntime")
    alone = "pip uninstall onnxruntime && " if name == "onnxruntime_cuda" else ""
    assert examine_backend(name, examine_gpu()).remedy == f"{alone}pip install 'chan-rt[{newest}]'"


def test_nothing_is_advised_to_be_installed_where_there_is_no_gpu(installed) -> None:
    """But for TensorRT-RTX, which builds engines without one."""
    installed("onnxruntime")
    none = GpuReport(problem="the NVIDIA driver's library does not load")
    for name in ("tensorrt", "onnxruntime_cuda", "onnxruntime_rtx"):
        report = examine_backend(name, none)
        assert report.problem == "no usable GPU: the NVIDIA driver's library does not load"
        assert report.remedy == "a machine with an NVIDIA GPU and its driver; here use the backend onnxruntime"
    assert examine_backend("tensorrt_rtx", none).remedy == "pip install 'chan-rt[rtx]'"
    hidden = GpuReport(problem="the driver is too old", remedy="update it")
    assert examine_backend("tensorrt", hidden).remedy == "pip install 'chan-rt[tensorrt]'"


@pytest.mark.parametrize("name", ["tensorrt_rtx", "onnxruntime_cuda", "onnxruntime_rtx"])
def test_backends_repeat_the_remedy_of_the_driver_with_their_own_extra(
    driver, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    driver("550.54.15", 12040, 13, (L4,))
    monkeypatch.setattr("chan_rt.runtime.backends.probe.package_version", lambda package: "1.0")
    report = examine_backend(name, examine_gpu())
    assert not report.runs
    assert "serves CUDA 12.4" in (report.problem or "")
    assert report.remedy == f"install NVIDIA driver R580 or newer, or: pip install 'chan-rt[{DRIVER_550[name]}]'"


def test_an_engine_library_for_a_newer_cuda_than_the_drivers_is_refused(driver) -> None:
    pytest.importorskip("tensorrt_rtx")
    driver("550.54.15", 12040, 12, (L4,))
    report = examine_backend("tensorrt_rtx", examine_gpu())
    assert report.problem == "driver 550.54.15 serves CUDA 12.4, tensorrt-rtx-cu13 here is for CUDA 13"
    parts = "tensorrt-rtx tensorrt-rtx-cu13 tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs"
    assert f"pip uninstall {parts} && pip install 'chan-rt[rtx-cu12]'" in (report.remedy or "")


def test_the_plugin_for_cuda_12_is_found_and_one_for_cuda_13_replaced(
    driver, installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver("550.54.15", 12040, 12, (L4,))
    package = BACKENDS["onnxruntime_rtx"].package
    monkeypatch.setattr(probe, "_plugin_problem", lambda index: None)
    installed(f"{package}-cu12")
    report = examine_backend("onnxruntime_rtx", examine_gpu())
    assert (report.runs, report.version) == (True, "1.0")
    monkeypatch.setattr(probe, "_plugin_problem", lambda index: "it does not load")
    installed(package, f"{package}-cu13")
    report = examine_backend("onnxruntime_rtx", examine_gpu())
    wanted = f"pip uninstall {package} {package}-cu13 && pip install 'chan-rt[rtx-plugin-cu12]'"
    assert (report.problem, report.remedy) == ("it does not load", wanted)


ELSEWHERE = "use the backend tensorrt, or onnxruntime_cuda, which needs no engines"


@pytest.mark.parametrize("bindings", [0, 12, 13])
@pytest.mark.parametrize("serves", [12040, 13000])
@pytest.mark.parametrize("has", ["nothing", "everything", "what does not load"])
def test_the_owner_of_an_h100_is_never_told_to_install_tensorrt_rtx(
    driver, installed, monkeypatch: pytest.MonkeyPatch, has: str, serves: int, bindings: int
) -> None:
    driver("550.54.15", serves, bindings)
    if has == "nothing":
        installed()
    else:
        monkeypatch.setattr(probe, "installed_version", lambda flavor: "1.7.1")
        monkeypatch.setattr(probe, "package_version", lambda package: "1.0")
        monkeypatch.setattr(probe, "_plugin_problem", lambda index: None)
    if has != "everything":
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    else:
        pytest.importorskip("tensorrt_rtx")
    for name in ("tensorrt_rtx", "onnxruntime_rtx"):
        report = examine_backend(name, examine_gpu())
        assert not report.runs
        assert report.remedy == ELSEWHERE
        if not (name == "tensorrt_rtx" and has == "what does not load"):
            problem = "NVIDIA H100 80GB HBM3 has compute capability 9.0, TensorRT-RTX runs on sm_80, sm_86, sm_89, "
            assert problem in (report.problem or "")
    if has == "nothing":
        output = chan("doctor").output
        assert "chan-rt[rtx" not in output
        assert ("chan-rt[tensorrt-cu12]" if serves == 12040 else "chan-rt[tensorrt]") in output


@pytest.mark.parametrize(
    ("gpus", "serves", "extra"),
    [
        ((), 13000, "rtx"),
        ((L4,), 13000, "rtx"),
        ((L4,), 12040, "rtx-cu12"),
        ((H100,), 13000, "tensorrt"),
        ((H100,), 12040, "tensorrt-cu12"),
    ],
)
def test_cuda_python_comes_with_what_serves_the_gpu(
    driver, monkeypatch: pytest.MonkeyPatch, gpus: tuple[Gpu, ...], serves: int, extra: str
) -> None:
    driver("550.54.15", serves, 0, gpus)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(MissingExtra, match=rf"a GPU needs cuda\.bindings: pip install 'chan-rt\[{extra}\]'"):
        CudaDevice()


def test_an_engine_for_other_gpus_is_refused_before_its_library_is_missed(driver, tmp_path: Path) -> None:
    driver("550.54.15", 12040, 0)
    fields = {"graph": "text_encoder", "precision": "fp32", "key": "0" * 64, "version": "1.7.1", "os": "linux"}
    for gpus, reason in (
        (("sm_80", "sm_89"), "it is foreign: built for sm_80, sm_89, this GPU is sm_90"),
        (("sm_90",), "tensorrt_rtx is not installed: pip install 'chan-rt[rtx-cu12]'"),
    ):
        record = SimpleNamespace(**fields, flavor="tensorrt_rtx", gpus=gpus, onnx_sha256="")
        engine = Engine(tmp_path / "engine", record)  # type: ignore[arg-type]
        assert why_unusable(engine, None, None, "linux", capability_here()) == reason


def test_the_gpus_that_are_known_without_the_library_are_those_of_the_library() -> None:
    assert portable_gpus(pytest.importorskip("tensorrt_rtx")) == KNOWN


def test_a_session_that_cannot_open_advises_what_the_driver_serves(
    driver, installed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cuda = ("CUDAExecutionProvider", {})
    installed("onnxruntime")
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    for serves, extra in ((12040, "gpu-cu12"), (13000, "gpu")):
        driver("550.54.15", serves, 0)
        with pytest.raises(
            BackendError, match=rf"has .*: pip uninstall onnxruntime && pip install 'chan-rt\[{extra}\]'"
        ):
            OnnxRuntimeBackend("onnxruntime_cuda", tmp_path, None, cuda, 1, extra="gpu")  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "onnxruntime", None)
            with pytest.raises(BackendError, match=rf"needs onnxruntime: pip install 'chan-rt\[{extra}\]'"):
                OnnxRuntimeBackend("onnxruntime_cuda", tmp_path, None, cuda, 1, extra="gpu")  # type: ignore[arg-type]


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
    found = {item["metadata"]["name"]: item["metadata"]["version"] for item in _resolved(done)}
    assert found["cuda-python"].partition(".")[0] == major
    assert f"nvidia-cudnn-{provider}" in found
    assert not [name for name in found if name.endswith(("-cu12", "-cu13")) and not name.endswith(provider)]


@pytest.mark.nightly
@pytest.mark.parametrize("extra", ["tensorrt-cu12", "rtx-cu12", "rtx-plugin-cu12", "tensorrt", "rtx", "rtx-plugin"])
def test_the_extras_of_nvidias_own_libraries_resolve(extra: str) -> None:
    """Against the package index, for the Python here; every library they bring is for the one CUDA."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needs = project["optional-dependencies"][extra]
    wanted = "cu12" if extra.endswith("-cu12") else "cu13"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--report", "-"]
    done = subprocess.run([*command, *needs], check=False, capture_output=True, text=True)
    if done.returncode != 0 and "download the real wheel" in done.stderr:
        # TensorRT's parts come from NVIDIA's own index; what PyPI has of it names them.
        library, *others = needs
        alone = subprocess.run([*command, "--no-deps", library], check=False, capture_output=True, text=True)
        (named,) = _resolved(alone)
        parts = [need for need in named["metadata"]["requires_dist"] if "extra ==" not in need]
        assert parts
        assert all(part.startswith(f"tensorrt_{wanted}") for part in parts), parts
        done = subprocess.run([*command, *others], check=False, capture_output=True, text=True)
    found = {item["metadata"]["name"].replace("_", "-"): item["metadata"]["version"] for item in _resolved(done)}
    if "cuda-python" in " ".join(needs):
        assert found["cuda-python"].partition(".")[0] == wanted.removeprefix("cu")
    of_a_cuda = [name for name in found if re.search(r"-cu1\d", name)]
    assert not [name for name in of_a_cuda if wanted not in name]
    assert of_a_cuda or extra.startswith("tensorrt")


def _resolved(done: subprocess.CompletedProcess[str]) -> list[dict]:
    """What pip would install; skips where it reaches no index."""
    if done.returncode != 0 and "Could not find a version" in done.stderr and "from versions: none" in done.stderr:
        pytest.skip(f"no package index here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["install"]
