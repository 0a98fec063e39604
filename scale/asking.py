"""One question to one shard: asked again where a process fails, asked twice where it is late, given up after a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ..runtime.checks import check_positive
from ..runtime.errors import InputError
from .questions import Answer, Broken, DescribeShard, Question

_log = logging.getLogger(__name__)
_FAILURES = 3  # after so many failures of one question its shard is left out
_PAUSE = 0.5  # seconds between questions to a shard that is left out


class Transport(Protocol):
    """Carries questions to the processes that have the shards."""

    @property
    def slots(self) -> int:
        """Groups of processes; each process of a group can answer in place of the others."""
        ...

    async def ask(self, slot: int, question: Question) -> Answer:
        """The answer of a process of a group.

        Raises:
            Exception: the process failed, or there is none.
        """
        ...


@dataclass(frozen=True)
class Patience:
    """How long the router waits for a shard.

    Attributes:
        hedge: seconds after which another process of the shard is asked, too.
        limit: seconds after which the shard is left out.
        complete: raise GalleryIncomplete in place of leaving a shard out.
    """

    hedge: float = 1.0
    limit: float = 10.0
    complete: bool = False

    def __post_init__(self) -> None:
        if not self.hedge > 0:
            raise InputError(f"hedge must be more than 0 seconds, got {self.hedge}")
        if not self.limit > 0:
            raise InputError(f"limit must be more than 0 seconds, got {self.limit}")


class Asker:
    """Asks slots. One that does not answer is down: it is left out until it answers a question in the background.

    Use it from one event loop.
    """

    def __init__(self, transport: Transport, patience: Patience) -> None:
        check_positive("slots", transport.slots)
        self._transport = transport
        self._patience = patience
        self._down: dict[int, str] = {}
        self._watching: set[asyncio.Task[None]] = set()

    @property
    def slots(self) -> int:
        """Of the transport."""
        return self._transport.slots

    @property
    def down(self) -> dict[int, str]:
        """Slots that are left out now, and why."""
        return dict(self._down)

    async def close(self) -> None:
        """Stop watching the slots that are down."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)

    async def ask(self, slot: int, question: Callable[[], Question]) -> Answer:
        """The answer of a slot; `Broken` where it has none.

        Args:
            slot: its number.
            question: makes the question, each time that it is asked.
        """
        if slot in self._down:
            return Broken(self._down[slot])
        loop = asyncio.get_running_loop()
        began = loop.time()
        asked: set[asyncio.Task[Answer]] = set()
        failures, hedged, problem, lives = 0, False, "", False
        try:
            while failures < _FAILURES:
                if not asked:
                    asked.add(self._start(slot, question()))
                until = began + (self._patience.limit if hedged else min(self._patience.hedge, self._patience.limit))
                done, asked = await asyncio.wait(
                    asked, timeout=max(0.0, until - loop.time()), return_when=asyncio.FIRST_COMPLETED
                )
                for one in done:
                    answer = _result(one)
                    if not isinstance(answer, Broken | Exception):
                        return answer
                    lives = isinstance(answer, Broken)
                    problem = answer.problem if isinstance(answer, Broken) else "its process failed"
                    if isinstance(answer, Exception):
                        _log.warning("slot %d failed: %s: %s", slot, type(answer).__name__, str(answer)[:500])
                    failures += 1
                if loop.time() >= began + self._patience.limit:
                    problem = problem or f"it did not answer within {self._patience.limit:g} seconds"
                    break
                if not done and not hedged:
                    hedged = True
                    asked.add(self._start(slot, question()))
        finally:
            for task in asked:
                task.cancel()
        if not lives:
            self._watch(slot, problem, question())
        return Broken(problem)

    def _start(self, slot: int, question: Question) -> asyncio.Task[Answer]:
        task = asyncio.ensure_future(self._transport.ask(slot, question))
        task.add_done_callback(_result)  # so that an error that nobody waits for any more is not reported
        return task

    def _watch(self, slot: int, problem: str, question: Question) -> None:
        """Leave a slot out until it answers."""
        if slot in self._down:
            return
        _log.error("slot %d is left out: %s: %s", slot, question.shard.name, problem)
        self._down[slot] = problem
        task = asyncio.ensure_future(
            self._wait_for(slot, Question(question.generation, question.shard, DescribeShard()))
        )
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)

    async def _wait_for(self, slot: int, question: Question) -> None:
        while True:
            try:
                await asyncio.wait_for(self._transport.ask(slot, question), self._patience.limit)
                break
            except Exception:  # whatever it is, the slot stays out
                await asyncio.sleep(_PAUSE)
        _log.info("slot %d answers again", slot)
        del self._down[slot]


def _result(task: asyncio.Task[Answer]) -> Answer | Exception:
    """What became of a question."""
    if task.cancelled():
        return RuntimeError("the question was cancelled")
    error = task.exception()
    if error is not None and not isinstance(error, Exception):
        raise error
    return error or task.result()
