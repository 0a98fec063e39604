"""Compiled GPU kernels of a gallery's scan: found, verified and loaded without the compiler that made them.

GALLERY/kernels/ holds, for each precision and GPU architecture, one .cubin for each function and, written last, a
sidecar .json that names them with their hashes; one without a sidecar was never finished. `chan gallery kernel` makes
them (export/kernels.py), on any machine, with Triton.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from ...errors import BackendError, ChanError, quoted, reason_of
from ...gpu import architecture
from ..proof.prefix import level_widths

KERNELS = "kernels"
SCHEMA = 8
ScanPrecision = Literal["int8", "float16"]
PRECISIONS: tuple[ScanPrecision, ...] = get_args(ScanPrecision)
POOLINGS = ("LSE", "Max", "Mean", "Sum")  # Softmax's interval is not linear in what a row stores
# Architectures that Triton compiles for; older ones lack the int8 products of tensor cores.
GPUS = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_103", "sm_110", "sm_120", "sm_121")
# Tensor cores of these read shared memory by another way than threads write it. Before this version Triton puts no
# fence between a copy to shared memory and its use there (triton-lang/triton, pull request 10537).
_ASYNC, FENCED = ("sm_90", "sm_100", "sm_103", "sm_110"), "3.7.1"
WORD_TILES = (16, 64)  # query vectors a program takes at once; longer queries take several turns
WORDS_A_TILE = 64  # query vectors that a program of `pairs` takes, of several queries
SLOTS = (16, 32, 64)  # places of each query in it; longer queries are scanned for one by one
# Rows that a program of `scan`, of `pairs` and, for each of WORD_TILES, of `bound` takes; it reads the queries once.
SCAN_ROWS, PAIR_ROWS, BOUND_ROWS = 4, 8, (8, 4)
PICKS = (64, 256)  # most rows that a program of `reach` and of `select` pools
REACH_WORDS = 16  # words that these take at once
MOST_NORMS = 16  # of a coded vector, that `weigh` takes
PROJECT_WORDS, PROJECT_AXES = 16, 16  # of a program of `project`
LISTED_BLOCKS = 2048  # programs of `scan_listed`, at most: each takes several of a query's listed rows
UNIT = 64  # bytes; where a row's vectors begin is counted in these
MOST_GROUPS = 4096  # of rows of which the best one is looked at when the threshold is looked for
GROUPS = 16  # groups that a program of `best_rows` and of `kth_best` takes
ROWS_AT_ONCE, GROUPS_AT_ONCE = 32, 256  # that it reads at once: of each of its groups, and to compare these with
LIST_ROWS = 256  # rows that a program of `shortlist` takes
FORMS = ("float32", "float16", "fixed16")  # of a fine copy that `decide` reads
DECIDE_WORDS = 16  # query vectors that a program of `decide` takes


_ORIN = (8, 7)


def level_stride(width: int) -> int | None:
    """Bytes that a vector of this stored width takes at the first level of a plan on a GPU; None: there are no levels.

    A power of two, so that tensor cores take a vector at once.
    """
    widths = level_widths(width)
    return None if widths is None else 64 if widths[0] <= 64 else 128


@dataclass(frozen=True)
class Function:
    """One compiled kernel.

    Attributes:
        file: its .cubin, beside the sidecar.
        sha256: of that file.
        symbol: the function's name in it.
        threads, shared: of a block; bytes of dynamic shared memory.
        hidden: pointers the compiler appended to the arguments, which are null.
    """

    file: str
    sha256: str
    symbol: str
    threads: int
    shared: int
    hidden: int


@dataclass(frozen=True)
class KernelRecord:
    """The sidecar of a set of kernels.

    Attributes:
        precision: of the vectors they read.
        width: values each vector has, padding included.
        pooling: how similarities become scores.
        gpu: architecture, `sm_90` and the like.
        compiler: Triton's version.
        source_sha256: of the kernels' source.
        functions: `scan_16` and the like, `pairs_16` and the like, `best_rows`, `kth_best`, `shortlist`;
            `quantize`; for int8 `terms`, `decide_float32` and the like, one for each form of the fine copy, `reach_64`,
            `select_64` and the like, and, for galleries that can have levels, `project`, `weigh`, `bound_16`,
            `scan_listed_16` and the like.
    """

    precision: ScanPrecision
    width: int
    pooling: str
    gpu: str
    compiler: str
    source_sha256: str
    functions: Mapping[str, Function]

    @property
    def stride(self) -> int:
        """Bytes that a vector takes at the first level of a plan; 0 where there are no kernels for it."""
        return level_stride(self.width) or 0 if "bound_16" in self.functions else 0

    @property
    def key(self) -> str:
        """sha256 over canonical JSON of everything that decides the kernels' code."""
        identity = {name: value for name, value in asdict(self).items() if name != "functions"}
        return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def stem(self) -> str:
        """Beginning of its files' names."""
        return f"scan.{self.precision}.{self.gpu}.{self.key[:16]}"

    @property
    def unfenced(self) -> str | None:
        """Why this compiler's kernels for this architecture may compute with what is not there yet, or None."""
        version = [int(each) for each in re.findall(r"\d+", self.compiler)[:3]]
        if self.gpu not in _ASYNC or version >= [int(each) for each in FENCED.split(".")]:
            return None
        what = f"the tensor cores of {self.gpu} need, so they could multiply numbers that are not there yet"
        return f"triton {self.compiler} leaves out fences that {what}"

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, two-space indent, final newline."""
        return json.dumps({"schema": SCHEMA, "key": self.key, **asdict(self)}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> KernelRecord:
        """Read `to_json`'s text; BackendError names what does not fit."""
        try:
            raw = json.loads(text)
            if raw.pop("schema") != SCHEMA:
                raise BackendError("the sidecar is of another version of chan-rt")
            key = raw.pop("key")
            raw["functions"] = {name: Function(**each) for name, each in raw["functions"].items()}
            record = cls(**raw)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BackendError(f"the sidecar cannot be understood: {reason_of(error)}") from error
        if record.key != key:
            raise BackendError("the sidecar was altered")
        return record

    def misfit(self, precision: ScanPrecision, width: int, pooling: str, capability: tuple[int, int]) -> str | None:
        """Why these kernels cannot scan such vectors on a GPU of this compute capability, or None."""
        if (self.precision, self.width, self.pooling) != (precision, width, pooling):
            found, wanted = (self.precision, self.width, self.pooling), (precision, width, pooling)
            return f"it is for {' x '.join(map(str, found))}, the gallery is {' x '.join(map(str, wanted))}"
        # Code for Ampere runs on all of its generation but Orin; later architectures' code is bound to its own chip.
        # https://docs.nvidia.com/cuda/ampere-compatibility-guide/ (Tegra and desktop are not compatible)
        built = divmod(int(self.gpu.removeprefix("sm_")), 10)
        same_generation = built[0] == capability[0] == 8 and built < capability and _ORIN not in (built, capability)
        if built != capability and not same_generation:
            return f"it is for {self.gpu}, this GPU is {architecture(capability)}"
        return self.unfenced


