"""Locks and threads do not outlive a fork: whoever holds some makes new ones in the child.

A child process has only the thread that forked. A lock that another thread held at that moment stays locked for ever,
and a thread pool waits for threads that are not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from types import MethodType
from typing import Any, cast
from weakref import WeakKeyDictionary

# Object -> its method. (A WeakMethod could print an AttributeError as the interpreter ends.)
_methods: WeakKeyDictionary[object, Callable[[Any], None]] = WeakKeyDictionary()


def now_and_after_fork(method: Callable[[], None]) -> None:
    """Call an object's method, and call it again in every process forked from this one, while the object lives.

    There it is called before anything else runs. An object has one such method.
    """
    method()
    bound = cast("MethodType", method)
    _methods[bound.__self__] = bound.__func__


def _call_all() -> None:
    for holder, method in list(_methods.items()):
        method(holder)


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_call_all)
