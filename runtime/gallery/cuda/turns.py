"""Whose turn it is to use a GPU's memory for searches: one thread's at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ...errors import BackendError
from ...forks import now_and_after_fork
from .memory import Arena


class Turns:
    """Lets threads queue searches one after another.

    Args:
        arena: what they share.

    Attributes:
        lock: held by whoever uses the arena.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        now_and_after_fork(self._make_lock)

    def _make_lock(self) -> None:
        self.lock = threading.Lock()
        self._waiting: set[object] = set()  # one for each thread that waits to search

    @property
    def awaited(self) -> bool:
        """Whether a thread waits to search."""
        return bool(self._waiting)

    @contextmanager
    def search(self) -> Iterator[None]:
        """A thread's turn to queue a search, and to wait for it. Where an error ends it, nothing is under way after it.

        The arena then is free for the next one: what was queued would read what that one writes.
        """
        own = object()
        try:
            self._waiting.add(own)
            with self.lock:
                self._waiting.discard(own)
                self._arena.device.activate()
                try:
                    yield
                except BaseException:
                    with suppress(BackendError):
                        self._arena.wait()
                    raise
        finally:
            self._waiting.discard(own)
