"""Locks and threads do not outlive a fork: whoever holds some makes new ones in the child.

A child process has only the thread that forked. A lock that another thread held at that moment stays locked for ever,
and a thread pool waits for threads that are not there.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable

_methods: set[weakref.WeakMethod[Callable[[], None]]] = set()


def now_and_after_fork(method: Callable[[], None]) -> None:
    """Call an object's method, and call it again in every process forked from this one, while the object lives.

    There it is called before anything else runs.
    """
    method()
    _methods.add(weakref.WeakMethod(method, _methods.discard))


def _call_all() -> None:
    for reference in list(_methods):
        method = reference()
        if method is not None:
            method()


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_call_all)
