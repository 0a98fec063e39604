"""Work of many requests is done together: what waits is taken in the order it came, and encoded and searched at once.

A batch is as large as the load makes it: a request that comes while a lane is free starts at once, and what comes
while all lanes work waits for the next batch. A batch is counted in words (a picture counts its regions).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from .problems import unavailable

_log = logging.getLogger(__name__)


@dataclass(eq=False, kw_only=True)
class Job:
    """A part of a batch.

    Attributes:
        words: how much there is to encode.
        deadline: when it is no longer wanted, by time.monotonic().
        came, queued: when it came, and seconds that it waited.
        error: why it failed, if it did.
    """

    words: int
    deadline: float
    came: float = field(default_factory=time.monotonic)
    queued: float = 0.0
    error: Exception | None = None


AnyJob = TypeVar("AnyJob", bound=Job)


class Batcher(Generic[AnyJob]):
    """Runs jobs in batches on a few threads. Use it from one event loop.

    Args:
        run: does the work of a batch of jobs, in a thread; it sets `error` of jobs that fail.
        lanes: batches at work at once.
        words: the most words in one batch; a job that has more is a batch of its own.
        observe: called with each batch before it is run.
    """

    def __init__(
        self,
        run: Callable[[Sequence[AnyJob]], None],
        lanes: int,
        words: int,
        observe: Callable[[Sequence[AnyJob]], object] = lambda jobs: None,
    ) -> None:
        self._run = run
        self._words = words
        self._observe = observe
        self._free = lanes
        self._threads = ThreadPoolExecutor(lanes, "chan-batch")
        self._waiting: deque[tuple[AnyJob, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Jobs that no lane has taken yet."""
        return len(self._waiting)

    @property
    def waiting_words(self) -> int:
        """Words of the jobs that no lane has taken yet."""
        return sum(job.words for job, _ in self._waiting)

    async def do(self, job: AnyJob) -> None:
        """Wait until a job is done.

        Raises:
            Refusal: its deadline passed while it waited.
            Exception: the job's error.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((job, future))
        self._start()
        await future
        if job.error is not None:
            raise job.error

    def close(self) -> None:
        """End the threads after the batches at work."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> None:
        """Give what waits to the lanes that are free."""
        loop = asyncio.get_running_loop()
        while self._free and (batch := self._take()):
            self._free -= 1
            work = loop.run_in_executor(self._threads, self._run, [job for job, _ in batch])
            work.add_done_callback(partial(self._finish, batch))

    def _take(self) -> list[tuple[AnyJob, asyncio.Future[None]]]:
        """The next batch: jobs in the order they came, as many as fit."""
        batch: list[tuple[AnyJob, asyncio.Future[None]]] = []
        words, now = 0, time.monotonic()
        while self._waiting:
            job, future = self._waiting[0]
            if future.cancelled() or future.done():
                self._waiting.popleft()
                continue
            if now > job.deadline:
                self._waiting.popleft()
                future.set_exception(unavailable("timeout", "the request waited longer than it may take"))
                continue
            if batch and words + job.words > self._words:
                break
            self._waiting.popleft()
            job.queued = now - job.came
            words += job.words
            batch.append((job, future))
        if batch:
            self._observe([job for job, _ in batch])
        return batch

    def _finish(self, batch: list[tuple[AnyJob, asyncio.Future[None]]], done: asyncio.Future[None]) -> None:
        self._free += 1
        error = done.exception()
        if error is not None:
            _log.error("a batch failed", exc_info=error)
        for _, future in batch:
            if not future.done():
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(None)
        self._start()
