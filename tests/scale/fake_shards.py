"""Processes of shards that are none: they answer, fail and dawdle as a test asks, in time that passes at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from chan_rt.runtime import AlignmentConfig, Embeddings, Gallery, GalleryWriter, split_gallery
from chan_rt.scale.questions import Answer, Question
from chan_rt.scale.shard_host import ShardHost

T = TypeVar("T")
DIM = 16


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop that does not wait: where nothing is ready, its clock goes on to what comes next."""

    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self._now = max(self._now, self._scheduled[0].when())
        super()._run_once()


def run(work: Callable[[], Awaitable[T]]) -> tuple[T, float]:
    """The result of some work in a virtual loop, and the seconds that it took there."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(asyncio.wait_for(work(), 10_000)), loop.time()
    finally:
        loop.close()


class FakeTransport:
    """Hosts in this process, two for each slot.

    Args:
        folder: the gallery in shards.
        slots: of the transport.
        behave: (slot, number of the question) -> what happens before the answer: seconds to wait, or an error to raise;
            it may change the gallery, too. An `Answer` takes the place of the host's.
    """

    def __init__(self, folder: Path, slots: int, behave: Callable[[int, int], float | Exception | Answer]) -> None:
        self.slots = slots
        self.asked: list[tuple[int, Question]] = []
        self._behave = behave
        self._hosts = [[ShardHost(folder, 1) for _ in range(2)] for _ in range(slots)]

    def close(self) -> None:
        for hosts in self._hosts:
            for host in hosts:
                host.close()

    async def ask(self, slot: int, question: Question) -> Answer:
        number = len(self.asked)
        self.asked.append((slot, question))
        behavior = self._behave(slot, number)
        if isinstance(behavior, Exception):
            raise behavior
        if not isinstance(behavior, float | int):
            return behavior
        await asyncio.sleep(behavior)
        return self._hosts[slot][number % 2].answer(question)


def rows_of(rng: np.random.Generator, count: int, ties: bool = True) -> Embeddings:
    """Rows of which many score the same, or none."""
    vectors = rng.standard_normal((count, 2, DIM)).astype(np.float32)
    if ties:
        vectors[:] = np.sign(vectors[:1])
        vectors[::3] *= -1
    return Embeddings(vectors, np.full(count, 2, np.int32))


def make_shards(folder: Path, shards: int, rows: Embeddings) -> Path:
    """A gallery in shards below a folder; row i has the metadata {"n": i, "even": ...}."""
    with GalleryWriter.create(folder / "one", dim=DIM, alignment=AlignmentConfig.maxsim()) as writer:
        names = [f"r{i}" for i in range(len(rows))]
        writer.add(names, rows, [{"n": i, "even": i % 2 == 0} for i in range(len(rows))])
    split_gallery(folder / "one", folder / "many", shards)
    return folder / "many"


def plain(results: Sequence[Any]) -> list[Any]:
    """All that answers say, but for how much was read."""
    return [(one.certified, one.reason, one.rows, hits_of(one)) for one in results]


def hits_of(result: Any) -> list[Any]:
    return [(h.id, h.score, h.metadata, h.word_regions.tolist(), h.word_scores.tolist()) for h in result.hits]


def answers_of(folder: Path, queries: Embeddings, k: int, **choice: Any) -> list[Any]:
    """What the gallery in one process answers."""
    with Gallery.open(folder, threads=1) as gallery:
        return plain(gallery.search(queries, k, same_kind=True, **choice))
