"""The TensorRT way to scan a gallery: its graph finds the k best, its engine is really built, its scan keeps books."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.bench.engine_scan import EngineScan
from chan_rt.bench.resident_engine import GRAPH, PRECISION, build_resident_engine
from chan_rt.export.alignment import best_images
from chan_rt.runtime.backends import find_engine
from chan_rt.runtime.backends.fake import FakeDevice
from chan_rt.runtime.contract import AlignmentConfig, GraphSpec
from chan_rt.runtime.doctor import examine
from chan_rt.runtime.errors import InputError, TensorError
from chan_rt.runtime.gallery.cuda import GpuEstimator
from chan_rt.runtime.gallery.estimate import CpuEstimator
from chan_rt.runtime.gallery.kernels.choose import open_kernel
from chan_rt.runtime.gallery.kernels.pool import Pool
from chan_rt.runtime.gallery.proof.gallery_rows import GalleryRows
from chan_rt.runtime.gallery.proof.rows import array_part
from chan_rt.runtime.gallery.rank import Ranker

DIM, REGIONS, ROWS, K = 16, 5, 12, 6
POOL = Pool(1)


class HostEngine:
    """`TensorRTBackend.run_on_device` by onnxruntime, on tensors that are numpy arrays."""

    name = "tensorrt_rtx"

    def __init__(self, folder: Path, spec: GraphSpec) -> None:
        import onnxruntime

        self.spec, self.ranges = spec, spec.ranges
        self.session = onnxruntime.InferenceSession(folder / spec.file, providers=["CPUExecutionProvider"])
        self.calls = 0
        self.closed = False

    def run_on_device(self, feeds: dict[str, Any], out: dict[str, Any]) -> dict[str, Any]:
        self.calls += 1
        names = [tensor.name for tensor in self.spec.outputs]
        for name, value in zip(names, self.session.run(names, dict(feeds)), strict=True):
            out[name][...] = value
        return out

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GraphSpec]:
    """The graph at half precision with its engine, built by TensorRT-RTX."""
    folder = tmp_path_factory.mktemp("best")
    sizes = {"rows": ROWS, "regions": REGIONS, "captions": 3, "words": 8, "k": K}
    spec, engine = build_resident_engine(folder, "tensorrt_rtx", AlignmentConfig(), DIM, **sizes)
    assert engine.record.layers["matrix"]["Half"]
    return folder, spec


def gallery(count: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = [rng.standard_normal((n, DIM)).astype(np.float32) for n in rng.integers(1, REGIONS + 1, count)]
    return [row / np.linalg.norm(row, axis=1, keepdims=True) for row in rows]


def part_of(rows: list[np.ndarray]):
    return array_part(np.concatenate(rows), np.cumsum([0] + [len(row) for row in rows]).astype(np.int64))


def rankers(parts: list, scan: EngineScan) -> tuple[Ranker, Ranker]:
    """The ranker of a scan, and the CPU's."""
    rows, kernel = GalleryRows(parts, "images", AlignmentConfig()), open_kernel("numpy")
    gpu = GpuEstimator(rows, scan)
    return tuple(Ranker(rows, made, kernel, POOL) for made in (gpu, CpuEstimator(rows, kernel, POOL)))


