"""Kernels that were compiled to PTX, run on the CPU by machine.h."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from chan_rt.export import kernels as compiled
from chan_rt.runtime.backends.fake import FakeDevice
from chan_rt.runtime.gallery.cuda.kernels import ScanPrecision

from .instructions import instructions
from .program import parse

_HEADER = Path(__file__).with_name("machine.h")
_FLAGS = ("-mfma", "-mf16c") if platform.machine() == "x86_64" else ()
_COMPILER = ("g++", "-std=c++17", "-O2", *_FLAGS, "-ffp-contract=off", "-fPIC", "-shared")
_CACHE = Path(tempfile.gettempdir()) / "chan-ptx"
_SOURCE = """#include "machine.h"

using namespace ptx;

#define EACH(mask) for (int l = 0; l < LANES; ++l) if ((mask) >> l & 1)

%(functions)s

static const Function FUNCTIONS[] = {%(names)s};

extern "C" int run(const Program* program, const Launch* launch, char* message, int64_t size) {
    return run_blocks(*program, FUNCTIONS, *launch, message, size) ? 0 : 1;
}
"""


class PtxFault(Exception):
    """A kernel did something that a GPU does not allow, or whose result nobody can know."""


class _Program(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("code", "operands", "blocks", "joins")),
        ("registers", ctypes.c_int64),
        ("constants", ctypes.c_void_p),
        ("constant_count", ctypes.c_int64),
    ]


class _Launch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("blocks", "warps", "shared")),
        ("params", ctypes.c_void_p),
        ("edges", ctypes.c_void_p),
        ("allocated", ctypes.c_int64),
        ("seed", ctypes.c_uint32),
    ]


class PtxKernel:
    """One kernel.

    Args:
        name: for messages.
        ptx: as the compiler made it.
        threads: of a block.
        shared: bytes of shared memory that a block has.

    Raises:
        UnknownPtx: it has an instruction that the machine does not have.
    """

    def __init__(self, name: str, ptx: str, threads: int, shared: int) -> None:
        self.name, self.ptx, self.threads, self.shared = name, ptx, threads, shared
        self._program = parse(ptx)
        self._run = _machine().run

    def launch(self, blocks: int, arguments: Sequence[float], allocated: Sequence[tuple[int, int]]) -> None:
        """Run blocks one after another, in some order.

        arguments: addresses and whole numbers, and float64.
        allocated: address and size of what kernels may read and write.

        Raises:
            PtxFault: see there.
        """
        params = np.array([_bits(each) for each in arguments], np.uint64)
        edges = np.array([(begin, begin + size) for begin, size in sorted(allocated)], np.uint64)
        own, message = self._program, ctypes.create_string_buffer(500)
        code = (each.ctypes.data for each in (own.code, own.operands, own.blocks, own.joins))
        program = _Program(*code, own.registers, own.constants.ctypes.data, len(own.constants))
        given = params.ctypes.data, edges.ctypes.data, len(edges)
        launch = _Launch(blocks, self.threads // 32, self.shared, *given, blocks)
        if self._run(ctypes.byref(program), ctypes.byref(launch), message, ctypes.c_int64(len(message))):
            raise PtxFault(f"{self.name}, {message.value.decode()}")


def _bits(argument: float) -> int:
    """What lies in a parameter's 8 bytes."""
    return int(np.float64(argument).view(np.uint64)) if isinstance(argument, float) else int(argument) & (1 << 64) - 1


@functools.cache
def _machine() -> ctypes.CDLL:
    """The machine, compiled once."""
    signature = "Block& b, Warp& w, Register* R, uint32_t m, const int64_t* o"
    known = enumerate(instructions().items())
    functions = [f"// {name}\nstatic void f{i}({signature}) {{ {body} }}" for i, (name, body) in known]
    source = _SOURCE % {"functions": "\n".join(functions), "names": ", ".join(f"f{i}" for i in range(len(functions)))}
    key = hashlib.sha256((source + _HEADER.read_text() + " ".join(_COMPILER)).encode()).hexdigest()[:24]
    _CACHE.mkdir(exist_ok=True)
    library = _CACHE / f"{key}.so"
    with FileLock(_CACHE / f"{key}.lock"):
        if not library.exists():
            with tempfile.TemporaryDirectory(dir=_CACHE) as folder:
                file, made = Path(folder) / "machine.cpp", Path(folder) / "machine.so"
                file.write_text(source)
                subprocess.run([*_COMPILER, f"-I{_HEADER.parent}", "-o", made, file], check=True)
                made.replace(library)
    return ctypes.CDLL(str(library))


@functools.cache
def assembled(precision: ScanPrecision, width: int, pooling: str, gpu: str, name: str) -> PtxKernel:
    """One of the gallery's kernels as it is compiled for a GPU."""
    job = compiled._jobs(precision, width, pooling)[name]
    made = compiled._assemble(name, job, gpu)
    return PtxKernel(name, made.asm["ptx"], 32 * job.warps, made.metadata.shared)


def ptx_kernels(
    precision: ScanPrecision, width: int, pooling: str, gpu: str, other: Mapping[str, PtxKernel] | None = None
) -> dict[str, Callable[..., None]]:
    """What a `FakeDevice` runs under each kernel's name: Triton's PTX for a GPU, compiled at the first launch.

    other: kernels that stand for those of their names.
    """

    def run(name: str, device: FakeDevice, blocks: int, *arguments: float) -> None:
        allocated = [(address, memory.nbytes) for address, memory in device.memory.items()]
        kernel = (other or {}).get(name) or assembled(precision, width, pooling, gpu, name)
        kernel.launch(blocks, arguments, allocated)

    return {name: functools.partial(run, name) for name in compiled._jobs(precision, width, pooling)}
