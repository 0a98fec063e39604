"""NVIDIA's tritonserver as PyPI has it (`make test-triton`), with the Python backend only, and what it serves."""

from __future__ import annotations

import importlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from chan_rt.bench.triton_server import Started, copy_backends, find_server, start_server
from chan_rt.runtime import Embeddings, GalleryWriter, gallery_settings
from chan_rt.scale.triton import write_repository

SECONDS = 60  # that the server may take for anything
WORDS = ("red", "strawberry", "green", "apple", "blue", "table", "white", "clouds")


# A stopped process would be taken for a dead one after a second, so this one waits where its work begins.
HOLDING = """
import os
import time

from chan_rt.scale.triton import search_model

HOLD = {hold!r}


class TritonPythonModel(search_model.TritonPythonModel):
    def execute(self, requests):
        while os.path.exists(HOLD):
            open(HOLD + ".reached", "w").close()
            time.sleep(0.005)
        return super().execute(requests)
"""


@dataclass
class Triton:
    """A server in a process of its own, that is started with a repository and answers at ports of its own."""

    repository: Path
    log: Path
    started: Started
    clients: list[Any] = field(default_factory=list)
    before: tuple[int, int] = (0, 0)  # the statistics when `holding` began

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The server."""
        return self.started.process

    def client(self, protocol: str = "http") -> Any:
        """A client of tritonclient."""
        if protocol == "http":
            import tritonclient.http as module

            made = module.InferenceServerClient(f"127.0.0.1:{self.started.http}", network_timeout=SECONDS)
        else:
            import tritonclient.grpc as module

            made = module.InferenceServerClient(f"127.0.0.1:{self.started.grpc}")
        self.clients.append(made)
        return made

    def infer(
        self, protocol: str = "http", outputs: tuple[str, ...] = (), timeout: int | None = None, **inputs: Any
    ) -> dict[str, Any]:
        """The outputs of one request by name; `k` and `where` are its parameters, everything else is an input.

        timeout: microseconds that it may wait.
        """
        module = tritonclient(protocol)
        parameters = {name: inputs.pop(name) for name in ("k", "where", "other") if name in inputs}
        given = []
        for name, value in inputs.items():
            kind = {"f": "FP32", "i": "INT32"}.get(value.dtype.kind, "BYTES")
            given.append(module.InferInput(name, list(value.shape), kind))
            given[-1].set_data_from_numpy(value)
        wanted = [module.InferRequestedOutput(name) for name in outputs] or None
        found = self.client(protocol).infer(
            "chan_search", given, outputs=wanted, timeout=timeout, parameters=parameters or None
        )
        listed = found.get_response()["outputs"] if protocol == "http" else found.get_response().outputs
        names = [one["name"] if protocol == "http" else one.name for one in listed]
        return {name: found.as_numpy(name) for name in names}

    @contextmanager
    def holding(self, ask: Callable[[], Any], model: str = "chan_search") -> Iterator[Future[Any]]:
        """Make the model, whose repository `let_hold` has changed, wait with the request of `ask` until the block ends.

        What is asked within the block waits in the server's queue. The block has the future of the request, and what
        the server counts is then complete: it counts an execution after it sent the answers, before it begins the next.
        """
        hold = self.repository / "hold"
        reached = self.repository / "hold.reached"
        hold.touch()
        try:
            with ThreadPoolExecutor(1) as thread:
                asked = thread.submit(ask)
                wait_until(lambda: reached.exists() or asked.done())
                self.before = self.statistics(model)
                try:
                    yield asked
                finally:
                    hold.unlink()
        finally:
            reached.unlink(missing_ok=True)

    def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait for something that happens within SECONDS."""
        wait_until(happened)

    def statistics(self, model: str = "chan_search") -> tuple[int, int]:
        """Queries of a model that were executed, and executions that this took."""
        (found,) = self.client().get_inference_statistics(model)["model_stats"]
        return found["inference_count"], found["execution_count"]

    def executions(self, queries: int, model: str = "chan_search") -> int:
        """Executions that this number of queries took, the one that `holding` held among them."""
        wait_until(lambda: self.statistics(model)[0] - self.before[0] >= queries)
        found = self.statistics(model)
        assert found[0] - self.before[0] == queries
        return found[1] - self.before[1]

    def stub(self) -> int:
        """The process that runs the model."""
        own = str(self.process.pid)
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                name, rest = status.read_text().split("(", 1)[1].rsplit(")", 1)
            except OSError:  # it ended meanwhile
                continue
            if name.startswith("triton_python") and rest.split()[1] == own:
                return int(status.parent.name)
        raise AssertionError("the model runs in no process")

    def stop(self) -> int:
        """End the server as a service manager does; returns its exit status."""
        for client in self.clients:
            client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(SECONDS)


