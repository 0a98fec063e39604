"""Recording GPU work as CUDA graphs: when to try again what failed, and who waits while onnxruntime records."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..forks import now_and_after_fork

_FIRST_PAUSE = 16  # requests


@dataclass
class Failed:
    """Sizes whose recording failed: how many requests of that size pass until it is tried again."""

    pause: int = _FIRST_PAUSE
    left: int = 0

    def wait(self) -> None:
        """Pass twice as many as the last time."""
        self.left, self.pause = self.pause, 2 * self.pause

    def due(self) -> bool:
        """Count a request; whether recording should be tried again with it."""
        self.left -= 1
        return self.left < 0


class Turns:
    """Lets threads work together, or one of them alone; whoever waits to be alone goes first."""

    def __init__(self) -> None:
        now_and_after_fork(self._begin)

    def _begin(self) -> None:
        self._changed = threading.Condition()
        self._together = 0  # threads at work
        self._alone = False
        self._awaited = 0  # threads that wait to be alone

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work at the same time as others, and never while a thread is alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone and not self._awaited)
            self._together += 1
        try:
            yield
        finally:
            with self._changed:
                self._together -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work while no other thread does."""
        with self._changed:
            self._awaited += 1
            try:
                self._changed.wait_for(lambda: not self._alone and not self._together)
                self._alone = True
            finally:
                self._awaited -= 1
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


# onnxruntime captures in CUDA's global mode, which forbids every thread of the process what may wait for the device or
# allocate. So a session that records is alone among all of onnxruntime's on a GPU, those that record nothing included;
# threads of `CudaDevice` keep themselves apart.
SESSIONS = Turns()