def queries_of(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(9)
    found = [rng.standard_normal((n, DIM)).astype(np.float32) for n in lengths]
    return [query / np.linalg.norm(query, axis=1, keepdims=True) for query in found]


@pytest.mark.parametrize("pooling", ["LSE", "Mean", "Sum", "Max", "Softmax"])
@pytest.mark.parametrize("coding", ["VHA", "THA"])
def test_the_graph_finds_the_best_and_prefers_lower_images(coding: str, pooling: str) -> None:
    import onnxruntime

    from chan_rt.export.alignment import hard_alignment

    config = AlignmentConfig(coding, pooling)
    model, plain = (
        onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
        for graph in (best_images(config, DIM, 4), hard_alignment(config, DIM))
    )
    rng = np.random.default_rng(0)
    regions = rng.standard_normal((9, REGIONS, DIM)).astype(np.float32)
    regions[7] = regions[2]  # a tie
    feeds = {
        "region_embeddings": regions,
        "region_lengths": np.array([5, 1, 3, 4, 5, 2, 5, 3, 5], np.int32),
        "word_embeddings": rng.standard_normal((3, 8, DIM)).astype(np.float32),
        "word_lengths": np.array([8, 1, 4], np.int32),
    }
    (scores,) = plain.run(None, feeds)
    values, images = model.run(["best_scores", "best_images"], feeds)
    expected = np.argsort(-scores.T, axis=1, kind="stable")[:, :4]
    np.testing.assert_array_equal(images, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(scores.T, expected, axis=1))


def test_the_engine_is_cached_and_found(built) -> None:
    folder, _ = built
    assert find_engine(folder, GRAPH, PRECISION, "tensorrt_rtx").is_file()
    sizes = {"rows": ROWS, "regions": REGIONS, "captions": 3, "words": 8, "k": K}
    assert build_resident_engine(folder, "tensorrt_rtx", AlignmentConfig(), DIM, **sizes)[1].cached


def test_rankings_over_chunks_and_parts_are_those_of_the_cpu(built) -> None:
    rows = gallery(40)
    parts = [part_of(rows[:30]), part_of(rows[30:])]
    engine, device = HostEngine(*built), FakeDevice({})
    scan = EngineScan(engine, device)
    ranker, cpu = rankers(parts, scan)
    queries = queries_of(8, 1, 5, 3)
    allowed = np.arange(40) % 5 != 2
    for k in (1, 6):
        found, expected = ranker.exact(queries, k, allowed), cpu.exact(queries, k, allowed)
        assert [one.rows.tolist() for one in found] == [one.rows.tolist() for one in expected]
        assert not any(one.certified for one in found)
    assert engine.calls == 2 * 2 * (3 + 1), "k's x batches of captions x chunks"
    few = np.arange(40) == 33
    (only,) = ranker.exact(queries[:1], 6, few)
    assert only.rows.tolist() == [33], "rows of no regions fill the engine's list and are left out"
    copied = device.copied_in
    ranker.exact(queries[:1], 6, few)
    assert device.copied_in - copied == 8 * DIM * 2 + 4, "a second call sends the query alone"
    del ranker
    scan.close()
    gc.collect()
    assert engine.closed
    assert device.empty


def test_what_the_engine_does_not_take_is_refused(built) -> None:
    scan = EngineScan(HostEngine(*built), FakeDevice({}))
    with pytest.raises(InputError, match="rows of at most 5 vectors, got 6"):
        scan.hold(part_of([np.ones((6, DIM), np.float32)]))
    with pytest.raises(TensorError, match="vectors: must fit float16"):
        scan.hold(part_of([np.full((1, DIM), 1e6, np.float32)]))
    held = [scan.hold(part_of(gallery(3)))]
    one = queries_of(2)[:1]
    with pytest.raises(InputError, match="k must be at most the engine's 6, got 7"):
        scan.shortlist(held, one, 7, np.ones(3, bool), np.full(1, -np.inf))
    with pytest.raises(InputError, match="queries of at most 8 vectors, got 9"):
        scan.shortlist(held, [np.ones((9, DIM), np.float32)], 1, np.ones(3, bool), np.full(1, -np.inf))


@pytest.mark.gpu
@pytest.mark.skipif(
    not any(report.name == "tensorrt_rtx" and report.runs for report in examine().backends),
    reason="no NVIDIA GPU with tensorrt_rtx",
)
def test_on_a_gpu_the_engine_ranks_as_the_cpu_does(built) -> None:
    from chan_rt.runtime.backends.device import CudaDevice
    from chan_rt.runtime.backends.tensorrt import TensorRTBackend

    folder, spec = built
    path = find_engine(folder, GRAPH, PRECISION, "tensorrt_rtx")
    scan = EngineScan(TensorRTBackend("tensorrt_rtx", path, spec), CudaDevice())
    rows = gallery(40)
    queries, allowed = queries_of(8, 1, 5, 3), np.arange(40) % 5 != 2
    ranker, cpu = rankers([part_of(rows[:30]), part_of(rows[30:])], scan)
    found, expected = ranker.exact(queries, 3, allowed), cpu.exact(queries, 3, allowed)
    assert [one.rows.tolist() for one in found] == [one.rows.tolist() for one in expected]
    del ranker
    scan.close()
