"""Compile the GPU scan for a gallery, ahead of time: needs Triton, but neither a GPU nor torch."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..runtime.errors import ChanError, EngineError, InputError
from ..runtime.extras import missing
from ..runtime.files import write_file
from ..runtime.gallery.cuda.kernels import (
    BOUND_ROWS,
    DECIDE_WORDS,
    FENCED,
    FORMS,
    GPUS,
    GROUPS,
    GROUPS_AT_ONCE,
    KERNELS,
    LIST_ROWS,
    MOST_NORMS,
    PAIR_ROWS,
    PICKS,
    POOLINGS,
    PRECISIONS,
    PROJECT_AXES,
    PROJECT_WORDS,
    REACH_WORDS,
    ROWS_AT_ONCE,
    SCAN_ROWS,
    SLOTS,
    UNIT,
    WORD_TILES,
    WORDS_A_TILE,
    Function,
    KernelRecord,
    ScanPrecision,
    level_stride,
)
from ..runtime.gallery.kernels.layout import stored_width
from ..runtime.gallery.proof.bounds import MOST_BLOCKS
from ..runtime.gallery.proof.prefix import AXES, CODE_AXES

_SOURCES = ("scan_kernels", "list_kernels", "query_kernels", "decide_kernel")
_STAGES, _WARPS = 3, 4
_VECTORS = 16  # of each row that are multiplied at once: tensor cores take no fewer, and 36 fill three turns to 75 %
_ALIGNED = ("vectors", "levels", "query", "fine", "codes", "exact", "axes")
_DECIDE_SLOTS = 16  # similarities of a row that are summed at once in float64, eight threads each
_DECIDE_VECTORS = 64  # of a row: most rows have no more, so that a largest one is not found in several turns
_REACH_WARPS = (4, 16)  # for each of PICKS, so that hardly any registers are spilled
_TYPES = {"int8": ("*i8", 2), "float16": ("*fp16", 1)}  # of the vectors, and planes of a query
_FINE = {"float32": ("*fp32", 4), "float16": ("*fp16", 2), "fixed16": ("*u8", 1)}  # of a fine copy's values, and bytes


@dataclass(frozen=True)
class _Job:
    """A kernel to compile: its arguments' types by name, its constants, and the warps of a block."""

    kernel: str
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int = _WARPS

    @property
    def function(self) -> Any:
        """What Triton made of the kernel's source."""
        modules = (import_module(f".{name}", __package__) for name in _SOURCES)
        return next(getattr(module, self.kernel) for module in modules if hasattr(module, self.kernel))


def build_kernels(gallery: Path, dim: int, pooling: str, precision: str, gpu: str) -> tuple[KernelRecord, bool]:
    """Compile a gallery's scan into GALLERY/kernels/, or find it there; True where it was found.

    Args:
        gallery: the gallery's folder.
        dim: D of its embeddings.
        pooling: of its alignment, one of POOLINGS.
        precision: int8 or float16.
        gpu: architecture of the GPU that will run it, one of GPUS.

    Raises:
        InputError: a pooling, precision or architecture there is no kernel for.
        EngineError: Triton is not installed, too old for the architecture, or does not compile.
    """
    for name, value, known in (
        ("pooling", pooling, POOLINGS),
        ("precision", precision, PRECISIONS),
        ("gpu", gpu, GPUS),
    ):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)} for a gallery on the GPU, got {value}")
    chosen: ScanPrecision = "int8" if precision == "int8" else "float16"
    width = stored_width(dim)
    wanted = KernelRecord(chosen, width, pooling, gpu, _version(), source_hash(), {})
    if wanted.unfenced is not None:
        raise EngineError(f"{wanted.unfenced}: pip install 'triton>={FENCED}'")
    folder = gallery / KERNELS
    folder.mkdir(exist_ok=True)
    sidecar = folder / f"{wanted.stem}.json"
    with FileLock(folder / f".{wanted.stem}.lock"):
        found = _intact(folder, sidecar)
        if found is not None:
            os.utime(sidecar)  # the kernels asked for last are the ones find_kernels prefers
            return found, True
        functions = {}
        for name, job in _jobs(chosen, width, pooling).items():
            function, code = _compile(name, job, gpu, f"{wanted.stem}.{name}.cubin")
            write_file(folder / function.file, code)
            functions[name] = function
        identity = (wanted.precision, width, pooling, gpu, wanted.compiler, wanted.source_sha256)
        record = KernelRecord(*identity, functions)
        write_file(sidecar, record.to_json())
    return record, False


