"""stdout and stderr of a command: either may be closed, lead to a full disk, or to a reader that has left."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar, cast

T = TypeVar("T")


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Let the block print to streams that may fail.

    What stderr cannot take is lost, and the work goes on. What stdout cannot take is the result of a command, so that
    is an OSError that names it. Python writes what a stream still holds once more at the end of the process, and would
    report a second error then; nothing is left for that.
    """
    for name in ("stdin", "stdout", "stderr"):  # in the order of their numbers, which files would take else
        if getattr(sys, name) is None:  # whoever started the command has closed it: `>&-`
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast(TextIO, _Result(sys.stdout)), cast(TextIO, _Notes(sys.stderr))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in before:
            try:
                stream.flush()
            except OSError:
                _discard(stream)


class _Stream:
    """A stream whose writes go through `attempt`; all else is that of the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; how much of it was taken."""
        return self.attempt(lambda: self._stream.write(text), len(text))

    def flush(self) -> None:
        """Write what is held back."""
        self.attempt(self._stream.flush, None)

    def attempt(self, work: Callable[[], T], lost: T) -> T:
        """Do the work; `lost` is its result where the stream takes nothing and that is no error."""
        raise NotImplementedError


class _Result(_Stream):
    """stdout: an error names it."""

    def attempt(self, work: Callable[[], T], lost: T) -> T:
        """Do the work."""
        try:
            return work()
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from error


class _Notes(_Stream):
    """stderr: an error costs what was to be said, and no more. A server's disk may have room for later lines."""

    def attempt(self, work: Callable[[], T], lost: T) -> T:
        """Do the work."""
        try:
            return work()
        except OSError:
            return lost


def _discard(stream: TextIO) -> None:
    """Lead a stream nowhere, with what it still holds."""
    with suppress(OSError):  # a stream of a test has no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
        stream.flush()
