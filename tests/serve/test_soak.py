"""Searches beside a writer, killed workers, reopened galleries and clients that misbehave.

No answer is wrong, no row is lost and nothing grows: for seconds in each run of the tests, an hour in the nightly.
"""

import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from chan_rt.runtime import Embeddings, Gallery, GalleryLocked, verify_gallery
from chan_rt.serve import Client, RequestRefused

CAPTIONS = ["two red apples lie on the blue table", "a cloud", "the green strawberry and the table"]
LIMITS = ["--max-requests", "16", "--max-seconds", "3", "--max-payload", "200000", "--max-connections", "60"]


class Soak:
    """Several kinds of clients, each in a thread, until the time is over; the first error ends all of them.

    Attributes:
        counts: what happened how often.
        truth: caption -> id -> score, of the rows that stay.
        acknowledged: for each writer the ids of the rows it added, which the gallery must have.
    """

    def __init__(self, url: str, pid: int, truth: dict[str, dict[str, float]], rows: Embeddings) -> None:
        self.url = url
        self.counts: Counter[str] = Counter()
        self.acknowledged: dict[str, set[str]] = {"a": set(), "b": set()}
        self._pid = pid
        self.truth = truth
        self._rows = rows
        self._ids = sorted(truth[CAPTIONS[0]])
        self._numbers = itertools.count()
        self._end = threading.Event()
        self._errors: list[BaseException] = []

    def run(self, seconds: float, *clients: Callable[[random.Random], None]) -> None:
        """Call each client again and again, and raise the first error."""

        def repeat(client: Callable[[random.Random], None], seed: int) -> None:
            rng = random.Random(seed)
            try:
                while not self._end.is_set():
                    client(rng)
            except BaseException as error:
                self._errors.append(error)
                self._end.set()

        self._end.clear()
        threads = [threading.Thread(target=repeat, args=(client, i)) for i, client in enumerate(clients)]
        for thread in threads:
            thread.start()
        self._end.wait(seconds)
        self._end.set()
        for thread in threads:
            thread.join(60)
        if self._errors:
            raise self._errors[0]

    def search(self, rng: random.Random) -> None:
        """The answer is certified and has the true scores, those of rows that come and go included."""
        caption = rng.choice(CAPTIONS)
        with self._client() as client:
            for _ in range(20):
                try:
                    (result,) = client.search([caption], k=1000)
                except httpx.TransportError:  # its worker was killed
                    self.counts["search cut off"] += 1
                    return
                except RequestRefused as error:
                    self.counts[f"search refused: {error.reason}"] += 1
                    continue
                self._check(result, caption)
                self.counts["search"] += 1

    def _check(self, result, caption: str) -> None:
        assert result.certified
        truth = self.truth[caption]
        assert len(result.hits) == result.rows
        scores = [hit.score for hit in result.hits]
        assert scores == sorted(scores, reverse=True)
        assert {hit.id for hit in result.hits} >= truth.keys()
        for hit in result.hits:  # a row `a/N of ID` has the vectors of the row ID
            expected = truth[hit.id.partition(" of ")[2] or hit.id]
            assert abs(hit.score - expected) < 1e-4, (hit.id, hit.score, expected)

    def writer(self, name: str) -> Callable[[random.Random], None]:
        """Adds some rows and deletes some; what was acknowledged is there, also after its worker was killed."""
        mine = self.acknowledged[name]

        def write(rng: random.Random) -> None:
            chosen = rng.sample(range(len(self._ids)), 3)
            new = [f"{name}/{next(self._numbers)} of {self._ids[row]}" for row in chosen]
            self._change(lambda client: client.add(new, self._rows[chosen], overwrite=True))
            mine.update(new)
            if len(mine) > 30:
                gone = rng.sample(sorted(mine), 10)

                def delete(client: Client) -> None:
                    (result,) = client.search([CAPTIONS[0]], k=1000)
                    there = [id for id in gone if id in {hit.id for hit in result.hits}]
                    if there:
                        client.delete(there)

                self._change(delete)
                mine.difference_update(gone)

        return write

    def _change(self, change: Callable[[Client], object]) -> None:
        """Do a change until it is acknowledged."""
        while True:
            try:
                with self._client() as client:
                    change(client)
                self.counts["changes"] += 1
                return
            except (httpx.TransportError, RequestRefused, GalleryLocked):
                self.counts["changes tried again"] += 1
                time.sleep(0.05)

    def kill(self, rng: random.Random) -> None:
        """Kill a worker, or reopen the galleries."""
        if self._end.wait(rng.uniform(1, 4)):
            return
        workers = children(self._pid)
        if rng.random() < 0.3 or len(workers) < 2:
            os.kill(self._pid, signal.SIGHUP)
            self.counts["reopened"] += 1
        else:
            os.kill(rng.choice(workers), signal.SIGKILL)
            self.counts["workers killed"] += 1

    def misbehave(self, rng: random.Random) -> None:
        """Half a head, half a body, a body over the limit, garbage, or many connections at once."""
        body = json.dumps({"captions": CAPTIONS}).encode()
        start = b"POST /v1/search HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        whole = start + b"content-length: %d\r\n\r\n" % len(body) + body
        kind = rng.choice(["half a head", "half a body", "oversize", "garbage", "flood", "left early"])
        data = {
            "half a head": start[: rng.randrange(len(start))],
            "half a body": whole[: -rng.randrange(1, len(body))],
            "oversize": start + b"transfer-encoding: chunked\r\n\r\n" + b"8000\r\n%s\r\n" % (b"x" * 0x8000) * 12,
            "garbage": rng.randbytes(300),
            "left early": whole,
        }
        with contextlib.ExitStack() as stack:
            for _ in range(80 if kind == "flood" else 1):
                with contextlib.suppress(OSError):
                    connection = stack.enter_context(connect(self.url))
                    connection.sendall(data.get(kind, b""))
            if kind not in ("left early", "flood"):
                with contextlib.suppress(OSError):
                    connection.recv(4096)  # until the server ends it
        self.counts[kind] += 1

    def _client(self) -> Client:
        return Client(self.url, retries=8, timeout=20)