def tritonclient(protocol: str) -> ModuleType:
    """The module of a protocol's client."""
    return importlib.import_module(f"tritonclient.{protocol}")


@pytest.fixture(scope="session")
def start_triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Triton]]:
    """(repository, *flags) -> Triton that is ready; the flags are the server's."""
    pytest.importorskip("tritonclient", reason="tritonclient is not installed: make test-triton")
    try:
        installed = find_server(sys.executable)
    except LookupError as reason:
        pytest.skip(str(reason))
    backends = copy_backends(installed, tmp_path_factory.mktemp("backends"))
    started: list[Started] = []

    def start(repository: Path, *flags: str) -> Triton:
        log = tmp_path_factory.mktemp("triton") / "log"
        started.append(start_server(installed, repository, backends, log, flags))
        return Triton(repository, log, started[-1])

    yield start
    for server in started:
        server.kill()


def wait_until(happened: Callable[[], bool]) -> None:
    """Wait for something that happens within SECONDS."""
    begin = time.monotonic()
    while not happened():
        assert time.monotonic() - begin < SECONDS, "it did not happen"
        time.sleep(0.02)


def make_gallery(path: Path, bundle: Path, kind: str = "images", rows: int = 400) -> Path:
    """A gallery of random rows of 4 vectors; those of captions name two words of the vocabulary."""
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((rows, 4, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    metadata = [
        {"n": row, "caption": f"{WORDS[row % 8]} {WORDS[row // 8 % 8]}", "path": f"/private/{row}.png"}
        for row in range(rows)
    ]
    with GalleryWriter.create(path, gallery_settings(bundle, kind)) as writer:  # type: ignore[arg-type]
        writer.add([f"row-{row}" for row in range(rows)], Embeddings(vectors, np.full(rows, 4, np.int32)), metadata)
    return path


@pytest.fixture(scope="session")
def new_gallery() -> Callable[..., Path]:
    """The function that makes a gallery."""
    return make_gallery


@pytest.fixture(scope="session")
def holding_repository() -> Callable[[Path], Path]:
    """The function that changes a repository for `Triton.holding`."""
    return let_hold


@pytest.fixture(scope="session")
def gallery(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery of images."""
    return make_gallery(tmp_path_factory.mktemp("galleries") / "images", bundle)


@pytest.fixture(scope="session")
def repository(bundle: Path, gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model repository of the bundle and the gallery."""
    out = tmp_path_factory.mktemp("repositories") / "images"
    write_repository(bundle, out, gallery=gallery)
    return out


def let_hold(repository: Path) -> Path:
    """Change a repository so that `Triton.holding` can make its model wait."""
    (repository / "chan_search" / "1" / "model.py").write_text(HOLDING.format(hold=str(repository / "hold")))
    return repository


@pytest.fixture(scope="session")
def triton(start_triton: Callable[..., Triton], repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Triton:
    """A server of `chan_search`, which most tests share, and whose model can be made to wait."""
    repository = let_hold(Path(shutil.copytree(repository, tmp_path_factory.mktemp("holding") / "repository")))
    return start_triton(repository, "--model-control-mode=explicit", "--load-model=chan_search")
