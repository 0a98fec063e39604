"""What the routes of one worker share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from .batching import Batcher
from .bodies import Problem
from .galleries import Galleries
from .logs import FACTS
from .metrics import Metrics
from .pictures import Pictures
from .settings import Settings
from .tracing import Tracing
from .work import Work, run_batch

_log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
# Batches at work at once. Encoding and scans use every core, so a second batch only takes from the first, and both are
# smaller. Two answered 108 searches a second where one answered 131, and took 80 ms where one took 37 at 71 a second
# (medians; 10,000 images at 1024-d, 2 cores of a Zen 4).
LANES = 1
# A request of more than this share of a batch's words is large. Large ones have a lane of their own, so that no small
# one waits for a batch that has them: beside 2 clients with 64 captions a request, one caption took 81 ms (median; 46
# alone), and 2.3 s in one lane (133 alone; as above, on a busy machine).
LARGE = 1 / 8
# Batches of small requests that take long and hold up no other. They cannot be stopped, also where their clients left,
# and each takes its share of the cores.
BESIDE = 1


class State:
    """Galleries, the batchers, and threads for everything else that takes time.

    Attributes:
        settings: of the server.
        galleries, pictures, metrics, tracing: see their modules.
        small, large: batchers of small requests and of large ones.
        ready: the galleries are open, and the server takes requests.
        draining: the server finishes what it has and takes nothing new.
        at_work, body_bytes: requests in flight, and bytes of their bodies.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.galleries = Galleries(settings)
        roots = [*settings.pictures, *([settings.uploads] if settings.pictures and settings.uploads else [])]
        self.pictures = Pictures(roots, settings.limits.pixels)
        words = settings.limits.batch_words
        self.metrics = Metrics()
        self.tracing = Tracing(settings.otlp_endpoint)
        self.small: Batcher[Work] = Batcher(self._run, LANES, words, self.metrics.batch, BESIDE)
        self.large: Batcher[Work] = Batcher(self._run, LANES, words, self.metrics.batch)
        self.ready = False
        self.draining = False
        self.at_work = 0
        self.body_bytes = 0
        self._threads = ThreadPoolExecutor(2, "chan-side")
        self._writer = ThreadPoolExecutor(1, "chan-writer")

    def report_work(self) -> None:
        """Bring the gauges of the metrics up to date."""
        self.metrics.at_work.set(self.at_work)
        self.metrics.waiting.set(self.small.waiting + self.large.waiting)
        self.metrics.waiting_words.set(self.small.waiting_words + self.large.waiting_words)

    def refused(self, problem: Problem) -> None:
        """Count and log what was refused before it became a request."""
        reason = problem.type.rpartition(":")[2]
        self.metrics.failures.labels(reason).inc()
        facts = {"request_id": problem.request_id, "reason": reason, "status": problem.status}
        _log.info("refused", extra={FACTS: facts})

    async def do(self, job: Work) -> None:
        """Wait until a job is done in a batch of jobs of about its size; the job's error is raised."""
        is_large = job.words > LARGE * self.settings.limits.batch_words
        await (self.large if is_large else self.small).do(job)

    def _run(self, jobs: Sequence[Work]) -> None:
        run_batch(jobs, self.settings.limits.batch_words)
        self.metrics.done(jobs)

    async def aside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that takes time and changes nothing in a thread, which ends it even where nobody waits."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **kwargs))

    async def change(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a change of a gallery, after those before it. One that has begun is waited for, however long it takes.

        So an answer that the request took too long, or that the server ends, means that nothing was changed, and it can
        be sent again.
        """
        work = self._writer.submit(partial(function, *args, **kwargs))
        done = asyncio.wrap_future(work)
        while True:  # it may be cancelled more than once: by the time of the request, and by the end of the server
            try:
                return await asyncio.shield(done)
            except asyncio.CancelledError:
                if work.cancel():  # it has not begun
                    raise

    def close(self) -> None:
        """Close everything."""
        self.small.close()
        self.large.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._writer.shutdown(wait=True, cancel_futures=True)
        self.galleries.close()
        self.tracing.close()
