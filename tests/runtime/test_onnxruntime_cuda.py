"""Bindings are kept per choice of sizes and bounded; tried on CPU memory, where onnxruntime's interface is the same."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from chan_rt.runtime.backends import open_backend
from chan_rt.runtime.backends.onnxruntime_cuda import MAX_GRAPHS, BoundBackend
from chan_rt.runtime.backends.onnxruntime_gpu import GpuSession
from chan_rt.runtime.backends.onnxruntime_rtx import PluginBackend
from chan_rt.runtime.backends.probe import examine_backend
from chan_rt.runtime.backends.recording import SESSIONS
from chan_rt.runtime.contract import GraphSpec, Range, TensorSpec
from chan_rt.runtime.errors import BackendError, GpuMemoryError, TensorError
from chan_rt.runtime.gpu import examine_gpu

SPEC = GraphSpec(
    "graph.onnx",
    "0" * 64,
    18,
    (TensorSpec("x", "float16", ("B", "R", 4)), TensorSpec("lengths", "int32", ("B",))),
    (TensorSpec("y", "float16", ("B", "R", 4)),),
    {"B": Range(1, 2, 64), "R": Range(1, 2, 64)},
)


def save_graph(path: Path) -> Path:
    """The graph of SPEC: y = x * lengths."""
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
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_graph(tmp_path / "g.onnx")


@pytest.fixture
def backend(file: Path) -> BoundBackend:
    provider: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
    return BoundBackend("bound", file, SPEC, provider, 1, device="cpu", graphs=False)


def feeds(b: int, r: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((b, r, 4)).astype(np.float16), "lengths": rng.integers(1, 5, b, np.int32)}


def check(backend: GpuSession, given: dict[str, np.ndarray]) -> None:
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
    def work(seed: int) -> None:
        for turn in range(50):
            check(backend, feeds(1 + turn % 3, 2, seed * 1000 + turn))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))  # raises what one of them did


class Recording:
    """A session whose recordings fail as long as it is told to; it counts them, and what else runs meanwhile."""

    def __init__(self, backend: BoundBackend) -> None:
        self._session = backend._session
        self.io_binding = self._session.io_binding
        self.error: str | None = None
        self.recorded: set[tuple[int, str]] = set()  # of each thread, as onnxruntime does
        self.tries = 0
        backend._session = self  # type: ignore[assignment]

    def run_with_iobinding(self, io: Any, options: Any) -> None:
        graph = threading.get_ident(), options.get_run_config_entry("gpu_graph_id")
        if graph[1] != "-1" and graph not in self.recorded:
            self.tries += 1
            if self.error is not None:
                raise RuntimeError(self.error)
            self.recorded.add(graph)
        self._session.run_with_iobinding(io, options)


@pytest.fixture
def recording(file: Path) -> tuple[BoundBackend, Recording]:
    backend = BoundBackend("name", file, SPEC, ("CPUExecutionProvider", {}), 1, device="cpu", graphs=True)
    return backend, Recording(backend)


VOIDED = "CUDA failure 901: operation failed due to a previous error during capture"


def test_a_recording_that_failed_costs_no_request_and_is_tried_again_ever_less_often(
    recording: tuple[BoundBackend, Recording], caplog: pytest.LogCaptureFixture
) -> None:
    backend, session = recording
    check(backend, feeds(2, 3))
    session.error = VOIDED
    tries = []
    for request in range(120):
        before = session.tries
        check(backend, feeds(2, 3, request))
        if session.tries > before:
            tries.append(request)
    assert tries == [0, 17, 50, 115]
    assert f"runs sizes {{'B': 2, 'R': 3}} without a recorded graph for now: {VOIDED}" in caplog.text
    assert (backend.graphs, backend.bindings) == (0, 1)
    session.error = None
    for request in range(200):
        check(backend, feeds(2, 3, request))
    assert (backend.graphs, session.tries) == (1, 5)


@pytest.mark.parametrize(
    "words", ["CUDA failure 2: out of memory ", "Failed to allocate memory for requested buffer of size 4096"]
)
def test_memory_that_was_short_for_a_recording_costs_the_other_bindings_and_no_request(
    recording: tuple[BoundBackend, Recording], words: str
) -> None:
    backend, session = recording
    for size in (1, 2, 2, 3, 3):
        check(backend, feeds(size, 3))
    assert (backend.graphs, backend.bindings) == (2, 2)
    session.error = words
    check(backend, feeds(1, 3))
    assert backend.bindings == 1
    session.error = None
    for seed in range(20):
        for size in (1, 2):
            check(backend, feeds(size, 3, seed))
    assert (backend.graphs, backend.bindings) == (4, 2)


def test_memory_that_is_short_without_a_recording_is_freed_and_then_an_error_of_its_own(
    backend: BoundBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        check(backend, feeds(2, 3))
    allocate, bound = backend._allocate, []

    def full(shape: tuple[int, ...], dtype: str) -> Any:
        bound.append(backend.bindings)
        if backend.bindings or shape[0] > 8:
            raise RuntimeError("CUDA failure 2: out of memory")
        return allocate(shape, dtype)

    monkeypatch.setattr(backend, "_allocate", full)
    check(backend, feeds(5, 3))
    assert bound[:2] == [1, 0], "what was bound is freed, and the request made again"
    with pytest.raises(GpuMemoryError, match=r"bound failed in graph.onnx: CUDA failure 2: out of memory"):
        backend.run(feeds(9, 3))


def test_graphs_that_were_ever_recorded_are_bounded(recording: tuple[BoundBackend, Recording]) -> None:
    """onnxruntime never gives one back."""
    backend, session = recording
    for size in range(1, MAX_GRAPHS):
        for seed in range(2):
            check(backend, feeds(size, 1, seed))
    session.error = "out of memory"
    for seed in range(2):
        check(backend, feeds(50, 1, seed))
    session.error = None
    for size in range(1, MAX_GRAPHS):
        for seed in range(2):
            check(backend, feeds(size, 1, seed))
    assert backend.graphs == MAX_GRAPHS


def test_while_a_session_records_no_other_one_works(
    recording: tuple[BoundBackend, Recording], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime captures in global mode: what another thread does meanwhile can void the recording, or fail."""
    backend, session = recording
    how = (SPEC, ("CPUExecutionProvider", {}), 1)
    plain = BoundBackend("plain", file, *how, device="cpu", graphs=False)
    other, closed = (GpuSession(name, file, *how, extra="cpu") for name in ("plugin", "closed"))
    check(backend, feeds(2, 3))
    records, go_on = threading.Event(), threading.Event()
    run = session.run_with_iobinding

    def record(io: Any, options: Any) -> None:
        records.set()
        assert go_on.wait(10)
        run(io, options)

    monkeypatch.setattr(session, "run_with_iobinding", record)
    allocated = []
    monkeypatch.setattr(
        plain, "_allocate", lambda *of, real=plain._allocate: (allocated.append(go_on.is_set()), real(*of))[1]
    )
    with ThreadPoolExecutor(5) as pool:
        recorded = pool.submit(check, backend, feeds(2, 3))
        assert records.wait(10)
        waiting = [
            pool.submit(check, plain, feeds(2, 3)),
            pool.submit(check, other, feeds(2, 3)),
            pool.submit(GpuSession, "new", file, *how, extra="cpu"),
            pool.submit(closed.close),
        ]
        assert not wait(waiting, 0.2).done
        go_on.set()
        recorded.result(10)
        for each in waiting:
            each.result(10)
    assert allocated
    assert all(allocated)


