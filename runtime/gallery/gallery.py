"""A gallery open for search: certified answers from what was committed, in one folder or in shards."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from ..checks import check_choice, check_positive
from ..contract import AlignmentConfig
from ..embeddings import Embeddings
from ..errors import ChanError, GalleryCorrupt, GalleryError, InputError
from ..forks import now_and_after_fork
from .answer import answer, check_queries
from .cuda import ScanPrecision
from .merge import Floors, merge_results
from .page import RowPage, lengths_of, read_page
from .prepare import Preparation
from .result import SearchResult
from .scanner import ScanName, Scanner
from .sharded.manifest import is_sharded
from .snapshot import Damaged
from .store.rows import Row
from .values import checked_ids
from .verify import verify_gallery
from .view import View, newest_settings, newest_view
from .where import Filter, Where

T = TypeVar("T")
_log = logging.getLogger(__name__)
_ATTEMPTS = 5  # of a search whose files something touches meanwhile


class Gallery:
    """A gallery open for reading; searches see the newest commit. Any number of threads may use one, beside one writer.

    Of searches as many run at once as this process may use CPUs, but two at least; others wait for one of them to end.

    A gallery in shards is searched shard by shard, and the scores found so far spare the later ones work. Its answers
    are those of one gallery of all rows.

    `Gallery.open(path)` opens one; the constructor takes what that has opened. Reading needs no permission to write
    and leaves no file behind.

    Attributes:
        path: the gallery's folder, absolute.
        settings: what was fixed when the gallery was made.
    """

    def __init__(
        self,
        path: Path,
        scanner: Scanner,
        damaged: Damaged,
    ) -> None:
        self.path = path
        self.settings = scanner.settings
        self._scanner = scanner
        self._damaged: Damaged = damaged
        now_and_after_fork(self._make_locks)
        self._current: View | None = None
        self._closed = False

    def _make_locks(self) -> None:
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
            device: `cuda` holds the vectors in the first GPU's memory and scans them there (docs/gpu.md); `cuda:1`
                in the second one's, and so on, of the GPUs that CUDA_VISIBLE_DEVICES leaves; `cuda:0,1` spreads the
                segments over both.
            resident: what the GPU holds: the codes at `int8`, certified, or `float16`, not certified.
            damaged: `refuse` raises GalleryCorrupt where a search meets damaged bytes, or a shard is missing. `skip`
                reads every byte when it opens, leaves out the rows and the shards that cannot be read, and certifies no
                answer while there are such rows.

        Raises:
            InputError: there is no such device, or none for a gallery like this; an argument out of its choices.
            BackendError: `scan` does not work here; no usable GPU, no GPU kernels for it, or not enough memory on it.
            GalleryError: no gallery, of another schema, or made with another model.
            GalleryCorrupt: the catalogue or a segment's header is damaged, or a shard is missing.
        """
        check_choice("damaged", damaged, get_args(Damaged))
        folder = Path(path).absolute()
        settings = newest_settings(folder)
        if model is not None:
            settings.check_model(model, folder)
        if device != "cpu" and is_sharded(folder):
            raise InputError(f"device: a gallery in shards is searched on the CPU, got {device}")
        scanner = Scanner.open(folder, settings, scan, threads, device, resident)
        try:
            gallery = cls(folder, scanner, damaged)
            gallery._view()
        except BaseException:
            scanner.close()
            raise
        return gallery

    def close(self) -> None:
        """End the threads, free the GPU's memory and let the files go; twice does no harm."""
        self._closed = True
        self._scanner.close()
        self._current = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Rows of the newest commit."""
        return self._view().rows

    @property
    def alignment(self) -> AlignmentConfig:
        """How similarities become scores."""
        return self.settings.alignment

    @property
    def scan(self) -> str:
        """What searches this gallery: compiled, onnxruntime or numpy, or the GPU's kernels by their name."""
        return self._scanner.name

    @property
    def prepared(self) -> Preparation | None:
        """How search was prepared, and what that measured; None if it was not, or not in every shard."""
        found = [snapshot.prepared for snapshot in self._view().opened]
        return found[0] if found and None not in found else None

    def check_model(self, model: str) -> None:
        """GalleryError unless the gallery was made with the model of this fingerprint."""
        self.settings.check_model(model, self.path)

    def info(self) -> dict[str, Any]:
        """Plain facts: rows, bytes and what the gallery was made with."""
        view, prepared = self._view(), self.prepared
        segments = [segment for snapshot in view.opened for segment in snapshot.catalogue.segments]
        shards = {shard.entry.name: shard.entry.rows for shard in view.shards if shard.entry is not None}
        return {
            "rows": view.rows,
            "deleted_rows": sum(int(np.count_nonzero(~segment.live)) for segment in segments),
            "lost_rows": view.lost,
            "generation": view.header.generation,
            **({"shards": shards} if shards else {}),
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
        rows = self._view().all_rows()
        return rows if condition is None else condition.choose(rows)

    def page(self, limit: int, after: str | int | None = None, where: Where | Filter | None = None) -> RowPage:
        """Some rows after another, as `rows` has them, without reading the metadata of all.

        Args:
            limit: the most rows.
            after: id of the row before the first; None for the gallery's first row.
            where: as in `search`, with masks that are kept.

        Raises:
            InputError: as `rows`; the gallery does not have the id `after`, or `limit` is not positive.
            GalleryCorrupt: bytes that must be read are not those that were committed.
        """
        condition = None if where is None else Filter.parse(where)
        before = None if after is None else checked_ids([after], "after")[0]
        return read_page(self._view(), check_positive("limit", limit), before, condition)

    def find(self, ids: Iterable[str | int]) -> list[Row]:
        """Id and metadata of the rows with these ids, in the order of the ids.

        Raises:
            InputError: an id that the gallery does not have.
            GalleryCorrupt: bytes that must be read are not those that were committed.
        """
        return [segment.table.row(position) for segment, position in self._view().segments(checked_ids(ids))]

    def embeddings(self, ids: Iterable[str | int]) -> Embeddings:
        """Embeddings of the rows with these ids, in the order of the ids: from the fine copy, or else from the codes.

        Raises:
            InputError: no ids, or an id that the gallery does not have.
            GalleryCorrupt: bytes that must be read are not those that were committed.
        """
        view, wanted = self._view(), checked_ids(ids)
        if not wanted:
            raise InputError("ids: must hold at least one id, got none")
        rows = [segment.vectors(position, position + 1) for segment, position in view.segments(wanted)]
        return Embeddings.padded(rows, self.settings.kind)

    def lengths(self, ids: Iterable[str | int]) -> NDArray[np.int32]:
        """Number of vectors of the rows with these ids, in the order of the ids; vectors are not read.

        Raises:
            InputError: an id that the gallery does not have.
        """
        return lengths_of(self._view().segments(checked_ids(ids)))

    def code_error(self) -> float:
        """No less than the distance between any vector that was added and the one that its int8 codes stand for."""
        segments = [segment for snapshot in self._view().opened for segment in snapshot.segments]
        return max((float(segment.error.max(initial=0)) for segment in segments), default=0.0)

    @property
    def damage(self) -> list[str]:
        """What could not be read, in words; empty unless the gallery was opened with damaged="skip"."""
        return self._view().damage

    def search(
        self,
        queries: Embeddings,
        k: int = 10,
        *,
        ids: Iterable[str | int] | None = None,
        where: Where | Filter | None = None,
        same_kind: bool = False,
        at_least: float | Sequence[float] | None = None,
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
            at_least: only rows whose score is no less than this: one number, or one for each query. The higher it is,
                the less a search reads.

        Raises:
            InputError: k out of range; an id or a metadata key that does not exist; a filter that is none; queries of
                the side that the gallery holds; `at_least` is NaN, or of another length than the queries.
            TensorError: queries of another width, or not finite.
            GalleryCorrupt: bytes this search must read are not those that were committed.
        """
        k = check_positive("k", k)
        split, least = check_queries(self.settings, queries, same_kind, at_least)
        wanted = None if ids is None else checked_ids(ids)
        condition = None if where is None else Filter.parse(where)
        with self._scanner.turns.turn(len(split)):
            return self._search(split, k, wanted, condition, least)

    def at_one_commit(self, read: Callable[[Gallery], T]) -> T:
        """What `read` returns, which is given this gallery as it is now, whatever is committed meanwhile.

        So several searches, and what they found, are read from one commit. Its files are let go when `read` returns.
        """
        return read(PinnedGallery(self.path, self._scanner, self._damaged, self._newest()[0]))

    def verify(self) -> list[str]:
        """Read every byte of the newest commit and name what is damaged; empty where all is well. See verify.py."""
        self._check_open()
        return verify_gallery(self.path)

    # -- pieces

    def _search(
        self,
        queries: Sequence[NDArray[np.float32]],
        k: int,
        wanted: Sequence[str] | None,
        condition: Filter | None,
        least: NDArray[np.float64],
    ) -> list[SearchResult]:
        """Search the newest commit, and again where something touches its files meanwhile."""
        attempts = _ATTEMPTS
        while attempts:
            view, checked = self._newest()
            try:
                if not checked:
                    self._recheck(view)
                results = self._answers(view, queries, k, view.allowed(wanted, condition), least)
                if not self._recheck(view, may_be_removed=True):
                    return results
            except _ShardFailed as failed:
                self._leave_out(view, failed)
                continue
            except ChanError:
                raise
            except Exception:  # whatever follows from bytes that changed while they were read
                if not view.recheck():
                    raise
            attempts -= 1
        raise GalleryCorrupt(f"{self.path}: something writes to its files while they are searched")

    def _check_open(self) -> None:
        if self._closed:
            raise GalleryError(f"{self.path}: this gallery is closed; open it again")

    def _view(self) -> View:
        """The newest commit."""
        self._check_open()
        with self._lock:
            view = newest_view(self.path, self._current, self._damaged, self._scanner.ranker)
            if view is not self._current:
                _log.debug("%s: read generation %d", self.path, view.header.generation)
                self.settings, self._current = view.settings, view
            return view

    def _newest(self) -> tuple[View, bool]:
        """The newest commit, and whether its files are known to be as they were when they were last checked."""
        view = self._current
        if view is not None and not self._closed and view.untouched(newest=True):
            return view, True
        return self._view(), False

    def _recheck(self, view: View, *, may_be_removed: bool = False) -> bool:
        """Whether a file was touched since the last check; see store/files.py."""
        if view.untouched():
            return False
        touched = False
        for index, snapshot in enumerate(view.opened):
            with self._may_fail(view, index):
                touched |= snapshot.recheck(may_be_removed=may_be_removed)
        return touched

    @contextmanager
    def _may_fail(self, view: View, index: int) -> Iterator[None]:
        """Where damage is skipped, damage that is found in one of several shards is a `_ShardFailed`."""
        try:
            yield
        except GalleryCorrupt as error:
            if self._damaged == "refuse" or view.shards[0].entry is None:
                raise
            raise _ShardFailed(index, str(error)) from error

    def _leave_out(self, view: View, failed: _ShardFailed) -> None:
        """Search without a shard from now on, until the next commit."""
        with self._lock:
            if self._current is view:
                self._current = view.without(failed.index, str(failed))

    def _answers(
        self,
        view: View,
        queries: Sequence[NDArray[np.float32]],
        k: int,
        allowed: Sequence[NDArray[np.bool_]],
        least: NDArray[np.float64],
    ) -> list[SearchResult]:
        """Search one shard after another for rows that reach what was found before."""
        floors, parts = Floors(least, k), []
        for index, (snapshot, rows) in enumerate(zip(view.opened, allowed, strict=True)):
            with self._may_fail(view, index):
                parts.append(answer(snapshot, self.settings, queries, k, rows, floors.values, self._scanner.reason))
            if index + 1 < len(allowed):
                floors.learn(parts[-1])
        nothing = SearchResult((), True, "", 0, 0)
        results = [merge_results([part[i] for part in parts] or [nothing], k) for i in range(len(queries))]
        reason = ""
        if not any(rows.any() for rows in allowed):
            reason = "no row passes the filter" if view.rows else "the gallery is empty"
        if view.lost:
            reason = view.lacks(self.path)
        if reason:
            results = [replace(one, certified=one.certified and not view.lost, reason=reason) for one in results]
        return results


class PinnedGallery(Gallery):
    """A gallery that stays at one commit, whatever is committed meanwhile.

    `close` leaves the scanner open, which is that of the gallery it was made from.
    """

    def __init__(self, path: Path, scanner: Scanner, damaged: Damaged, view: View) -> None:
        super().__init__(path, scanner, damaged)
        self._current: View = view

    def close(self) -> None:
        """Let the files go; twice does no harm."""
        self._closed = True

    def _view(self) -> View:
        self._check_open()
        return self._current

    def _newest(self) -> tuple[View, bool]:
        view = self._view()
        return view, view.untouched()


class _ShardFailed(Exception):
    """A shard was found to be damaged while it was searched.

    Attributes:
        index: which of the shards that were opened.
    """

    def __init__(self, index: int, problem: str) -> None:
        super().__init__(problem)
        self.index = index