def connect(url: str) -> socket.socket:
    place = urlsplit(url)
    return socket.create_connection((place.hostname, place.port), timeout=8)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory(pid: int) -> int:
    """Bytes of a process that are its own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


@pytest.fixture
def soaked(start_server, gallery: Path, tmp_path: Path):
    path = shutil.copytree(gallery, tmp_path / "mine")
    truth, vectors = {}, None
    with start_server(path, "--workers", "2", "--writable", *LIMITS) as server:
        with Client(server.url, retries=8) as client:
            for caption in CAPTIONS:
                truth[caption] = {hit.id: hit.score for hit in client.search([caption], k=1000)[0].hits}
        with Gallery.open(path) as opened:
            vectors = opened.embeddings(sorted(truth[CAPTIONS[0]]))
        yield server, path, Soak(server.url, server.process.pid, truth, vectors)


SECONDS = [pytest.param(4, id="short"), pytest.param(3600, marks=pytest.mark.nightly, id="an hour")]


@pytest.mark.parametrize("seconds", SECONDS)
def test_faults_neither_falsify_an_answer_nor_lose_a_row(soaked, seconds: float) -> None:
    server, path, soak = soaked
    before = descriptors(server.process.pid)
    writers = soak.writer("a"), soak.writer("b")
    soak.run(seconds, soak.search, soak.search, *writers, soak.kill, soak.misbehave, soak.misbehave)
    with Client(server.url, retries=10) as client:
        (result,) = client.search([CAPTIONS[0]], k=1000)
    assert {hit.id for hit in result.hits} == set().union(soak.truth[CAPTIONS[0]], *soak.acknowledged.values())
    assert descriptors(server.process.pid) <= before
    assert server.stop() == 0
    assert verify_gallery(path) == []
    assert soak.counts["search"]
    assert soak.counts["changes"]
    assert soak.counts["workers killed"] + soak.counts["reopened"]
    assert "Traceback" not in server.log.read_text()
    print(dict(soak.counts))  # noqa: T201 - the counts of the nightly run


@pytest.mark.parametrize("seconds", SECONDS)
def test_workers_do_not_grow(soaked, seconds: float) -> None:
    """Nobody is killed here, so that the same workers answer from the beginning to the end."""
    server, _, soak = soaked
    clients = (soak.search, soak.writer("a"), soak.writer("b"), soak.misbehave, soak.misbehave)
    workers = children(server.process.pid)
    soak.run(min(seconds / 4, 120), *clients)
    warm = [(descriptors(pid), memory(pid)) for pid in workers]
    soak.run(seconds, *clients)
    deadline = time.monotonic() + 10  # for the connections to end
    while True:
        grown = [
            (descriptors(pid) - open_, memory(pid) - bytes_) for pid, (open_, bytes_) in zip(workers, warm, strict=True)
        ]
        if all(open_ <= 3 and bytes_ < 48 << 20 for open_, bytes_ in grown):
            break
        assert time.monotonic() < deadline, grown
        time.sleep(0.1)
    assert children(server.process.pid) == workers
    assert soak.counts["search"]
    assert soak.counts["changes"]
