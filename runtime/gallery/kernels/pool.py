"""Threads for scans: each runs pieces of work until none is left."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import TypeVar

from ...checks import check_threads
from ...cpus import usable_cpus
from ...forks import now_and_after_fork

Result = TypeVar("Result")


class Pool:
    """Spreads pieces of work over some threads, the caller's included. Work within a piece stays on its thread.

    Args:
        threads: how many; by default as many as there are CPUs that this process may use.
    """

    def __init__(self, threads: int | None = None) -> None:
        check_threads(threads)
        self.threads = threads or usable_cpus()
        now_and_after_fork(self._prepare)

    def _prepare(self) -> None:
        """Have threads of this process's own; they start when they are first needed."""
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
        errors = [future.exception() for future in futures if not future.cancelled()]
        futures.clear()
        error = next(filter(None, errors), None)
        errors.clear()
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback has this frame, which would keep it and all that it refers to alive

    def map(self, function: Callable[[int], Result], count: int) -> list[Result]:
        """function(0), ..., function(count - 1) on the threads; a single call is no piece of work of its own."""
        if count == 1:
            return [function(0)]
        done: dict[int, Result] = {}

        def task(first: int, last: int) -> None:
            for i in range(first, last):
                done[i] = function(i)

        step = max(1, count // (4 * self.threads))
        self.run([partial(task, a, min(a + step, count)) for a in range(0, count, step)])
        return [done[i] for i in range(count)]

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