def source_hash() -> str:
    """The sha256 of what kernels are compiled from."""
    files = (Path(__file__), *(Path(__file__).with_name(f"{name}.py") for name in _SOURCES))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _jobs(precision: ScanPrecision, width: int, pooling: str) -> dict[str, _Job]:
    kind, planes = _TYPES[precision]
    scan_types = {
        "vectors": kind, "places": "*i64", "lengths": "*i32", "row_scale": "*fp32", "allowed": "*u8", "query": kind,
        "word_starts": "*i32", "word_scale": "*fp64", "scores": "*fp64",
        "rows": "i32", "words": "i32", "queries": "i32", "temperature": "fp64",
    }  # fmt: skip
    bounds = {
        "scores": "*fp64",
        "error": "*fp32",
        "norm": "*fp32",
        "blocks": "*fp32",
        "plans": "*i32",
        "terms": "*fp64",
    }
    listed = {"thresholds": "*fp64", "found": "*i32", "listed_rows": "*i32", "listed_scores": "*fp64"} | {
        "listed_radii": "*fp64"
    }
    size = UNIT if precision == "int8" else UNIT // 2
    constants = {"WIDTH": width, "UNIT": size, "PLANES": planes, "POOLING": pooling, "BLOCK_R": _VECTORS}

    def step(most: int) -> int:
        """Values of a vector that are read at a time: `most` bytes, less where the width does not divide into such."""
        return next(each // (UNIT // size) for each in (256, 128, 64) if each <= most and width % each == 0)

    jobs = {}
    for words, most in zip(WORD_TILES, (256, 128), strict=True):
        tile = {"ROWS": SCAN_ROWS, "BLOCK_W": words, "BLOCK_K": step(most)}
        jobs[f"scan_{words}"] = _Job("scan", scan_types, {**constants, **tile})
    jobs |= _level_jobs(scan_types, constants, jobs) if precision == "int8" else {}
    pair_types = {name: type for name, type in scan_types.items() if name not in ("word_starts", "words")}
    names = [*list(scan_types)[:6], "counts", "word_scale", "scores", "rows", "queries", "tiles", "temperature"]
    pair_types = {**pair_types, "counts": "*i32", "tiles": "i32"}
    pair_types = {name: pair_types[name] for name in names}
    tile = {"ROWS": PAIR_ROWS, "BLOCK_W": WORDS_A_TILE, "BLOCK_K": step(128)}
    for slot in SLOTS:
        jobs[f"pairs_{slot}"] = _Job("pairs", pair_types, {**constants, "SLOT": slot, **tile})
    best = {"maxima": "*fp64", "owners": "*i32"}
    numbers = dict.fromkeys(("rows", "size", "groups", "queries", "num_plans"), "i32")
    sizes = {"GROUPS": GROUPS, "AT_ONCE": ROWS_AT_ONCE, "BLOCKS": MOST_BLOCKS}
    jobs["best_rows"] = _Job("best_rows", {**bounds, **best, **numbers}, sizes)
    numbers = dict.fromkeys(("groups", "k", "picks", "queries"), "i32")
    sizes = {"GROUPS": GROUPS, "AT_ONCE": GROUPS_AT_ONCE}
    jobs["kth_best"] = _Job(
        "kth_best", {**best, "thresholds": "*fp64", "found": "*i32", "picked": "*i32", **numbers}, sizes
    )
    numbers = dict.fromkeys(("rows", "capacity", "queries", "num_plans"), "i32")
    sizes = {"SIZE": LIST_ROWS, "BLOCKS": MOST_BLOCKS}
    jobs["shortlist"] = _Job("shortlist", {**bounds, **listed, **numbers}, sizes)
    jobs |= _query_jobs(precision, width, pooling)
    return jobs | (_decide_jobs(width, pooling) | _reach_jobs(pooling) if precision == "int8" else {})


def _query_jobs(precision: ScanPrecision, width: int, pooling: str) -> dict[str, _Job]:
    """`quantize`, and `terms` where there is something to bound."""
    kind, planes = _TYPES[precision]
    types = {
        "exact": "*fp32", "word_of": "*i32", "query": kind, "word_scale": "*fp64", "norms": "*fp64",
        "errors": "*fp64", "places": "i32",
    }  # fmt: skip
    step = min(1024, 1 << (width - 1).bit_length())
    jobs = {"quantize": _Job("quantize", types, {"WIDTH": width, "PLANES": planes, "BLOCK_K": step})}
    if precision == "int8":
        types = {
            "exact": "*fp32", "norms": "*fp64", "errors": "*fp64", "word_starts": "*i32", "axes": "*fp64",
            "axes_places": "*i64", "block_of": "*i32", "held": "*fp64", "target": "*fp64",
            "margins": "*fp64", "num_plans": "i32", "dim": "i32",
            **dict.fromkeys(("slope", "temperature", "lost", "more", "largest"), "fp64"),
        }  # fmt: skip
        constants = {"WIDTH": width, "POOLING": pooling, "AXES": CODE_AXES, "UNIT": UNIT // 8, "BLOCKS": MOST_BLOCKS}
        jobs["terms"] = _Job("terms", types, constants | {"BLOCK_W": 16, "BLOCK_K": 32})
    return jobs


def _decide_jobs(width: int, pooling: str) -> dict[str, _Job]:
    """`decide` for each form of a fine copy."""
    jobs = {}
    for form in FORMS:
        kind, size = _FINE[form]
        types = {
            "fine": kind, "fine_places": "*i64", "codes": "*i8", "places": "*i64", "row_scale": "*fp32",
            "lengths": "*i32", "error": "*fp32", "norm": "*fp32", "blocks": "*fp32", "plans": "*i32", "terms": "*fp64",
            "found": "*i32", "listed_rows": "*i32", "chosen": "*i32", "exact": "*fp32", "word_starts": "*i32",
            "query": "*i8", "query_starts": "*i32", "word_scale": "*fp64",
            "decided": "*i32", "maxima": "*fp64", "winners": "*i32",
            **dict.fromkeys(("capacity", "stride", "tiles", "rows", "num_plans", "query_places"), "i32"),
            "share": "fp64",
        }  # fmt: skip
        constants = {"FORM": form, "WIDTH": width, "UNIT": UNIT // size, "CODES_UNIT": UNIT, "POOLING": pooling}
        step = 128 if width % 128 == 0 else 64
        constants |= {"BLOCKS": MOST_BLOCKS, "BLOCK_W": DECIDE_WORDS, "BLOCK_R": _DECIDE_VECTORS, "BLOCK_K": step}
        constants["SLOTS"] = _DECIDE_SLOTS
        jobs[f"decide_{form}"] = _Job("decide", types, constants)
    return jobs


def _reach_jobs(pooling: str) -> dict[str, _Job]:
    """`reach` and `select` for each number of rows that may be picked."""
    asked = {"found": "*i32", "word_starts": "*i32", "margins": "*fp64", "thresholds": "*fp64"}
    kept = {"kept_maxima": "*fp64", "kept_winners": "*i32", "kept_rows": "*i32", "kept": "*i32"}
    numbers = {"k": "i32", "picks": "i32", "stride": "i32", "temperature": "fp64"}
    reach = {"maxima": "*fp64", **asked, **numbers}
    select = {"maxima": "*fp64", "winners": "*i32", "decided": "*i32", **asked, **kept, "k": "i32", "picks": "i32"}
    select |= {"room": "i32", "stride": "i32", "temperature": "fp64"}
    constants = {"POOLING": pooling, "BLOCK_W": REACH_WORDS}
    jobs = {}
    for picks, warps in zip(PICKS, _REACH_WARPS, strict=True):
        for name, types in (("reach", reach), ("select", select)):
            jobs[f"{name}_{picks}"] = _Job(name, types, {**constants, "PICKS": picks}, warps)
    return jobs


def _level_jobs(
    scan_types: Mapping[str, str], constants: Mapping[str, Any], scans: Mapping[str, _Job]
) -> dict[str, _Job]:
    """The kernels that read the first level of a plan, and the int8 codes of some rows only."""
    stride = level_stride(constants["WIDTH"])
    if stride is None:
        return {}
    listed = {"found": "*i32", "listed": "*i32"}
    head, tail = list(scan_types)[:4], list(scan_types)[5:]
    listed_types = {name: scan_types[name] for name in head} | listed | {name: scan_types[name] for name in tail}
    temperature = listed_types.pop("temperature")
    listed_types |= {"capacity": "i32", "temperature": temperature}
    bound_types = {
        "levels": "*i8", "places": "*i64", "lengths": "*i32", "allowed": "*u8", "query": "*i8", "word_starts": "*i32",
        "word_scale": "*fp64", "word_offset": "*fp64", "upper": "*fp64", "scores": "*fp64",
        "rows": "i32", "words": "i32", "queries": "i32", "temperature": "fp64",
    }  # fmt: skip
    jobs = {}
    for words, rows in zip(WORD_TILES, BOUND_ROWS, strict=True):
        jobs[f"scan_listed_{words}"] = _Job("scan_listed", listed_types, scans[f"scan_{words}"].constants)
        own = {"WIDTH": stride, "ROWS": rows, "BLOCK_W": words}
        shared = {name: constants[name] for name in ("UNIT", "POOLING", "BLOCK_R")}
        jobs[f"bound_{words}"] = _Job("bound", bound_types, own | shared)
    width = constants["WIDTH"]
    types = {"exact": "*fp32", "columns": "*fp64", "coordinates": "*fp64", "words": "i32"}
    tile = {"WIDTH": width, "AXES": AXES, "BLOCK_W": PROJECT_WORDS, "BLOCK_A": PROJECT_AXES, "BLOCK_K": 32}
    jobs["project"] = _Job("project", types, tile)
    types = {
        "exact": "*fp32", "norms": "*fp64", "coordinates": "*fp64", "mean": "*fp64", "block_of": "*i32",
        "norm_steps": "*fp64", "coordinate_of": "*i32", "steps": "*fp64", "pooled": "*fp64", "digits": "*i8",
        "word_scale": "*fp64", "word_offset": "*fp64", **dict.fromkeys(("words", "num_norms", "dim", "width"), "i32"),
        **dict.fromkeys(("held", "lost", "size", "middle", "largest", "temperature"), "fp64"),
    }  # fmt: skip
    step = min(1024, 1 << (width - 1).bit_length())
    sizes = {"WIDTH": width, "STRIDE": stride, "AXES": AXES, "NORMS": MOST_NORMS, "BLOCK_K": step}
    jobs["weigh"] = _Job("weigh", types, sizes)
    return jobs


def _assemble(name: str, job: _Job, gpu: str) -> Any:
    """What Triton makes of one kernel for an architecture."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {**job.types, **dict.fromkeys(job.constants, "constexpr")}
    # What these point to is allocated whole, and every vector begins at a multiple of its width.
    aligned = {(i,): [["tt.divisibility", 16]] for i, each in enumerate(types) if each in _ALIGNED}
    source = ASTSource(job.function, types, dict(job.constants), aligned)
    target = GPUTarget("cuda", int(gpu.removeprefix("sm_")), 32)
    # Fused multiply-adds would round otherwise than the kernels of a gallery on the CPU, if never more often.
    options = {"num_warps": job.warps, "num_stages": _STAGES, "enable_fp_fusion": False}
    try:
        return triton.compile(source, target=target, options=options)
    except Exception as error:  # the compiler and ptxas raise errors of many kinds
        raise EngineError(f"{name} does not compile for {gpu} with triton {triton.__version__}: {error}") from error


def _compile(name: str, job: _Job, gpu: str, file: str) -> tuple[Function, bytes]:
    """One kernel's code for an architecture."""
    compiled = _assemble(name, job, gpu)
    code: bytes = compiled.asm["cubin"]
    made = compiled.metadata
    if made.global_scratch_size or getattr(made, "profile_scratch_size", 0):
        raise EngineError(f"{name} needs scratch memory with triton {_version()}, which nothing allocates here")
    hidden = compiled.asm["ptx"].split(")", 1)[0].count(".param") - len(job.types)
    symbol, shared, threads = made.name, made.shared, 32 * made.num_warps
    return Function(file, hashlib.sha256(code).hexdigest(), symbol, threads, shared, hidden), code


def _version() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError as error:
        raise missing("triton", "compiling the GPU kernels of a scan") from error


def _intact(folder: Path, sidecar: Path) -> KernelRecord | None:
    """The record at `sidecar` if it and all its files are whole."""
    try:
        record = KernelRecord.from_json(sidecar.read_text(encoding="utf-8"))
        hashes = {each.sha256: (folder / each.file).read_bytes() for each in record.functions.values()}
    except (OSError, UnicodeDecodeError, ChanError):
        return None
    whole = all(hashlib.sha256(code).hexdigest() == wanted for wanted, code in hashes.items())
    return record if whole and f"{record.stem}.json" == sidecar.name else None
