"""Everything that can search a gallery held on a GPU, behind one small interface; libraries are imported when opened.

Peers score by the sum of maxima, CHAN by their log-sum-exp. So a caption's words are given to the peers as queries of
one word each, whose scores are the maxima, and PyTorch pools those. Both peers are Apache-2.0 and optional.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.kernels import build_kernels
from ..runtime.backends.device import Device
from ..runtime.backends.table import Flavor
from ..runtime.backends.tensorrt import TensorRTBackend
from ..runtime.contract import AlignmentConfig
from ..runtime.gallery.cuda import GpuEstimator, ResidentScan
from ..runtime.gallery.cuda.kernels import ScanPrecision, find_kernels
from ..runtime.gallery.cuda.scan import KernelScan
from ..runtime.gallery.kernels.choose import open_kernel
from ..runtime.gallery.kernels.layout import stored_width
from ..runtime.gallery.kernels.pool import Pool
from ..runtime.gallery.proof.certify import Certifier
from ..runtime.gallery.proof.gallery_rows import GalleryRows
from ..runtime.gallery.proof.rows import ArrayPart
from ..runtime.gallery.rank import Ranker
from ..runtime.gpu import architecture
from .engine_scan import EngineScan
from .resident_engine import build_resident_engine

K = 10
CAPTIONS = 50  # that PyTorch scores at once: their similarities with 1,000 images take 43 MB in half
_TENSORS: weakref.WeakValueDictionary[tuple[int, str, str], Any] = weakref.WeakValueDictionary()
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ResidentImages:
    """The gallery: one part whose fine copy is float16, and the number of regions that every image has."""

    part: ArrayPart
    regions: int

    @property
    def count(self) -> int:
        """N."""
        return len(self.part.starts) - 1

    @property
    def dim(self) -> int:
        """D."""
        return int(self.fine.shape[1])

    @property
    def fine(self) -> NDArray[np.floating]:
        """The fine copy, [N x regions, D]."""
        if self.part.exact is None:
            raise LookupError("these images were made without a fine copy")
        return self.part.exact


# A candidate that is open: the words [W, D] of each caption -> the rows of its K best images, best first.
Search = Callable[[Sequence[Floats]], list[NDArray[np.int64]]]
Opener = Callable[[ResidentImages, Device, tuple[int, int]], AbstractContextManager[Search]]


def candidates() -> dict[str, Opener]:
    """Every candidate by name, the published scoring first."""
    return {
        "torch eager float32": lambda images, device, gpu: _torch(images, "float32", compiled=False),
        "torch eager float16": lambda images, device, gpu: _torch(images, "float16", compiled=False),
        "torch.compile float16": lambda images, device, gpu: _torch(images, "float16", compiled=True),
        "late-interaction-kernels float16": lambda images, device, gpu: _torch(images, "float16", maxima=_peer_lik()),
        "flash-maxsim float16": lambda images, device, gpu: _torch(images, "float16", maxima=_peer_flash()),
        "tensorrt engine float16": lambda images, device, gpu: _engine("tensorrt", images, device),
        "tensorrt_rtx engine float16": lambda images, device, gpu: _engine("tensorrt_rtx", images, device),
        "this, triton float16": lambda images, device, gpu: _kernels("float16", images, device, gpu),
        "this, triton int8, certified": lambda images, device, gpu: _kernels("int8", images, device, gpu),
    }


@contextmanager
def _kernels(
    precision: ScanPrecision, images: ResidentImages, device: Device, gpu: tuple[int, int]
) -> Iterator[Search]:
    alignment = AlignmentConfig()
    with tempfile.TemporaryDirectory() as scratch:
        build_kernels(Path(scratch), images.dim, alignment.pooling, precision, architecture(gpu))
        found = find_kernels(Path(scratch), precision, stored_width(images.dim), alignment.pooling, gpu)
    yield from _resident(KernelScan(*found, device, images.dim, alignment), images)


@contextmanager
def _engine(flavor: Flavor, images: ResidentImages, device: Device) -> Iterator[Search]:
    with tempfile.TemporaryDirectory() as scratch:
        rows = min(images.count, 8192)
        spec, built = build_resident_engine(
            Path(scratch), flavor, AlignmentConfig(), images.dim, rows=rows, regions=images.regions, k=K
        )
        backend = TensorRTBackend(flavor, built.path, spec, warm_up=False)  # that would make room to copy from the host
        yield from _resident(EngineScan(backend, device), images)


def _resident(scan: ResidentScan, images: ResidentImages) -> Iterator[Search]:
    pool = Pool()
    try:
        rows = GalleryRows([images.part], "images", AlignmentConfig())
        kernel = open_kernel()
        ranker = Ranker(rows, GpuEstimator(rows, scan, Certifier(rows, kernel, pool)), kernel, pool)
        everything = np.ones(images.count, bool)

        def search(captions: Sequence[Floats]) -> list[NDArray[np.int64]]:
            return [ranking.rows for ranking in ranker.exact(captions, K, everything)]

        yield search
    finally:
        scan.close()
        pool.close()


@contextmanager
def _torch(
    images: ResidentImages,
    precision: str,
    *,
    compiled: bool = False,
    maxima: Callable[[Any, Any], Any] | None = None,
    device: str = "cuda",
) -> Iterator[Search]:
    """PyTorch on a device: maxima over each image's regions (one matrix product, or a peer's), log-sum-exp, top k."""
    import torch

    regions = _on_device(images, precision, device)  # [N, R, D]
    temperature = AlignmentConfig().pooling_temperature

    def product(words: Any, regions: Any) -> Any:
        return (regions.flatten(0, 1) @ words.flatten(0, 1).T).unflatten(0, (len(regions), -1)).amax(dim=1).T

    best = maxima or product  # words [V, 1, D], regions -> [V, N]

    def score(words: Any) -> Any:  # [C, W, D] -> [C, K]
        found = best(words.flatten(0, 1)[:, None], regions).float().unflatten(0, words.shape[:2])
        return torch.topk(torch.logsumexp(found / temperature, dim=1), K).indices

    run = torch.compile(score) if compiled else score

    def search(captions: Sequence[Floats]) -> list[NDArray[np.int64]]:
        rows: list[NDArray[np.int64]] = []
        with torch.inference_mode():
            for first in range(0, len(captions), CAPTIONS):
                words = torch.from_numpy(np.stack(captions[first : first + CAPTIONS]))
                rows += list(run(words.to(device, regions.dtype)).cpu().numpy())
        return rows

    try:
        yield search
    finally:
        torch.cuda.empty_cache()


def _on_device(images: ResidentImages, precision: str, device: str) -> Any:
    """The gallery as a torch tensor [N, R, D], one for all candidates that are open."""
    import torch

    key = id(images.part), precision, device
    if key not in _TENSORS:
        dtype = getattr(torch, precision)
        tensor = torch.from_numpy(np.asarray(images.fine)).to(device, dtype)
        _TENSORS[key] = tensor = tensor.reshape(images.count, images.regions, -1)
        return tensor
    return _TENSORS[key]


def _peer_lik() -> Callable[[Any, Any], Any]:
    from late_interaction_kernels import maxsim

    found: Callable[[Any, Any], Any] = maxsim
    return found


def _peer_flash() -> Callable[[Any, Any], Any]:
    from flash_maxsim import flash_maxsim_batched

    return lambda words, regions: flash_maxsim_batched(words, regions, pad_lq=False)
