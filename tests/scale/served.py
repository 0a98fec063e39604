"""`chan serve` in a process of its own, for tests of shards on Ray."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx

from ..run_chan import COMMAND

T = TypeVar("T")
SECONDS = 90


def until(found: Callable[[], T]) -> T:
    """Wait until something is so."""
    deadline = time.monotonic() + SECONDS
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


@contextmanager
def serving(log: Path, *arguments: str) -> Iterator[httpx.Client]:
    """A client of `chan serve` with these arguments; at the end of the block the server must end well."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [*COMMAND, "serve", *arguments, "--port", "0"]
    with open(log, "w") as stderr:
        server = subprocess.Popen(command, stderr=stderr, env=environment)
    try:
        url = until(lambda: server.poll() or re.search(r"listening at (http://\S+)", log.read_text()))
        assert isinstance(url, re.Match), log.read_text()
        with httpx.Client(base_url=url[1], timeout=SECONDS) as client:
            until(lambda: server.poll() is not None or _is_ready(client))
            assert server.poll() is None, log.read_text()
            yield client
        server.send_signal(signal.SIGTERM)
        assert server.wait(SECONDS) == 0, log.read_text()
        assert "SIGTERM received" not in log.read_text()
    finally:
        server.kill()
        server.wait()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.ConnectError:  # it ends
        return False
