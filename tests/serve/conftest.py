"""A small gallery of pictures, and servers of it in processes of their own."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx
import numpy as np
import pytest
from PIL import Image

from chan_rt.runtime import (
    Gallery,
    Matcher,
    gallery_settings,
    index_source,
    open_gallery_with_matcher,
    open_matcher,
    open_writer,
    picture_source,
)

from ..run_chan import PROGRAM

T = TypeVar("T")
CAPTION = "two red apples lie on the blue table"
STARTUP_SECONDS = 120


@dataclass
class RunningServer:
    """`chan serve` in a process of its own."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    def wait_for(self, found: Callable[[str], object]) -> None:
        """Wait until the log has what `found` looks for."""
        _poll(self.process, self.log, lambda: found(self.log.read_text()))

    def stop(self, seconds: float = 30) -> int:
        """Send SIGTERM and return the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 8 pictures that differ."""
    folder = tmp_path_factory.mktemp("served") / "photos"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for n in range(8):
        cells = rng.integers(0, 256, (2, 2, 3), np.uint8)
        Image.fromarray(cells.repeat(24, 0).repeat(30, 1)).save(folder / f"{n} & co.png")
    return folder


@pytest.fixture(scope="session")
def gallery(bundle: Path, pictures: Path) -> Path:
    """A gallery of the pictures."""
    path = pictures.parent / "gallery"
    with open_writer(path, gallery_settings(bundle)) as writer, open_matcher(writer, threads=1) as matcher:
        index_source(writer, matcher, picture_source([pictures]))
    return path


@pytest.fixture(scope="module")
def library(gallery: Path) -> Iterator[tuple[Gallery, Matcher]]:
    """The gallery and its matcher in this process."""
    with open_gallery_with_matcher(gallery, threads=1) as opened:
        yield opened


@pytest.fixture(scope="session")
def start_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., contextlib.AbstractContextManager]]:
    """(arguments of `chan serve`) -> a running server, as a context manager that kills it at its end.

    `code` is the program that runs the command.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    @contextlib.contextmanager
    def start(*arguments: object, wait: bool = True, code: str = PROGRAM) -> Iterator[RunningServer]:
        log = tmp_path_factory.mktemp("server") / "log"
        command = [sys.executable, "-c", code, "serve", *map(str, arguments), "--port", "0", "--threads", "1"]
        with open(log, "w") as stderr:
            process = subprocess.Popen(command, stderr=stderr, stdout=subprocess.DEVNULL, text=True, env=environment)
        try:
            url = _listening(process, log)
            if wait:
                _wait_ready(process, url, log)
            yield RunningServer(process, url, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    return start


def _listening(process: subprocess.Popen[str], log: Path) -> str:
    """The URL that the server's log names."""
    return _poll(process, log, lambda: re.search(r"listening at (http://[\w.:\[\]]+)", log.read_text()))[1]


def _wait_ready(process: subprocess.Popen[str], url: str, log: Path) -> None:
    _poll(process, log, lambda: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)


def _poll(process: subprocess.Popen[str], log: Path, found: Callable[[], T]) -> T:
    """Wait until something is so, while the server lives."""
    deadline = time.monotonic() + STARTUP_SECONDS
    while not (value := found()):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    return value


@pytest.fixture(scope="session")
def server(start_server: Callable, gallery: Path) -> Iterator[RunningServer]:
    """A server of the gallery with the default settings."""
    with start_server(gallery) as running:
        yield running


@pytest.fixture
def http(server: RunningServer) -> Iterator[httpx.Client]:
    """A client of `server`."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client
