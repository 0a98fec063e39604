"""The GPU benchmark, without a GPU: it says so; on the interpreter all of it runs, and what fails is named."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from chan_rt.bench import gpu as bench
from chan_rt.bench.gpu_encoders import PRECISIONS
from chan_rt.bench.gpu_run import Run
from chan_rt.runtime.backends import BACKENDS
from chan_rt.runtime.backends.table import FLAVORS, ON_DEVICE
from chan_rt.runtime.gpu import GpuReport, examine_gpu

# Kernels that a search for one caption launches, where the vectors are too few for a level to be read first.
KERNELS = {"float16": {"quantize", "scan", "best_rows", "kth_best", "shortlist"}}
KERNELS["int8"] = KERNELS["float16"] | {"terms", "reach", "decide"}

BARE = ("torch", "triton", "cuda-python", "numpy", "click", "filelock", "onnxruntime", "chan-rt")  # all it may need
_REFUSE = """
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from re import match

wanted, bare = list(BARE), set()
while wanted:
    name = wanted.pop()
    if name not in bare:
        bare.add(name)
        try:
            needed = [] if name == "chan-rt" else requires(name) or []
        except PackageNotFoundError:
            continue
        wanted += [match(r"[\\w.-]+", each)[0] for each in needed if "extra ==" not in each]
bare = {name.lower().replace("_", "-") for name in bare}
owners = packages_distributions()

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if path is None and name in owners and not bare & {each.lower().replace("_", "-") for each in owners[name]}:
            raise ModuleNotFoundError(f"No module named {name!r}: this machine is bare", name=name)

sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.skipif(bool(examine_gpu().gpus), reason="there is a GPU")
def test_without_a_gpu_it_stops_with_one_line_and_writes_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    result = CliRunner().invoke(bench.main, [])
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("Error: nothing was measured: there is no usable NVIDIA GPU here: ")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that has `BARE` and what that needs, and no program on its PATH."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(f"BARE = {BARE!r}\n" + _REFUSE)
    roots = [str(tmp_path / "site"), str(Path(bench.__file__).parent.parent / ".link")]
    return {"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(roots)}


def test_interpreted_on_a_bare_machine_every_search_section_runs(tmp_path: Path, bare: dict[str, str]) -> None:
    """This project's kernels and PyTorch are measured; a peer that is not installed is named, and the rest goes on."""
    out = tmp_path / "gpu.json"
    names = ("this, triton", "late-interaction-kernels float16", "tensorrt engine")
    given = ["--interpreted", "--images", "12", "--pairs", "12", "3", "--seconds", "0", "--minutes", "60"]
    given += ["--only", "search,host,shortlist,all-pairs", *(each for name in names for each in ("--candidates", name))]
    command = [sys.executable, "-m", "chan_rt.bench.gpu", *given, "--out", str(out)]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report.keys() >= {"command", "commit", "date", "gpu", "machine", "state before", "state after"}
    assert report["commit"] == "unknown", "there is no git"
    found, refused = report["search"], report["not run"]
    half, certified = found["12 images: this, triton float16"], found[f"12 images: {bench.CERTIFIED}"]
    assert half["search_ms"]["runs"] >= 5
    assert half["kernels_ms"].keys() == KERNELS["float16"]
    assert certified["kernels_ms"].keys() == KERNELS["int8"], "the gpu-marked test below expects the same"
    assert half["agreement"] > 0.9
    assert certified["agreement"] == 1.0
    assert "late_interaction_kernels" in refused["search: 12 images: late-interaction-kernels float16"]
    assert "onnx" in refused["search: 12 images: tensorrt engine float16"]
    host = report["host"]["12 images"]
    assert (host["one"]["captions"], host["many"]["captions"]) == (1, 2)
    assert host["one"]["functions"]
    assert report["shortlist"].keys() == {"12 images as segments", "12 images as one part"}
    assert all(len(one["listed"]) == len(one["rescored"]) == 2 for one in report["shortlist"].values())
    assert report["all-pairs"]["12 images: this, triton int8, certified"]["agreement"] == 1.0


def run_section(section: str, tmp_path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What a section finds on the CPU, with the demo in tmp_path/demo; and what did not run."""
    out = tmp_path / "gpu.json"
    given = ["--interpreted", "--only", section, "--seconds", "0", "--demo", str(tmp_path / "demo"), "--out", str(out)]
    done = CliRunner().invoke(bench.main, given)
    assert done.exit_code == 0, done.output
    report = json.loads(out.read_text())
    return report.get(section, {}), report["not run"]


def test_interpreted_the_section_backends_measures_what_runs_on_the_cpu_beside_torch(tmp_path: Path) -> None:
    parts, refused = run_section("backends", tmp_path)
    assert refused == {}
    found, in_memory = parts["backends"], parts["from GPU memory"]
    assert (found["setting"]["images"], found["setting"]["batches"]) == (10, [1, 2])
    measured = {f"onnxruntime {precision}" for precision in ("fp32", "fp16", "int8", "int8_x86")}
    measured |= {"torch eager", "torch.compile"}
    for operation in ("encode 2 captions", "encode 2 images", "score 1 caption x 10 images", "whole query, 10 images"):
        latencies = found["latencies"][operation]
        assert latencies.keys() >= measured - found["skipped"].keys() >= {"onnxruntime fp32", "torch eager"}
        assert all(latency["p50"] > 0 for latency in latencies.values())
    on_gpu = [f"{name} fp32" for name, info in BACKENDS.items() if info.gpu]
    assert len(on_gpu) == 4
    if not examine_gpu().gpus:
        assert found["skipped"].keys() >= set(on_gpu), "each with its reason"
    assert found["engines not built"].keys() <= set(FLAVORS)
    assert found["process"]["seconds"] > 0
    encoding = [f"encode {batch} {kind}" for batch in (1, 2) for kind in ("images", "captions")]
    assert in_memory["latencies"].keys() == set(encoding)
    for operation in encoding:
        assert in_memory["latencies"][operation]["torch eager"]["p50"] > 0
    if not examine_gpu().gpus:
        assert in_memory["skipped"].keys() == {f"{name} {precision}" for name in ON_DEVICE for precision in PRECISIONS}
        assert found["times as fast as torch eager"] == {}, "torch eager on a GPU is the peer"


def test_interpreted_the_section_parity_runs_the_demo_and_judges_what_runs_on_the_cpu(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    parts, refused = run_section("parity", tmp_path)
    assert refused == {}
    found = parts["parity"]
    assert len(list((tmp_path / "demo" / "data" / "images" / "test").iterdir())) == 16
    judged = {stage["name"]: stage["status"] for stage in found["report"]["stages"]}
    for precision in ("fp32", "fp16", "int8"):
        assert judged[f"onnxruntime/{precision}"] in ("passed", "missed"), "16 pictures are too few for a verdict"
    assert judged["onnxruntime/fp32"] == "passed"
    if not examine_gpu().gpus:
        assert found["not run"].keys() >= {name for name, info in BACKENDS.items() if info.gpu}
    assert found["report"]["sample"]["images"] == 16


def test_sections_are_chosen_by_name() -> None:
    assert bench._sections(None, None) == list(bench.SECTIONS)
    assert bench._sections("search,limits", None) == ["limits", "search"]
    assert bench._sections(None, "parity, backends") == ["limits", "search", "all-pairs", "host", "shortlist"]
    result = CliRunner().invoke(bench.main, ["--only", "serch"])
    assert result.exit_code == 2
    assert (
        "a section must be one of limits, search, all-pairs, host, shortlist, backends, parity, got serch"
        in result.output
    )


def test_figures_are_held_against_reading_the_vectors_once(tmp_path: Path) -> None:
    run = Run({"not run": {}, "limits": {"limits": {"read_bytes_a_second": 1e12}}}, tmp_path / "x.json", None)
    found = {"search_ms": {"p50": 8.0}, "kernels_ms": {"scan": 4.0, "shortlist": 0.5}}
    judged = run._judged(found, {"candidate": "this, triton int8, certified", "count": 100_000})
    assert judged["limit_ms"] == pytest.approx(100_000 * 36 * 1024 / 1e9)
    assert judged["times the limit"]["scan"] == pytest.approx(4.0 / judged["limit_ms"])
    assert judged["times the limit"]["all kernels"] == pytest.approx(4.5 / judged["limit_ms"])
    assert run._judged(found, {"candidate": "torch eager float32", "count": 10}) == found


def test_a_machine_without_git_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object, **options: object) -> None:
        raise FileNotFoundError("git")

    monkeypatch.setattr(bench.subprocess, "run", missing)
    assert bench.head(GpuReport())["commit"] == "unknown"


@pytest.mark.gpu
@pytest.mark.skipif(not examine_gpu().gpus, reason="no NVIDIA GPU")
def test_on_a_gpu_every_candidate_that_runs_finds_the_top(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    given = ["--images", "200", "--seconds", "0", "--out", str(out), "--only", "limits,search"]
    result = CliRunner().invoke(bench.main, given)
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    found = {name.partition(": ")[2]: one for name, one in report["search"].items()}
    assert found[bench.CERTIFIED]["agreement"] == 1.0
    assert found[bench.CERTIFIED]["kernels_ms"].keys() == KERNELS["int8"]
    assert found["this, triton float16"]["kernels_ms"].keys() == KERNELS["float16"]
    assert min(one["agreement"] for name, one in found.items() if "sum of maxima" not in name) > 0.9
    assert report["limits"]["limits"]["read_bytes_a_second"] > 1e10
