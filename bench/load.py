"""Open-loop load over HTTP: requests are sent at their times, whether or not earlier ones were answered.

So a server that stalls is charged for every request that comes meanwhile, and latency counts from the time at which a
request was due. The client writes and parses as little HTTP as answers with a length need, because it shares the cores.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_PATIENCE = 60  # seconds until a request counts as not answered
FAILED = 0  # the status of a request that was not answered


@dataclass(frozen=True)
class Load:
    """What came of requests at one rate.

    Attributes:
        rate: requests a second that were due; the times between them are those of a Poisson process.
        answered: requests a second that were answered with 200.
        refused: share of the requests that were answered with 429 or 503.
        failed: share that was answered otherwise, or not at all.
        p50, p99, p999: milliseconds from the time a request was due to its answer with 200; nan without one.
        late: milliseconds that the client itself was late in sending, the 99th percentile.
        client_cores: CPU time that the client took, per time: 1 is all of a core, and then it is the limit itself.
    """

    rate: float
    answered: float
    refused: float
    failed: float
    p50: float
    p99: float
    p999: float
    late: float
    client_cores: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def open_loop(
    host: str, port: int, path: str, bodies: Sequence[bytes], rate: float, seconds: float, connections: int = 256
) -> Load:
    """Send requests at a rate and summarize their answers.

    Args:
        host, port, path: of the server; requests are POST with JSON.
        bodies: of the requests, used in turn.
        rate: requests a second.
        seconds: how long requests are sent; every answer is waited for.
        connections: the most that are open at once. A request that finds all busy waits for one, and the time counts.
    """
    due = np.cumsum(np.random.default_rng(0).exponential(1 / rate, max(1, round(rate * seconds))))
    sender = _Sender(host, port, path, bodies, connections)
    begin, cpu = time.perf_counter(), time.process_time()
    asyncio.run(sender.send(due.tolist()))
    took = max(time.perf_counter() - begin, float(due[-1]))
    cpu = time.process_time() - cpu
    statuses = Counter(sender.statuses)
    waits = np.array([1e3 * one for one in sender.waits] or [np.nan])
    p50, p99, p999 = (float(one) for one in np.percentile(waits, [50, 99, 99.9]))
    refused = statuses[429] + statuses[503]
    return Load(
        rate=len(due) / float(due[-1]),
        answered=statuses[200] / took,
        refused=refused / len(due),
        failed=(len(due) - statuses[200] - refused) / len(due),
        p50=p50,
        p99=p99,
        p999=p999,
        late=float(np.percentile([1e3 * one for one in sender.late], 99)),
        client_cores=cpu / took,
    )


class _Sender:
    """Sends requests over connections that are kept open."""

    def __init__(self, host: str, port: int, path: str, bodies: Sequence[bytes], connections: int) -> None:
        self.statuses: list[int] = []
        self.waits: list[float] = []
        self.late: list[float] = []
        self._place = host, port
        head = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
        self._requests = [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._room = connections

    async def send(self, due: Sequence[float]) -> None:
        """Send a request at each time, counted from now, and wait for all answers."""
        room = asyncio.Semaphore(self._room)
        loop = asyncio.get_running_loop()
        begin = loop.time()
        tasks = []
        for i, moment in enumerate(due):
            wait = begin + moment - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            request = self._requests[i % len(self._requests)]
            tasks.append(asyncio.create_task(self._one(room, request, begin + moment)))
        await asyncio.gather(*tasks)
        for _, writer in self._idle:
            writer.close()

    async def _one(self, room: asyncio.Semaphore, request: bytes, due: float) -> None:
        loop = asyncio.get_running_loop()
        self.late.append(loop.time() - due)
        async with room:
            try:
                async with asyncio.timeout(_PATIENCE):
                    status = await self._exchange(request)
            except (OSError, asyncio.IncompleteReadError, ValueError):  # TimeoutError is an OSError
                status = FAILED
        self.statuses.append(status)
        if status == 200:
            self.waits.append(loop.time() - due)

    async def _exchange(self, request: bytes) -> int:
        reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection(*self._place, limit=1 << 20)
        try:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status, length = _STATUS.match(head), _LENGTH.search(head)
            if status is None or length is None:
                raise ValueError("not an answer with a length")
            await reader.readexactly(int(length[1]))
        except BaseException:
            writer.close()
            raise
        if b"connection: close" in head.lower():
            writer.close()
        else:
            self._idle.append((reader, writer))
        return int(status[1])
