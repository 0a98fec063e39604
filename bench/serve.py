"""`python -m chan_rt.bench.serve`: open-loop load on `chan serve`, beside the library in-process and LitServe.

The gallery is made up unless one is given: a model of random weights, and images whose regions are words of captions as
that model encodes them, with noise. What a search rescores depends on the gallery, so the share is printed.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from ..runtime.embeddings import Embeddings
from ..runtime.gallery import GalleryWriter
from ..runtime.matcher import Matcher
from ..runtime.session import gallery_settings, open_gallery_with_matcher
from .load import Load, open_loop
from .measure import machine

REGIONS, WORDS, K = 36, 12, 10
PACKAGES = ("onnxruntime", "numpy", "starlette", "uvicorn", "uvloop", "httptools", "msgspec", "litserve")


@dataclass(frozen=True)
class Running:
    """A server in a process of its own."""

    name: str
    port: int
    path: str
    pid: int


def make_captions(count: int, seed: int) -> list[str]:
    """Captions of 8 to 12 words out of 400."""
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{word}" for word in rng.integers(0, 400, rng.integers(8, WORDS + 1))) for _ in range(count)]


def make_gallery(folder: Path, images: int, dim: int) -> Path:
    """A bundle of random weights, and a gallery of images that show the words of three captions each."""
    import torch

    from ..chan_ref import checkpoint
    from ..chan_ref.config import ModelConfig
    from ..chan_ref.model import ChanModel
    from ..export.bundle import export_bundle
    from ..runtime.text import build_scan_vocabulary

    torch.manual_seed(0)
    vocabulary = build_scan_vocabulary([" ".join(f"w{word}" for word in range(400))], min_count=1)
    config = ModelConfig(region_dim=64, embed_dim=dim, vocab_size=len(vocabulary["word2idx"]) + 1)
    model = ChanModel(config).eval()
    checkpoint.save(folder / "checkpoint", model, {"vocab.json": json.dumps(vocabulary).encode()}, {})
    export_bundle(folder / "checkpoint", folder / "bundle", ("fp32",))
    rng = np.random.default_rng(1)
    with (
        Matcher.open(folder / "bundle", "onnxruntime") as matcher,
        GalleryWriter.create(folder / "gallery", gallery_settings(folder / "bundle")) as writer,
    ):
        texts = matcher.encode_texts(make_captions(1000, 2))
        words = texts.vectors[np.arange(texts.vectors.shape[1]) < texts.lengths[:, None]]
        for first in range(0, images, 500):
            count = min(500, images - first)
            vectors = words[rng.integers(0, len(words), (count, REGIONS))]
            vectors += rng.standard_normal(vectors.shape, np.float32) * np.float32(0.3 / np.sqrt(dim))
            vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
            rows = Embeddings(vectors, np.full(count, REGIONS, np.int32), "images")
            writer.add([str(first + row) for row in range(count)], rows, [{"n": first + row} for row in range(count)])
    return folder / "gallery"


def in_process(gallery: Path, captions: Sequence[str], seconds: float) -> dict[str, float]:
    """What the library reaches: milliseconds of one search alone, and searches a second in the best batch size."""
    result = {"searches_a_second": 0.0, "batch": 0.0}
    with open_gallery_with_matcher(gallery) as (opened, matcher):
        for batch in (1, 2, 4, 8, 16, 32, 64):
            done, shares = 0, []
            begin = time.perf_counter()
            while (took := time.perf_counter() - begin) < seconds / 4 or done < 2 * batch:
                chosen = [captions[(done + i) % len(captions)] for i in range(batch)]
                found = opened.search(matcher.encode_texts(chosen), K)
                shares += [one.rescored_share for one in found]
                done += batch
            if batch == 1:
                result |= {"alone_ms": 1e3 * took / done, "rescored_share": float(np.mean(shares))}
            if done / took > result["searches_a_second"]:
                result |= {"searches_a_second": done / took, "batch": float(batch)}
    return result


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
            running = Running("chan serve", int(found[1]), "/v1/search", process.pid)
            wait_until_it_answers(running)
            yield running
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def litserve_server(gallery: Path) -> Iterator[Running]:
    """LitServe around the same matcher and gallery."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "chan_rt.bench.serve_peer", str(gallery), str(port)]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        running = Running("LitServe", port, "/predict", process.pid)
        wait_until_it_answers(running)
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # on SIGTERM its workers stay
        process.wait()


