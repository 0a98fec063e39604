"""A gallery open for search: snapshots of what was committed, and certified answers from them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from ..checks import check_choice, check_positive
from ..contract import AlignmentConfig
from ..embeddings import Embeddings
from ..errors import ChanError, GalleryCorrupt, GalleryError, InputError
from ..forks import now_and_after_fork
from ..gpu import device_index
from .compiled import CompiledSearch, CoreThreads, core_is_fastest, core_searches, need_core
from .cuda import GpuEstimator, ResidentScan, ScanPrecision, open_resident
from .estimate import CpuEstimator
from .kernels.base import Kernel
from .kernels.choose import open_kernel
from .kernels.pool import Pool
from .prepare import Preparation
from .proof.certify import Certifier, Ranking
from .proof.gallery_rows import GalleryRows
from .proof.prefix import SearchPlan
from .proof.rows import pack_rows
from .proof.true_score import true_row
from .rank import Ranker
from .result import Hit, SearchResult
from .settings import GallerySettings
from .snapshot import Damaged, Snapshot, open_snapshot
from .store.newest import is_same_gallery, newest_header, read_newest
from .store.rows import Row
from .store.segments import Segment
from .values import checked_ids
from .verify import verify_gallery
from .where import Filter, Where

ScanName = Literal["compiled", "onnxruntime", "numpy"]
_log = logging.getLogger(__name__)
_ATTEMPTS = 5  # of a search whose files something touches meanwhile


class Gallery:
    """A gallery open for reading; searches see the newest commit. Any number of threads may use one, beside one writer.

    `Gallery.open(path)` opens one; the constructor takes what that has opened. Reading needs no permission to write
    and leaves no file behind.

    Attributes:
        path: the gallery's folder, absolute.
        settings: what was fixed when the gallery was made.
    """

    def __init__(
        self,
        path: Path,
        settings: GallerySettings,
        kernel: Kernel,
        pool: Pool,
        core: CoreThreads | None,
        resident: ResidentScan | None,
        damaged: Damaged,
    ) -> None:
        self.path = path
        self.settings = settings
        self._kernel = kernel
        self._pool = pool
        self._core = core
        self._resident = resident
        self._damaged: Damaged = damaged
        now_and_after_fork(self._make_lock)
        self._current: Snapshot | None = None
        self._closed = False

    def _make_lock(self) -> None:
        self._lock = threading.RLock()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        scan: ScanName | Literal["auto"] = "auto",
        threads: int | None = None,
        device: str = "cpu",
        resident: ScanPrecision = "int8",
        damaged: Damaged = "refuse",
    ) -> Self:
        """Open the gallery in a folder for search.

        Args:
            path: the gallery's folder.
            model: fingerprint of the model that will encode the queries; None trusts the caller.
            scan: what searches on the CPU; `auto` takes the first of compiled (compiled.py), onnxruntime and numpy
                (kernels/base.py) that works here. Where `compiled` cannot search the gallery, which is coded by VSA or
                has no fine copy, the others do.
            threads: number of threads for scans; every core by default.
            device: `cuda` holds the vectors in the first GPU's memory and scans them there (docs/engines.md); `cuda:1`
                in the second one's, and so on, of the GPUs that CUDA_VISIBLE_DEVICES leaves.
            resident: what the GPU holds: the codes at `int8`, certified, or `float16`, not certified.
            damaged: `refuse` raises GalleryCorrupt where a search meets damaged bytes. `skip` reads every byte when it
                opens, leaves out the rows that cannot be read, and certifies no answer while there are such rows.

        Raises:
            InputError: there is no such device, or none for a gallery like this; an argument out of its choices.
            BackendError: `scan` does not work here; no usable GPU, no GPU kernels for it, or not enough memory on it.
            GalleryError: no gallery, of another schema, or made with another model.
            GalleryCorrupt: the catalogue or a segment's header is damaged.
        """
        gpu = device_index(device)
        check_choice("damaged", damaged, get_args(Damaged))
        folder = Path(path).absolute()
        check_choice("scan", scan, ("auto", *get_args(ScanName)))
        if scan == "compiled":
            need_core()
        kernel = open_kernel("auto" if scan == "compiled" else scan)
        settings = read_newest(folder)[1].settings
        if model is not None:
            settings.check_model(model, folder)
        takes_core = scan == "compiled" or (scan == "auto" and core_is_fastest())
        core = CoreThreads(threads) if takes_core and gpu is None and core_searches(settings) else None
        with ExitStack() as opened:
            pool = Pool(threads)
            opened.callback(pool.close)
            held = None if gpu is None else open_resident(folder, settings, resident, gpu)
            if held is not None:
                opened.callback(held.close)
            gallery = cls(folder, settings, kernel, pool, core, held, damaged)
            gallery._snapshot()
            opened.pop_all()
        return gallery

    def close(self) -> None:
        """End the threads, free the GPU's memory and let the files go; twice does no harm."""
        self._closed = True
        try:
            if self._resident is not None:
                self._resident.close()
        finally:
            self._pool.close()
            if self._core is not None:
                self._core.close()
            self._current = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Rows of the newest commit."""
        return int(np.count_nonzero(self._snapshot().live))

    @property
    def alignment(self) -> AlignmentConfig:
        """How similarities become scores."""
        return self.settings.alignment

    @property
    def scan(self) -> str:
        """What searches this gallery: compiled, onnxruntime or numpy, or the GPU's kernels by their name."""
        if self._resident is not None:
            return self._resident.name
        return self._kernel.name if self._core is None else "compiled"

    @property
    def prepared(self) -> Preparation | None:
        """How search was prepared, and what that measured; None if it was not."""
        return self._snapshot().prepared

    def check_model(self, model: str) -> None:
        """GalleryError unless the gallery was made with the model of this fingerprint."""
        self.settings.check_model(model, self.path)

    def info(self) -> dict[str, Any]:
        """Plain facts: rows, bytes and what the gallery was made with."""
        snapshot = self._snapshot()
        segments, prepared = snapshot.catalogue.segments, snapshot.prepared
        return {
            "rows": int(np.count_nonzero(snapshot.live)),
            "deleted_rows": sum(int(np.count_nonzero(~segment.live)) for segment in segments),
            "lost_rows": snapshot.lost,
            "segments": len(segments),
            "bytes": sum(file.length for segment in segments for file in segment.files),
            "scan": self.scan,
            **self.settings.to_dict(),
            "prepared": None if prepared is None else prepared.describe(),
        }

    def rows(self, where: Where | Filter | None = None) -> list[Row]:
        """Ids and metadata of the rows, in order of addition.

        Args:
            where: only rows whose metadata passes this filter, see where.py.

        Raises:
            InputError: a filter that is none, or a metadata key that no row has.
            GalleryCorrupt: bytes that must be read are not those that were committed.
        """
        condition = None if where is None else Filter.parse(where)
        rows = self._snapshot().rows()
        return rows if condition is None else condition.choose(rows)

    def find(self, ids: Iterable[str | int]) -> list[Row]:
        """Id and metadata of the rows with these ids, in the order of the ids.

        Raises:
            InputError: an id that the gallery does not have.
            GalleryCorrupt: bytes that must be read are not those that were committed.
        """
        snapshot, wanted = self._snapshot(), checked_ids(ids)
        return [snapshot.row(row) for row in _numbers(snapshot, wanted)]

    def embeddings(self, ids: Iterable[str | int]) -> Embeddings:
        """Embeddings of the rows with these ids, in the order of the ids: from the fine copy, or else from the codes.

        Raises:
            InputError: no ids, or an id that the gallery does not have.
            GalleryCorrupt: bytes that must be read are not those that were committed.
        """
        snapshot, wanted = self._snapshot(), checked_ids(ids)
        if not wanted:
            raise InputError("ids: must hold at least one id, got none")
        parts = []
        for row in _numbers(snapshot, wanted):
            index, position = snapshot.locate(row)
            vectors = snapshot.segments[index].vectors(position, position + 1)
            parts.append(Embeddings(vectors[None], np.array([len(vectors)], np.int32), self.settings.kind))
        return Embeddings.concatenate(parts)

    def lengths(self, ids: Iterable[str | int]) -> NDArray[np.int32]:
        """Number of vectors of the rows with these ids, in the order of the ids; vectors are not read.

        Raises:
            InputError: an id that the gallery does not have.
        """
        snapshot, wanted = self._snapshot(), checked_ids(ids)
        places = [snapshot.locate(row) for row in _numbers(snapshot, wanted)]
        starts = [segment.starts for segment in snapshot.segments]
        return np.array([starts[i][row + 1] - starts[i][row] for i, row in places], np.int32)

    def code_error(self) -> float:
        """No less than the distance between any vector that was added and the one that its int8 codes stand for."""
        return max((float(segment.error.max(initial=0)) for segment in self._snapshot().segments), default=0.0)

    @property
    def damage(self) -> list[str]:
        """What could not be read, in words; empty unless the gallery was opened with damaged="skip"."""
        return list(self._snapshot().damage)

    def search(
        self,
        queries: Embeddings,
        k: int = 10,
        *,
        ids: Iterable[str | int] | None = None,
        where: Where | Filter | None = None,
        same_kind: bool = False,
    ) -> list[SearchResult]:
        """The k best rows for each query.

        Args:
            queries: of the other side: captions' words for a gallery of images, images' regions for one of captions.
            k: how many; all rows where there are fewer.
            ids: only rows with these ids.
            where: only rows whose metadata passes this filter, see where.py. A new filter reads all metadata; the
                masks of the last ones are kept.
            same_kind: let queries be of the side that the gallery holds. Images that search images take the place of
                captions, and captions that search captions that of images.

        Raises:
            InputError: k out of range; an id or a metadata key that does not exist; a filter that is none; queries of
                the side that the gallery holds.
            TensorError: queries of another width, or not finite.
            GalleryCorrupt: bytes this search must read are not those that were committed.
        """
        k = check_positive("k", k)
        if queries.dim != self.settings.dim:
            raise InputError(f"queries: D must be this gallery's {self.settings.dim}, got {queries.dim}")
        if queries.kind == self.settings.kind and not same_kind:
            other = "captions" if queries.kind == "images" else "images"
            rule = f"a gallery of {self.settings.kind} is searched with {other} unless same_kind is set"
            raise InputError(f"queries: {rule}, got {queries.kind}")
        wanted = None if ids is None else checked_ids(ids)
        condition = None if where is None else Filter.parse(where)
        vectors, starts = pack_rows(queries.vectors, queries.lengths, "queries")
        split = np.split(vectors, starts[1:-1])
        for _ in range(_ATTEMPTS):
            snapshot = self._snapshot()
            snapshot.recheck()
            try:
                results = self._answers(snapshot, split, k, wanted, condition)
            except ChanError:
                raise
            except Exception:  # whatever follows from bytes that changed while they were read
                if not snapshot.recheck():
                    raise
                continue
            if not snapshot.recheck():
                return results
        raise GalleryCorrupt(f"{self.path}: something writes to its files while they are searched")

    def verify(self) -> list[str]:
        """Read every byte of the newest commit and name what is damaged; empty where all is well. See verify.py."""
        self._check_open()
        return verify_gallery(self.path)

    # -- pieces

    def _check_open(self) -> None:
        if self._closed:
            raise GalleryError(f"{self.path}: this gallery is closed; open it again")

    def _snapshot(self) -> Snapshot:
        """The newest commit."""
        self._check_open()
        with self._lock:
            current = self._current
            if current is not None:
                header = newest_header(self.path)
                if header == current.header:
                    return current
                if not is_same_gallery(current.header, header):
                    raise GalleryError(f"{self.path} was replaced by another gallery; open it again")
            snapshot = open_snapshot(self.path, current, self._damaged, self._ranker)
            _log.debug("%s: read a commit of %d segments", self.path, len(snapshot.catalogue.segments))
            settings = snapshot.catalogue.settings
            if replace(settings, bundle=None) != replace(self.settings, bundle=None):
                raise GalleryError(f"{self.path} was replaced by another gallery; open it again")
            self.settings, self._current = settings, snapshot
            return snapshot

    def _ranker(self, segments: Sequence[Segment], plan: SearchPlan | None) -> Ranker:
        rows = GalleryRows(segments, self.settings.kind, self.alignment)
        if self._resident is not None:
            certifier = Certifier(rows, self._kernel, self._pool)
            return Ranker(rows, GpuEstimator(rows, self._resident, certifier), self._kernel, self._pool)
        compiled = None if self._core is None else CompiledSearch(rows, plan, self._core)
        estimator = CpuEstimator(rows, self._kernel, self._pool, 2 if plan is None else plan.digits)
        return Ranker(rows, estimator, self._kernel, self._pool, compiled)

    def _allowed(self, snapshot: Snapshot, ids: Sequence[str] | None, condition: Filter | None) -> NDArray[np.bool_]:
        """The rows that may be found."""
        allowed = snapshot.live
        if ids is not None:
            mask = np.zeros(len(allowed), bool)
            mask[_numbers(snapshot, ids)] = True
            allowed = allowed & mask
        if condition is not None:
            allowed = allowed & snapshot.passing(condition)
        return allowed

    def _answers(
        self,
        snapshot: Snapshot,
        queries: Sequence[NDArray[np.float32]],
        k: int,
        ids: Sequence[str] | None,
        condition: Filter | None,
    ) -> list[SearchResult]:
        allowed = self._allowed(snapshot, ids, condition)
        rankings = snapshot.ranker.exact(queries, k, allowed)
        found = [self._hits(snapshot, query, ranking) for query, ranking in zip(queries, rankings, strict=True)]
        rows = int(np.count_nonzero(allowed))
        reason = self._reason
        if not rows:
            reason = "the gallery is empty" if condition is None and ids is None else "no row passes the filter"
        if snapshot.lost:
            reason = f"{snapshot.lost} rows are lost to damage and were left out (chan gallery verify {self.path})"
        return [
            SearchResult(
                hits,
                ranking.certified and not snapshot.lost,
                reason,
                rows,
                ranking.rescored,
                ranking.second,
                ranking.codes,
            )
            for hits, ranking in zip(found, rankings, strict=True)
        ]

    @property
    def _reason(self) -> str:
        """Why an answer is certified, or is not."""
        if self._resident is not None and not self._resident.certified:
            return f"{self._resident.name} chose the rows, and nothing proves its choice"
        if self.settings.fine == "none":
            return "this gallery keeps no fine copy to certify against"
        if self.alignment.coding == "VSA":
            return "every row was scored from the fine copy (VSA)"
        return "every row that was not rescored is proven to score less than all hits"

    def _hits(self, snapshot: Snapshot, query: NDArray[np.float32], ranking: Ranking) -> tuple[Hit, ...]:
        """A ranking with ids, metadata and words."""
        hits = []
        for i, row in enumerate(ranking.rows):
            found = snapshot.row(int(row))
            regions, similarities = self._words(snapshot, query, ranking, i)
            hits.append(Hit(found.id, float(ranking.scores[i]), found.metadata, regions, similarities))
        return tuple(hits)

    def _words(
        self, snapshot: Snapshot, query: NDArray[np.float32], ranking: Ranking, i: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Each word's region and similarity."""
        if self.alignment.coding == "VHA" and ranking.details is not None:
            detail = ranking.details[i]
        else:
            index, position = snapshot.locate(int(ranking.rows[i]))
            vectors = snapshot.segments[index].vectors(position, position + 1)
            detail = true_row(vectors, query, self.settings.kind, AlignmentConfig("VHA", "Max"))
        return detail.winners, detail.maxima.astype(np.float32)


def _numbers(snapshot: Snapshot, ids: Sequence[str]) -> list[int]:
    """The numbers of the rows with these ids; InputError names the ids that the gallery does not have."""
    found = snapshot.find(ids)
    missing = [id for id in ids if id not in found]
    if missing:
        raise InputError(f"ids: not in the gallery: {', '.join(missing[:5])}")
    return [found[id] for id in ids]