def find_kernels(
    gallery: Path, precision: ScanPrecision, width: int, pooling: str, capability: tuple[int, int]
) -> tuple[KernelRecord, dict[str, bytes]]:
    """The newest usable kernels of a gallery and their code, verified by hash.

    Raises:
        BackendError: there are none; the message gives the reason for each candidate and the command that makes one,
            if there are kernels for such a GPU at all.
    """
    reasons = []
    folder = gallery / KERNELS
    for sidecar in sorted(folder.glob("scan.*.json"), key=lambda path: (-path.stat().st_mtime_ns, path.name)):
        try:
            record = KernelRecord.from_json(sidecar.read_text(encoding="utf-8"))
            reason = record.misfit(precision, width, pooling, capability)
            if reason is None:
                return record, {name: _code(folder, function) for name, function in record.functions.items()}
        except (OSError, UnicodeDecodeError, ChanError) as error:
            reason = str(error)
        reasons.append(f"{sidecar.name}: {reason}")
    here = architecture(capability)
    advice = f"run: chan gallery kernel {quoted(gallery)} --precision {precision} --gpu {here}"
    if here not in GPUS:
        advice = f"there are kernels for {', '.join(GPUS)}, this GPU is {here}: search with device='cpu'"
    raise BackendError("; ".join([f"no usable {precision} kernels in {folder}", *reasons, advice]))


def _code(folder: Path, function: Function) -> bytes:
    code = (folder / function.file).read_bytes()
    if hashlib.sha256(code).hexdigest() != function.sha256:
        raise BackendError(f"{function.file} is corrupt: its sha256 is not the sidecar's")
    return code