def test_sessions_that_record_nothing_work_at_the_same_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = (SPEC, ("CPUExecutionProvider", {}), 1)
    meet = threading.Barrier(2)
    backends = [BoundBackend(name, file, *how, device="cpu", graphs=False) for name in ("one", "two")]
    for backend in backends:
        real = backend._allocate
        monkeypatch.setattr(backend, "_allocate", lambda *of, real=real: (meet.wait(10), real(*of))[1])
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda backend: check(backend, feeds(2, 3)), backends))


def test_each_thread_records_alone(recording: tuple[BoundBackend, Recording], monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = recording
    alone, turns = SESSIONS.alone, []
    monkeypatch.setattr(SESSIONS, "alone", lambda: (turns.append(threading.get_ident()), alone())[1])
    for seed in range(4):
        check(backend, feeds(2, 3, seed))
    assert len(turns) == 1
    thread = threading.Thread(target=lambda: [check(backend, feeds(2, 3, seed)) for seed in range(3)])
    thread.start()
    thread.join()
    assert len(turns) == len(set(turns)) == 2


@pytest.mark.parametrize("bound", [True, False])
def test_a_forked_process_is_refused_and_frees_nothing(
    file: Path, bound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = (SPEC, ("CPUExecutionProvider", {}), 1)
    backend = (
        BoundBackend("bound", file, *how, device="cpu", graphs=True)
        if bound
        else GpuSession("g", file, *how, extra="cpu")
    )
    check(backend, feeds(2, 3))
    parent = os.getpid()
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: parent + 1)
        with pytest.raises(BackendError, match="was opened before this process was forked"):
            backend.run(feeds(2, 3))
        backend.close()
    check(backend, feeds(2, 3))
    backend.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_child_keeps_its_parents_sessions_and_can_open_its_own(file: Path) -> None:
    """Another thread of the parent records at the moment of the fork; in the child nobody does."""
    code = f"""if True:
        import gc, os, threading, weakref
        from pathlib import Path
        from chan_rt.runtime.backends.onnxruntime_gpu import GpuSession
        from chan_rt.runtime.backends.recording import SESSIONS
        from test_onnxruntime_cuda import SPEC, check, feeds
        how = Path({str(file)!r}), SPEC, ("CPUExecutionProvider", {{}}), 1
        backend = GpuSession("parents", *how, extra="cpu")
        entered, leave = threading.Event(), threading.Event()
        def record():
            with SESSIONS.alone():
                entered.set()
                leave.wait()
        thread = threading.Thread(target=record)
        thread.start()
        entered.wait()
        if (child := os.fork()) == 0:
            kept = weakref.ref(backend)
            backend.close()
            del backend
            gc.collect()
            assert kept() is not None
            check(GpuSession("own", *how, extra="cpu"), feeds(2, 3))
            os._exit(7)
        leave.set()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    here = Path(__file__).parent
    ran = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout.split() == ["7"]


def test_nvidias_plugin_passes_the_same_door() -> None:
    assert issubclass(PluginBackend, GpuSession)
    assert PluginBackend.run is GpuSession.run
    assert PluginBackend.close is GpuSession.close


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
