"""A gallery open for search: snapshots of what was committed, and certified answers from them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from ..checks import check_choice
from ..contract import AlignmentConfig
from ..embeddings import Embeddings
from ..errors import GalleryCorrupt, InputError
from .cuda import GpuEstimator, ResidentScan, ScanPrecision, open_resident
from .estimate import CpuEstimator
from .kernels.base import Kernel, KernelName
from .kernels.choose import open_kernel
from .kernels.pool import Pool
from .prepare import MIN_ROWS, FastScan, load_fast
from .proof.certify import Ranking
from .proof.gallery_rows import GalleryRows
from .proof.rows import pack_rows
from .proof.true_score import true_row
from .rank import Ranker
from .result import Hit, Mode, SearchResult
from .settings import GallerySettings
from .snapshot import Snapshot
from .store.catalogue import Catalogue, Row, checked_meta
from .store.files import SEGMENTS
from .store.segments import Segment
from .values import checked_ids
from .where import Filter, Where

_MASKS = 16  # masks of filters kept for a commit: one byte a row each
_PATIENCE = 5  # attempts of a search before it holds on to a commit
_RETRIES = 50  # of a snapshot whose files a compaction removed meanwhile; each retry reads a newer commit


class Gallery:
    """A gallery open for reading; searches see the newest commit. Any number of threads may use one, beside one writer.

    `Gallery.open(path)` opens one; the constructor takes what that has opened.

    Attributes:
        path: the gallery's folder.
        settings: what was fixed when the gallery was made.
    """

    def __init__(
        self,
        path: Path,
        settings: GallerySettings,
        catalogue: Catalogue,
        kernel: Kernel,
        pool: Pool,
        resident: ResidentScan | None,
    ) -> None:
        self.path = path
        self.settings = settings
        self._catalogue = catalogue
        self._kernel = kernel
        self._pool = pool
        self._resident = resident
        self._lock = threading.RLock()
        self._current: Snapshot | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        model: str | None = None,
        scan: KernelName | Literal["auto"] = "auto",
        threads: int | None = None,
        device: Literal["cpu", "cuda"] = "cpu",
        resident: ScanPrecision = "int8",
    ) -> Self:
        """Open the gallery in a folder for search.

        Args:
            path: the gallery's folder.
            model: fingerprint of the model that will encode the queries; None trusts the caller.
            scan: the scan kernel (kernels/base.py); `auto` takes the fastest that works here.
            threads: number of threads for scans; every core by default.
            device: `cuda` holds the vectors in the first GPU's memory and scans them there (docs/engines.md).
            resident: what the GPU holds: the codes at `int8`, certified, or `float16`, not certified.

        Raises:
            InputError: there is no such device, or none for a gallery like this.
            BackendError: no usable GPU, no GPU kernels for it, or not enough memory on it.
            GalleryError: no gallery, of another schema, or made with another model.
            GalleryCorrupt: the catalogue or a segment's header is damaged.
        """
        if device not in ("cpu", "cuda"):
            raise InputError(f"device must be cpu or cuda, got {device!r}")
        folder = Path(path)
        kernel = open_kernel(scan)
        with ExitStack() as opened:
            catalogue = Catalogue(folder)
            opened.callback(catalogue.close)
            settings = GallerySettings.from_dict(checked_meta(catalogue, folder))
            if model is not None:
                settings.check_model(model, folder)
            pool = Pool(threads)
            opened.callback(pool.close)
            held = open_resident(folder, settings, resident) if device == "cuda" else None
            if held is not None:
                opened.callback(held.close)
            gallery = cls(folder, settings, catalogue, kernel, pool, held)
            gallery._snapshot()
            opened.pop_all()
        return gallery

    def close(self) -> None:
        """Close the catalogue, end the threads and free the GPU's memory."""
        try:
            if self._resident is not None:
                self._resident.close()
        finally:
            self._pool.close()
            self._catalogue.close()

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
    def scan(self) -> KernelName:
        """The kernel in use."""
        return self._kernel.name

    @property
    def fast(self) -> FastScan | None:
        """The fast scan with its measured recall, if it was prepared."""
        return self._snapshot().fast

    def check_model(self, model: str) -> None:
        """GalleryError unless the gallery was made with the model of this fingerprint."""
        self.settings.check_model(model, self.path)

    def info(self) -> dict[str, Any]:
        """Plain facts: rows, bytes and what the gallery was made with."""
        snapshot = self._snapshot()
        files = [f for r in snapshot.records for f in (r.file, r.fast) if f is not None]
        fast = snapshot.fast
        return {
            "rows": int(np.count_nonzero(snapshot.live)),
            "deleted_rows": int(np.count_nonzero(~snapshot.live)),
            "segments": len(snapshot.records),
            "bytes": sum(file.length for file in files),
            "scan": self.scan if self._resident is None else self._resident.name,
            **self.settings.to_dict(),
            "fast": None if fast is None else {"share": fast.share, "recall": fast.recall, "queries": fast.queries},
        }

    def rows(self, where: Where | None = None) -> list[Row]:
        """Ids and metadata of the rows, in order of addition.

        Args:
            where: only rows whose metadata passes this filter, see where.py.

        Raises:
            InputError: a filter that is none, or a metadata key that no row has.
        """
        condition = None if where is None else Filter.parse(where)
        with self._catalogue.transaction("DEFERRED"):
            rows = self._catalogue.rows()
        return rows if condition is None else condition.choose(rows)

    def search(
        self,
        queries: Embeddings,
        k: int = 10,
        *,
        mode: Mode = "exact",
        ids: Iterable[str | int] | None = None,
        where: Where | None = None,
    ) -> list[SearchResult]:
        """The k best rows for each query.

        Args:
            queries: of the other side: captions' words for a gallery of images, images' regions for one of captions.
            k: how many; all rows where there are fewer.
            mode: `exact` is certified; `fast` is not, and its recall was measured (`Gallery.fast`).
            ids: only rows with these ids.
            where: only rows whose metadata passes this filter, see where.py. A new filter reads all metadata; the
                masks of the last ones are kept.

        Raises:
            InputError: k or mode out of range; fast without its preparation; an id or a metadata key that does not
                exist; a filter that is none; queries of the side that the gallery holds.
            TensorError: queries of another width, or not finite.
            GalleryCorrupt: bytes this search must read are not those that were committed.
        """
        if k < 1:
            raise InputError(f"k must be positive, got {k}")
        check_choice("mode", mode, get_args(Mode))
        if queries.dim != self.settings.dim:
            raise InputError(f"queries: D must be this gallery's {self.settings.dim}, got {queries.dim}")
        if queries.kind == self.settings.kind:
            other = "captions" if queries.kind == "images" else "images"
            raise InputError(f"queries: a gallery of {self.settings.kind} is searched with {other}, got {queries.kind}")
        wanted = None if ids is None else checked_ids(ids)
        condition = None if where is None else Filter.parse(where)
        vectors, starts = pack_rows(queries.vectors, queries.lengths, "queries")
        split = np.split(vectors, starts[1:-1])
        for attempt in range(_PATIENCE + 1):
            with self._held() if attempt >= _PATIENCE else nullcontext(self._snapshot()) as snapshot:
                allowed = self._allowed(snapshot, wanted, condition)
                if allowed is None:  # rows moved since the snapshot was taken
                    continue
                used, reason, rankings = self._rank(snapshot, split, k, mode, allowed)
                found = [self._hits(snapshot, query, ranking) for query, ranking in zip(split, rankings, strict=True)]
            if None in found:  # a hit was deleted or moved while this searched: ask the newer commit
                continue
            rows = int(np.count_nonzero(allowed))
            if not rows:
                reason = "the gallery is empty" if condition is None and wanted is None else "no row passes the filter"
            return [
                SearchResult(hits or (), used, ranking.certified and used == "exact", reason, rows, ranking.rescored)
                for hits, ranking in zip(found, rankings, strict=True)
            ]
        raise GalleryCorrupt(f"{self.path}: rows of a commit are missing. See what: chan gallery verify {self.path}")

    def verify(self) -> list[str]:
        """Read every byte and name what is damaged: files, pages, arrays, records. Empty where all is well."""
        found = self._catalogue.damaged()
        if found:
            return found
        snapshot = self._snapshot()
        for segment in snapshot.segments:
            found += segment.damaged()
        with self._catalogue.transaction("DEFERRED"):
            for record in self._catalogue.segments():
                rows = [row.position for row in self._catalogue.rows_of(record.number)]
                if rows != np.flatnonzero(record.live).tolist():
                    found.append(f"{self._catalogue.path}: segment {record.number}'s rows are not those alive in it")
        return found

    # -- pieces

    def _snapshot(self) -> Snapshot:
        """The newest commit; files already mapped, and pages already checked, are taken over."""
        with self._lock:
            current = self._current
            if current is not None and self._catalogue.meta("generation") == current.generation:
                return current
            known = {}
            if current is not None:
                known = {(r.file.name, r.fast): s for r, s in zip(current.records, current.segments, strict=True)}
            for attempt in range(_RETRIES):
                with self._catalogue.transaction("DEFERRED"):
                    generation = self._catalogue.meta("generation")
                    records = self._catalogue.segments()
                    try:
                        fast = load_fast(self._catalogue, self.path / SEGMENTS)
                        prepared = () if fast is None else (fast.basis, fast.axes)
                        segments = [
                            known.get((record.file.name, record.fast))
                            or Segment(self.path / SEGMENTS, record.file, record.fast, *prepared)
                            for record in records
                        ]
                        break
                    except FileNotFoundError as error:
                        if attempt == _RETRIES - 1:
                            raise GalleryCorrupt(f"{error.filename} is missing: {self.path} is incomplete") from error
            live = np.concatenate([record.live for record in records]) if records else np.zeros(0, bool)
            planes = 2 if fast is None else fast.planes
            rows = GalleryRows(segments, self.settings.kind, self.alignment)
            estimator = (
                CpuEstimator(rows, self._kernel, self._pool, planes)
                if self._resident is None
                else GpuEstimator(rows, self._resident)
            )
            ranker = Ranker(rows, estimator, self._kernel, self._pool)
            bases = np.cumsum([0] + [record.rows for record in records])
            self._current = Snapshot(generation, tuple(records), tuple(segments), bases, live, ranker, fast)
            return self._current

    @contextmanager
    def _held(self) -> Iterator[Snapshot]:
        """The newest commit, readable to the end whatever is committed meanwhile; other searches wait for this one."""
        with self._lock:
            while True:
                snapshot = self._snapshot()
                with self._catalogue.transaction("DEFERRED"):
                    if self._catalogue.meta("generation") == snapshot.generation:
                        yield snapshot
                        return

    def _allowed(
        self, snapshot: Snapshot, ids: Sequence[str] | None, condition: Filter | None
    ) -> NDArray[np.bool_] | None:
        """The rows that may be found; None where the catalogue is newer than the snapshot and names other places."""
        allowed = snapshot.live
        if ids is None and condition is None:
            return allowed
        with self._catalogue.transaction("DEFERRED"):
            if self._catalogue.meta("generation") != snapshot.generation:
                return None
            if ids is not None:
                found = self._catalogue.find(ids)
                missing = [id for id in ids if id not in found]
                if missing:
                    raise InputError(f"ids: not in the gallery: {', '.join(missing[:5])}")
                allowed = allowed & self._mask(snapshot, found.values())
            if condition is not None:
                allowed = allowed & self._passing(snapshot, condition)
        return allowed

    def _passing(self, snapshot: Snapshot, condition: Filter) -> NDArray[np.bool_]:
        mask = snapshot.masks.get(condition.text)
        if mask is None:
            mask = self._mask(snapshot, condition.choose(self._catalogue.rows()))
            if len(snapshot.masks) >= _MASKS:
                snapshot.masks.pop(next(iter(snapshot.masks)), None)
            snapshot.masks[condition.text] = mask
        return mask

    def _mask(self, snapshot: Snapshot, rows: Iterable[Row]) -> NDArray[np.bool_]:
        base = {record.number: int(snapshot.bases[i]) for i, record in enumerate(snapshot.records)}
        mask = np.zeros(len(snapshot.live), bool)
        for row in rows:
            if row.segment in base:
                mask[base[row.segment] + row.position] = True
        return mask

    def _rank(
        self,
        snapshot: Snapshot,
        queries: Sequence[NDArray[np.float32]],
        k: int,
        mode: Mode,
        allowed: NDArray[np.bool_],
    ) -> tuple[Mode, str, list[Ranking]]:
        fast = snapshot.fast
        if mode == "fast" and np.count_nonzero(allowed) >= MIN_ROWS and self.alignment.coding != "VSA":
            if not snapshot.ranker.has_fast:
                raise InputError("mode must be exact for a gallery on a GPU, got 'fast'")
            if fast is None:
                raise InputError(f"mode: fast search is not prepared; run: chan gallery prepare {self.path}")
            measured = "was not measured" if fast.recall is None else f"{fast.recall:.4f} over {fast.queries} queries"
            reason = f"fast mode is not certified; its recall of the exact top {fast.k} {measured}"
            return "fast", reason, snapshot.ranker.fast(queries, k, allowed, fast.share)
        rankings = snapshot.ranker.exact(queries, k, allowed)
        if self._resident is not None and not self._resident.certified:
            return "exact", f"{self._resident.name} chose the rows, and nothing proves its choice", rankings
        if self.settings.fine == "none":
            return "exact", "this gallery keeps no fine copy to certify against", rankings
        if self.alignment.coding == "VSA":
            return "exact", "every row was scored from the fine copy (VSA)", rankings
        return "exact", "every row that was not rescored is proven to score less than all hits", rankings

    def _hits(self, snapshot: Snapshot, query: NDArray[np.float32], ranking: Ranking) -> tuple[Hit, ...] | None:
        """A ranking with ids and metadata; None where a row was deleted or moved since the snapshot was taken."""
        with self._catalogue.transaction("DEFERRED"):
            records = [self._catalogue.row_at(*snapshot.place(int(row))) for row in ranking.rows]
            if None in records and self._catalogue.meta("generation") == snapshot.generation:
                raise GalleryCorrupt(
                    f"{self._catalogue.path} lacks a row that it says is alive; restore it from a copy"
                )
        hits = []
        for i, record in enumerate(records):
            if record is None:
                return None
            regions, similarities = self._words(snapshot, query, ranking, i)
            hits.append(Hit(record.id, float(ranking.scores[i]), record.metadata, regions, similarities))
        return tuple(hits)

    def _words(
        self, snapshot: Snapshot, query: NDArray[np.float32], ranking: Ranking, i: int
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Each word's region and similarity."""
        if self.alignment.coding == "VHA" and ranking.details is not None:
            detail = ranking.details[i]
        else:
            index, position = snapshot.locate(int(ranking.rows[i]))
            vectors = snapshot.segments[index].vectors(position, position + 1, self.settings.dim)
            detail = true_row(vectors, query, self.settings.kind, AlignmentConfig("VHA", "Max"))
        return detail.winners, detail.maxima.astype(np.float32)