def wait_until_it_answers(server: Running, seconds: float = 120) -> None:
    """Search until the server answers with 200."""
    deadline = time.monotonic() + seconds
    while open_loop("127.0.0.1", server.port, server.path, requests(make_captions(1, 3)), 100, 0.01).answered == 0:
        if time.monotonic() > deadline:
            raise click.ClickException(f"{server.name} did not answer within {seconds:.0f} seconds")
        time.sleep(0.1)


def requests(captions: Sequence[str]) -> list[bytes]:
    """Bodies of searches, one caption each."""
    return [json.dumps({"captions": [caption], "k": K}).encode() for caption in captions]


def memory(pid: int) -> int:
    """Bytes that a process and its children have of their own."""
    own = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return 1024 * int(own[1] if own else 0) + sum(memory(int(child)) for child in children)


def measure(server: Running, bodies: Sequence[bytes], start: float, seconds: float) -> dict[str, Any]:
    """Raise the rate until a tenth is not answered in time, then load with 70 % and 500 % of the capacity."""

    def load(rate: float) -> Load:
        found = open_loop("127.0.0.1", server.port, server.path, bodies, rate, seconds)
        show(server.name, found)
        return found

    load(start)  # warms connections and caches
    rising, rate = [], start
    while True:
        rising.append(load(rate))
        if rising[-1].answered < 0.9 * rising[-1].rate or rate > 50_000:
            break
        rate *= 1.25
    peak = max(one.answered for one in rising)
    normal = load(0.7 * peak)
    before = memory(server.pid)
    overload = load(5 * peak)
    return {
        "rising": [one.to_dict() for one in rising],
        "peak": peak,
        "normal": normal.to_dict(),
        "overload": overload.to_dict(),
        "overload_memory_growth": memory(server.pid) - before,
    }


def show(name: str, load: Load) -> None:
    """Print one line."""
    click.echo(
        f"{name:<12} {load.rate:8.0f} {load.answered:8.1f} {load.refused:8.1%} {load.failed:7.1%} "
        f"{load.p50:9.1f} {load.p99:9.1f} {load.p999:9.1f} {load.late:8.1f}"
    )


@click.command()
@click.option("--images", default=10_000, show_default=True, help="Images of the gallery that is made up.")
@click.option("--dim", default=1024, show_default=True, help="Width of its embeddings.")
@click.option("--gallery", type=click.Path(exists=True, path_type=Path), help="Search this gallery of images instead.")
@click.option("--queries", type=click.Path(exists=True, path_type=Path), help="Captions for it, one on each line.")
@click.option("--start", default=40.0, show_default=True, help="Searches a second of the first rate.")
@click.option("--seconds", default=10.0, show_default=True, help="Seconds at each rate.")
@click.option("--workers", default=1, show_default=True, help="Worker processes of `chan serve`.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the figures to this file, as JSON.")
def main(
    images: int, dim: int, gallery: Path | None, queries: Path | None, start: float, seconds: float, workers: int,
    out: Path | None,
) -> None:  # fmt: skip
    """Measure `chan serve` under open-loop load: searches a second and latencies, beside the library and LitServe."""
    with tempfile.TemporaryDirectory(prefix="chan-bench-") as scratch:
        if gallery is None:
            gallery = make_gallery(Path(scratch), images, dim)
        captions = make_captions(500, 4) if queries is None else queries.read_text(encoding="utf-8").splitlines()
        library = in_process(gallery, captions, seconds)
        click.echo(
            f"in-process   {library['searches_a_second']:.1f} searches a second in batches of {library['batch']:.0f}, "
            f"{library['alone_ms']:.2f} ms alone, {library['rescored_share']:.2%} rescored"
        )
        click.echo(f"{'':12} {'rate':>8} {'answered':>8} {'refused':>8} {'failed':>7} {'p50 ms':>9} {'p99':>9} "
                   f"{'p99.9':>9} {'late':>8}")  # fmt: skip
        record: dict[str, Any] = {"machine": machine(PACKAGES), "images": images, "dim": dim, "library": library}
        bodies = requests(captions)
        with chan_server(gallery, workers) as server:
            record["chan serve"] = ours = measure(server, bodies, start, seconds)
        if importlib.util.find_spec("litserve") is None:
            click.echo("LitServe     not installed: pip install litserve")
        else:
            with litserve_server(gallery) as server:
                record["LitServe"] = measure(server, bodies, start, seconds)
        click.echo("next-plaid   no package of its server for pip; not measured")
    share = ours["peak"] / library["searches_a_second"]
    kept = ours["overload"]["answered"] / ours["peak"]
    click.echo(
        f"chan serve reaches {share:.1%} of the library, and keeps {kept:.1%} of its peak at five times that load"
    )
    if out is not None:
        out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
