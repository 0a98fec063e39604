"""Everything that can search a gallery held on a GPU, behind one small interface; libraries are imported when opened.

Peers score by the sum of maxima, CHAN by their log-sum-exp. So a caption's words are given to the peers as queries of
one word each, whose scores are the maxima, and PyTorch pools those. Beside that each peer scores in its native form,
whole captions by the sum of maxima: that is another ranking, and shows its speed. Both are Apache-2.0 and optional.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.backends.table import Flavor
from ..runtime.backends.tensorrt import TensorRTBackend
from ..runtime.contract import AlignmentConfig
from ..runtime.gallery.compiled import CoreThreads, open_core
from ..runtime.gallery.cuda import ResidentScan
from ..runtime.gallery.cuda.decide import Decided
from ..runtime.gallery.cuda.kernels import Function, KernelRecord, ScanPrecision
from ..runtime.gallery.cuda.resident import Decide, Listed
from ..runtime.gallery.cuda.scan import KernelScan
from ..runtime.gallery.kernels.choose import open_kernel
from ..runtime.gallery.kernels.layout import stored_width
from ..runtime.gallery.kernels.pool import Pool
from ..runtime.gallery.scanner import resident_ranker
from .engine_scan import EngineScan
from .gpu_images import Floats, K, ResidentImages
from .gpu_kernels import give_kernels
from .interpreted import InterpretedDevice, interpreted_kernels

CAPTIONS = 50  # that PyTorch scores at once: their similarities with 1,000 images take 43 MB in half

# A candidate that is open: the words [W, D] of each caption -> the rows of its K best images, best first.
Search = Callable[[Sequence[Floats]], list[NDArray[np.int64]]]


@dataclass
class Where:
    """Where candidates run.

    Attributes:
        capability: of the GPU; None for this machine's CPU, with this project's kernels interpreted.
        device: a `TimedDevice`, or an `InterpretedDevice`, made when a candidate of this project opens.
        listed, rescored: how many rows each caption's list had, and how many were scored again.
        left: how many rows the first level left for each caption that was searched by it.
    """

    capability: tuple[int, int] | None
    device: Any = None
    listed: list[int] = field(default_factory=list)
    rescored: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)

    @property
    def torch(self) -> str:
        """What PyTorch calls it."""
        return "cpu" if self.capability is None else "cuda"


Opener = Callable[[ResidentImages, Where], AbstractContextManager[Search]]


def candidates() -> dict[str, Opener]:
    """Every candidate by name, in order of worth: what a run that is out of time leaves out comes last."""
    return {
        "this, triton int8, certified": partial(_kernels, precision="int8"),
        "torch eager float16": partial(_torch, precision="float16"),
        "torch int8": partial(_torch, precision="int8"),
        "late-interaction-kernels float16": partial(_torch, precision="float16", peer="lik"),
        "flash-maxsim float16": partial(_torch, precision="float16", peer="flash"),
        "torch eager float32": partial(_torch, precision="float32"),
        "this, triton float16": partial(_kernels, precision="float16"),
        "late-interaction-kernels float16, sum of maxima": partial(
            _torch, precision="float16", peer="lik", native=True
        ),
        "flash-maxsim float16, sum of maxima": partial(_torch, precision="float16", peer="flash", native=True),
        "torch.compile float16": partial(_torch, precision="float16", compiled=True),
        "tensorrt engine float16": partial(_engine, flavor="tensorrt"),
        "tensorrt_rtx engine float16": partial(_engine, flavor="tensorrt_rtx"),
    }


def precision_of(name: str) -> str:
    """int8 or float16; float32 for what has neither limit."""
    return next((precision for precision in ("int8", "float16") if precision in name), "float32")


@contextmanager
def _kernels(images: ResidentImages, where: Where, *, precision: ScanPrecision) -> Iterator[Search]:
    alignment, width = AlignmentConfig(), stored_width(images.dim)
    if where.capability is None:
        kernels = interpreted_kernels(precision, width, alignment.pooling)
        functions = {name: Function("", "", name, 32, 0, 0) for name in kernels}
        record = KernelRecord(precision, width, alignment.pooling, "interpreted", "none", "", functions)
        found, where.device = (record, dict.fromkeys(kernels, b"")), InterpretedDevice(kernels)
    else:
        where.device = _device()
        with tempfile.TemporaryDirectory() as scratch:
            found = give_kernels(Path(scratch), images.dim, alignment.pooling, precision, where.capability)
    yield from _resident(KernelScan(*found, where.device, images.dim, alignment), images, where)


@contextmanager
def _engine(images: ResidentImages, where: Where, *, flavor: Flavor) -> Iterator[Search]:
    from .resident_engine import build_resident_engine  # it needs onnx, which no other candidate does

    device = _device()
    with tempfile.TemporaryDirectory() as scratch:
        rows = min(images.count, 8192)
        spec, built = build_resident_engine(
            Path(scratch), flavor, AlignmentConfig(), images.dim, rows=rows, regions=images.regions, k=K
        )
        backend = TensorRTBackend(flavor, built.path, spec, warm_up=False)  # that would make room to copy from the host
        yield from _resident(EngineScan(backend, device), images, where)


def _device() -> Any:
    from .cuda import TimedDevice

    return TimedDevice()


class _Counting:
    """A scan that notes how many rows it lists."""

    def __init__(self, scan: ResidentScan, where: Where) -> None:
        self.name, self.certified = scan.name, scan.certified
        self.require, self.hold, self.gather, self.close = scan.require, scan.hold, scan.gather, scan.close
        self._scan, self._where = scan, where

    def shortlist(self, *arguments: Any) -> list[Listed]:
        """See `ResidentScan.shortlist`."""
        found = self._scan.shortlist(*arguments)
        self._where.listed += [len(each.rows) for each in found]
        self._note()
        return found

    def decider(self, rows: Any) -> Decide | None:
        """See `ResidentScan.decider`."""
        decide = self._scan.decider(rows)

        def counted(
            queries: Sequence[Floats],
            k: int,
            allowed: NDArray[np.bool_],
            floors: NDArray[np.float64],
            turn: int,
            use: Callable[[Decided], None],
        ) -> None:
            assert decide is not None

            def count(decided: Decided) -> None:
                self._where.listed += decided.found.tolist()
                use(decided)

            decide(queries, k, allowed, floors, turn, count)
            self._note()

        return None if decide is None else counted

    def _note(self) -> None:
        if isinstance(self._scan, KernelScan) and self._scan.left is not None:
            self._where.left += self._scan.left.tolist()


def _resident(scan: ResidentScan, images: ResidentImages, where: Where) -> Iterator[Search]:
    pool, threads = Pool(), CoreThreads()
    try:
        core = None if open_core() is None else threads
        plan, counting = images.parts[0].plan, _Counting(scan, where)
        ranker = resident_ranker(images.rows, counting, plan, core, open_kernel(), pool)
        everything = np.ones(images.count, bool)

        def search(captions: Sequence[Floats]) -> list[NDArray[np.int64]]:
            rankings = ranker.exact(captions, K, everything)
            where.rescored += [ranking.rescored for ranking in rankings]
            return [ranking.rows for ranking in rankings]

        yield search
    finally:
        scan.close()
        threads.close()
        pool.close()


@contextmanager
def _torch(
    images: ResidentImages,
    where: Where,
    *,
    precision: str,
    compiled: bool = False,
    peer: str | None = None,
    native: bool = False,
) -> Iterator[Search]:
    """PyTorch on a device: maxima over each image's regions (one matrix product, or a peer's), log-sum-exp, top k.

    At int8 each image and each word has one scale, as this project's codes have, in one plane of 8 bits.
    """
    import torch

    regions, scale = _on_device(images, precision, where.torch)  # [N, R, D], and float32 [N] at int8
    temperature = AlignmentConfig().pooling_temperature
    maxima = None if peer is None else _PEERS[peer]()

    def product(words: Any) -> Any:  # [V, D] -> [V, N]
        if precision == "int8":
            peak = words.abs().amax(dim=1, keepdim=True).clamp(min=1e-30)
            coded = (words * (127 / peak)).round().to(torch.int8)
            # the product takes columns in multiples of 8
            columns = torch.nn.functional.pad(coded, (0, 0, 0, -len(coded) % 8)).T
            found = torch._int_mm(regions.flatten(0, 1), columns)[:, : len(coded)]
            best = found.reshape(len(regions), -1, len(coded)).amax(dim=1).float()
            return (best * scale[:, None]).T * (peak / 127)
        found = regions.flatten(0, 1) @ words.T
        return found.reshape(len(regions), -1, len(words)).amax(dim=1).T.float()

    def score(words: Any) -> Any:  # [C, W, D] -> [C, K]
        if native and maxima is not None:
            return torch.topk(maxima(words, regions).float(), K).indices
        flat = words.flatten(0, 1)
        best = product(flat) if maxima is None else maxima(flat[:, None], regions).float()
        return torch.topk(torch.logsumexp(best.reshape(*words.shape[:2], -1) / temperature, dim=1), K).indices

    run = torch.compile(score, mode="max-autotune-no-cudagraphs") if compiled else score

    def search(captions: Sequence[Floats]) -> list[NDArray[np.int64]]:
        rows: list[NDArray[np.int64]] = []
        with torch.inference_mode():
            for first in range(0, len(captions), CAPTIONS):
                words = torch.from_numpy(np.stack(captions[first : first + CAPTIONS]))
                kind = torch.float32 if precision == "int8" else regions.dtype
                rows += list(run(words.to(where.torch, kind)).cpu().numpy())
        return rows

    yield search


def _on_device(images: ResidentImages, precision: str, device: str) -> tuple[Any, Any]:
    """The gallery as a torch tensor [N, R, D], uploaded part by part; at int8 its codes and each image's scale [N]."""
    import torch

    shape = (images.count, images.regions, images.dim)
    tensor = torch.empty(shape, device=device, dtype=getattr(torch, precision))
    first = 0
    for part in images.parts:
        rows = len(part.starts) - 1
        if precision == "int8":
            own = (part.codes(0, rows)[:, : images.dim] ^ np.uint8(128)).view(np.int8)
        else:
            own = np.array(images.fine(part))
        tensor[first : first + rows] = torch.from_numpy(own).to(device, tensor.dtype).reshape(rows, *shape[1:])
        first += rows
    scale = torch.from_numpy(np.concatenate([part.scale for part in images.parts])).to(device)
    return tensor, scale


def _late_interaction_kernels() -> Callable[[Any, Any], Any]:
    from late_interaction_kernels import maxsim

    found: Callable[[Any, Any], Any] = maxsim
    return found


def _flash_maxsim() -> Callable[[Any, Any], Any]:
    from flash_maxsim import flash_maxsim_batched

    return lambda words, regions: flash_maxsim_batched(words, regions, pad_lq=False)


_PEERS = {"lik": _late_interaction_kernels, "flash": _flash_maxsim}
