"""Threads for scans: each runs pieces of work until none is left."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait

from ...errors import InputError


class Pool:
    """Spreads pieces of work over some threads, the caller's among them; within such a piece, over none but its own."""

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and threads < 1:
            raise InputError(f"threads must be positive, got {threads}")
        self.threads = threads or os.cpu_count() or 1
        self._executor = ThreadPoolExecutor(self.threads - 1, "chan-scan") if self.threads > 1 else None

    def run(self, tasks: Iterable[Callable[[], object]]) -> None:
        """Run every task; an error of one is raised once none is running any more, and those not begun are dropped."""
        waiting = deque(tasks)
        futures = []
        if self._executor is not None and not getattr(_thread, "works", False):
            futures = [self._executor.submit(_work, waiting) for _ in range(min(self.threads, len(waiting)) - 1)]
        try:
            _work(waiting)
        finally:
            waiting.clear()
            wait([future for future in futures if not future.cancel()])  # one that never began found nothing to do
        for future in futures:
            if not future.cancelled():
                future.result()

    def close(self) -> None:
        """Let the threads end."""
        if self._executor is not None:
            self._executor.shutdown()


def _work(waiting: deque[Callable[[], object]]) -> None:
    outermost = not getattr(_thread, "works", False)
    _thread.works = True
    try:
        while waiting:
            try:
                task = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            task()
    finally:
        if outermost:
            _thread.works = False


_thread = threading.local()
