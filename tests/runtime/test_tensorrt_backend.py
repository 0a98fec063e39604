"""The executor's bookkeeping on a device made of numpy: profiles, parts, buffers, recorded graphs, lanes, errors."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime.backends import open_backend, try_out
from chan_rt.runtime.backends.buckets import cut, symbol_ranges
from chan_rt.runtime.backends.device import is_dense
from chan_rt.runtime.backends.lane import MAX_GRAPHS
from chan_rt.runtime.backends.sidecar import EngineRecord, InputRange, host_os
from chan_rt.runtime.backends.tensorrt import TensorRTBackend
from chan_rt.runtime.contract import GraphSpec, Range, TensorSpec
from chan_rt.runtime.errors import BackendError, EngineError, GpuMemoryError, TensorError


class Direct(list):
    """Runs what is queued when nothing is recorded."""

    def append(self, work: Callable[[], None]) -> None:
        work()


class FakeDevice:
    """Memory is numpy arrays by address; use after free fails; a graph is the list of what was queued."""

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.hosts: set[int] = set()
        self.streams: set[int] = set()
        self.live_graphs: list[list[Callable[[], None]]] = []
        self.recordings: dict[int, list[Callable[[], None]]] = {}  # by thread, as CUDA's thread-local mode has it
        self.addresses = itertools.count(1 << 20, 1 << 20)  # one step, so that two threads never draw the same
        self.launches = 0
        self.capturable = True
        self.fail: str | None = None

    def activate(self) -> None:
        pass

    def malloc(self, size: int) -> int:
        assert threading.get_ident() not in self.recordings, "allocation while a graph is recorded"
        address = next(self.addresses)
        self.memory[address] = np.full(size, 0xAB, np.uint8)
        return address

    def free(self, address: int) -> None:
        del self.memory[address]

    def malloc_host(self, size: int) -> np.ndarray:
        memory = np.full(size, 0xCD, np.uint8)
        self.hosts.add(memory.ctypes.data)
        return memory

    def free_host(self, memory: np.ndarray) -> None:
        self.hosts.remove(memory.ctypes.data)

    def create_stream(self) -> int:
        stream = next(self.addresses)
        self.streams.add(stream)
        return stream

    def destroy_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def synchronize(self, stream: int) -> None:
        assert stream in self.streams
        assert threading.get_ident() not in self.recordings, "waiting while a graph is recorded"
        if self.fail:
            raise BackendError(f"CUDA: cudaStreamSynchronize failed: {self.fail}")

    def queue(self, stream: int, work: Callable[[], None]) -> None:
        assert stream in self.streams
        self.recordings.get(threading.get_ident(), Direct()).append(work)

    def copy_in(self, address: int, memory: np.ndarray, stream: int) -> None:
        self.queue(stream, lambda: self.write(address, memory))

    def copy_out(self, memory: np.ndarray, address: int, stream: int) -> None:
        self.queue(stream, lambda: memory.__setitem__(slice(None), self.memory[address][: memory.nbytes]))

    def write(self, address: int, memory: np.ndarray) -> None:
        self.memory[address][: memory.nbytes] = memory

    def begin_capture(self, stream: int) -> None:
        self.recordings[threading.get_ident()] = []

    def end_capture(self, stream: int) -> Any:
        graph = self.recordings.pop(threading.get_ident())
        if not self.capturable:
            raise BackendError("CUDA: cudaStreamEndCapture failed: operation failed due to a previous error")
        self.live_graphs.append(graph)
        return graph

    def launch(self, graph: Any, stream: int) -> None:
        assert any(graph is one for one in self.live_graphs), "launch of a destroyed graph"
        self.launches += 1
        for work in graph:
            work()

    def destroy_graph(self, graph: Any) -> None:
        self.live_graphs = [one for one in self.live_graphs if one is not graph]

    def view(self, tensor: Any, stream: int) -> tuple[int, tuple[int, ...], np.dtype]:
        array = np.from_dlpack(tensor)
        for address, memory in self.memory.items():
            if memory.ctypes.data == array.ctypes.data:
                return address, array.shape, array.dtype
        raise BackendError("a DLPack tensor must lie on CUDA device 0, got device -1")

    def export(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, Any]:
        address = self.malloc(int(np.prod(shape)) * dtype.itemsize)
        return address, self.memory[address].view(dtype).reshape(shape)

    def upload(self, array: np.ndarray) -> np.ndarray:
        """A tensor `on the device`, as torch would hold one."""
        _, tensor = self.export(array.shape, array.dtype)
        tensor[...] = array
        return tensor

    @property
    def empty(self) -> bool:
        return not (self.memory or self.hosts or self.streams or self.live_graphs)


class FakeEngine:
    """scores[i, c] = (images @ texts.T) summed over axes; computed from what lies at the bound addresses."""

    def __init__(self, device: FakeDevice, spec: GraphSpec, compute: Callable, profiles: int) -> None:
        self.device, self.spec, self.compute = device, spec, compute
        self.num_optimization_profiles = profiles
        self.tensors = [*spec.inputs, *spec.outputs]
        self.num_io_tensors = len(self.tensors)
        self.executions: list[tuple[int, dict[str, tuple[int, ...]]]] = []
        self.refuse: str | None = None

    def get_tensor_name(self, index: int) -> str:
        return self.tensors[index].name

    def create_execution_context(self) -> "FakeContext":
        return FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert threading.get_ident() not in self.engine.device.recordings
        self.profile, self.shapes = index, {}
        return index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address != 0

    def update_device_memory_size_for_shapes(self) -> int:
        return 16 * sum(int(np.prod(shape)) for shape in self.shapes.values())

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        engine, device = self.engine, self.engine.device
        if engine.refuse is not None:
            return False
        shapes, addresses, scratch, profile = dict(self.shapes), dict(self.addresses), self.scratch, self.profile
        assert scratch[1] >= self.update_device_memory_size_for_shapes(), "scratch memory too small"

        def work() -> None:
            device.memory[scratch[0]][: scratch[1]] = 0xEE  # a freed or shared address would show
            arrays = {}
            for tensor in engine.spec.inputs:
                dtype, shape = np.dtype(tensor.dtype), shapes[tensor.name]
                size = int(np.prod(shape)) * dtype.itemsize
                arrays[tensor.name] = device.memory[addresses[tensor.name]][:size].view(dtype).reshape(shape)
            engine.executions.append((profile, shapes))
            for name, result in engine.compute(arrays).items():
                device.write(addresses[name], np.ascontiguousarray(result).reshape(-1).view(np.uint8))

        device.queue(stream, work)
        return True


def align(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    s = np.einsum("ird,cwd->icrw", feeds["region_embeddings"], feeds["word_embeddings"])
    return {"scores": s.max(2).sum(2) + feeds["word_lengths"].astype(np.float32), "word_scores": s.max(2)}


SPEC = GraphSpec(
    "graphs/fp32/hard_alignment.onnx",
    "a" * 64,
    18,
    (
        TensorSpec("region_embeddings", "float32", ("I", "R", 4)),
        TensorSpec("word_embeddings", "float32", ("C", "W", 4)),
        TensorSpec("word_lengths", "int32", ("C",)),
    ),
    (TensorSpec("scores", "float32", ("I", "C")), TensorSpec("word_scores", "float32", ("I", "C", "W"))),
    {"I": Range(1, 4, 16), "R": Range(1, 6, 10), "C": Range(1, 3, 8), "W": Range(1, 5, 9)},
)


def profile(i: tuple, c: tuple, r: tuple = (1, 6, 10), w: tuple = (1, 5, 9)) -> dict[str, InputRange]:
    return {
        "region_embeddings": InputRange(*((i[k], r[k], 4) for k in range(3))),
        "word_embeddings": InputRange(*((c[k], w[k], 4) for k in range(3))),
        "word_lengths": InputRange(*((c[k],) for k in range(3))),
    }


PROFILES = (profile((1, 4, 16), (1, 1, 1)), profile((1, 4, 16), (1, 3, 8)))


def feeds(i: int, c: int, r: int = 6, w: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "region_embeddings": rng.standard_normal((i, r, 4), np.float32),
        "word_embeddings": rng.standard_normal((c, w, 4), np.float32),
        "word_lengths": rng.integers(1, 9, c, np.int32),
    }


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[TensorRTBackend, FakeDevice, FakeEngine]]:
    """A backend on a fake device, with a sidecar on disk as a real one has."""

    def build(
        profiles=PROFILES, flavor: str = "tensorrt", **more: Any
    ) -> tuple[TensorRTBackend, FakeDevice, FakeEngine]:
        record = EngineRecord(
            key="k" * 64,
            graph="hard_alignment",
            precision="fp32",
            flavor=flavor,
            version="11.4.1",
            gpus=("sm_90",),
            os=host_os(),
            onnx_sha256=more.pop("onnx_sha256", SPEC.sha256),
            engine_sha256="0" * 64,
            engine_bytes=0,
            profiles=tuple(profiles),
            options={},
            layers={"source": "build log", "by_precision": {}, "matrix": {}, "each": []},
            memory={},
            build_seconds=0.0,
        )
        path = tmp_path / f"{record.stem}.engine"
        path.with_suffix(".json").write_text(record.to_json())
        device = FakeDevice()
        engine = FakeEngine(device, SPEC, align, len(profiles))
        return TensorRTBackend(flavor, path, SPEC, loaded=(engine, device), **more), device, engine

    return build


def check(backend: TensorRTBackend, given: dict[str, np.ndarray]) -> None:
    expected = align(given)
    found = backend.run(given)
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


def test_each_request_runs_under_the_tightest_profile(make) -> None:
    backend, _, engine = make(warm_up=False)
    for given, expected in [(feeds(3, 1), 0), (feeds(16, 1, 10, 9), 0), (feeds(1, 2), 1), (feeds(16, 8), 1)]:
        check(backend, given)
        assert engine.executions[-1][0] == expected


def test_warm_up_runs_every_profile_and_records_its_graph(make) -> None:
    backend, device, engine = make()
    assert {execution[0] for execution in engine.executions} == {0, 1}
    assert backend.graphs == 2
    before = device.launches
    check(backend, feeds(4, 1))
    check(backend, feeds(4, 3))
    assert device.launches == before + 2


def test_no_allocation_after_warm_up_and_graphs_are_replayed_with_new_values(make) -> None:
    backend, device, _ = make()
    for seed in range(2):
        check(backend, feeds(4, 1, seed=seed))
        check(backend, feeds(4, 3, seed=seed))
    addresses, count = set(device.memory), backend.allocations
    for seed in range(5):
        check(backend, feeds(4, 1, seed=seed))
        check(backend, feeds(4, 3, seed=seed))
        check(backend, feeds(2, 2, 3, 2, seed=seed))
    assert backend.allocations == count
    assert set(device.memory) == addresses


def test_growth_drops_graphs_that_hold_old_addresses(make) -> None:
    backend, device, _ = make(warm_up=False)
    small, large = feeds(2, 2), feeds(16, 8, 10, 9)
    for _ in range(3):
        check(backend, small)
    assert len(device.live_graphs) == 1
    for _ in range(3):
        check(backend, large)
        check(backend, small)
    assert len(device.live_graphs) == 2
    assert device.launches >= 3


def test_recorded_graphs_are_bounded(make) -> None:
    backend, device, _ = make(warm_up=False)
    for images in range(1, 17):
        for captions in (1, 2, 3):
            for _ in range(2):
                check(backend, feeds(images, captions))
    assert len(device.live_graphs) <= MAX_GRAPHS


def test_sizes_that_cannot_be_recorded_run_unrecorded(make) -> None:
    backend, device, engine = make(warm_up=False)
    device.capturable = False
    for seed in range(4):
        check(backend, feeds(3, 2, seed=seed))
    assert backend.graphs == 0
    assert len(engine.executions) == 5  # the second call tried once more before it recorded


def test_a_recording_that_failed_is_tried_again_ever_less_often(make, caplog: pytest.LogCaptureFixture) -> None:
    backend, device, engine = make(warm_up=False)
    check(backend, feeds(3, 2))
    device.capturable = False
    tries = []
    for request in range(120):
        before = len(engine.executions)
        check(backend, feeds(3, 2, seed=request))
        if len(engine.executions) > before + 1:
            tries.append(request)
    assert tries == [0, 17, 50, 115]
    assert "run without a recorded graph for now: CUDA: cudaStreamEndCapture failed" in caplog.text
    device.capturable = True
    for request in range(200):
        check(backend, feeds(3, 2, seed=request))
    assert backend.graphs == 1


def test_memory_that_was_short_for_a_recording_costs_the_other_recordings_and_no_request(
    make, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device, engine = make()
    check(backend, feeds(3, 2))
    before = device.launches
    real = engine.create_execution_context

    def refuse(how: Any = None) -> Any:
        raise GpuMemoryError("CUDA: cudaMalloc failed: out of memory (cudaErrorMemoryAllocation)")

    for lane in backend._all:
        monkeypatch.setattr(lane, "_new_context", refuse)
    check(backend, feeds(3, 2, seed=1))
    assert device.launches == before
    assert device.live_graphs == []
    for lane in backend._all:
        monkeypatch.setattr(lane, "_new_context", real)
    for seed in range(20):
        check(backend, feeds(3, 2, seed=seed))
    assert device.launches > before


def test_a_tensor_that_is_not_aligned_is_refused(make, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, device, _ = make()
    given = {name: device.upload(array) for name, array in feeds(3, 2).items()}
    real = device.view
    monkeypatch.setattr(
        device, "view", lambda tensor, stream: (real(tensor, stream)[0] + 64, *real(tensor, stream)[1:])
    )
    with pytest.raises(
        TensorError, match=r"region_embeddings: must begin at a multiple of 256 bytes .* got 64 bytes past"
    ):
        backend.run_on_device(given)


def test_tensorrt_rtx_is_left_to_record_its_own_graphs(make) -> None:
    backend, device, _ = make(flavor="tensorrt_rtx")
    for _ in range(3):
        check(backend, feeds(4, 3))
    assert backend.graphs == device.launches == 0


@pytest.mark.parametrize(("images", "captions"), [(17, 1), (50, 8), (5, 9), (33, 25), (1, 100)])
def test_larger_batches_are_cut_into_parts(make, images: int, captions: int) -> None:
    backend, _, engine = make(flavor="tensorrt_rtx", warm_up=False)
    check(backend, feeds(images, captions))
    parts = [(shapes["region_embeddings"][0], shapes["word_embeddings"][0]) for _, shapes in engine.executions]
    assert sum(i * c for i, c in parts) == images * captions
    assert max(i for i, _ in parts) <= 16
    assert max(c for _, c in parts) <= 8


def test_parts_respect_a_profiles_minimum() -> None:
    ranges = symbol_ranges(SPEC, [profile((4, 8, 16), (1, 3, 8))])
    parts = list(cut(SPEC, ranges, {"I": 17, "R": 6, "C": 1, "W": 5}))
    assert [part.slices["I"] for part in parts] == [slice(0, 8), slice(8, 17)]


@pytest.mark.parametrize(
    ("given", "tensor", "rule"),
    [
        (feeds(2, 2, r=11), "region_embeddings", "R must be between 1 and 10"),
        (feeds(2, 2, w=10), "word_embeddings", "W must be between 1 and 9"),
        (feeds(0, 2), "region_embeddings", "I must be between 1"),
    ],
)
def test_what_cannot_be_cut_is_an_error_with_tensor_rule_and_value(make, given: dict, tensor: str, rule: str) -> None:
    backend, _, engine = make(warm_up=False)
    with pytest.raises(TensorError, match=rule) as caught:
        backend.run(given)
    assert caught.value.tensor == tensor
    assert engine.executions == []


def test_sizes_that_no_single_profile_admits_together(make) -> None:
    narrow = (profile((1, 4, 16), (1, 1, 1), r=(1, 36, 36)), profile((1, 4, 16), (4, 4, 8), r=(1, 6, 10)))
    backend, _, _ = make(narrow, warm_up=False)
    check(backend, feeds(2, 2, r=30))  # two parts of one caption
    apart = (profile((1, 4, 16), (4, 4, 8), r=(1, 6, 10)), profile((2, 4, 16), (1, 1, 1)))
    backend, _, _ = make(apart, warm_up=False)
    with pytest.raises(
        TensorError, match=r"sizes must fit one of the engine's profiles, \(I 1\.\.16, .*, got I 1, R 6, C 1"
    ):
        backend.run(feeds(1, 1))


def test_tensors_on_the_device_are_used_in_place(make) -> None:
    backend, device, _ = make()
    given = feeds(3, 2)
    on_device = {name: device.upload(array) for name, array in given.items()}
    expected = align(given)
    results = backend.run_on_device(on_device)
    for name, array in expected.items():
        np.testing.assert_allclose(np.from_dlpack(results[name]), array, rtol=1e-6)
    out = {"scores": device.upload(np.zeros((3, 2), np.float32)), "word_scores": results["word_scores"]}
    before = len(device.memory)
    again = backend.run_on_device(on_device, out)
    assert again["scores"] is out["scores"]
    np.testing.assert_allclose(out["scores"], expected["scores"], rtol=1e-6)
    assert len(device.memory) == before
    check(backend, feeds(4, 3))  # host requests find their own buffers bound again


def test_tensors_on_the_device_must_fit_and_lie_there(make) -> None:
    backend, device, _ = make()
    with pytest.raises(BackendError, match="must lie on CUDA device"):
        backend.run_on_device(feeds(3, 2))
    big = {name: device.upload(array) for name, array in feeds(3, 2).items()}
    big["region_embeddings"] = device.upload(np.zeros((40, 6, 4), np.float32))
    with pytest.raises(TensorError, match="I must be between"):
        backend.run_on_device(big)
    foreign = SimpleNamespace(shape=(3, 6, 4), dtype="torch.qint8")
    with pytest.raises(TensorError, match="dtype must be one that numpy knows, got"):
        backend.run_on_device({**big, "region_embeddings": foreign})
    good = {name: device.upload(array) for name, array in feeds(3, 2).items()}
    with pytest.raises(TensorError, match="out must be float32"):
        backend.run_on_device(good, {"scores": device.upload(np.zeros((2, 2), np.float32))})
    with pytest.raises(TensorError, match="score: out must have none but the outputs scores, word_scores"):
        backend.run_on_device(good, {"score": device.upload(np.zeros((3, 2), np.float32))})
    with pytest.raises(TensorError, match="word_lengths: must be a tensor that supports DLPack, got list"):
        backend.run_on_device({**good, "word_lengths": [5, 5]})


def test_cuda_errors_carry_cudas_message_and_the_lane_recovers(make) -> None:
    backend, device, engine = make()
    device.fail = "an illegal memory access was encountered"
    with pytest.raises(BackendError, match="illegal memory access"):
        backend.run(feeds(4, 3))
    device.fail = None
    check(backend, feeds(4, 3))
    engine.refuse = "no"
    with pytest.raises(BackendError, match="running the engine failed"):
        backend.run(feeds(2, 1))
    engine.refuse = None
    check(backend, feeds(2, 1))


def test_threads_share_lanes_and_never_see_each_others_values(make) -> None:
    backend, _, _ = make(contexts=2)

    def work(seed: int) -> None:
        for turn in range(20):
            check(backend, feeds(1 + (seed + turn) % 16, 1 + turn % 8, seed=seed * 100 + turn))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))  # raises what one of them did


def test_close_frees_everything_and_later_calls_are_refused(make) -> None:
    backend, device, _ = make(contexts=3)
    with backend:
        check(backend, feeds(40, 20))
    assert device.empty
    backend.close()
    for _ in range(2):
        with pytest.raises(BackendError, match="was closed"):
            backend.run(feeds(1, 1))


def test_close_goes_on_past_an_error_and_nobody_waits_for_ever(make, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, device, _ = make(contexts=2)
    refused = iter([True])

    def destroy(graph: Any) -> None:
        if next(refused, False):
            raise BackendError("CUDA: cudaGraphExecDestroy failed: an illegal memory access was encountered")
        FakeDevice.destroy_graph(device, graph)

    monkeypatch.setattr(device, "destroy_graph", destroy)
    with pytest.raises(BackendError, match="illegal memory access"):
        backend.close()
    assert len(device.streams) == 1, "the other lane was closed"
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            backend.run(feeds(1, 1))
        except BackendError as error:
            errors.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(10)
    assert [str(error) for error in errors] == ["tensorrt was closed"]
    backend.close()


def test_where_pinned_memory_runs_out_once_the_next_request_is_served(make, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, device, _ = make(warm_up=False)
    check(backend, feeds(1, 1))
    held = len(device.memory)

    def full(size: int) -> np.ndarray:
        raise BackendError("CUDA: cudaMallocHost failed: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(device, "malloc_host", full)
        with pytest.raises(BackendError, match="out of memory"):
            backend.run(feeds(16, 8))
    check(backend, feeds(16, 8))
    assert len(device.memory) == held
    backend.close()
    assert device.empty


def test_an_engine_whose_profiles_share_no_smallest_sizes_is_tried_out(make) -> None:
    backend, _, engine = make((profile((1, 4, 16), (8, 8, 8)), profile((4, 4, 16), (1, 1, 1))), warm_up=False)
    try_out(backend)
    assert engine.executions[-1][1]["word_embeddings"][0] in (1, 8)


def test_results_belong_to_the_caller(make) -> None:
    backend, _, _ = make()
    first = backend.run(feeds(4, 3, seed=1))["scores"]
    kept = first.copy()
    backend.run(feeds(4, 3, seed=2))
    np.testing.assert_array_equal(first, kept)


def test_engines_of_another_graph_are_refused(make) -> None:
    with pytest.raises(EngineError, match="stale"):
        make(onnx_sha256="b" * 64)
    with pytest.raises(BackendError, match="contexts must be positive"):
        make(contexts=0)
    wrong = dict(PROFILES[0])
    del wrong["word_lengths"]
    with pytest.raises(EngineError, match="no profile for the input word_lengths"):
        make((wrong,))


def test_without_a_gpu_the_error_says_what_is_missing_and_what_works(make, tmp_path: Path, monkeypatch) -> None:
    make()
    problem = "the NVIDIA driver's library does not load"
    from chan_rt.runtime.backends import loading
    from chan_rt.runtime.gpu import GpuReport

    monkeypatch.setattr(loading, "examine_gpu", lambda: GpuReport(problem=problem))
    monkeypatch.setattr(loading.importlib, "import_module", lambda name: pytest.fail("the library was loaded"))
    (sidecar,) = tmp_path.glob("*.json")
    with pytest.raises(BackendError, match=f"{problem}.*use the backend onnxruntime"):
        TensorRTBackend("tensorrt", sidecar.with_suffix(".engine"), SPEC)


@pytest.mark.parametrize(
    ("shape", "strides", "dense"),
    [
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), False),
        ((1, 3), (99, 1), True),
        ((2, 1, 3), (3, 7, 1), True),
        ((), (), True),
    ],
)
def test_dense_is_told_from_strides(shape: tuple, strides: tuple, dense: bool) -> None:
    assert is_dense(shape, strides) is dense


@pytest.mark.gpu
@pytest.mark.skipif("not __import__('chan_rt.runtime.gpu').runtime.gpu.examine_gpu().gpus", reason="no NVIDIA GPU")
def test_cuda_device_moves_bytes_and_records_graphs() -> None:
    from chan_rt.runtime.backends.device import CudaDevice

    device = CudaDevice()
    stream, address = device.create_stream(), device.malloc(256)
    source, target = device.malloc_host(256), device.malloc_host(256)
    device.begin_capture(stream)
    device.copy_in(address, source, stream)
    device.copy_out(target, address, stream)
    graph = device.end_capture(stream)
    for value in (1, 2):
        source[:] = value
        device.launch(graph, stream)
        device.synchronize(stream)
        assert (target == value).all()
    device.destroy_graph(graph)
    with pytest.raises(BackendError, match="cudaMalloc failed: out of memory"):
        device.malloc(1 << 50)


def test_open_backend_knows_both_flavors(tmp_path: Path) -> None:
    for flavor in ("tensorrt", "tensorrt_rtx"):
        with pytest.raises(EngineError, match=r"missing\.json"):
            open_backend(flavor, tmp_path / "missing.engine", SPEC)
