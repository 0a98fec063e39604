"""onnxruntime on the CPU: the backend that runs anywhere."""

from __future__ import annotations

import contextlib
import io
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..contract import GraphSpec, TensorSpec
from ..errors import BackendError
from ..extras import install_command, needs
from .base import Array, Backend, Feeds, check_feeds

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}


def open_file(file: Path, spec: GraphSpec, threads: int | None) -> Backend:
    """Open an ONNX file on the CPU with `threads` threads, one per core this process may use for None."""
    return OnnxRuntimeBackend("onnxruntime", file, spec, ("CPUExecutionProvider", {}), threads, extra="cpu")


class OnnxRuntimeBackend(Backend):
    """An onnxruntime session on one named provider, which is asserted and never silently replaced.

    `run` may be called from several threads at once: onnxruntime's sessions are made for it, nothing else is shared.

    Args:
        name: the backend's name.
        file: the ONNX file.
        spec: what the manifest says of it; compared with the file.
        provider: execution provider and its options.
        threads: threads inside one operator; None for one per core this process may use.
        extra: which extra installs the provider.
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
        ort = _import_onnxruntime(extra)
        self.name = name
        self.spec = spec
        self.threads = threads or usable_cores()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; they are raised as well
        # A Matcher's sessions run one after the other: threads that spin would take the next one's cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = self._start(ort, file, options, provider, extra)
        except BackendError:
            raise
        except Exception as error:  # onnxruntime's exceptions have no common base but Exception
            raise BackendError(f"{name} cannot open {file}: {error}") from error
        session.disable_fallback()
        active = session.get_providers()
        if not active or active[0] != provider[0]:
            raise BackendError(
                f"{name} asked for {provider[0]}, onnxruntime replaced it by {', '.join(active)}: chan doctor says why"
            )
        _check_signature(file, "inputs", spec.inputs, session.get_inputs())
        _check_signature(file, "outputs", spec.outputs, session.get_outputs())
        self._session: Any = session
        self._outputs = [tensor.name for tensor in spec.outputs]

    def _start(self, ort: Any, file: Path, options: Any, provider: tuple[str, dict[str, str]], extra: str) -> Any:
        """A session on the provider."""
        if provider[0] == "CUDAExecutionProvider":
            preload_cuda(ort)
        if provider[0] not in ort.get_available_providers():
            installed = ", ".join(ort.get_available_providers())
            raise BackendError(
                f"{self.name} needs {provider[0]}, this onnxruntime has {installed}: {install_command(extra)}"
            )
        return ort.InferenceSession(str(file), options, providers=[provider])

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See `Backend.run`."""
        check_feeds(self.spec, self.ranges, feeds)
        session = self._session
        if session is None:
            raise BackendError(f"{self.name} was closed")
        try:
            values = session.run(self._outputs, dict(feeds))
        except Exception as error:
            raise BackendError(f"{self.name} failed in {self.spec.file}: {error}") from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Drop the session; a run still under way in another thread ends undisturbed."""
        self._session = None


@cache
def preload_cuda(ort: Any) -> None:
    """Load CUDA's and cuDNN's libraries, once, from where pip puts them, a place the CUDA provider does not look at.

    What does not load shows when the provider starts; the reasons that onnxruntime prints here are not for stdout.
    """
    if hasattr(ort, "preload_dlls"):  # onnxruntime 1.21
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def usable_cores() -> int:
    """Cores this process may run on: fewer than the machine's in a pinned container."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _import_onnxruntime(extra: str) -> Any:
    with needs("onnxruntime", "an onnxruntime backend", extra):
        import onnxruntime
    return onnxruntime


def _check_signature(file: Path, side: str, expected: tuple[TensorSpec, ...], found: list[Any]) -> None:
    here = [(value.name, _DTYPES.get(value.type, value.type), len(value.shape)) for value in found]
    there = [(tensor.name, np.dtype(tensor.dtype).name, len(tensor.shape)) for tensor in expected]
    if here != there:
        raise BackendError(f"{file} does not fit the manifest: its {side} are {here}, the manifest says {there}")
