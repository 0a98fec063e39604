"""Several workers behind one socket: started, told what the server is told, and replaced when they die.

The supervisor loads no library that starts threads, so that it may fork; each worker opens the galleries itself. Their
pages are mapped from the same files, so the memory of the machine holds them once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from ..runtime.counts import counted
from ..runtime.cpus import usable_cpus
from ..runtime.errors import ChanError
from .metrics import SHARED, forget
from .settings import Settings

_log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
END_AT_ONCE = signal.SIGUSR1  # told to workers when the server is told to end a second time
_CANNOT_OPEN = 3  # exit status of a worker that could not open the galleries
_PAUSE = 1.0  # seconds between the starts of a worker that dies again and again


class Supervisor:
    """Runs `settings.workers` workers until SIGTERM or Ctrl-C.

    Args:
        settings: of the server. Without `threads` the workers share the cores.
        listener: the socket that all of them take connections from.
    """

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = replace(settings, threads=settings.threads or max(1, usable_cpus() // settings.workers))
        self._listener = listener
        self._started: dict[int, float] = {}  # process id -> when it was started
        self._ends_at: float | None = None
        self._failed = False
        self._replaced = False  # only the first workers end the server when they cannot open
        self._after: int | None = None  # end of a pipe whose other end the first worker closes when it is open

    def run(self) -> None:
        """Return when every worker has ended after SIGTERM or Ctrl-C.

        Raises:
            ChanError: the workers cannot open the galleries; the log says why.
        """
        with tempfile.TemporaryDirectory(prefix="chan-metrics-") as shared:
            os.environ[SHARED] = shared
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                self._start_first()
                for _ in range(self._settings.workers - 1):
                    self._start()
                while self._started:
                    self._wait(Path(shared))
            finally:
                for pid in self._started:
                    os.kill(pid, signal.SIGKILL)
                if self._after is not None:
                    os.close(self._after)
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                del os.environ[SHARED]
        if self._failed:
            raise ChanError("the workers could not open the galleries; the log has the reason")

    def _wait(self, shared: Path) -> None:
        """Act on one signal."""
        remaining = 3600.0 if self._ends_at is None else max(0.0, self._ends_at - time.monotonic())
        got = signal.sigtimedwait(_SIGNALS, remaining)
        if got is None:
            if self._ends_at is not None:
                stuck = counted(len(self._started), "worker")
                _log.warning("killed after the grace, because they did not end: %s", stuck)
                self._tell(signal.SIGKILL)
                self._ends_at = time.monotonic() + 5
        elif got.si_signo == signal.SIGCHLD:
            self._reap(shared)
        elif got.si_signo == signal.SIGHUP:
            self._tell(signal.SIGHUP)
        else:
            self._end()

    def _end(self) -> None:
        """Tell every worker to drain; the second time, to end at once."""
        if self._ends_at is None:
            self._ends_at = time.monotonic() + self._settings.grace + 5
            self._tell(signal.SIGTERM)
        else:
            self._tell(END_AT_ONCE)

    def _tell(self, what: signal.Signals) -> None:
        for pid in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, what)

    def _reap(self, shared: Path) -> None:
        """Take leave of workers that ended, and replace those that should not have."""
        for pid in list(self._started):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                continue
            lived = time.monotonic() - self._started.pop(pid)
            forget(shared, pid)
            code = os.waitstatus_to_exitcode(status)
            if self._ends_at is not None:
                continue
            if code == _CANNOT_OPEN and not self._replaced:
                self._failed = True
                self._end()
                continue
            _log.error("worker %d ended with status %d and is replaced", pid, code)
            self._replaced = True
            if lived < _PAUSE:
                time.sleep(_PAUSE - lived)
            self._start()

    def _start_first(self) -> None:
        """Start the worker that answers while it opens the galleries; no other process keeps the pipe's other end."""
        self._after, opened = os.pipe()
        try:
            self._start(opened)
        finally:
            os.close(opened)

    def _start(self, opened: int | None = None) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            self._started[pid] = time.monotonic()
            return
        status = 1
        try:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the worker has its own answer to it
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            from .server import run_worker

            after = self._after if opened is None else None
            run_worker(self._settings, self._listener, os.getppid(), opened, after)
            status = 0
        except ChanError as error:
            _log.error("%s", error)
            status = _CANNOT_OPEN
        except BaseException:
            _log.exception("a worker failed")
        finally:
            sys.stderr.flush()
            os._exit(status)
