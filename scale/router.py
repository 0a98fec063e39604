"""Searches of a gallery whose shards are in other processes: every shard is asked, and the answers are merged.

All shards answer one search from one commit: a question names the commit of its shard, and where a shard does not have
that any more, the newest manifest is read and all shards are asked again.

A shard that does not answer (asking.py) is left out: the answer is not certified and names the rows that it lacks, or
it is an error where only complete answers are wanted.

All shards are asked at once. A shard that is asked again, because it failed or is late, gets the k-th best scores of
what the others have answered by then, so it has less to read (runtime/gallery/merge.py). To ask one shard before the
others was measured (docs/scale.md): it saves little work, and an answer takes longer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from ..runtime.checks import check_positive
from ..runtime.embeddings import Embeddings
from ..runtime.errors import GalleryError, GalleryIncomplete, GalleryMissing
from ..runtime.gallery.answer import check_queries
from ..runtime.gallery.merge import Floors, merge_results
from ..runtime.gallery.result import SearchResult
from ..runtime.gallery.sharded.manifest import ShardManifest, manifest_header, read_manifest
from ..runtime.gallery.store.header import Header
from ..runtime.gallery.store.rows import Row
from ..runtime.gallery.values import checked_ids, unknown_ids
from ..runtime.gallery.view import lost_rows, name_missing
from ..runtime.gallery.where import Filter, Where
from .asking import Asker, Patience, Transport
from .questions import Answer, Broken, DescribeShard, Description, FindRows, Found, Gone, Question, Rows, SearchShard

T = TypeVar("T")
Task = SearchShard | FindRows | DescribeShard
_log = logging.getLogger(__name__)
COMMITS = 10  # times that a search begins again because a commit came between
_NOTHING = SearchResult((), True, "", 0, 0)


class Commits:
    """The commits of the gallery in shards in a folder.

    Attributes:
        last: the newest one when the manifest was read last, which may be damaged or gone by now.

    Raises:
        GalleryError, GalleryCorrupt: as of `read_manifest`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last = read_manifest(folder)

    def newest(self) -> tuple[Header, ShardManifest]:
        """The newest one; raises as `read_manifest`, and GalleryMissing where another gallery took its place."""
        before = self.last
        if manifest_header(self.folder) == before[0]:
            return before
        newest = read_manifest(self.folder)
        if newest[0].gallery != before[0].gallery:
            raise GalleryMissing(f"{self.folder} was replaced by another gallery; open it again")
        _log.debug("%s: read generation %d", self.folder, newest[0].generation)
        self.last = newest
        return newest


class Router:
    """Answers from all shards of a gallery together; see the head of this module. Use it from one event loop.

    Args:
        commits: of the gallery.
        transport: to the shards. Shard i of the manifest is in slot i modulo the number of slots.
        patience: how long to wait.
    """

    def __init__(self, commits: Commits, transport: Transport, patience: Patience) -> None:
        self._commits = commits
        self._complete = patience.complete
        self.asker = Asker(transport, patience)

    async def close(self) -> None:
        """Stop watching the shards that are left out."""
        await self.asker.close()

    async def search(
        self,
        queries: Embeddings,
        k: int = 10,
        *,
        ids: Iterable[str | int] | None = None,
        where: Where | Filter | None = None,
        same_kind: bool = False,
        at_least: float | Sequence[float] | None = None,
        at: ShardManifest | None = None,
    ) -> list[SearchResult]:
        """The k best rows for each query, as `Gallery.search`.

        Args:
            queries, k, ids, where, same_kind, at_least: as of `Gallery.search`.
            at: the commit to search; None for the newest one.

        Raises:
            Moved: a shard does not have the commit `at` any more.
            InputError, TensorError: as `Gallery.search`.
            GalleryIncomplete: a shard does not answer, and only complete answers are wanted.
            GalleryError: commits followed each other faster than searches.
        """
        k = check_positive("k", k)
        wanted = None if ids is None else tuple(checked_ids(ids))
        condition = None if where is None else Filter.parse(where)

        async def run(one: _Commit) -> list[SearchResult]:
            least = check_queries(one.manifest.settings, queries, same_kind, at_least)[1]
            return await _search(one, queries, k, wanted, condition, Floors(least, k))

        return await self._at_one_commit(run, self._complete, at)

    async def find(
        self, ids: Iterable[str | int], embeddings: bool = False, at: ShardManifest | None = None
    ) -> list[tuple[Row, Embeddings | None]]:
        """Id and metadata of the rows with these ids, in the order of the ids, and their embeddings where wanted.

        Args:
            ids: of the rows.
            embeddings: whether they are wanted.
            at: the commit to read; None for the newest one.

        Raises:
            Moved: a shard does not have the commit `at` any more.
            InputError: an id that the gallery does not have.
            GalleryIncomplete: a shard does not answer, and no other has one of the ids.
        """
        wanted = tuple(checked_ids(ids))

        async def run(one: _Commit) -> list[tuple[Row, Embeddings | None]]:
            found: dict[str, tuple[Row, Embeddings | None]] = {}
            for answer in await one.ask_all(lambda: FindRows(wanted, embeddings)):
                if isinstance(answer, Rows):
                    found |= {id: (row, answer.embeddings.get(id)) for id, row in answer.rows.items()}
            absent = _absent(wanted, found)
            if absent and one.problems:
                raise GalleryIncomplete(f"{one.lacks()}; one of them may be {', '.join(absent[:5])}")
            if absent:
                raise unknown_ids(absent, "ids")
            return [found[id] for id in wanted]

        return await self._at_one_commit(run, False, at)

    async def describe(self) -> list[Description | None]:
        """What each shard says of itself; None where it does not answer."""

        async def run(one: _Commit) -> list[Description | None]:
            answers = await one.ask_all(DescribeShard)
            return [answer if isinstance(answer, Description) else None for answer in answers]

        return await self._at_one_commit(run, False, None)

    async def _at_one_commit(
        self, run: Callable[[_Commit], Awaitable[T]], complete: bool, at: ShardManifest | None
    ) -> T:
        """The result of something that asks all shards about one commit: about `at`, or one that all of them have."""
        for _ in range(COMMITS):
            try:
                return await run(_Commit(self._commits, at or self._commits.newest()[1], self.asker, complete))
            except Moved:
                if at is not None:
                    raise
        raise changed_too_fast(self._commits.folder)


