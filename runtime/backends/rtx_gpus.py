"""Which GPUs TensorRT-RTX knows: as the library lists them, and as the header of an engine records them.

An engine of TensorRT-RTX runs only on the architectures that it was built for. Those are a fraction of NVIDIA's: 1.7
knows no H100, H200, B200 or Orin. Turing is left out, because it cannot multiply float32 matrices there. NVIDIA's
plugin for onnxruntime builds such engines as it opens a graph, so it runs on no others.
"""

from __future__ import annotations

import importlib
from typing import Any

from ..gpu import GpuReport

# Those of 1.7.1, to go by where the library is not installed. A test compares them with the library.
KNOWN = ("sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
INSTEAD = "use the backend tensorrt, or onnxruntime_cuda, which needs no engines"
_MAGIC = b"vtrt"
_MASK = slice(32, 40)  # little-endian: a bit for each architecture that the library lists, in the order of its numbers
_OLDEST = 80


def portable_gpus(library: Any) -> tuple[str, ...]:
    """The architectures that engines are built for, `sm_80` and the like: all that the library lists from Ampere on."""
    return tuple(f"sm_{number}" for number in _listed(library) if number >= _OLDEST)


def why_not_served(gpu: GpuReport) -> str | None:
    """Why TensorRT-RTX does not run on the first GPU of this machine, installed or not; None where it may."""
    if not gpu.gpus or gpu.gpus[0].architecture in (known := _known_here()):
        return None
    major, minor = gpu.gpus[0].capability
    return f"{gpu.gpus[0].name} has compute capability {major}.{minor}, TensorRT-RTX runs on {', '.join(known)}"


def _known_here() -> tuple[str, ...]:
    """The architectures of the library installed here, or KNOWN."""
    try:
        return portable_gpus(importlib.import_module("tensorrt_rtx"))
    except Exception:  # a broken installation raises what it likes: OSError, ImportError, RuntimeError
        return KNOWN


def gpus_in_header(engine: bytes, library: Any) -> tuple[str, ...] | None:
    """The architectures that an engine's header names, of those that the library lists; None for an unknown header."""
    if len(engine) < _MASK.stop or not engine.startswith(_MAGIC):
        return None
    mask = int.from_bytes(engine[_MASK], "little")
    return tuple(f"sm_{number}" for bit, number in enumerate(_listed(library)) if mask >> bit & 1)


def _listed(library: Any) -> list[int]:
    """The numbers of the library's ComputeCapability, such as 89; its members NONE and CURRENT are no architectures."""
    return sorted(int(name[2:]) for name in library.ComputeCapability.__members__ if name[2:].isdigit())
