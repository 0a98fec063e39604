"""Tensors that lie on the device already: bound there, or copied to where a recorded graph reads; never too early.

The device is `FakeDevice`, whose memory onnxruntime reads by its real addresses. What is queued on one of its streams
is done only when somebody waits for that stream, as on a GPU at worst.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chan_rt.runtime.backends import bindings, open_backend
from chan_rt.runtime.backends.fake import FakeDevice
from chan_rt.runtime.backends.on_device import OnDevice
from chan_rt.runtime.backends.onnxruntime import OnnxRuntimeBackend
from chan_rt.runtime.backends.onnxruntime_cuda import BoundBackend
from chan_rt.runtime.backends.probe import examine_backend
from chan_rt.runtime.errors import BackendError, GpuMemoryError, TensorError
from chan_rt.runtime.gpu import examine_gpu
from chan_rt.runtime.matcher import Matcher

from .test_onnxruntime_cuda import SPEC, VOIDED, Recording, feeds, save_graph

CPU: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})


class Busy(FakeDevice):
    """A device on whose caller's stream work is still queued: it writes what is to be fed, and reads what is given."""

    def __init__(self) -> None:
        super().__init__({})
        self.late: list[tuple[np.ndarray, np.ndarray]] = []  # a tensor, and what will be written there
        self.read: list[tuple[np.ndarray, list[np.ndarray]]] = []  # a tensor, and where to keep what was there
        self.copies = 0
        self.kept: list[np.ndarray] = []  # a slice does not keep the memory

    def upload(self, array: np.ndarray, late: bool = False) -> np.ndarray:
        _, tensor = self.export(array.shape, array.dtype)
        if late:
            self.late.append((tensor, array))
        else:
            tensor[...] = array
        self.kept.append(tensor)
        return tensor

    def view(self, tensor: Any, stream: int) -> tuple[int, tuple[int, ...], np.dtype[Any]]:
        found = super().view(tensor, stream)
        for mine, array in self.late:
            if mine.ctypes.data == found[0]:
                self._queue(stream, lambda mine=mine, array=array: mine.__setitem__(..., array))
        for mine, kept in self.read:
            if mine.ctypes.data == found[0]:
                self._queue(stream, lambda mine=mine, kept=kept: kept.append(mine.copy()))
        return found

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        self.copies += 1
        super().copy(target, source, size, stream)


