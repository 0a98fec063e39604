"""Work of many requests is done together: what waits is taken in the order it came, and encoded and searched at once.

A batch is as large as the load makes it: a request that comes while a lane is free starts at once, and what comes
while all lanes work waits for the next batch. A batch is counted in words (a picture counts its regions).

What a search costs is known only when it is done: with vectors that resemble no row it reads all of them. So a batch
that takes long goes on beside the lanes, and what waits goes by.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

# A batch takes long after PATIENCE seconds, and SLACK times the median of the last RECENT ones. By the first alone,
# every batch would where a gallery is large or the load high, and more lanes answer less (state.py).
PATIENCE = 0.1
SLACK = 4
RECENT = 31


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
        beside: how many batches that take long give their lanes free; more of them keep theirs.
    """

    def __init__(
        self,
        run: Callable[[Sequence[AnyJob]], None],
        lanes: int,
        words: int,
        observe: Callable[[Sequence[AnyJob]], object] = lambda jobs: None,
        beside: int = 0,
    ) -> None:
        self._run = run
        self._words = words
        self._observe = observe
        self._lanes = lanes
        self._beside = beside
        self._at_work = 0
        self._long: list[Sequence[AnyJob]] = []  # batches at work that take long
        self._seconds: deque[float] = deque(maxlen=RECENT)  # that batches took
        self._threads = ThreadPoolExecutor(lanes + beside, "chan-batch")
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
        while self._at_work - min(len(self._long), self._beside) < self._lanes and (batch := self._take()):
            self._at_work += 1
            self._observe(batch)
            timer = loop.call_later(self._patience(), self._go_by, batch)
            work = loop.run_in_executor(self._threads, self._run, batch)
            work.add_done_callback(partial(self._finish, batch, timer, loop.time()))

    def _patience(self) -> float:
        """Seconds after which a batch that starts now takes long."""
        return max(PATIENCE, SLACK * statistics.median(self._seconds)) if self._seconds else PATIENCE

    def _go_by(self, batch: Sequence[AnyJob]) -> None:
        """Let what waits go by a batch that takes long."""
        self._long.append(batch)
        self._start()

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

    def _finish(
        self, batch: Sequence[AnyJob], timer: asyncio.TimerHandle, began: float, work: asyncio.Future[None]
    ) -> None:
        timer.cancel()
        self._at_work -= 1
        self._seconds.append(asyncio.get_running_loop().time() - began)
        if batch in self._long:
            self._long.remove(batch)
        error = work.exception()
        for job in batch:
            if isinstance(error, Exception):
                job.error = error
            if job.done is not None and not job.done.done():
                job.done.set_result(None)
        self._start()
