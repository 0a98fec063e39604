"""The GPU benchmark: without a GPU it says so and writes nothing; what fails is named; figures are right."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

from chan_rt.bench import gpu as bench
from chan_rt.bench import gpu_candidates
from chan_rt.bench.cuda import gpu_state
from chan_rt.bench.gpu_candidates import K, ResidentImages, Search
from chan_rt.bench.search import DIM, REGIONS, WORDS, Concepts
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.gallery.estimate import CpuEstimator
from chan_rt.runtime.gallery.kernels.choose import open_kernel
from chan_rt.runtime.gallery.kernels.pool import Pool
from chan_rt.runtime.gallery.proof.gallery_rows import GalleryRows
from chan_rt.runtime.gallery.rank import Ranker
from chan_rt.runtime.gpu import Gpu, GpuReport, examine_gpu

GPU = GpuReport((Gpu("Test", (9, 0), 1),), "1", "13.0")


class Launches:
    """A device that launched one query's kernels for some time each."""

    def __init__(self) -> None:
        self.pending: list[tuple[str, float]] = []

    def milliseconds(self) -> list[tuple[str, float]]:
        found, self.pending = self.pending, []
        return found


@pytest.fixture
def device() -> Launches:
    return Launches()


@pytest.fixture
def some_candidates(monkeypatch: pytest.MonkeyPatch, device: Launches) -> None:
    """One exact candidate that `launches`, one that knows nothing, one that is missing and one that breaks."""

    @contextmanager
    def exact(images: ResidentImages, _: object, gpu: tuple[int, int]) -> Iterator[Search]:
        assert gpu == (9, 0)
        rows, kernel, pool = GalleryRows([images.part], "images", AlignmentConfig()), open_kernel(), Pool(1)
        ranker = Ranker(rows, CpuEstimator(rows, kernel, pool), kernel, pool)

        def search(captions: list[np.ndarray]) -> list[np.ndarray]:
            device.pending += [("a", 2.0), ("b", 0.5), ("c", 0.25)]
            return [one.rows for one in ranker.exact(captions, K, np.ones(images.count, bool))]

        yield search

    @contextmanager
    def ignorant(*_: object) -> Iterator[Search]:
        yield lambda captions: [np.arange(1000, 1000 + K)] * len(captions)

    def missing(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'flash_maxsim'")

    @contextmanager
    def breaking(*_: object) -> Iterator[Search]:
        def search(captions: list[np.ndarray]) -> list[np.ndarray]:
            raise RuntimeError("out of memory\nwith details")

        yield search

    found = {"exact int8": exact, "ignorant": ignorant, "missing float16": missing, "breaking": breaking}
    monkeypatch.setattr(bench, "candidates", lambda: found)


@pytest.mark.skipif(bool(examine_gpu().gpus), reason="there is a GPU")
def test_without_a_gpu_it_stops_with_one_line_and_writes_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    result = CliRunner().invoke(bench.main, [])
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith("Error: nothing was measured: there is no usable NVIDIA GPU here: ")
    assert not list(tmp_path.iterdir())


def test_a_gallery_is_measured_and_what_fails_is_named(some_candidates, device: Launches, capsys) -> None:
    report, encoded = {"limits": {"copy_bytes_a_second": 1e9}, "not run": {}}, []
    found = bench.gallery(40, report, device, GPU, {"torch": lambda: encoded.append(1)}, seconds=0)
    assert report["not run"] == {
        "40 images: missing float16": "ModuleNotFoundError: No module named 'flash_maxsim'",
        "40 images: breaking": "RuntimeError: out of memory",
    }
    assert found["agreement at 10"] == {"exact int8": 1.0, "ignorant": 0.0}
    assert found["bytes"] == {"int8": 40 * REGIONS * DIM, "float16": 2 * 40 * REGIONS * DIM}
    assert found["memory_limit_ms"]["int8"] == pytest.approx(40 * REGIONS * DIM / 1e6)
    assert found["kernels_ms"] == {"exact int8": {"scan": 2.0, "best_rows": 0.5, "shortlist": 0.25}, "ignorant": {}}
    times = found["times the limit"]
    assert times.keys() == {"exact int8"}, "float32 candidates have no limit to be held against"
    assert found["whole_query_ms"].keys() == found["search_ms"].keys() == {"exact int8", "ignorant"}
    assert len(encoded) == 2 * (3 + 5), "two candidates, three rounds to warm up, five timed"
    assert times["exact int8"]["scan"] == pytest.approx(2.0 / found["memory_limit_ms"]["int8"])
    shown = capsys.readouterr().out
    assert "not run: 40 images: breaking: RuntimeError: out of memory" in shown


def test_all_pairs_take_a_share_of_the_measured_rate(some_candidates, device: Launches) -> None:
    report = {"limits": {"tensor_cores": {"int8": 1e12}}, "not run": {}}
    found = bench.all_pairs(20, 25, report, device, GPU)
    assert found["operations"] == 2 * 20 * REGIONS * 25 * WORDS * DIM
    assert found["share"]["exact int8"] == pytest.approx(found["operations"] / found["seconds"]["exact int8"] / 1e12)
    assert "ignorant" not in found["share"]


def test_limits_that_failed_leave_the_rest(some_candidates, device: Launches) -> None:
    report = {"limits": None, "not run": {}}
    assert "memory_limit_ms" not in bench.gallery(20, report, device, GPU, {}, seconds=0)
    assert bench.all_pairs(20, 2, report, device, GPU)["share"] == {}


def test_nothing_that_runs_is_an_error_of_the_section(monkeypatch: pytest.MonkeyPatch, device: Launches) -> None:
    monkeypatch.setattr(bench, "candidates", dict)
    not_run: dict[str, str] = {}
    report = {"limits": None, "not run": not_run}
    assert bench.attempt("20 images", lambda: bench.gallery(20, report, device, GPU, {}, 0), not_run) is None
    assert not_run == {"20 images": "RuntimeError: no candidate runs"}


def test_the_whole_run_writes_one_report(tmp_path: Path, monkeypatch, some_candidates, device: Launches) -> None:
    """Every section is there, with the command, the versions and what did not run."""
    import json

    monkeypatch.setattr(bench, "RESULTS", tmp_path)
    monkeypatch.setattr(bench, "examine_gpu", lambda: GPU)
    monkeypatch.setattr(bench, "TimedDevice", lambda: device)
    monkeypatch.setattr(bench, "limits", lambda device: {"copy_bytes_a_second": 1e9, "tensor_cores": {"int8": 1e12}})
    monkeypatch.setattr(bench, "parity", lambda demo: {"report": {}})
    monkeypatch.setattr(bench, "backends", lambda model, seconds: 1 / 0)
    result = CliRunner().invoke(bench.main, ["--images", "20", "--pairs", "20", "2", "--seconds", "0.01"])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "gpu-test.json").read_text())
    assert report.keys() >= {"command", "commit", "date", "gpu", "machine", "state before", "state after", "limits",
                             "parity", "backends", "20 images", "all pairs", "not run"}  # fmt: skip
    assert report["not run"]["backends"] == "ZeroDivisionError: division by zero"
    assert report["not run"]["encoders"].startswith("BundleError: ")
    assert report["machine"]["flash-maxsim"]
    assert report["20 images"]["search_ms"]["exact int8"]["runs"] >= 5


