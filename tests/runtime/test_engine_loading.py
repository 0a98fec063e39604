"""Loading an engine: host code stays off, invalid engines tell why, TensorRT-RTX's compiled kernels are kept beside."""

from dataclasses import replace
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chan_rt.runtime.backends.loading import RuntimeCache, context_maker, jit_path, load_engine, load_library
from chan_rt.runtime.backends.probe import BackendReport
from chan_rt.runtime.backends.sidecar import EngineRecord, host_os
from chan_rt.runtime.errors import BackendError, EngineError
from chan_rt.runtime.gpu import Gpu, GpuReport

RECORD = EngineRecord(
    key="k" * 64,
    graph="g",
    precision="fp16",
    flavor="tensorrt_rtx",
    version="1.7.1",
    gpus=("sm_80", "sm_89"),
    os=host_os(),
    onnx_sha256="a" * 64,
    engine_sha256="0" * 64,
    engine_bytes=0,
    profiles=(),
    options={},
    layers={"source": "build log", "by_precision": {}, "matrix": {}, "each": []},
    memory={},
    build_seconds=0.0,
)


RTX = Gpu("NVIDIA GeForce RTX 4090", (8, 9), 24 << 30)


class Validity(IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class Diagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2


def library(version: str = "1.7.1", validity: tuple[int, int] = (0, 0), engine: Any = "engine") -> Any:
    """What of the TensorRT module loading touches; `runtimes` collects the runtimes made."""
    runtimes: list[Any] = []

    class ILogger:
        pass

    class Logger(ILogger):
        ERROR, INTERNAL_ERROR, INFO = "error", "internal", "info"

    class Runtime:
        engine_header_size = 4

        def __init__(self, logger: Any) -> None:
            self.logger = logger
            self.engine_host_code_allowed = True
            runtimes.append(self)

        def get_engine_validity(self, header: bytes) -> tuple[Validity, int]:
            assert header == b"head"
            return Validity(validity[0]), validity[1]

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            if engine is None:
                self.logger.log("info", "nothing of note")
                self.logger.log("error", "magic tag does not match")
            return engine

    return SimpleNamespace(
        ILogger=ILogger,
        Logger=Logger,
        Runtime=Runtime,
        EngineValidity=Validity,
        EngineInvalidityDiagnostics=Diagnostics,
        __version__=version,
        runtimes=runtimes,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "g.engine"
    file.write_bytes(b"headbody")
    return file


def test_host_code_in_an_engine_is_never_allowed(path: Path) -> None:
    fake = library()
    runtime, engine = load_engine(fake, "tensorrt_rtx", path, RECORD, [])
    assert engine == "engine"
    assert runtime.engine_host_code_allowed is False


def test_an_invalid_engine_tells_why(path: Path) -> None:
    with pytest.raises(EngineError, match="VERSION_MISMATCH, UNSUPPORTED_CC"):
        load_engine(library(validity=(2, 3)), "tensorrt_rtx", path, RECORD, [])


def test_an_engine_that_does_not_load_tells_what_the_library_logged(path: Path) -> None:
    log: list[str] = []
    with pytest.raises(EngineError, match=r"cannot be loaded: magic tag does not match$"):
        load_engine(library(engine=None), "tensorrt_rtx", path, RECORD, log)


def test_a_version_compatible_engine_of_another_version_asks_for_its_lean_runtime(path: Path) -> None:
    record = replace(RECORD, flavor="tensorrt", version="11.3.0", options={"version_compatible": True})
    with pytest.raises(EngineError, match=r"pip install tensorrt-lean==11\.3\.0"):
        load_engine(library("11.4.0"), "tensorrt", path, record, [])


@pytest.mark.parametrize(
    ("record", "capability", "message"),
    [
        (RECORD, (9, 0), "built for sm_80, sm_89, this GPU is sm_90"),
        (replace(RECORD, gpus=("ampere+",)), (7, 5), "compute capability 8.0 or newer, got 7.5"),
        (replace(RECORD, gpus=("sm_90",)), (8, 9), "built for sm_90, this GPU is sm_89"),
        (replace(RECORD, flavor="tensorrt"), (8, 9), "it is an engine of tensorrt"),
    ],
)
def test_engines_for_another_gpu_or_flavor_are_refused(
    monkeypatch: pytest.MonkeyPatch, record: EngineRecord, capability: tuple[int, int], message: str
) -> None:
    from chan_rt.runtime.backends import loading

    monkeypatch.setattr(loading, "examine_gpu", lambda: GpuReport((Gpu("GPU", capability, 2**33),)))
    report = BackendReport("tensorrt_rtx", "1.7.1", True, True)
    monkeypatch.setattr(loading, "examine_backend", lambda name, gpu: report)
    with pytest.raises(EngineError, match=message):
        load_library("tensorrt_rtx", record)


class FakeCache:
    def __init__(self, accepts: bytes = b"old") -> None:
        self.accepts, self.content = accepts, b""

    def deserialize(self, data: bytes) -> bool:
        if data == self.accepts:
            self.content = data
        return data == self.accepts

    def serialize(self) -> bytes:
        return self.content


class FakeConfig:
    def __init__(self) -> None:
        self.cache = FakeCache()
        self.set: Any = None
        self.strategy: Any = None
        self.cuda_graph_strategy: Any = None

    def create_runtime_cache(self) -> FakeCache:
        return self.cache

    def set_runtime_cache(self, cache: FakeCache) -> None:
        self.set = cache

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


def test_compiled_kernels_are_loaded_and_saved_when_they_changed(tmp_path: Path) -> None:
    path = tmp_path / "g.jit"
    path.write_bytes(b"old")
    config = FakeConfig()
    cache = RuntimeCache(config, path)
    assert config.set.content == b"old"
    before = path.stat().st_mtime_ns
    cache.save()
    assert path.stat().st_mtime_ns == before
    config.cache.content = b"new"
    cache.save()
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_gpus_that_share_a_bundle_do_not_replace_each_others_kernels() -> None:
    engine = Path("bundle/engines/g.fp16.tensorrt_rtx.0123.engine")
    names = [jit_path(engine, gpu).name for gpu in (RTX, Gpu("NVIDIA L4", (8, 9), 24 << 30))]
    assert names == [
        "g.fp16.tensorrt_rtx.0123.nvidia-geforce-rtx-4090.sm_89.jit",
        "g.fp16.tensorrt_rtx.0123.nvidia-l4.sm_89.jit",
    ]


def test_kernels_of_another_driver_are_refused_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "g.jit"
    path.write_bytes(b"another driver's")
    config = FakeConfig()
    cache = RuntimeCache(config, path)
    assert config.cache.content == b""
    config.cache.content = b"ours"
    cache.save()
    assert path.read_bytes() == b"ours"


def test_a_bundle_that_cannot_be_written_to_costs_only_time(tmp_path: Path) -> None:
    config = FakeConfig()
    config.cache.content = b"new"
    RuntimeCache(config, tmp_path / "no such folder" / "g.jit").save()


def test_contexts_have_no_memory_of_their_own_and_rtx_records_its_graphs(monkeypatch, tmp_path: Path) -> None:
    fake = SimpleNamespace(
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="user"),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
    )
    config = FakeConfig()
    made: list[Any] = []
    engine = SimpleNamespace(
        create_runtime_config=lambda: config, create_execution_context=lambda how: made.append(how) or "context"
    )
    make, cache = context_maker(fake, "tensorrt_rtx", engine, tmp_path / "g.engine", RTX, lambda: "")
    assert make() == "context"
    assert made == [config]
    assert (config.strategy, config.cuda_graph_strategy) == ("user", "whole")
    assert isinstance(cache, RuntimeCache)
    make, cache = context_maker(fake, "tensorrt", engine, tmp_path / "g.engine", RTX, lambda: "")
    make()
    assert made[-1] == "user"
    assert cache is None
    engine.create_execution_context = lambda how: None
    make, _ = context_maker(fake, "tensorrt", engine, tmp_path / "g.engine", RTX, lambda: "out of memory")
    with pytest.raises(BackendError, match="cannot be made: out of memory"):
        make()


def test_loading_knows_the_real_librarys_names() -> None:
    """The names that loading and building use exist in the TensorRT-RTX installed here."""
    trt = pytest.importorskip("tensorrt_rtx")
    for name in (
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE",
        "EngineValidity.INVALID",
        "EngineInvalidityDiagnostics.VERSION_MISMATCH",
        "Runtime.get_engine_validity",
        "Runtime.engine_header_size",
        "Runtime.engine_host_code_allowed",
        "Runtime.load_runtime",
        "ICudaEngine.create_runtime_config",
        "IRuntimeConfig.create_runtime_cache",
        "IRuntimeConfig.set_runtime_cache",
        "IRuntimeConfig.cuda_graph_strategy",
        "IRuntimeConfig.set_execution_context_allocation_strategy",
        "IRuntimeCache.deserialize",
        "IRuntimeCache.serialize",
        "IExecutionContext.set_optimization_profile_async",
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_tensor_address",
        "IExecutionContext.update_device_memory_size_for_shapes",
        "IExecutionContext.set_device_memory",
        "IExecutionContext.execute_async_v3",
    ):
        owner, _, attribute = name.partition(".")
        assert hasattr(getattr(trt, owner), attribute), name
