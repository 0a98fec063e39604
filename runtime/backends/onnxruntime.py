"""onnxruntime on the CPU: the backend that runs anywhere."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..contract import GraphSpec, TensorSpec
from ..cpus import usable_cpus
from ..errors import BackendError
from ..extras import install_alone, install_command
from ..gpu import examine_gpu
from ..onnx_session import CPU, import_onnxruntime, open_session
from .base import Array, Backend, Feeds, check_feeds
from .branches import BranchedSession, find_branches
from .buckets import Sizes
from .tf32 import forbid_tf32

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


def open_file(file: Path, spec: GraphSpec, threads: int | None, gpu: int = 0) -> Backend:
    """Open an ONNX file on the CPU with `threads` threads, one per CPU for None; `gpu` concerns others."""
    return OnnxRuntimeBackend("onnxruntime", file, spec, (CPU, {}), threads, extra="cpu")


class OnnxRuntimeBackend(Backend):
    """An onnxruntime session on one named provider, which is asserted and never silently replaced.

    `run` may be called from several threads at once: onnxruntime's sessions are made for it, nothing else is shared.

    Args:
        name: the backend's name.
        file: the ONNX file.
        spec: of the graph, from the manifest; it is compared with the file.
        provider: execution provider and its options.
        threads: CPU threads of one `run`; None for one per CPU this process may use.
        extra: which extra installs the provider; of a GPU's, the one for the newest CUDA.
    """

    def __init__(
        self,
        name: str,
        file: Path,
        spec: GraphSpec,
        provider: tuple[str, dict[str, str]],
        threads: int | None,
        *,
        extra: str,
    ) -> None:
        if extra != "cpu":
            extra = examine_gpu().extra_for(extra)
        ort = import_onnxruntime(f"the backend {name}", extra)
        self.name = name
        self.spec = spec
        self.threads = threads or usable_cpus()
        try:
            session = self._start(ort, file, provider, extra)
        except BackendError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common base but Exception
            raise BackendError(f"{name} cannot open {file}: {error}") from error
        session.disable_fallback()
        active = session.get_providers()
        if not active or active[0] != provider[0]:
            raise BackendError(
                f"{name} asked for {provider[0]}, onnxruntime replaced it by {', '.join(active)}: run chan doctor"
            )
        _check_signature(file, "inputs", spec.inputs, session.get_inputs())
        _check_signature(file, "outputs", spec.outputs, session.get_outputs())
        self._session: Any = session
        self._outputs = [tensor.name for tensor in spec.outputs]

    def _start(self, ort: Any, file: Path, provider: tuple[str, dict[str, str]], extra: str) -> Any:
        """A session on the provider."""
        if provider[0] == "CUDAExecutionProvider":
            preload_cuda(ort)
        if provider[0] not in ort.get_available_providers():
            installed = ", ".join(ort.get_available_providers())
            install = install_alone(extra) if provider[0] == "CUDAExecutionProvider" else install_command(extra)
            raise BackendError(f"{self.name} needs {provider[0]}, this onnxruntime has {installed}: {install}")
        cut = find_branches(file, self.spec, self.threads) if provider[0] == CPU else None
        if cut is None:
            return open_session(file, self.threads, provider=provider)
        return BranchedSession(cut, self.threads, lambda piece: open_session(piece, 1, name=str(file)))

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See `Backend.run`."""
        return self._answer(check_feeds(self.spec, self.ranges, feeds), feeds)

    def _answer(self, sizes: Sizes, feeds: Feeds) -> dict[str, Array]:
        """`run`, for feeds that were checked."""
        session = self._session
        if session is None:
            raise BackendError(f"{self.name} was closed")
        try:
            values = session.run(self._outputs, dict(feeds))
        except Exception as error:
            raise self._failure(error) from error
        return dict(zip(self._outputs, values, strict=True))

    def _failure(self, error: Exception) -> BackendError:
        """The error of a run that onnxruntime ended with `error`."""
        return BackendError(f"{self.name} failed in {self.spec.file}: {error}")

    def close(self) -> None:
        """Drop the session; a run still under way in another thread ends undisturbed."""
        self._session = None


@cache
def preload_cuda(ort: Any) -> None:
    """Load CUDA's and cuDNN's libraries, once, from where pip puts them, a place the CUDA provider does not look at.

    What does not load shows when the provider starts; the reasons that onnxruntime prints here are not for stdout.
    """
    forbid_tf32()
    if hasattr(ort, "preload_dlls"):  # onnxruntime 1.21
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def _check_signature(file: Path, side: str, expected: tuple[TensorSpec, ...], found: list[Any]) -> None:
    here = [(value.name, _DTYPES.get(value.type, value.type), len(value.shape)) for value in found]
    there = [(tensor.name, np.dtype(tensor.dtype).name, len(tensor.shape)) for tensor in expected]
    if here != there:
        raise BackendError(f"{file} does not fit the manifest: its {side} must be {there}, got {here}")
