"""A gallery whose shards are searched in other processes, with the methods of `Gallery` that a server needs."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from ..runtime.contract import AlignmentConfig
from ..runtime.embeddings import Embeddings
from ..runtime.errors import GalleryError, GalleryIncomplete, InputError
from ..runtime.gallery.result import SearchResult
from ..runtime.gallery.settings import GallerySettings
from ..runtime.gallery.sharded.manifest import ShardManifest
from ..runtime.gallery.store.rows import Row
from ..runtime.gallery.values import checked_ids
from ..runtime.gallery.where import Filter, Where
from .asking import Patience, Transport
from .questions import Description
from .router import COMMITS, Commits, Moved, Router, changed_too_fast

T = TypeVar("T")


class RemoteGallery:
    """A gallery in shards that other processes search; any number of threads may use one.

    Every search sees the newest commit of the manifest in `path`, as `Gallery` does.

    Args:
        path: the gallery's folder. Here only its manifest is read.
        transport: to the processes.
        patience: how long to wait for them.

    Raises:
        GalleryError, GalleryCorrupt: there is no gallery in shards, or its manifest is damaged.
        GalleryIncomplete: no shard answers, or one does not and only complete answers are wanted.
    """

    def __init__(self, path: Path, transport: Transport, patience: Patience) -> None:
        self.path = path.absolute()
        self._commits = Commits(self.path)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._at: ShardManifest | None = None  # the commit that it stays at
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chan-router", daemon=True)
        self._thread.start()
        self._router = Router(self._commits, transport, patience)
        try:
            described = self.describe()
            silent = [str(i + 1) for i, one in enumerate(described) if one is None]
            if len(silent) == len(described) or (silent and patience.complete):
                listed = f"{', '.join(silent)} of {len(described)}"
                raise GalleryIncomplete(f"{self.path}: shards that do not answer: {listed}; the log has the reason")
        except BaseException:
            self.close()
            raise
        self.scan = next(one.scan for one in described if one is not None)

    def close(self) -> None:
        """End the router; twice does no harm. What other threads ask meanwhile raises GalleryError."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __len__(self) -> int:
        """Rows of the newest commit."""
        return sum(shard.rows for shard in self._commits.newest()[1].shards)

    @property
    def settings(self) -> GallerySettings:
        """What was fixed when the gallery was made, even if its files are damaged or gone by now."""
        return self._commits.last[1].settings

    @property
    def alignment(self) -> AlignmentConfig:
        """How similarities become scores."""
        return self.settings.alignment

    @property
    def prepared(self) -> str | None:
        """How search was prepared, in words; None if it was not, or not in every shard that answers."""
        found = [one.prepared for one in self.describe() if one is not None]
        return found[0] if found and None not in found else None

    def describe(self) -> list[Description | None]:
        """What each shard says of itself; None where it does not answer."""
        return self._do(self._router.describe())

    @property
    def left_out(self) -> dict[int, str]:
        """Number of each group of processes that is left out now, because it does not answer -> why."""
        return self._router.asker.down

    def check_model(self, model: str) -> None:
        """GalleryError unless the gallery was made with the model of this fingerprint."""
        self.settings.check_model(model, self.path)

    def find(self, ids: Iterable[str | int]) -> list[Row]:
        """Id and metadata of the rows with these ids, in the order of the ids.

        Raises:
            InputError: an id that the gallery does not have.
            GalleryIncomplete: a shard does not answer, and no other has one of the ids.
        """
        return [row for row, _ in self._do(self._router.find(ids, at=self._at))]

    def embeddings(self, ids: Iterable[str | int]) -> Embeddings:
        """Embeddings of the rows with these ids, in the order of the ids, as `Gallery.embeddings`.

        Raises:
            InputError: no ids, or an id that the gallery does not have.
            GalleryIncomplete: a shard does not answer, and no other has one of the ids.
        """
        wanted = checked_ids(ids)
        if not wanted:
            raise InputError("ids: must hold at least one id, got none")
        found = self._do(self._router.find(wanted, embeddings=True, at=self._at))
        return Embeddings.concatenate([one for _, one in found if one is not None])

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
        """The k best rows for each query, as `Gallery.search`; see `Router.search` for the errors."""
        choice: dict[str, Any] = {"ids": ids, "where": where, "same_kind": same_kind, "at_least": at_least}
        return self._do(self._router.search(queries, k, **choice, at=self._at))

    def at_one_commit(self, read: Callable[[RemoteGallery], T]) -> T:
        """What `read` returns, as `Gallery.at_one_commit`; it is called again where a shard has the commit no more.

        Raises:
            GalleryError: commits followed each other faster than that.
        """
        for _ in range(COMMITS):
            pinned = copy.copy(self)
            pinned._at = self._commits.newest()[1]
            with suppress(Moved):
                return read(pinned)
        raise changed_too_fast(self.path)

    async def _end(self) -> None:
        await self._router.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        closed = GalleryError(f"{self.path}: this gallery is closed; open it again")
        with self._lock:
            if self._closed.is_set():
                work.close()
                raise closed
            asked = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return asked.result()
        except CancelledError:
            raise closed from None
        finally:
            asked.cancel()  # where Ctrl-C ends the wait