def test_pieces_make_one_gallery(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_PIECE", 8)
    images = bench.make_images(Concepts(0), 20)
    assert images.count == 20
    assert images.dim == DIM
    assert images.fine.dtype == np.float16
    assert images.fine.shape == (20 * REGIONS, DIM)
    again = bench.make_images(Concepts(0), 20)
    np.testing.assert_array_equal(images.part.stored, again.part.stored)
    assert not np.array_equal(images.fine[: 8 * REGIONS], images.fine[8 * REGIONS : 16 * REGIONS])


@pytest.mark.parametrize("with_peer", [False, True])
def test_torch_and_peers_by_words_as_queries_find_the_certified_top(with_peer: bool) -> None:
    """The peers' interface is played by what it is defined as: for each query the sum of its words' maxima."""
    import torch

    def peer(queries: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        assert queries.shape[1:] == (1, DIM)
        return torch.einsum("qwd,nrd->qnwr", queries, documents).amax(dim=3).sum(dim=2)

    images = bench.make_images(Concepts(0), 30)
    captions = bench.split(Concepts(1), 3)
    truth = bench.certified(images, captions)
    with gpu_candidates._torch(images, "float32", maxima=peer if with_peer else None, device="cpu") as candidate:
        assert bench.agreement(candidate, captions, truth) == 1.0
        assert bench.agreement(candidate, captions[:1], truth[:1]) == 1.0


def test_gpu_state_is_what_nvidia_smi_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from chan_rt.bench import cuda

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


@pytest.mark.gpu
@pytest.mark.skipif(not examine_gpu().gpus, reason="no NVIDIA GPU")
def test_on_a_gpu_every_candidate_that_opens_finds_the_top() -> None:
    from chan_rt.bench.cuda import TimedDevice

    device, not_run = TimedDevice(), {}
    assert device.copy_bandwidth() > 1e10
    found = bench.gallery(200, {"limits": None, "not run": not_run}, device, examine_gpu(), {}, seconds=0)
    assert found["agreement at 10"]["this, triton int8, certified"] == 1.0
    assert min(found["agreement at 10"].values()) > 0.9
    assert found["kernels_ms"]["this, triton int8, certified"].keys() == {"scan", "best_rows", "shortlist"}
