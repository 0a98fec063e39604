"""What the router of a gallery in shards asks the host of a shard, and what that answers. All of it can be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..runtime.embeddings import Embeddings
from ..runtime.gallery.result import SearchResult
from ..runtime.gallery.sharded.manifest import ShardEntry
from ..runtime.gallery.store.rows import Row


@dataclass(frozen=True)
class SearchShard:
    """The k best rows of a shard for each query, as `Gallery.search`.

    Attributes:
        queries: of the search.
        k: how many rows.
        at_least: the least score that is wanted for each query.
        ids: only rows with these ids, all of which the shard has; None for every row.
        where, hidden: a filter as JSON, and the metadata keys that it must not see; None for no filter.
    """

    queries: Embeddings
    k: int
    at_least: tuple[float, ...]
    ids: tuple[str, ...] | None = None
    where: str | None = None
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True)
class FindRows:
    """The rows of a shard with these ids, and their embeddings where they are wanted."""

    ids: tuple[str, ...]
    embeddings: bool = False


@dataclass(frozen=True)
class DescribeShard:
    """What searches a shard, and how search was prepared."""


@dataclass(frozen=True)
class Question:
    """A task for the host of a shard.

    Attributes:
        generation: of the commit of all shards that is searched.
        shard: the shard and its commit, as the manifest of that commit names them.
        task: what to do.
    """

    generation: int
    shard: ShardEntry
    task: SearchShard | FindRows | DescribeShard


@dataclass(frozen=True)
class Found:
    """The answer to `SearchShard`.

    Attributes:
        results: one for each query.
        keys: metadata keys that rows of the shard have; None where there was no filter, or there are no rows.
    """

    results: tuple[SearchResult, ...]
    keys: frozenset[str] | None = None


@dataclass(frozen=True)
class Rows:
    """The answer to `FindRows`: id -> row, and id -> its embeddings where they were wanted."""

    rows: Mapping[str, Row]
    embeddings: Mapping[str, Embeddings]


@dataclass(frozen=True)
class Description:
    """The answer to `DescribeShard`.

    Attributes:
        scan: as `Gallery.scan`.
        process: id of the process that answers, on its machine.
        prepared: how search was prepared, in words; None if it was not.
    """

    scan: str
    process: int
    prepared: str | None


@dataclass(frozen=True)
class Gone:
    """The shard does not have the commit of the question, any more or yet, or is missing."""


@dataclass(frozen=True)
class Broken:
    """The shard cannot be read; `problem` is the reason in words."""

    problem: str


Answer = Found | Rows | Description | Gone | Broken
