"""`chan doctor` says what runs, what does not and why; broken installations are told apart from absent ones."""

import json
import re
import sys
import tomllib
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from chan_rt.runtime import doctor
from chan_rt.runtime.backends import probe
from chan_rt.runtime.backends.probe import examine_backend
from chan_rt.runtime.extras import EXTRAS
from chan_rt.runtime.gallery import compiled
from chan_rt.runtime.gallery.kernels.choose import open_kernel
from chan_rt.runtime.gpu import Gpu, GpuReport

from ..run_chan import chan, ok

NO_GPU = GpuReport(problem="no CUDA device")
ADA = GpuReport((Gpu("Ada", (8, 9), 2**34),), "580.0", "13.0")
TURING = GpuReport((Gpu("Turing", (7, 5), 2**33),), "580.0", "13.0")
H100, B200, ORIN = (
    GpuReport((Gpu(name, capability, 2**36),), "580.0", "13.0")
    for name, capability in (("H100", (9, 0)), ("B200", (10, 0)), ("Orin", (8, 7)))
)


def test_onnxruntime_on_the_cpu_works_here_and_the_report_is_json() -> None:
    result = ok("doctor", "--json")
    report = json.loads(result)
    assert report["healthy"] is True
    backends = {backend["name"]: backend for backend in report["backends"]}
    assert backends["onnxruntime"]["runs"] is True
    assert list(backends) == ["tensorrt", "tensorrt_rtx", "onnxruntime_cuda", "onnxruntime_rtx", "onnxruntime"]


def test_every_extra_is_reported_with_the_packages_it_brings() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    brings = {
        extra: {re.split(r"[<>=\[]", need)[0] for need in needs if not need.startswith("chan-rt")}
        for extra, needs in project["optional-dependencies"].items()
        if extra != "dev"
    }
    assert {extra: set(packages) for extra, packages in doctor.examine().extras.items()} == brings


def test_extras_are_a_table_and_other_names_of_them_are_left_out() -> None:
    table = chan("doctor").output.partition("\nextras\n")[2]
    lines = [line for line in table.splitlines() if line.startswith("  ")]
    assert [line.split()[0] for line in lines] == [extra for extra, packages in EXTRAS.items() if packages]
    assert all(re.fullmatch(r"  \S+ {2,}(installed|missing .+)", line) for line in lines)


def test_every_backend_that_does_not_run_has_a_reason_and_a_remedy_in_the_table() -> None:
    result = chan("doctor")
    report = doctor.examine()
    assert result.exit_code == 0
    for backend in report.backends:
        if not backend.runs:
            assert backend.problem
            assert backend.remedy
            assert backend.problem.removesuffix(f": {report.gpu.problem}") in result.output
            assert result.output.count(f"-> {backend.remedy}\n") == 1


def test_a_gallery_scan_that_does_not_work_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "open_core", lambda: None)
    report = doctor.examine()
    assert list(report.scans) == ["compiled", "onnxruntime", "numpy"]
    assert "install a C++17 compiler" in report.scans["compiled"]
    assert report.instructions == ()
    assert report.scans["numpy"] is None
    if open_kernel().name == "onnxruntime":
        assert report.scans["onnxruntime"] is None
    else:
        assert "its int8 products saturate on this CPU" in str(report.scans["onnxruntime"])


def test_the_compiled_search_is_reported_with_its_instruction_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "open_core", lambda: SimpleNamespace(features=lambda: ["avx2", "generic"]))
    assert "compiled     works, with avx2 or generic\n" in chan("doctor").output


def test_exit_status_is_one_when_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "package_version", lambda package: None)
    monkeypatch.setattr(probe, "installed_version", lambda flavor: None)
    result = chan("doctor")
    assert result.exit_code == 1
    assert "pip install 'chan-rt[cpu]'" in result.output


def library(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    module = ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    module.ComputeCapability = IntEnum(  # type: ignore[attr-defined]
        "ComputeCapability", {"NONE": 0, "CURRENT": 1, "SM75": 75, "SM80": 80, "SM86": 86, "SM89": 89, "SM120": 120}
    )
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(probe, "installed_version", lambda flavor: version if flavor == name else None)


@pytest.mark.parametrize(
    ("flavor", "gpu", "runs", "builds", "problem"),
    [
        ("tensorrt", NO_GPU, False, False, "no usable GPU: no CUDA device"),
        ("tensorrt_rtx", NO_GPU, False, True, "no usable GPU: no CUDA device"),
        ("tensorrt", ADA, True, True, None),
        ("tensorrt_rtx", ADA, True, True, None),
        ("tensorrt", TURING, True, True, None),
        (
            "tensorrt_rtx",
            TURING,
            False,
            True,
            "Turing has compute capability 7.5, TensorRT-RTX runs on sm_80",
        ),
        ("tensorrt_rtx", H100, False, True, "H100 has compute capability 9.0"),
        ("tensorrt_rtx", B200, False, True, "B200 has compute capability 10.0"),
        ("tensorrt_rtx", ORIN, False, True, "runs on sm_80, sm_86, sm_89, sm_120"),
        ("tensorrt", H100, True, True, None),
        ("tensorrt", B200, True, True, None),
        ("tensorrt", ORIN, True, True, None),
    ],
)
def test_flavors_differ_in_what_they_need(
    monkeypatch: pytest.MonkeyPatch, flavor: str, gpu: GpuReport, runs: bool, builds: bool, problem: str | None
) -> None:
    library(monkeypatch, flavor, "11.4.1")
    report = examine_backend(flavor, gpu)
    assert (report.runs, report.builds, report.version) == (runs, builds, "11.4.1")
    assert problem is None if report.problem is None else problem in report.problem


def test_a_library_that_does_not_load_tells_the_loaders_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(probe, "installed_version", lambda flavor: "11.4.1")
    report = examine_backend("tensorrt", ADA)
    assert not report.runs
    assert "libnvinfer.so.11: cannot open shared object file" in (report.problem or "")


def test_both_onnxruntime_packages_and_a_broken_provider_library_are_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "capi").mkdir()
    (tmp_path / "capi" / "libonnxruntime_providers_cuda.so").write_bytes(b"not a library")
    monkeypatch.setattr(doctor, "package_version", lambda package: "1.32.0")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(probe.importlib.util, "find_spec", lambda name: spec)
    warnings = doctor._warnings()
    assert "overwrite each other" in warnings[0]
    assert any("libonnxruntime_providers_cuda.so: " in warning for warning in warnings)


def test_a_provider_that_onnxruntime_replaced_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "package_version", lambda package: "1.32.0")
    report = examine_backend("onnxruntime_cuda", ADA)
    assert not report.runs
    assert "CUDAExecutionProvider" in (report.problem or "")