class Replaying(Recording):
    """What was recorded is replayed with the memory that was bound then, whatever is bound now."""

    def __init__(self, backend: BoundBackend) -> None:
        super().__init__(backend)
        self.bound: dict[str, Any] = {}

    def run_with_iobinding(self, io: Any, options: Any) -> None:
        graph = options.get_run_config_entry("gpu_graph_id")
        super().run_with_iobinding(io if graph == "-1" else self.bound.setdefault(graph, io), options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_graph(tmp_path / "g.onnx")


@pytest.fixture
def device() -> Busy:
    return Busy()


@pytest.fixture
def backend(file: Path, device: Busy) -> BoundBackend:
    return BoundBackend("bound", file, SPEC, CPU, 1, device="cpu", graphs=False, memory=device)


@pytest.fixture
def recording(file: Path, device: Busy) -> tuple[BoundBackend, Replaying]:
    backend = BoundBackend("bound", file, SPEC, CPU, 1, device="cpu", graphs=True, memory=device)
    return backend, Replaying(backend)


def product(given: dict[str, np.ndarray]) -> np.ndarray:
    return given["x"] * given["lengths"].astype(np.float16)[:, None, None]


def check(backend: BoundBackend, device: Busy, b: int, r: int, seed: int = 0, **how: Any) -> None:
    given = feeds(b, r, seed)
    results = backend.run_on_device({name: device.upload(array, **how) for name, array in given.items()})
    np.testing.assert_array_equal(results["y"], product(given))


@pytest.mark.parametrize("wrap", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_tensors_are_used_in_place(backend: BoundBackend, device: Busy, wrap: Callable[[np.ndarray], Any]) -> None:
    given = feeds(2, 3)
    tensors = {name: wrap(device.upload(array)) for name, array in given.items()}
    made = backend.run_on_device(tensors)["y"]
    np.testing.assert_array_equal(np.from_dlpack(made), product(given))
    mine = wrap(device.upload(np.zeros((2, 3, 4), np.float16)))
    before = len(device.memory)
    for _ in range(4):
        assert backend.run_on_device(tensors, {"y": mine})["y"] is mine
        np.testing.assert_array_equal(np.from_dlpack(mine), product(given))
        np.from_dlpack(mine)[...] = 0
    assert len(device.memory) == before, "nothing is allocated where the caller gives memory"
    assert backend.bindings == 0
    for _ in range(2):
        backend.run(given)
    assert backend.bindings == 1
    check(backend, device, 2, 3, 7)
    assert device.copies == 0, "a binding without a graph is of no use to tensors on the device"
    fed_again = backend.run_on_device({**tensors, "x": made})["y"]
    np.testing.assert_array_equal(fed_again, product({**given, "x": product(given)}))


@pytest.mark.parametrize("graphs", [False, True])
def test_the_callers_work_is_done_before_anything_is_bound(
    file: Path,
    device: Busy,
    graphs: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend = BoundBackend("bound", file, SPEC, CPU, 1, device="cpu", graphs=graphs, memory=device)
    if graphs:
        Replaying(backend)
    bind, under_way = backend._bind, []
    monkeypatch.setattr(backend, "_bind", lambda *of, **how: (under_way.append(device.under_way), bind(*of, **how))[1])
    for seed in range(4):
        given = feeds(2, 3, seed)
        mine = device.upload(np.full((2, 3, 4), seed, np.float16))
        kept: list[np.ndarray] = []
        device.read = [(mine, kept)]
        late = {name: device.upload(array, late=True) for name, array in given.items()}
        backend.run_on_device(late, {"y": mine})
        np.testing.assert_array_equal(mine, product(given))
        np.testing.assert_array_equal(kept[0], np.full((2, 3, 4), seed, np.float16))
        assert not device.under_way, "the results are there when the call returns"
    assert under_way == [False] * 4


def test_sizes_that_come_again_are_copied_to_where_their_graph_reads(
    recording: tuple[BoundBackend, Replaying], device: Busy
) -> None:
    backend, session = recording
    check(backend, device, 2, 3)
    assert (device.copies, backend.graphs) == (0, 0)
    for seed in range(4):
        check(backend, device, 2, 3, seed)
        check(backend, device, 2, 3, seed, late=True)
        given = feeds(2, 3, seed + 50)
        np.testing.assert_array_equal(backend.run(given)["y"], product(given))
    assert (session.tries, backend.graphs, backend.bindings) == (1, 1, 1), "host and device have one graph"
    assert device.copies == 8 * 3


def test_large_tensors_are_bound_in_place_even_where_there_is_a_graph(
    recording: tuple[BoundBackend, Replaying], device: Busy, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, session = recording
    size = 2 * 2 * 3 * 4 * 2 + 2 * 4  # bytes of x, y and lengths
    monkeypatch.setattr(bindings, "MOST_COPIED", size)
    for seed in range(3):
        check(backend, device, 2, 3, seed)
    copies = device.copies
    assert copies
    monkeypatch.setattr(bindings, "MOST_COPIED", size - 1)
    for seed in range(3):
        check(backend, device, 2, 3, seed)
        check(backend, device, 2, 5, seed)
    assert (device.copies, session.tries, backend.graphs) == (copies, 1, 1)


def test_a_recording_that_failed_costs_no_request_and_is_tried_again(
    recording: tuple[BoundBackend, Replaying], device: Busy
) -> None:
    backend, session = recording
    session.error = VOIDED
    tries = []
    for request in range(52):
        before = session.tries
        check(backend, device, 2, 3, request)
        if session.tries > before:
            tries.append(request)
    assert tries == [1, 18, 51]
    session.error = None
    for request in range(80):
        check(backend, device, 2, 3, request)
    assert backend.graphs == 1


def test_memory_that_is_short_is_freed_and_then_an_error_of_its_own(
    recording: tuple[BoundBackend, Replaying], device: Busy, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, session = recording
    for _ in range(2):
        check(backend, device, 2, 3)
    assert backend.bindings == 1
    real, bound = session.run_with_iobinding, []

    def full(io: Any, options: Any) -> None:
        bound.append(backend.bindings)
        if backend.bindings or not room:
            raise RuntimeError("CUDA failure 2: out of memory")
        real(io, options)

    room = True
    monkeypatch.setattr(session, "run_with_iobinding", full)
    check(backend, device, 5, 3)
    assert bound == [1, 0]
    room = False
    with pytest.raises(GpuMemoryError, match=r"bound failed in graph.onnx: CUDA failure 2: out of memory"):
        check(backend, device, 5, 3)


def misaligned(device: Busy, array: np.ndarray) -> np.ndarray:
    return device.upload(np.concatenate([array[:1], array]))[1:]


REFUSED: dict[str, tuple[Callable[[Busy, np.ndarray], Any], type[Exception], str]] = {
    "another dtype": (
        lambda device, array: device.upload(array.astype(np.float32)),
        TensorError,
        "x: dtype must be float16, got float32",
    ),
    "a dtype of torch's": (
        lambda device, array: torch.zeros(2, 3, 4, dtype=torch.bfloat16),
        TensorError,
        "x: dtype must be .*bfloat16",
    ),
    "another rank": (
        lambda device, array: device.upload(array[0]),
        TensorError,
        r"x: shape must be \[B, R, 4\], got \[3, 4\]",
    ),
    "too many": (
        lambda device, array: device.upload(np.repeat(array, 40, axis=0)),
        TensorError,
        "x: B must be between 1 and 64, got 80",
    ),
    "no tensor": (
        lambda device, array: array.tolist(),
        TensorError,
        "x: must be a tensor that supports DLPack, got list",
    ),
    "of the host": (lambda device, array: array, BackendError, "must lie on CUDA device 0, got host memory"),
    "a transposed one": (
        lambda device, array: device.upload(np.ascontiguousarray(array.transpose(1, 0, 2))).transpose(1, 0, 2),
        BackendError,
        "must be dense in row order, got strides",
    ),
    "a slice": (misaligned, TensorError, r"x: must begin at a multiple of 256 bytes .*, got 24 bytes past one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_fed_is_refused(backend: BoundBackend, device: Busy, name: str) -> None:
    make, error, words = REFUSED[name]
    given = feeds(2, 3)
    lengths = device.upload(given["lengths"])
    with pytest.raises(error, match=words):
        backend.run_on_device({"x": make(device, given["x"]), "lengths": lengths})
    check(backend, device, 2, 3)


def test_feeds_must_be_the_inputs(backend: BoundBackend, device: Busy) -> None:
    x = device.upload(feeds(2, 3)["x"])
    with pytest.raises(TensorError, match="lengths: must be given, got nothing"):
        backend.run_on_device({"x": x})
    with pytest.raises(TensorError, match="z: must be one of the inputs x, lengths"):
        backend.run_on_device({"x": x, "z": x})


def test_out_must_fit(backend: BoundBackend, device: Busy) -> None:
    given = {name: device.upload(array) for name, array in feeds(2, 3).items()}
    wrong: list[tuple[str, Any, type[Exception], str]] = [
        (
            "y",
            device.upload(np.zeros((2, 3, 4), np.float32)),
            TensorError,
            r"out must be float16 \[2, 3, 4\], got float32",
        ),
        ("y", device.upload(np.zeros((2, 2, 4), np.float16)), TensorError, r"got float16 \[2, 2, 4\]"),
        ("y", misaligned(device, np.zeros((2, 3, 4), np.float16)), TensorError, "y: must begin at a multiple of 256"),
        ("y", np.zeros((2, 3, 4), np.float16), BackendError, "got host memory"),
        ("z", given["x"], TensorError, "z: out must have none but the outputs y, got 'z'"),
    ]
    for name, tensor, error, words in wrong:
        with pytest.raises(error, match=words):
            backend.run_on_device(given, {name: tensor})


def test_threads_take_turns(recording: tuple[BoundBackend, Replaying], device: Busy) -> None:
    backend, _ = recording
    check(backend, device, 1, 2)

    def work(seed: int) -> None:
        for turn in range(40):
            check(backend, device, 1 + turn % 3, 2, seed * 1000 + turn, late=False)
            given = feeds(1 + turn % 3, 2, seed)
            np.testing.assert_array_equal(backend.run(given)["y"], product(given))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_a_closed_or_forked_backend_is_refused_and_gives_its_stream_back(
    backend: BoundBackend, device: Busy, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(backend, device, 2, 3)
    assert device.streams == 1
    tensors = {name: device.upload(array) for name, array in feeds(2, 3).items()}
    parent = os.getpid()
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: parent + 1)
        with pytest.raises(BackendError, match="was opened before this process was forked"):
            backend.run_on_device(tensors)
        backend.close()
    check(backend, device, 2, 3)
    backend.close()
    backend.close()
    with pytest.raises(BackendError, match="bound was closed"):
        backend.run_on_device(tensors)
    del tensors
    device.kept.clear()
    assert device.empty


def test_only_a_backend_with_tensors_of_its_own_offers_this(backend: BoundBackend, file: Path) -> None:
    assert isinstance(backend, OnDevice)
    assert not isinstance(OnnxRuntimeBackend("onnxruntime", file, SPEC, CPU, 1, extra="cpu"), OnDevice)


@pytest.fixture
def cuda() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no NVIDIA GPU")
    report = examine_backend("onnxruntime_cuda", examine_gpu())
    if not report.runs:
        pytest.skip(f"onnxruntime_cuda does not run: {report.problem}")


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
def test_on_a_gpu_torchs_tensors_are_taken_and_given(file: Path) -> None:
    with open_backend("onnxruntime_cuda", file, SPEC) as backend:
        assert isinstance(backend, BoundBackend)
        mine = torch.zeros(2, 3, 4, dtype=torch.float16, device="cuda")
        for seed in range(8):
            given = feeds(2, 3, seed)
            with torch.cuda.stream(torch.cuda.Stream()):
                tensors = {
                    name: torch.zeros(array.shape, device="cuda", dtype=torch.from_numpy(array).dtype)
                    for name, array in given.items()
                }
                pinned = {name: torch.from_numpy(array).pin_memory() for name, array in given.items()}
                torch.cuda._sleep(20_000_000)  # some 10 ms: what is queued behind it comes late
                for name, tensor in tensors.items():
                    tensor.copy_(pinned[name], non_blocking=True)
                found = backend.run_on_device(tensors, {"y": mine} if seed % 2 else None)["y"]
                result = torch.from_dlpack(found)
                assert (result.data_ptr() == mine.data_ptr()) == bool(seed % 2)
                np.testing.assert_array_equal(result.cpu().numpy(), product(given))
            np.testing.assert_array_equal(backend.run(given)["y"], product(given))
        assert backend.graphs == 1
        with pytest.raises(BackendError, match="must lie on CUDA device 0, got host memory"):
            backend.run_on_device({name: tensor.cpu() for name, tensor in tensors.items()})
        with pytest.raises(TensorError, match="must begin at a multiple of 256 bytes"):
            backend.run_on_device({**tensors, "lengths": torch.ones(3, dtype=torch.int32, device="cuda")[1:]})
        np.testing.assert_array_equal(backend.run(given)["y"], product(given))


@pytest.mark.gpu
@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu_a_matcher_encodes_what_torch_holds(make_small_model: Any, precision: str) -> None:
    small = make_small_model(precisions=("fp32", "fp16"))
    rng = np.random.default_rng(5)
    lengths = np.array([9, 1, 5], np.int32)
    with Matcher.open(small.bundle, "onnxruntime_cuda", precision) as matcher:
        for _ in range(4):
            regions = rng.standard_normal((3, 9, 12)).astype(np.float32)
            regions[np.arange(9) >= lengths[:, None]] = np.nan
            expected = matcher.encode_images(regions, lengths).vectors
            tensors = torch.from_numpy(regions).cuda(), torch.from_numpy(lengths).cuda()
            found = torch.from_dlpack(matcher.encode_images_on_device(*tensors))
            np.testing.assert_allclose(
                found.float().cpu().numpy(), expected, atol=1e-6 if precision == "fp32" else 1e-3
            )
