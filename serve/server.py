"""One worker: an event loop that opens the galleries, takes requests, and drains."""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
from types import FrameType

import uvicorn

from ..runtime.counts import counted
from .app import create_app
from .protocol import protocol_options
from .settings import Settings
from .state import State
from .workers import END_AT_ONCE

_log = logging.getLogger(__name__)
_FLUSH = 1  # seconds after the grace in which the last answers are sent


def run_worker(
    settings: Settings,
    listener: socket.socket,
    supervisor: int | None = None,
    opened: int | None = None,
    after: int | None = None,
) -> None:
    """Serve at a socket until SIGTERM or Ctrl-C.

    Of several workers at a socket, one answers while it opens the galleries, 503 to most. The others take no request
    before it and they are ready, so that a server that has said it is ready never says that it loads.

    Args:
        settings: of the server.
        listener: the socket.
        supervisor: process whose end is a reason to end, too.
        opened: of the worker that answers at once, the end of a pipe for writing. It is closed when the galleries are
            open, or by the end of this process.
        after: of the other workers, the end of that pipe for reading. They take requests when nobody has the other end
            open. None to answer at once.

    Raises:
        ChanError: a gallery cannot be opened.
    """
    state = State(settings)
    try:
        state.galleries.connect()
        config = uvicorn.Config(
            create_app(state),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            **protocol_options(settings.limits, state.refused),
        )
        server = Server(config, state, supervisor, opened, after)
        server.run([listener])
        if server.failure is not None:
            raise server.failure
    finally:
        state.close()


class Server(uvicorn.Server):
    """uvicorn's server, which opens the galleries while it answers or before, and drains when it is told to end.

    Args:
        config, state: of the worker.
        supervisor, opened, after: as of `run_worker`.

    Attributes:
        failure: why the galleries could not be opened.
    """

    def __init__(
        self, config: uvicorn.Config, state: State, supervisor: int | None, opened: int | None, after: int | None
    ) -> None:
        super().__init__(config)
        self.failure: BaseException | None = None
        self._state = state
        self._supervisor = supervisor
        self._opened = opened
        self._after = after
        self._drain_until = 0.0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and open the galleries beside it or before."""
        loop = asyncio.get_running_loop()
        opening = loop.run_in_executor(None, self._state.galleries.reopen)
        opening.add_done_callback(self._done)
        loop.add_signal_handler(signal.SIGHUP, self._reopen)
        if self._supervisor is not None:
            loop.add_signal_handler(END_AT_ONCE, self._end_at_once)
        if self._after is not None:
            await asyncio.wait([opening])
            while not _at_end(self._after) and not await self.on_tick(0):
                await asyncio.sleep(0.1)
        if not self.should_exit:
            await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends at once, which one of several workers leaves to the supervisor.

        Ctrl-C and systemd signal every process of the server, so a worker hears of one end twice.
        """
        if self._state.draining:
            if self._supervisor is None:
                self._end_at_once()
            return
        self._state.draining = True
        _log.info("%s: finishing %s", signal.Signals(sig).name, counted(self._state.at_work, "request"))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End by the end of the grace. What is at work then is cut, and `Guard` answers it with 503."""
        left = self._drain_until - asyncio.get_running_loop().time()
        if self.force_exit or (self._drain_until and left <= 0):
            tasks = list(self.server_state.tasks)
            if tasks:
                _log.warning("cut, because the grace is over: %s", counted(len(tasks), "request"))
            for task in tasks:
                task.cancel()
        self.config.timeout_graceful_shutdown = max(_FLUSH, int(left))
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: end when the drain is over."""
        if self._supervisor is not None and os.getppid() != self._supervisor:
            self._state.draining = True
        if self._state.draining and not self.should_exit:
            now = asyncio.get_running_loop().time()
            self._drain_until = self._drain_until or now + self._state.settings.grace
            self.should_exit = self._state.at_work == 0 or now > self._drain_until
        return await super().on_tick(counter)

    def _done(self, opening: asyncio.Future[None]) -> None:
        self.failure = opening.exception()
        self._state.ready = self.failure is None
        self.should_exit = self.should_exit or self.failure is not None
        if self._opened is not None and self._state.ready:
            os.close(self._opened)

    def _end_at_once(self) -> None:
        self._state.draining = self.should_exit = self.force_exit = True

    def _reopen(self) -> None:
        """SIGHUP: open the galleries again."""

        def report(done: asyncio.Future[None]) -> None:
            if (error := done.exception()) is not None:
                _log.error("the galleries stay as they were: %s", error)

        asyncio.get_running_loop().run_in_executor(None, self._state.galleries.reopen).add_done_callback(report)


def _at_end(pipe: int) -> bool:
    """Whether nobody has the other end of a pipe open. Nothing is written to it."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(0))
