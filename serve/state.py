"""What the routes of one worker share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from .batching import Batcher
from .galleries import Galleries
from .pictures import Pictures
from .problems import unavailable
from .settings import Settings
from .work import Work, run_batch

P = ParamSpec("P")
T = TypeVar("T")
LANES = 2  # batches at work at once: while one is in Python, the other is in onnxruntime or scans


class State:
    """Galleries, the batcher, and threads for everything else that takes time.

    Attributes:
        settings: of the server.
        galleries, batcher, pictures: see their modules.
        ready: the galleries are open, and the server takes requests.
        draining: the server finishes what it has and takes nothing new.
        at_work: requests in flight.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.galleries = Galleries(settings)
        self.pictures = Pictures(settings.pictures, settings.limits.pixels)
        words = settings.limits.batch_words
        self.batcher: Batcher[Work] = Batcher(partial(run_batch, words=words), LANES, words)
        self.ready = False
        self.draining = False
        self.at_work = 0
        self._threads = ThreadPoolExecutor(2, "chan-side")

    def deadline(self) -> float:
        """When a request that begins now must have ended, by time.monotonic()."""
        return time.monotonic() + self.settings.limits.seconds

    async def aside(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run something that takes time in a thread, within the seconds of a request."""
        work = asyncio.get_running_loop().run_in_executor(self._threads, partial(function, *args, **kwargs))
        return await self.in_time(work)

    async def in_time(self, work: asyncio.Future[T]) -> T:
        """Wait for work within the seconds that a request may take.

        Raises:
            Refusal: 503 where it takes longer.
        """
        try:
            return await asyncio.wait_for(work, self.settings.limits.seconds)
        except TimeoutError:
            raise unavailable(
                "timeout", f"the request took longer than {self.settings.limits.seconds} seconds"
            ) from None

    def close(self) -> None:
        """Close everything."""
        self.batcher.close()
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.galleries.close()
