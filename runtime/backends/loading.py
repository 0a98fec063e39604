"""Loading an engine: is the library here, may this GPU run it, and the objects that do."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..contract import GraphSpec
from ..errors import BackendError, EngineError
from ..files import write_file
from ..gpu import Gpu, examine_gpu
from .engine_staleness import why_foreign_to_gpu
from .probe import examine_backend
from .sidecar import EngineRecord
from .table import Flavor

_log = logging.getLogger(__name__)


def load_library(flavor: Flavor, record: EngineRecord, index: int = 0) -> tuple[Any, Gpu]:
    """The flavor's module and the GPU, once it is known that they can run the engine."""
    gpu = examine_gpu().only(index)
    if gpu.problem is not None:  # the library is large: it is not loaded only to find that out
        raise BackendError(f"{flavor} cannot run here: no usable GPU: {gpu.problem}; use the backend onnxruntime")
    report = examine_backend(flavor, gpu)
    if not report.runs:
        raise BackendError(f"{flavor} cannot run here: {report.problem}; {report.remedy}")
    reason = why_foreign_to_gpu(record, gpu.gpus[0].capability)
    if record.flavor != flavor:
        reason = f"it is an engine of {record.flavor}"
    if reason is not None:
        raise EngineError(f"{record.stem} cannot run here: {reason}")
    return importlib.import_module(flavor), gpu.gpus[0]


def load_engine(library: Any, flavor: Flavor, path: Path, record: EngineRecord, log: list[str]) -> tuple[Any, Any]:
    """Deserialize an engine: the runtime, which must outlive it, and the engine."""

    class Logger(library.ILogger):  # type: ignore[misc]
        """Keeps errors, for the messages of what fails because of them."""

        def __init__(self) -> None:
            library.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.Logger.ERROR, library.Logger.INTERNAL_ERROR):
                del log[:-7]  # the last few say it all
                log.append(message)

    runtime = library.Runtime(Logger())
    runtime.engine_host_code_allowed = False  # an engine is data: code inside it is never run
    data = path.read_bytes()
    if flavor == "tensorrt_rtx":
        validity, diagnostics = runtime.get_engine_validity(data[: runtime.engine_header_size])
        if validity == library.EngineValidity.INVALID:
            members = library.EngineInvalidityDiagnostics.__members__.items()
            reasons = [name for name, bit in members if diagnostics & int(bit)]
            raise EngineError(f"{path.name} cannot run here: {', '.join(reasons) or 'TensorRT-RTX finds it invalid'}")
    elif record.version != library.__version__:
        runtime = _lean_runtime(runtime, record.version)
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EngineError(f"{path.name} cannot be loaded: {'; '.join(log) or 'TensorRT gave no reason'}")
    return runtime, engine


def _lean_runtime(runtime: Any, version: str) -> Any:
    """The lean runtime of the version that built a version-compatible engine, which holds no code of its own."""
    spec = importlib.util.find_spec("tensorrt_lean_libs")
    folders = spec.submodule_search_locations if spec is not None else None
    found = [path for folder in folders or () for path in sorted(Path(folder).glob("*nvinfer_lean*"))]
    if not found:
        raise EngineError(
            f"the engine was built by tensorrt {version} and needs that version's lean runtime: "
            f"pip install tensorrt-lean=={version}"
        )
    return runtime.load_runtime(str(found[0]))


def check_engine(engine: Any, spec: GraphSpec, num_profiles: int, path: Path) -> None:
    """The engine's tensors and profiles must be those of the spec and the sidecar."""
    found = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    wanted = {tensor.name for tensor in (*spec.inputs, *spec.outputs)}
    if found != wanted:
        raise EngineError(f"{path.name}: its tensors must be {sorted(wanted)}, got {sorted(found)}")
    symbols = {axis for tensor in spec.inputs for axis in tensor.shape}
    unknown = [
        axis for tensor in spec.outputs for axis in tensor.shape if axis not in symbols and isinstance(axis, str)
    ]
    if unknown:
        raise EngineError(f"{path.name}: the size of {unknown[0]} in its outputs must also occur in its inputs")
    if engine.num_optimization_profiles != num_profiles:
        raise EngineError(
            f"{path.name} must have the {num_profiles} profiles of its sidecar, got {engine.num_optimization_profiles}"
        )


def jit_path(engine: Path, gpu: Gpu) -> Path:
    """Where an engine's compiled kernels are kept: beside it, under the name of the GPU that they were compiled on."""
    name = re.sub("[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    return engine.with_name(f"{engine.stem}.{name}.{gpu.architecture}.jit")


class RuntimeCache:
    """TensorRT-RTX's compiled kernels, kept beside the engine; the library refuses those of another driver."""

    def __init__(self, config: Any, path: Path) -> None:
        self._cache = config.create_runtime_cache()
        self._path = path
        self._stored = b""
        if path.is_file():
            stored = path.read_bytes()
            if self._cache.deserialize(stored):
                self._stored = stored
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write it beside and move it into place, if it changed; a bundle that is read-only stays as it is."""
        data = bytes(self._cache.serialize())
        if data == self._stored:
            return
        try:
            write_file(self._path, data)
        except OSError as error:  # read-only or full: the next start compiles again, which is slow, not wrong
            _log.info("compiled kernels are not kept for the next start: %s", error)
            return
        self._stored = data


def context_maker(
    library: Any, flavor: Flavor, engine: Any, path: Path, gpu: Gpu, failure: Callable[[], str]
) -> tuple[Callable[[], Any], RuntimeCache | None]:
    """How execution contexts are made, without device memory of their own; for TensorRT-RTX its runtime cache, too."""
    user_managed = library.ExecutionContextAllocationStrategy.USER_MANAGED
    settings, cache = user_managed, None
    if flavor == "tensorrt_rtx":
        settings = engine.create_runtime_config()
        settings.set_execution_context_allocation_strategy(user_managed)
        settings.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        cache = RuntimeCache(settings, jit_path(path, gpu))

    def make() -> Any:
        context = engine.create_execution_context(settings)
        if context is None:
            raise BackendError(f"an execution context cannot be made: {failure() or 'the library gave no reason'}")
        return context

    return make, cache