class Moved(Exception):
    """A shard does not have the commit that is searched any more."""


def changed_too_fast(folder: Path) -> GalleryError:
    """What is raised where something began COMMITS times."""
    return GalleryError(f"{folder}: it is changed faster than it is searched; try again")


@dataclass
class _Commit:
    """One commit, asked for one answer.

    Attributes:
        commits, manifest: the gallery's commits, and the one that is searched.
        asker: asks the shards.
        complete: whether a shard that does not answer is an error.
        problems: index of each shard that is left out -> why.
    """

    commits: Commits
    manifest: ShardManifest
    asker: Asker
    complete: bool
    problems: dict[int, str] = field(default_factory=dict)

    @property
    def shards(self) -> range:
        """Indexes of the shards."""
        return range(len(self.manifest.shards))

    def lacks(self) -> str:
        """What the answer lacks, in words."""
        shards = self.manifest.shards
        texts = name_missing((shard, self.problems.get(i)) for i, shard in enumerate(shards))
        lost = sum(shards[i].rows for i in self.problems)
        return lost_rows(lost, texts)

    async def ask_all(self, task: Callable[[], Task]) -> list[Answer | None]:
        """The answers of all shards to one task, as `ask`."""
        return await _gather([self.ask(i, task) for i in self.shards])

    async def ask(self, index: int, task: Callable[[], Task]) -> Answer | None:
        """The answer of one shard; None where it is left out, and `problems` says why.

        Args:
            index: of the shard.
            task: makes the task, each time that the shard is asked.

        Raises:
            Moved: the shard does not have this commit any more.
            GalleryIncomplete: it does not answer, and that is an error.
        """
        if index in self.problems:
            return None
        shard = self.manifest.shards[index]
        answer = await self.asker.ask(
            index % self.asker.slots, lambda: Question(self.manifest.generation, shard, task())
        )
        if isinstance(answer, Gone):
            if self.commits.newest()[1] != self.manifest:
                raise Moved
            answer = Broken("it is missing")
        if not isinstance(answer, Broken):
            return answer
        self.problems[index] = answer.problem
        if self.complete:
            raise GalleryIncomplete(self.lacks())
        return None


async def _search(
    commit: _Commit,
    queries: Embeddings,
    k: int,
    ids: tuple[str, ...] | None,
    condition: Filter | None,
    floors: Floors,
) -> list[SearchResult]:
    """The answer of one commit to each query."""
    chosen = None if ids is None else await _choose(commit, ids)
    # with a filter all are asked, because the keys that it names may be in any of them
    asked = [i for i in commit.shards if chosen is None or condition is not None or chosen[i]]
    where, hidden = (None, ()) if condition is None else (condition.text, condition.hidden)

    async def ask(index: int) -> Found | None:
        def task() -> SearchShard:
            some = None if chosen is None else chosen[index]
            return SearchShard(queries, k, tuple(floors.values.tolist()), some, where, hidden)

        answer = await commit.ask(index, task)
        if not isinstance(answer, Found):
            return None
        floors.learn(answer.results)
        return answer

    found = [answer for answer in await _gather([ask(index) for index in asked]) if answer is not None]
    keys = [answer.keys for answer in found if answer.keys is not None]
    if condition is not None and keys and not commit.problems:
        condition.check_keys(frozenset().union(*keys))
    return [_merge(commit, [answer.results[row] for answer in found], k) for row in range(len(queries))]


def _merge(commit: _Commit, parts: Sequence[SearchResult], k: int) -> SearchResult:
    """The answer to one query, with the reasons of `Gallery.search`."""
    merged = merge_results(parts or [_NOTHING], k)
    if commit.problems:
        return replace(merged, certified=False, reason=commit.lacks())
    if not merged.rows:
        rows = sum(shard.rows for shard in commit.manifest.shards)
        return replace(merged, reason="no row passes the filter" if rows else "the gallery is empty")
    return merged


async def _choose(commit: _Commit, ids: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Which of some ids each shard has.

    Raises:
        InputError: no shard has one of them, and all answered.
    """
    answers = await commit.ask_all(lambda: FindRows(ids))
    chosen = [tuple(answer.rows) if isinstance(answer, Rows) else () for answer in answers]
    absent = _absent(ids, {id for some in chosen for id in some})
    if absent and not commit.problems:
        raise unknown_ids(absent, "ids")
    return chosen


def _absent(wanted: Sequence[str], found: Collection[str]) -> list[str]:
    return [id for id in wanted if id not in found]


async def _gather(asked: Sequence[Awaitable[T]]) -> list[T]:
    """The results of all; where one fails, the others are cancelled and the error is raised."""
    tasks = [asyncio.ensure_future(one) for one in asked]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
