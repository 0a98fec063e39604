"""What searches the rows of a gallery: the compiled search, a kernel on the CPU, or the GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, get_args

from ..checks import check_choice
from ..cpus import usable_cpus
from ..forks import now_and_after_fork
from ..gpu import device_indices
from .compiled import CompiledSearch, CoreThreads, core_is_fastest, core_searches, need_core
from .cuda import GpuEstimator, ResidentScan, ResidentSearch, ScanPrecision, SplitScan, open_resident
from .estimate import CpuEstimator
from .kernels.base import Kernel
from .kernels.choose import open_kernel
from .kernels.pool import Pool
from .prefix_estimate import PrefixEstimator
from .proof.gallery_rows import GalleryRows
from .proof.prefix import SearchPlan
from .rank import Ranker
from .settings import GallerySettings
from .store.segments import Segment

ScanName = Literal["compiled", "onnxruntime", "numpy"]
_FEW = 8  # queries of a search that waits for its turn
_PATIENCE = 0.05  # seconds that it waits


class Turns:
    """Turns of the searches of one gallery that are for few queries: as many at once as this process may use CPUs.

    More threads get in each other's way: 8 on 2 CPUs took 1.2 times as long (a Zen 5). What takes long holds up nobody:
    many queries need no turn, and who has waited _PATIENCE goes on.
    """

    def __init__(self) -> None:
        now_and_after_fork(self._make_slots)

    def _make_slots(self) -> None:
        self._slots = threading.Semaphore(max(2, usable_cpus()))

    @contextmanager
    def turn(self, queries: int) -> Iterator[None]:
        """A turn for a block that searches for some queries."""
        taken = queries <= _FEW and self._slots.acquire(timeout=_PATIENCE)
        try:
            yield
        finally:
            if taken:
                self._slots.release()


def resident_ranker(
    rows: GalleryRows,
    scan: ResidentScan,
    plan: SearchPlan | None,
    core: CoreThreads | None,
    kernel: Kernel,
    pool: Pool,
) -> Ranker:
    """The ranker of rows that a GPU scans; its lists are ranked by the compiled search where `core` is given."""
    if core is None:
        return Ranker(rows, GpuEstimator(rows, scan), kernel, pool)
    search = ResidentSearch(rows, scan, CompiledSearch(rows, plan, core))
    return Ranker(rows, CpuEstimator(rows, kernel, pool), kernel, pool, search)


@dataclass(frozen=True)
class Scanner:
    """Makes the rankers of one gallery, which share their threads; see `Gallery.open` for what is chosen.

    Attributes:
        settings: of the gallery.
        kernel, pool: what scans and rescores on the CPU.
        core: threads of the compiled search, where that searches, or ranks what the GPU lists.
        resident: the rows in the memory of one GPU or several, where they are.
        turns: of searches.
    """

    settings: GallerySettings
    kernel: Kernel
    pool: Pool
    core: CoreThreads | None
    resident: ResidentScan | None
    turns: Turns = field(default_factory=Turns)

    @classmethod
    def open(
        cls,
        folder: Path,
        settings: GallerySettings,
        scan: ScanName | Literal["auto"],
        threads: int | None,
        device: str,
        resident: ScanPrecision,
    ) -> Self:
        """Choose what searches a gallery, as `Gallery.open` says.

        Raises:
            InputError, BackendError: as `Gallery.open`.
        """
        gpus = device_indices(device)
        check_choice("scan", scan, ("auto", *get_args(ScanName)))
        if scan == "compiled":
            need_core()
        kernel = open_kernel("auto" if scan == "compiled" else scan)
        takes_core = scan == "compiled" or (scan == "auto" and core_is_fastest())
        core = CoreThreads(threads) if takes_core and core_searches(settings) else None
        with ExitStack() as opened:
            pool = Pool(threads)
            opened.callback(pool.close)
            scans = []
            for gpu in gpus:
                scans.append(open_resident(folder, settings, resident, gpu))
                opened.callback(scans[-1].close)
            held = SplitScan(scans) if len(scans) > 1 else next(iter(scans), None)
            opened.pop_all()
        return cls(settings, kernel, pool, core, held)

    @property
    def name(self) -> str:
        """compiled, onnxruntime or numpy, or the GPU's kernels by their name."""
        if self.resident is not None:
            return self.resident.name
        return self.kernel.name if self.core is None else "compiled"

    @property
    def reason(self) -> str:
        """Why an answer is certified, or is not."""
        if self.resident is not None and not self.resident.certified:
            return f"{self.resident.name} chose the rows, and nothing proves its choice"
        if self.settings.fine == "none":
            return "this gallery keeps no fine copy to certify against"
        if self.settings.alignment.coding == "VSA":
            return "every row was scored from the fine copy (VSA)"
        return "every row that was not rescored is proven to score less than all hits"

    def ranker(self, segments: Sequence[Segment], plan: SearchPlan | None) -> Ranker:
        """The ranker of some segments' rows."""
        rows = GalleryRows(segments, self.settings.kind, self.settings.alignment)
        if self.resident is not None:
            return resident_ranker(rows, self.resident, plan, self.core, self.kernel, self.pool)
        compiled = None if self.core is None else CompiledSearch(rows, plan, self.core)
        codes = CpuEstimator(rows, self.kernel, self.pool, 2 if plan is None else plan.digits)
        by_levels = self.kernel.name == "numpy" and plan is not None and plan.second is not None
        estimator = PrefixEstimator(rows, codes, self.pool) if by_levels else codes
        return Ranker(rows, estimator, self.kernel, self.pool, compiled)

    def close(self) -> None:
        """End the threads, and free the GPU's memory."""
        try:
            if self.resident is not None:
                self.resident.close()
        finally:
            self.pool.close()
            if self.core is not None:
                self.core.close()
