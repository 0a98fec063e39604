"""What changes the rows of a gallery, whether they lie in one folder or in shards."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..embeddings import Embeddings, check_embeddings
from ..errors import InputError
from ..forks import now_and_after_fork
from ..progress import Progress, WorkCounter
from .folder_writer import FolderWriter
from .prepare import Preparation
from .preparing import prepare_rows
from .proof.rows import pack_rows
from .settings import GallerySettings
from .sharded.manifest import ShardManifest
from .store.catalogue import Catalogue
from .store.lock import WriterLock
from .store.rows import Relabel, Row
from .values import as_json, check_known, check_relabels, check_unique, checked_ids, checked_metadata, checked_roots

W = TypeVar("W", bound="RowWriter")
P = ParamSpec("P")
T = TypeVar("T")


def in_turn(method: Callable[Concatenate[W, P], T]) -> Callable[Concatenate[W, P], T]:
    """A method of a writer that waits until such methods which other threads have called on it have ended."""

    @wraps(method)
    def call(self: W, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with self.turn:
            return method(self, *args, **kwargs)

    return call


class RowWriter(ABC):
    """The one writer of a gallery; a context manager that gives the lock back.

    Several threads may share one: their changes follow one another, each a commit of its own.

    Attributes:
        turn: held by the thread whose change is being made.
        path: the gallery's folder, absolute.
    """

    _folders: Sequence[FolderWriter]  # in the order of their rows; new ones go to the last

    def __init__(self, path: Path, lock: WriterLock) -> None:
        self.path = path
        self._lock = lock
        self._folders = ()
        now_and_after_fork(self._make_turn)

    def _make_turn(self) -> None:
        self.turn = threading.RLock()

    @property
    @abstractmethod
    def _newest(self) -> Catalogue | ShardManifest:
        """The newest commit of the gallery."""

    @abstractmethod
    def describe(self) -> str:
        """Rows, their files and bytes in words."""

    @abstractmethod
    def _change(self, **changes: Any) -> AbstractContextManager[Mapping[str, Any]]:
        """A block in which each folder may commit once, which becomes one commit of the gallery.

        Args:
            changes: other settings or roots of the gallery.

        Returns:
            Those of them that each folder's commit must hold.
        """

    @property
    def settings(self) -> GallerySettings:
        """What was fixed when the gallery was made."""
        return self._newest.settings

    @property
    def roots(self) -> Mapping[str, str]:
        """Name -> folder of the roots that rows were indexed from (indexing/identity.py)."""
        return self._newest.roots

    def close(self) -> None:
        """Give the lock back; twice does no harm."""
        for folder in self._folders:
            folder.close()
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Rows that are not deleted."""
        return sum(folder.catalogue.count for folder in self._folders)

    def check(self, settings: GallerySettings) -> None:
        """Raise unless rows of these settings may be added here.

        Raises:
            GalleryError: the gallery was made with another model.
            InputError: it holds the other kind of rows, another fine copy, vectors of another width, or scores in
                another way.
        """
        self.settings.check_rows(settings, self.path)

    @in_turn
    def ids(self, among: Iterable[str | int]) -> set[str]:
        """Those of the given ids that the gallery has."""
        wanted = checked_ids(among, "among")
        return {id for folder in self._folders for id in folder.find(wanted)}

    @in_turn
    def rows(self) -> list[Row]:
        """Every row's id and metadata, in order of addition."""
        return [row for folder in self._folders for row in folder.rows()]

    @in_turn
    def relabel(self, changes: Iterable[Relabel], roots: Mapping[str, str] | None = None) -> None:
        """Give rows other ids or metadata in one commit; their vectors and their order stay.

        Args:
            changes: which rows, and what they become.
            roots: what `roots` becomes; None leaves it.

        Raises:
            InputError: an id that the gallery does not have, one that is changed twice, a new id that it has already,
                metadata with no JSON form, or roots that are not text.
            GalleryError: the disk is full or cannot be written; nothing was changed.
        """
        changes = list(changes)
        kept = self.roots if roots is None else checked_roots(roots)
        ids, new_ids = check_relabels(changes, self.ids)
        texts = as_json(checked_metadata([change.metadata for change in changes]))
        if not changes and kept == self.roots:
            return
        new = dict(zip(ids, zip(new_ids, texts, strict=True), strict=True))
        with self._change(roots=kept) as of_folders:
            for folder in self._folders:
                folder.relabel(new, of_folders)

    @in_turn
    def set_bundle(self, bundle: str | Path) -> None:
        """Remember where the gallery's bundle is now; `Gallery.check_model` checks whether it is the right one."""
        with self._change(settings=replace(self.settings, bundle=str(Path(bundle).resolve()))) as of_folders:
            for folder in self._folders:
                folder.change(of_folders)

    @in_turn
    def add(
        self,
        ids: Iterable[str | int],
        embeddings: Embeddings,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Add rows in one commit: when this returns they are on the disk, and if it does not, none of them is.

        Args:
            ids: one for each row, unique: text, or integers, which become their decimal digits (values.py).
            embeddings: of the rows, from the gallery's model.
            metadata: JSON values for each row (path, boxes, caption, ...); NumPy's scalars and arrays are converted.
            overwrite: rows whose id exists take the place of the old ones, which go in the same commit; they count as
                new rows (ties are decided by the order of addition). Without it an existing id is an error.

        Raises:
            InputError: lengths that differ; ids without an order (a set); ids twice, or ids that exist; ids or metadata
                with no lossless form; embeddings of the other kind.
            TensorError: embeddings of another width, or values that are not finite.
            GalleryError: the disk is full or cannot be written; nothing was changed.
        """
        if isinstance(ids, set | frozenset):
            raise InputError(f"ids: must have an order, got a {type(ids).__name__}")
        check_embeddings("embeddings", embeddings)
        ids = checked_ids(ids)
        details = [{}] * len(ids) if metadata is None else checked_metadata(metadata)
        if not len(ids) == len(embeddings) == len(details):
            raise InputError(
                f"ids, embeddings, metadata: must agree, got {len(ids)}, {len(embeddings)}, {len(details)}"
            )
        check_unique(ids, "ids")
        if embeddings.kind not in (None, self.settings.kind):
            raise InputError(f"embeddings: must be of this gallery's {self.settings.kind}, got {embeddings.kind}")
        if embeddings.dim != self.settings.dim:
            raise InputError(f"embeddings: D must be this gallery's {self.settings.dim}, got {embeddings.dim}")
        found = [folder.find(ids) for folder in self._folders]
        existing = [id for places in found for id in places]
        if existing and not overwrite:
            raise InputError(f"ids: already in the gallery (pass overwrite to replace them): {', '.join(existing[:5])}")
        vectors, starts = pack_rows(embeddings.vectors, embeddings.lengths, "embeddings")
        texts = as_json(details)
        with self._change():
            self._folders[-1].add(ids, vectors, starts, texts, found[-1].values())
            for folder, places in zip(self._folders[:-1], found[:-1], strict=True):
                folder.remove(places.values())

    @in_turn
    def delete(self, ids: Iterable[str | int]) -> None:
        """Remove rows in one commit; their bytes go with the next `compact`, or when their segment is merged.

        Raises:
            InputError: ids the gallery does not have; nothing was changed.
            GalleryError: the disk is full or cannot be written; nothing was changed.
        """
        ids = checked_ids(ids)
        found = [folder.find(ids) for folder in self._folders]
        check_known(ids, set().union(*found), "ids")
        with self._change():
            for folder, places in zip(self._folders, found, strict=True):
                folder.remove(places.values())

    @in_turn
    def compact(self, *, progress: Progress | None = None) -> None:
        """Rewrite segments that hold deleted rows or are small, in one commit; rows keep their order.

        Needs room on the disk for the rewritten rows beside the old ones. Readers go on with the old files.

        Args:
            progress: called with the rows that are done, and those of all segments that are rewritten.

        Raises:
            GalleryCorrupt: a segment that must be rewritten is damaged; nothing was changed.
            GalleryError: the disk is full or cannot be written; nothing was changed.
        """
        work = WorkCounter(sum(folder.rows_to_compact for folder in self._folders), progress)
        with self._change():
            for folder in self._folders:
                folder.compact(work)

    @in_turn
    def prepare(
        self,
        queries: Embeddings | Iterable[Embeddings] | None = None,
        directions: NDArray[np.float32] | None = None,
        *,
        progress: Progress | None = None,
    ) -> Preparation:
        """Fit search to the gallery as it is now and to its queries, in one commit; rows are not encoded again.

        Args:
            queries: embeddings of the other side (captions for a gallery of images), in one piece or in several, which
                need less padding. All of them decide the axes; half choose the fastest way to search, the other half
                measure what it reads. Without queries nothing is measured.
            directions: float32 [r, D], of queries that are not at hand (`read_directions`): they decide the axes where
                there are no queries. Without either, the axes are the gallery's own.
            progress: called with the work that is done and that of all: each row counts three times, as it is read to
                fit axes, coded along them, and searched to measure.

        Raises:
            InputError: the gallery keeps no fine copy, so that nothing could be certified; queries of another width.
            TensorError: queries that are no Embeddings; they or directions are not finite, or directions of another
                form.
            GalleryCorrupt: a segment is damaged; nothing was changed.
            GalleryError: the disk is full or cannot be written; nothing was changed.
        """
        with self._change(), ExitStack() as stack:
            as_before = "; the rows are there, and search is as it was before"
            files = [stack.enter_context(folder.new_files(as_before)) for folder in self._folders]
            rows = [folder.to_prepare(new) for folder, new in zip(self._folders, files, strict=True)]
            found, of_folders = prepare_rows(rows, self.settings, queries, directions, progress)
            for folder, new, changes in zip(self._folders, files, of_folders, strict=True):
                folder.commit(new, **changes)
        return found
