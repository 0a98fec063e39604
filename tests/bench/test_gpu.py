"""The GPU benchmark, without a GPU: it says so; on the interpreter all of it runs, and what fails is named."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from cuda.bindings import runtime as cudart

from chan_rt.bench import cuda, gpu_candidates, gpu_run, gpu_worker
from chan_rt.bench import gpu as bench
from chan_rt.bench.cuda import Clocks, gpu_state
from chan_rt.bench.gpu_candidates import Where
from chan_rt.bench.gpu_images import Case, make_case, segment_rows
from chan_rt.bench.gpu_run import Run
from chan_rt.bench.latency import _gpu_state
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import GallerySettings, GalleryWriter
from chan_rt.runtime.gallery.proof.rows import code_rows
from chan_rt.runtime.gpu import GpuReport, examine_gpu

ON_CPU = Where(None)

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


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of 4 regions of 64-d, 6 captions of 4 words."""
    folder = tmp_path_factory.mktemp("case")
    make_case(folder, 30, 6, 4, 4, 64)
    return folder


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
    given = ["--interpreted", "--images", "20", "--pairs", "12", "3", "--seconds", "0", "--out", str(out)]
    given += ["--only", "search,host,shortlist,all-pairs", *(each for name in names for each in ("--candidates", name))]
    command = [sys.executable, "-m", "chan_rt.bench.gpu", *given]
    done = subprocess.run(command, env=bare, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert report.keys() >= {"command", "commit", "date", "gpu", "machine", "state before", "state after"}
    assert report["commit"] == "unknown", "there is no git"
    found, refused = report["search"], report["not run"]
    half, certified = found["20 images: this, triton float16"], found[f"20 images: {bench.CERTIFIED}"]
    assert half["search_ms"]["runs"] >= 5
    assert half["kernels_ms"].keys() == KERNELS["float16"]
    assert certified["kernels_ms"].keys() == KERNELS["int8"], "the gpu-marked test below expects the same"
    assert half["agreement"] > 0.9
    assert certified["agreement"] == 1.0
    assert "late_interaction_kernels" in refused["search: 20 images: late-interaction-kernels float16"]
    assert "onnx" in refused["search: 20 images: tensorrt engine float16"]
    host = report["host"]["20 images"]
    assert (host["one"]["captions"], host["many"]["captions"]) == (1, 2)
    assert host["one"]["functions"]
    assert report["shortlist"].keys() == {"20 images as segments", "20 images as one part"}
    assert all(len(one["listed"]) == len(one["rescored"]) == 4 for one in report["shortlist"].values())
    assert report["all-pairs"]["12 images: this, triton int8, certified"]["agreement"] == 1.0


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


def test_a_case_is_the_same_as_segments_and_as_one_part(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chan_rt.bench.gpu_images.SEGMENT_BYTES", 7 * 4 * 64 * 4)
    several, one = Case.load(case), Case.load(case, one_part=True)
    assert [len(part.starts) - 1 for part in several.images.parts] == [7, 7, 7, 7, 2]
    assert len(one.images.parts) == 1
    assert several.images.count == one.images.count == 30
    assert several.images.size("int8") == 30 * 4 * 64
    stored = np.concatenate([part.stored for part in several.images.parts])
    np.testing.assert_array_equal(stored, one.images.parts[0].stored)
    assert one.images.parts[0].blocks.shape[1] > 0, "its bounds are the narrow ones"
    assert len(one.truth) == len(one.captions) == 6


def test_segments_are_cut_as_the_writer_cuts_them(case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("bench.gpu_images", "runtime.gallery.writer"):
        monkeypatch.setattr(f"chan_rt.{module}.SEGMENT_BYTES", 7 * 4 * 64 * 4 + 1000)
    vectors = np.random.default_rng(0).standard_normal((30, 4, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    settings = GallerySettings("images", 64, AlignmentConfig(), model="test")
    with GalleryWriter.create(tmp_path / "gallery", settings) as writer:
        writer.add([str(i) for i in range(30)], Embeddings(vectors, np.full(30, 4, np.int32)))
        written = [len(segment.live) for segment in writer._catalogue.segments]
    assert written == [len(part.starts) - 1 for part in Case.load(case).images.parts] == [7, 7, 7, 7, 2]


def test_a_full_segment_has_as_many_images_as_the_documents_say() -> None:
    assert segment_rows(bench.REGIONS, bench.DIM) == 3640


@pytest.mark.parametrize(("left", "expected"), [([], 30 * 4 * 64), ([5, 9, 7], None)])
def test_bytes_read_are_those_of_the_level_and_of_what_it_leaves(left: list[int], expected: int | None) -> None:
    where = Where(None, left=left)
    images = SimpleNamespace(count=1000, regions=4, dim=1024, size=lambda precision: 30 * 4 * 64)
    found = gpu_worker.bytes_read(images, where, "int8")
    assert found == (expected or 4 * (1000 * 128 + (7 + 256) * 1024))


def test_a_case_keeps_the_levels_of_its_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chan_rt.bench.gpu_images.SEGMENT_BYTES", 7 * 3 * 192 * 4)
    make_case(tmp_path, 12, 2, 3, 4, 192)
    parts = Case.load(tmp_path).images.parts
    assert [len(part.starts) - 1 for part in parts] == [7, 5]
    for part in parts:
        assert part.plan is not None
        assert part.coded is not None
        again = code_rows(np.asarray(part.exact, np.float32), part.starts, part.plan)
        assert again is not None
        for name in ("first", "second", "loose"):
            np.testing.assert_array_equal(getattr(part.coded, name), getattr(again, name))


@pytest.mark.parametrize("how", ["float32", "float16", "int8", "peer"])
def test_torch_and_peers_by_words_as_queries_find_the_certified_top(
    case: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peers' interface is played by what it is defined as: for each query the sum of its words' maxima."""
    import torch

    def peer(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        assert queries.shape[1:] == (1, 64)
        return torch.einsum("qwd,nrd->qnwr", queries, documents).amax(dim=3).sum(dim=2)

    monkeypatch.setitem(gpu_candidates._PEERS, "flash", lambda: peer)
    made = Case.load(case)
    options = {"precision": "float32", "peer": "flash"} if how == "peer" else {"precision": how}
    with gpu_candidates._torch(made.images, ON_CPU, **options) as candidate:
        assert gpu_worker.agreement(candidate, made) > (0.9 if how == "int8" else 0.99)


def test_another_caption_is_searched_for_at_each_call() -> None:
    asked: list[int] = []
    flushed: list[int] = []

    def find(captions: list) -> list:
        asked.extend(captions)
        return []

    times = gpu_worker.timed(find, [0, 1, 2], 0.0, lambda: flushed.append(len(asked)))
    assert len(times) == 5
    assert asked == [0, 1, 2, 0, 1, 2, 0, 1]
    assert flushed == [3, 4, 5, 6, 7], "before each call that is timed"


def test_the_functions_that_take_longest_are_named() -> None:
    asked: list[int] = []

    def slow() -> None:
        time.sleep(0.002)

    def find(captions: list) -> list:
        asked.append(len(captions))
        slow()
        return []

    found = gpu_worker.profiled(find, [[0, 1]] * 3)
    assert asked == [2] * 7, "one warms up, three are timed, three are profiled"
    assert found["captions"] == 2
    assert found["ms"] >= 2
    first = found["functions"][0]
    assert "sleep" in first["function"]
    assert first["calls"] == 1
    assert first["ms"] >= 2


def test_the_host_is_profiled_with_one_caption_and_with_many(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = bench.jobs(["host"], [], [20], (1, 1), (4, 4, 64), 0.0, Path("demo"), interpreted=False)
    asked: list[int] = []

    @contextmanager
    def candidate(images: object, where: Where) -> Iterator[Callable]:
        yield lambda captions: asked.append(len(captions))

    monkeypatch.setattr(gpu_worker, "candidates", lambda: {bench.CERTIFIED: candidate})
    found = gpu_worker.host(job.request | {"case": str(case), "capability": None})
    assert (found["one"]["captions"], found["many"]["captions"]) == (1, 512)
    assert set(asked) == {1, 512}
    assert gpu_run._brief(found).startswith("1 at once in ")


def test_clocks_are_sampled_by_the_gpus_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    def state(gpu: str | None = None) -> dict[str, str]:
        asked.append(gpu)
        return {"clocks.sm": f"{1000 + len(asked)} MHz", "power.draw": "[N/A]"}

    monkeypatch.setattr(cuda, "gpu_state", state)
    with Clocks("GPU-1234", every=0.001) as clocks:
        while len(asked) < 3:
            pass
    assert set(asked) == {"GPU-1234"}
    summary = clocks.summary()
    assert summary.keys() == {"clocks.sm"}
    assert summary["clocks.sm"][0] == 1001.0
    with Clocks(None) as none:
        pass
    assert none.summary() == {}


def test_gpu_state_is_what_nvidia_smi_says(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "good": SimpleNamespace(returncode=0, stdout="T4, 580.1, 1, 2, 3, 4, 5 W, 40, 7 MiB\n", stderr=""),
        "bad": SimpleNamespace(returncode=9, stdout="No devices were found", stderr=""),
    }
    monkeypatch.setattr(cuda.shutil, "which", lambda name: None)
    assert gpu_state() == {}
    monkeypatch.setattr(cuda.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(cuda.subprocess, "run", lambda *a, **k: answers["good"])
    assert gpu_state()["clocks.sm"] == "1"
    monkeypatch.setattr(cuda.subprocess, "run", lambda *a, **k: answers["bad"])
    assert gpu_state() == {"nvidia-smi": "No devices were found"}


def _named(uuid: str, listed: str | None, monkeypatch: pytest.MonkeyPatch) -> tuple[str | None, str]:
    """What `gpu_uuid` says where CUDA has this UUID and nvidia-smi, if it is there, this list."""
    given = SimpleNamespace(uuid=SimpleNamespace(bytes=bytes.fromhex(uuid.replace("-", ""))))
    monkeypatch.setattr(cudart, "cudaGetDeviceProperties", lambda index: (cudart.cudaError_t.cudaSuccess, given))
    monkeypatch.setattr(cuda.shutil, "which", lambda name: None if listed is None else name)
    monkeypatch.setattr(cuda.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=listed))
    return cuda.gpu_uuid()


def test_a_gpu_and_a_mig_instance_are_named_as_nvidia_smi_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, slice_ = (f"{digit * 8}-0000-4000-8000-{digit * 12}" for digit in "123")
    listed = (
        f"GPU 0: NVIDIA H100 (UUID: GPU-{first})\nGPU 1: NVIDIA H100 (UUID: GPU-{second})\n"
        f"  MIG 1g.10gb     Device  0: (UUID: MIG-{slice_})\n"
    )
    assert _named(first, listed, monkeypatch) == (f"GPU-{first}", "")
    assert _named(slice_, listed, monkeypatch) == (f"GPU-{second}", ""), "clocks are of the GPU it is a part of"
    none, reason = _named(slice_, listed.split("  MIG")[0], monkeypatch)
    assert none is None
    assert reason == f"nvidia-smi -L lists no GPU and no MIG instance {slice_}"
    run = Run({"not run": {}}, Path("unused.json"), (9, 0))
    assert run.gpu is None
    assert run.record["not run"] == {"clocks": reason}
    assert _gpu_state(1) == {"nvidia-smi": reason}, "and not that of another GPU"
    assert _named(first, None, monkeypatch) == (None, "nvidia-smi is not installed")


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """CUDA that only counts: events are numbers, the time between two is their distance in milliseconds. Its calls."""
    calls: list[tuple] = []
    recorded: dict[int, float] = {}
    numbers = itertools.count(1)
    success = cudart.cudaError_t.cudaSuccess

    def play(name: str, answer: Callable[..., tuple]) -> None:
        def call(*given: object) -> tuple:
            calls.append((name, *given))
            return (success, *answer(*given))

        monkeypatch.setattr(cudart, name, call)

    def record(event: int, stream: int) -> tuple:
        recorded[event] = float(len(calls))
        return ()

    for name in ("cudaEventCreate", "cudaMalloc", "cudaStreamCreateWithFlags"):
        play(name, lambda *_: (next(numbers),))
    for name in (
        "cudaSetDevice", "cudaThreadExchangeStreamCaptureMode", "cudaEventSynchronize", "cudaEventDestroy", "cudaFree",
        "cudaMemcpyAsync", "cudaMemsetAsync", "cudaDeviceSynchronize", "cudaStreamDestroy",
    ):  # fmt: skip
        play(name, lambda *_: ())
    play("cudaGetDevice", lambda: (0,))
    play("cudaEventRecord", record)
    play("cudaEventElapsedTime", lambda begin, end: (recorded[end] - recorded[begin],))
    monkeypatch.setattr(cuda.CudaDevice, "load_kernel", lambda *given: SimpleNamespace(name=given[2]))
    monkeypatch.setattr(cuda.CudaDevice, "_threads", threading.local())
    monkeypatch.setattr(
        cuda.CudaDevice, "launch_kernel", lambda self, kernel, *_: calls.append(("launch", kernel.name))
    )
    return calls


def test_kernels_are_timed_by_events_that_were_made_before(played: list[tuple]) -> None:
    device = cuda.TimedDevice()
    scan, decide = device.load_kernel(b"", "scan", 0, 0), device.load_kernel(b"", "decide", 0, 0)
    device.launch_kernel(scan, 1, 32, (), (), 5)
    assert device.milliseconds() == [], "it was not asked to time"
    device.prepare(2)
    device.timing = True
    del played[:]
    for kernel in (scan, decide):
        device.launch_kernel(kernel, 1, 32, (), (), 5)
    assert [call[0] for call in played] == ["cudaEventRecord", "launch", "cudaEventRecord"] * 2
    assert {call[2] for call in played if call[0] == "cudaEventRecord"} == {5}, "on the kernel's own stream"
    assert device.milliseconds() == [("scan", 2.0), ("decide", 2.0)]
    assert device.milliseconds() == []
    del played[:]
    device.prepare(2)
    assert not played, "its events are used again"


def test_the_cache_is_overwritten_and_waited_for(played: list[tuple]) -> None:
    device = cuda.TimedDevice()
    device.flush()
    device.flush()
    names = [call[0] for call in played if call[0] in ("cudaMalloc", "cudaMemsetAsync", "cudaDeviceSynchronize")]
    assert names == ["cudaMalloc", *["cudaMemsetAsync", "cudaDeviceSynchronize"] * 2]
    (size,) = {call[3] for call in played if call[0] == "cudaMemsetAsync"}
    assert size == 256 << 20


def test_a_copy_counts_bytes_read_and_written_and_gives_its_memory_back(played: list[tuple]) -> None:
    rate = cuda.TimedDevice().copy_bandwidth()
    assert rate == pytest.approx(2 * (1 << 30) / 2e-3)
    counts = Counter(call[0] for call in played)
    assert counts["cudaMemcpyAsync"] == 21, "the first does not count"
    assert counts["cudaMalloc"] == counts["cudaFree"] == 2
    assert counts["cudaEventCreate"] == counts["cudaEventDestroy"]
    assert counts["cudaStreamCreateWithFlags"] == counts["cudaStreamDestroy"] == 1


@pytest.fixture
def torch_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's products and events, played: each product of its own kind takes a time that is known."""
    import torch

    spent = [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = spent[0]

        def synchronize(self) -> None: ...

        def elapsed_time(self, end: "Event") -> float:
            return end.at - self.at

    class Played:
        T = None

        def __init__(self, milliseconds: float) -> None:
            self.milliseconds = milliseconds

        def __matmul__(self, other: object) -> None:
            spent[0] += self.milliseconds

    def take(*given: Any) -> None:
        spent[0] += given[0].milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "randn", lambda *a, **k: Played(2.0))
    monkeypatch.setattr(torch, "randint", lambda *a, **k: Played(1.0))
    monkeypatch.setattr(torch, "ones", lambda *a, **k: Played(0.5))
    monkeypatch.setattr(torch, "_int_mm", take)
    monkeypatch.setattr(torch, "dot", take)


@pytest.mark.usefixtures("torch_events")
def test_limits_are_operations_and_bytes_a_second() -> None:
    assert cuda.tensor_core_rates() == pytest.approx({"float16": 2 * 8192**3 / 2e-3, "int8": 2 * 8192**3 / 1e-3})
    assert cuda.read_bandwidth() == pytest.approx((2 << 30) / 0.5e-3)


def test_a_peer_in_its_native_form_ranks_by_the_sum_of_maxima(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    asked: list[tuple[int, ...]] = []

    def peer(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        asked.append(tuple(queries.shape))
        return torch.einsum("qwd,nrd->qnwr", queries, documents).amax(dim=3).sum(dim=2)

    monkeypatch.setitem(gpu_candidates._PEERS, "flash", lambda: peer)
    made = Case.load(case)
    with gpu_candidates._torch(made.images, ON_CPU, precision="float32", peer="flash", native=True) as find:
        found = find(made.captions)
    assert asked == [(6, 4, 64)], "whole captions"
    regions = np.concatenate([made.images.fine(part) for part in made.images.parts]).reshape(30, 4, 64)
    for caption, rows in zip(made.captions, found, strict=True):
        scores = np.einsum("wd,nrd->nwr", caption, regions.astype(np.float32)).max(axis=2).sum(axis=1)
        assert sorted(rows) == sorted(np.argsort(-scores)[:10])


def test_compiled_at_max_autotune_pytorch_finds_the_certified_top(case: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its graph is taken and run as it is: compiling it needs a GPU, or minutes."""
    import torch

    compiled, modes = torch.compile, []

    def compile_eagerly(function: Callable, mode: str) -> Callable:
        modes.append(mode)
        return compiled(function, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    made = Case.load(case)
    with gpu_candidates._torch(made.images, ON_CPU, precision="float32", compiled=True) as find:
        assert gpu_worker.agreement(find, made) > 0.99
    assert modes == ["max-autotune-no-cudagraphs"]


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
