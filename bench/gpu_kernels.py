"""The GPU kernels of the benchmark and of the tests: compiled here, or before on another machine.

    python -m chan_rt.bench.gpu_kernels FOLDER sm_90

compiles all of them into FOLDER. With CHAN_COMPILED=FOLDER they are taken from there, on a lent machine, say, whose
Triton is too old.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import click

from ..export.kernels import build_kernels, source_hash
from ..runtime.errors import InputError
from ..runtime.gallery.cuda.kernels import KERNELS, POOLINGS, KernelRecord, ScanPrecision, find_kernels
from ..runtime.gallery.kernels.layout import stored_width
from ..runtime.gpu import architecture

WIDTHS: dict[ScanPrecision, tuple[int, ...]] = {
    "int8": (64, 128, 192, 256, 320, 1024),
    "float16": (64, 128, 256, 1024),
}


def give_kernels(
    gallery: Path, dim: int, pooling: str, precision: ScanPrecision, capability: tuple[int, int]
) -> tuple[KernelRecord, dict[str, bytes]]:
    """A gallery's kernels for a GPU and their code, put into the gallery's folder.

    Raises:
        InputError: those of CHAN_COMPILED were compiled from other sources.
        BackendError: it has none for this GPU.
        EngineError: Triton is not installed or too old, or does not compile.
    """
    compiled = os.environ.get("CHAN_COMPILED")
    width = stored_width(dim)
    if not compiled:
        build_kernels(gallery, dim, pooling, precision, architecture(capability))
        return find_kernels(gallery, precision, width, pooling, capability)
    record, code = find_kernels(Path(compiled), precision, width, pooling, capability)
    if record.source_sha256 != source_hash():
        raise InputError(f"CHAN_COMPILED={compiled}: its kernels are of other sources: compile them again")
    folder = gallery / KERNELS
    folder.mkdir(exist_ok=True)
    for name, function in record.functions.items():
        (folder / function.file).write_bytes(code[name])
    (folder / f"{record.stem}.json").write_text(record.to_json(), encoding="utf-8")
    return record, code


def compile_all(folder: Path, gpu: str) -> None:
    """Compile what the benchmark and the tests ask for, on all CPUs: one after another they take minutes."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(width, pooling, each) for each, widths in WIDTHS.items() for width in widths for pooling in POOLINGS]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        made = [pool.submit(build_kernels, folder, *each, gpu) for each in wanted]
        for count, done in enumerate(as_completed(made), 1):
            done.result()
            click.echo(f"{count} of {len(made)} sets of kernels for {gpu}", err=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"{__doc__}")
    compile_all(Path(sys.argv[1]), sys.argv[2])
