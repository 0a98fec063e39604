"""Galleries in a GPU's memory: `Gallery.open(path, device="cuda")`."""

from __future__ import annotations

from pathlib import Path

from ...backends.device import CudaDevice
from ...checks import check_choice
from ...errors import BackendError, InputError
from ..kernels.layout import stored_width
from ..proof.pooling import pools_query
from ..settings import GallerySettings
from .estimate import GpuEstimator
from .kernels import POOLINGS, PRECISIONS, ScanPrecision, find_kernels
from .resident import ResidentScan
from .scan import KernelScan
from .search import ResidentSearch
from .self_test import check_kernels
from .split import SplitScan

__all__ = [
    "PRECISIONS",
    "GpuEstimator",
    "ResidentScan",
    "ResidentSearch",
    "ScanPrecision",
    "SplitScan",
    "check_settings",
    "open_resident",
]


def check_settings(settings: GallerySettings) -> None:
    """InputError, with the reason, if a gallery of these settings cannot be searched on a GPU."""
    instead = "; search it with device='cpu'"
    if not pools_query(settings.kind, settings.alignment):
        raise InputError(
            f"device: on a GPU, images are searched by VHA and captions by THA, this gallery holds "
            f"{settings.kind} scored by {settings.alignment.coding}{instead}"
        )
    if settings.alignment.pooling not in POOLINGS:
        pooling = settings.alignment.pooling
        raise InputError(f"device: pooling must be one of {', '.join(POOLINGS)} on a GPU, got {pooling}{instead}")
    if settings.fine == "none":
        raise InputError(f"device: a search on a GPU ranks by the fine copy, which this gallery does not keep{instead}")


def open_resident(path: Path, settings: GallerySettings, precision: ScanPrecision, index: int = 0) -> ResidentScan:
    """The scan of the gallery at `path` on the GPU that CUDA counts as `index`; nothing is uploaded yet.

    Raises:
        InputError: the gallery's settings have no GPU scan, an unknown precision, or no GPU of that number.
        BackendError: no usable GPU, no kernels for it, or kernels that compute wrong numbers there.
    """
    from ...gpu import examine_gpu

    check_choice("resident", precision, PRECISIONS)
    check_settings(settings)
    gpu = examine_gpu()
    if gpu.problem is not None:
        raise BackendError(f"device='cuda' cannot run here: no usable GPU: {gpu.problem}; search with device='cpu'")
    if index >= len(gpu.gpus):
        known = ", ".join(f"cuda:{number} ({each.name})" for number, each in enumerate(gpu.gpus))
        raise InputError(f"device must be one of the GPUs that CUDA shows, {known}, got cuda:{index}")
    width, pooling = stored_width(settings.dim), settings.alignment.pooling
    record, code = find_kernels(path, precision, width, pooling, gpu.gpus[index].capability)
    scan = KernelScan(record, code, CudaDevice(index), settings.dim, settings.alignment)
    try:
        check_kernels(scan, settings.dim, settings.alignment, settings.fine)
    except BaseException:
        scan.close()
        raise
    return scan
