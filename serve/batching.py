"""Work of many requests is done together: what waits is taken in the order it came, and encoded and searched at once.

A batch is as large as the load makes it: a request that comes while a lane is free starts at once, and what comes
while all lanes work waits for the next batch. A batch is counted in words (a picture counts its regions).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar


@dataclass(eq=False, kw_only=True)
class Job:
    """A part of a batch.

    Attributes:
        words: how much there is to encode.
        came, queued: when it came, and seconds that it waited.
        error: why it failed, if it did.
        done: what waits for it; cancelled where nobody does any more.
    """

    words: int
    came: float = field(default_factory=time.monotonic)
    queued: float = 0.0
    error: Exception | None = None
    done: asyncio.Future[None] | None = None

    @property
    def wanted(self) -> bool:
        """Whether its result is of use; any thread may ask."""
        return self.error is None and (self.done is None or not self.done.done())


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
        self._waiting: deque[AnyJob] = deque()
        self.waiting_words = 0

    @property
    def waiting(self) -> int:
        """Jobs that no lane has taken yet; `waiting_words` are their words."""
        return len(self._waiting)

    async def do(self, job: AnyJob) -> None:
        """Wait until a job is done. Where the wait is cancelled before a lane took the job, it is not done at all.

        What a lane has taken is told by `Job.wanted`, so that `run` can leave the rest of it.

        Raises:
            Exception: the job's error.
        """
        job.done = asyncio.get_running_loop().create_future()
        self._waiting.append(job)
        self.waiting_words += job.words
        self._start()
        await job.done
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
            self._observe(batch)
            loop.run_in_executor(self._threads, self._run, batch).add_done_callback(partial(self._finish, batch))

    def _take(self) -> list[AnyJob]:
        """The next batch: jobs in the order they came, as many as fit."""
        batch: list[AnyJob] = []
        words, now = 0, time.monotonic()
        while self._waiting:
            job = self._waiting[0]
            if job.wanted and batch and words + job.words > self._words:
                break
            self._waiting.popleft()
            self.waiting_words -= job.words
            if job.wanted:
                job.queued = now - job.came
                words += job.words
                batch.append(job)
        return batch

    def _finish(self, batch: Sequence[AnyJob], work: asyncio.Future[None]) -> None:
        self._free += 1
        error = work.exception()
        for job in batch:
            if isinstance(error, Exception):
                job.error = error
            if job.done is not None and not job.done.done():
                job.done.set_result(None)
        self._start()
