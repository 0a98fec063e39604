"""Bindings are kept per choice of sizes and bounded; tried on CPU memory, where onnxruntime's interface is the same."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from chan_rt.runtime.backends import open_backend
from chan_rt.runtime.backends.onnxruntime_cuda import MAX_GRAPHS, BoundBackend
from chan_rt.runtime.backends.probe import examine_backend
from chan_rt.runtime.contract import GraphSpec, Range, TensorSpec
from chan_rt.runtime.errors import BackendError, TensorError
from chan_rt.runtime.gpu import examine_gpu

SPEC = GraphSpec(
    "graph.onnx",
    "0" * 64,
    18,
    (TensorSpec("x", "float16", ("B", "R", 4)), TensorSpec("lengths", "int32", ("B",))),
    (TensorSpec("y", "float16", ("B", "R", 4)),),
    {"B": Range(1, 2, 64), "R": Range(1, 2, 64)},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    nodes = [
        helper.make_node("Cast", ["lengths"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Unsqueeze", ["half", "axes"], ["column"]),
        helper.make_node("Mul", ["x", "column"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["B", "R", 4]),
        helper.make_tensor_value_info("lengths", TensorProto.INT32, ["B"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["B", "R", 4])]
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [1, 2])
    graph = helper.make_graph(nodes, "g", inputs, outputs, [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


@pytest.fixture
def backend(file: Path) -> BoundBackend:
    provider: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
    return BoundBackend("bound", file, SPEC, provider, 1, device="cpu", graphs=False)


def feeds(b: int, r: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((b, r, 4)).astype(np.float16), "lengths": rng.integers(1, 5, b, np.int32)}


def check(backend: BoundBackend, given: dict[str, np.ndarray]) -> None:
    expected = given["x"] * given["lengths"].astype(np.float16)[:, None, None]
    np.testing.assert_array_equal(backend.run(given)["y"], expected)


def test_sizes_seen_twice_keep_their_binding_and_values_are_fresh(backend: BoundBackend) -> None:
    check(backend, feeds(2, 3))
    assert backend.bindings == 0
    for seed in range(3):
        check(backend, feeds(2, 3, seed))
    assert backend.bindings == 1
    check(backend, {name: array[::-1] for name, array in feeds(2, 3).items()})  # not contiguous


def test_bindings_are_bounded_and_the_rest_still_runs(backend: BoundBackend) -> None:
    for size in range(1, MAX_GRAPHS + 5):
        for seed in range(3):
            check(backend, feeds(size, 1, seed))
    assert backend.bindings == MAX_GRAPHS


def test_results_belong_to_the_caller(backend: BoundBackend) -> None:
    results = [backend.run(feeds(2, 3, seed))["y"] for seed in range(4)]
    kept = [result.copy() for result in results]
    backend.run(feeds(2, 3, 9))
    for result, copy in zip(results, kept, strict=True):
        np.testing.assert_array_equal(result, copy)


def test_threads_take_turns(backend: BoundBackend) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for turn in range(50):
                check(backend, feeds(1 + turn % 3, 2, seed * 1000 + turn))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_sessions_that_record_take_turns_with_one_another(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime captures in global mode: what another thread does meanwhile can void the recording, or fail."""
    at_work, most = [0], [0]

    def allocate(self: BoundBackend, shape: tuple[int, ...], dtype: str) -> None:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        time.sleep(0.01)
        at_work[0] -= 1
        raise RuntimeError("seen enough")

    monkeypatch.setattr(BoundBackend, "_allocate", allocate)
    how = (SPEC, ("CPUExecutionProvider", {}), 1)
    backends = [BoundBackend(name, file, *how, device="cpu", graphs=True) for name in ("one", "two")]

    def work(backend: BoundBackend) -> None:
        for _ in range(5):
            with pytest.raises(BackendError, match="seen enough"):
                backend.run(feeds(2, 3))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, backends))
    assert most == [1]


def test_a_recording_that_another_thread_voided_costs_its_graph_and_not_the_request(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backend = BoundBackend("name", file, SPEC, ("CPUExecutionProvider", {}), 1, device="cpu", graphs=True)
    check(backend, feeds(2, 3))
    session, failed = backend._session, []

    def run(io: object, options: object) -> None:
        if not failed:
            failed.append(options)
            raise RuntimeError("CUDA failure 901: operation failed due to a previous error during capture")
        session.run_with_iobinding(io, options)

    monkeypatch.setattr(backend, "_session", SimpleNamespace(run_with_iobinding=run, io_binding=session.io_binding))
    for seed in range(3):
        check(backend, feeds(2, 3, seed))
    assert len(failed) == 1
    assert "runs sizes {'B': 2, 'R': 3} without a recorded graph: CUDA failure 901" in caplog.text


def test_a_forked_process_is_refused(backend: BoundBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    with pytest.raises(BackendError, match="was opened before this process was forked"):
        backend.run(feeds(2, 3))


def test_wrong_feeds_and_closed_backends_are_refused(backend: BoundBackend) -> None:
    with pytest.raises(TensorError, match="x: dtype must be float16"):
        backend.run({**feeds(2, 3), "x": np.zeros((2, 3, 4), np.float32)})
    backend.close()
    with pytest.raises(BackendError, match="was closed"):
        backend.run(feeds(2, 3))


@pytest.mark.skipif(bool(examine_gpu().gpus), reason="there is a GPU")
def test_without_the_cuda_provider_it_is_refused_never_replaced(file: Path) -> None:
    with pytest.raises(BackendError, match="CUDAExecutionProvider"):
        open_backend("onnxruntime_cuda", file, SPEC)


@pytest.mark.gpu
@pytest.mark.skipif(not examine_backend("onnxruntime_cuda", examine_gpu()).runs, reason="onnxruntime_cuda does not run")
def test_on_a_gpu_graphs_give_the_same_values(file: Path) -> None:
    with open_backend("onnxruntime_cuda", file, SPEC) as backend:
        assert isinstance(backend, BoundBackend)
        for seed in range(6):
            check(backend, feeds(2, 3, seed))
