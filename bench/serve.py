"""`python -m chan_rt.bench.serve`: open-loop load on `chan serve`, beside the library in-process, LitServe and Triton.

The gallery is made up (serve_data.py) unless one is given. What a search reads depends on the gallery, so the share of
rescored rows is printed. The load generator shares the cores with the server; what it takes of them is printed, and
what other processes take.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..commands import values
from ..runtime.gallery import Gallery
from ..runtime.matcher import Matcher
from ..runtime.session import open_gallery_with_matcher
from ..scale.triton import write_repository
from .load import Load, open_loop
from .measure import machine
from .search_measures import K
from .serve_data import make_captions, make_gallery
from .triton_server import copy_backends, find_server, start_server

PACKAGES = ("onnxruntime", "numpy", "starlette", "uvicorn", "uvloop", "httptools", "msgspec", "litserve")


@dataclass(frozen=True)
class Running:
    """A server in a process of its own; `body` makes the body of a search from a caption."""

    name: str
    port: int
    path: str
    pid: int
    body: Callable[[str], bytes]


def in_process(gallery: Path, captions: Sequence[str], seconds: float) -> list[dict[str, float]]:
    """What the library reaches: searches a second with captions in batches, of one thread and of two at once."""
    with open_gallery_with_matcher(gallery) as (opened, matcher):
        searched_by(opened, matcher, captions, 1, 1, seconds / 8)  # opens what a search reads
        return [
            searched_by(opened, matcher, captions, batch, callers, seconds / 4)
            for callers in (1, 2)
            for batch in (1, 2, 4, 8, 16, 32, 64)
        ]


def searched_by(
    gallery: Gallery, matcher: Matcher, captions: Sequence[str], batch: int, callers: int, seconds: float
) -> dict[str, float]:
    """Searches a second of some threads, each of which encodes a batch of captions and searches for it, in turns."""
    shares: list[float] = []
    begin = time.perf_counter()

    def call(first: int) -> int:
        done = 0
        while time.perf_counter() - begin < seconds or done < 2 * batch:
            chosen = [captions[(first + done + i) % len(captions)] for i in range(batch)]
            shares.extend(one.rescored_share for one in gallery.search(matcher.encode_texts(chosen), K))
            done += batch
        return done

    with ThreadPoolExecutor(callers) as threads:
        done = sum(threads.map(call, range(0, 50 * callers, 50)))
    took = time.perf_counter() - begin
    return {
        "batch": batch,
        "threads": callers,
        "searches_a_second": done / took,
        "batch_ms": 1e3 * callers * batch * took / done,
        "rescored_share": float(np.mean(shares)),
    }


@contextlib.contextmanager
def chan_server(gallery: Path, workers: int) -> Iterator[Running]:
    """`chan serve` with its defaults."""
    code = "from chan_rt.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(gallery), "--port", "0", "--workers", str(workers)]
    with tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(command, stderr=log)
        try:
            found = None
            while found is None:
                time.sleep(0.05)
                found = re.search(rb"listening at http://127\.0\.0\.1:(\d+)", Path(log.name).read_bytes())
                if process.poll() is not None:
                    raise click.ClickException(Path(log.name).read_text())
            running = Running("chan serve", int(found[1]), "/v1/search", process.pid, search_body)
            wait_until_it_answers(running)
            yield running
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def litserve_server(gallery: Path, python: str) -> Iterator[Running]:
    """LitServe around the same matcher and gallery, run by a Python that has it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [python, "-m", "chan_rt.bench.serve_peer", str(gallery), str(port)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        running = Running("LitServe", port, "/predict", process.pid, search_body)
        wait_until_it_answers(running)
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # on SIGTERM its workers stay
        process.wait()


@contextlib.contextmanager
def triton_server(gallery: Path, python: str) -> Iterator[Running]:
    """NVIDIA's server with the repository that `chan triton` writes, its model run by a Python that has the server."""
    bundle = Gallery.open(gallery).settings.bundle
    assert bundle is not None
    with tempfile.TemporaryDirectory(prefix="chan-triton-") as scratch:
        place = Path(scratch)
        write_repository(bundle, place / "repository", gallery=gallery)
        try:
            installed = find_server(python)
            backends = copy_backends(installed, place / "backends")
            flags = ["--model-control-mode=explicit", "--load-model=chan_search"]
            started = start_server(installed, place / "repository", backends, place / "log", flags)
        except (LookupError, RuntimeError) as error:
            raise click.ClickException(str(error)) from error
        try:
            path = "/v2/models/chan_search/infer"
            running = Running("Triton", started.http, path, started.process.pid, triton_body)
            wait_until_it_answers(running)
            yield running
        finally:
            started.kill()


def wait_until_it_answers(server: Running, seconds: float = 120) -> None:
    """Search until the server answers with 200."""
    deadline = time.monotonic() + seconds
    while open_loop("127.0.0.1", server.port, server.path, [server.body("w1x0")], 100, 0.01).answered == 0:
        if time.monotonic() > deadline:
            raise click.ClickException(f"{server.name} did not answer within {seconds:.0f} seconds")
        time.sleep(0.1)


def search_body(caption: str) -> bytes:
    """The body of a search of `chan serve` or LitServe."""
    return json.dumps({"captions": [caption], "k": K}).encode()


def triton_body(caption: str) -> bytes:
    """The body of a search of Triton."""
    given = {"name": "caption", "shape": [1, 1], "datatype": "BYTES", "data": [caption]}
    return json.dumps({"inputs": [given], "parameters": {"k": K}}).encode()


def memory(pid: int) -> int:
    """Bytes that a process and its children have of their own."""
    own = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return 1024 * int(own[1] if own else 0) + sum(memory(int(child)) for child in children)


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its children have taken so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(cpu_seconds(int(child)) for child in children)


def busy_seconds() -> float:
    """CPU time that all processes of this machine have taken so far."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")  # without idle and waiting for disks


def measure(server: Running, captions: Sequence[str], start: float, seconds: float) -> dict[str, Any]:
    """Raise the rate until a tenth is not answered in time, then load with 70 % and twice with 500 % of the capacity.

    The second overload shows whether memory still grows once the first has filled what the server keeps.
    """

    bodies = [server.body(caption) for caption in captions]

    def load(rate: float) -> dict[str, Any]:
        begin, own, busy = time.perf_counter(), cpu_seconds(server.pid), busy_seconds()
        found = open_loop("127.0.0.1", server.port, server.path, bodies, rate, seconds)
        took = time.perf_counter() - begin
        cores = (cpu_seconds(server.pid) - own) / took
        others = (busy_seconds() - busy) / took - cores - found.client_cores
        show(server.name, found, cores, others)
        return {**found.to_dict(), "server_cores": cores, "other_cores": others, "memory": memory(server.pid)}

    load(start)  # warms connections and caches
    rising, rate = [], start
    while True:
        rising.append(load(rate))
        if rising[-1]["answered"] < 0.9 * rising[-1]["rate"] or rate > 50_000:
            break
        rate *= 1.25
    peak = max(one["answered"] for one in rising)
    return {"rising": rising, "peak": peak, "normal": load(0.7 * peak), "overload": [load(5 * peak), load(5 * peak)]}


def show(name: str, load: Load, cores: float, others: float) -> None:
    """Print one line."""
    click.echo(
        f"{name:<12} {load.rate:8.0f} {load.answered:8.1f} {load.refused:8.1%} {load.failed:7.1%} {load.p50:9.1f} "
        f"{load.p99:9.1f} {load.p999:9.1f} {load.late:8.1f} {cores:8.2f} {load.client_cores:8.2f} {others:8.2f}"
    )


@click.command()
@click.option("--images", default=10_000, show_default=True, help="Images of the gallery that is made up.")
@click.option("--dim", default=1024, show_default=True, help="Width of its embeddings.")
@click.option("--gallery", type=values.FOLDER, help="Search this gallery of images instead.")
@click.option("--queries", type=values.FILE, help="Captions for it, one on each line.")
@click.option(
    "--start", type=values.NUMBER, default=40.0, show_default=True, help="Searches a second of the first rate."
)
@click.option("--seconds", type=values.NUMBER, default=10.0, show_default=True, help="Seconds at each rate.")
@click.option("--workers", default=1, show_default=True, help="Worker processes of `chan serve`.")
@click.option("--litserve", type=values.FILE, help="Python that has LitServe and this package, if this one has not.")
@click.option("--triton", type=values.FILE, help="Python that has NVIDIA's server: .venv-triton/bin/python.")
@click.option("--out", type=values.NEW_FILE, help="Also write the figures to this file, as JSON.")
def main(
    images: int, dim: int, gallery: Path | None, queries: Path | None, start: float, seconds: float, workers: int,
    litserve: Path | None, triton: Path | None, out: Path | None,
) -> None:  # fmt: skip
    """Measure `chan serve` under open-loop load: searches a second and latencies, beside the library and its peers."""
    record: dict[str, Any] = {"machine": machine(PACKAGES), "images": images, "dim": dim, "seconds": seconds}
    with tempfile.TemporaryDirectory(prefix="chan-bench-") as scratch:
        if gallery is None:
            gallery = make_gallery(Path(scratch), images, dim)
        captions = make_captions(500, 4) if queries is None else queries.read_text(encoding="utf-8").splitlines()
        record["library"] = library = in_process(gallery, captions, seconds)
        for one in library:
            click.echo(
                f"in-process   {one['searches_a_second']:8.1f} searches a second by {one['threads']} threads in "
                f"batches of {one['batch']:2}, {one['batch_ms']:.2f} ms each, {one['rescored_share']:.2%} rescored"
            )
        click.echo(f"{'':12} {'rate':>8} {'answered':>8} {'refused':>8} {'failed':>7} {'p50 ms':>9} {'p99':>9} "
                   f"{'p99.9':>9} {'late':>8} {'server':>8} {'client':>8} {'others':>8} cores")  # fmt: skip
        with chan_server(gallery, workers) as server:
            record["chan serve"] = ours = measure(server, captions, start, seconds)
        if litserve is None and importlib.util.find_spec("litserve") is None:
            click.echo("LitServe     not installed: pip install litserve")
        else:
            with litserve_server(gallery, str(litserve or sys.executable)) as server:
                record["LitServe"] = measure(server, captions, start, seconds)
        if triton is None:
            click.echo("Triton       not measured: make .venv-triton/installed, and --triton .venv-triton/bin/python")
        else:
            with triton_server(gallery, str(triton)) as server:
                record["Triton"] = measure(server, captions, start, seconds)
        click.echo("next-plaid   no package of its server for pip; not measured")
    share = ours["peak"] / max(one["searches_a_second"] for one in library)
    kept = ours["overload"][1]["answered"] / ours["peak"]
    growth = (ours["overload"][1]["memory"] - ours["overload"][0]["memory"]) / 2**20
    click.echo(
        f"chan serve reaches {share:.1%} of the library, and keeps {kept:.1%} of its peak at five times that load; its "
        f"memory grows by {growth:.1f} MiB from one such overload to the next"
    )
    if out is not None:
        out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
