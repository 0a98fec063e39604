"""`make bench-gpu`: every GPU figure, beside its peers and the GPU's own limits.

limits     what the GPU's memory and tensor cores reach in this run
search     one caption against galleries that stay on the GPU, as segments: searches by wall time, kernels by events
shortlist  how many rows are listed and scored again, as segments and as one
all-pairs  all captions against all images, in the shape of Flickr30K's test set
backends   encoding and scoring by every backend, beside torch, at the published model's size
parity     every backend and precision beside the torch model; this section needs the demo's packages

Each candidate runs in a process of its own, one after another, and the results are written after each. What does not
run is listed with the reason. Without a GPU nothing runs, except with --interpreted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from ..commands import values
from ..runtime.files import write_file
from ..runtime.gpu import GpuReport, examine_gpu
from .cuda import Clocks, gpu_state, gpu_uuid
from .gpu_candidates import candidates, precision_of
from .gpu_images import DONE, K, make_case
from .measure import PACKAGES, machine
from .search import DIM, REGIONS, WORDS

RESULTS = Path(__file__).parent / "results"
DEMO = Path("out/demo")
SECTIONS = ("limits", "search", "host", "shortlist", "all-pairs", "backends", "parity")
PAIRS = (1000, 5000)  # images and captions of Flickr30K's test set
CERTIFIED = "this, triton int8, certified"
CAPTIONS = 64  # different ones that are searched for
_INTERPRETED = 4  # by the interpreter, which is slow
_MOST_SECONDS = {"backends": 900, "parity": 1800}  # of a process; the others may take _MOST
_MOST = 240

Record = dict[str, Any]


@click.command()
@click.option(
    "--only", type=values.TEXT, help=f"Sections to run, separated by commas: {', '.join(SECTIONS)}. The default is all."
)
@click.option("--without", type=values.TEXT, help="Sections to leave out, separated by commas.")
@click.option("--images", "sizes", multiple=True, type=click.IntRange(min=K), default=(10_000, 100_000),
    show_default=True, help="Gallery sizes; may be repeated.")  # fmt: skip
@click.option("--pairs", type=(click.IntRange(min=K), click.IntRange(min=1)), default=PAIRS, show_default=True,
    help="Numbers of images and captions whose pairs are all scored.")  # fmt: skip
@click.option("--candidates", "names", type=values.TEXT, multiple=True,
    help="Candidates to run, by a part of their names; may be repeated. The default is all.")  # fmt: skip
@click.option("--seconds", default=3.0, show_default=True, help="Seconds of timed searches of each candidate.")
@click.option("--demo", type=values.NEW_FOLDER, default=DEMO, show_default=True,
    help="Folder of the demo, for the section parity; the demo is run where the folder is missing.")  # fmt: skip
@click.option("--out", type=values.NEW_FILE,
    help="File of the results; the default is bench/results/gpu-NAME.json.")  # fmt: skip
@click.option("--cases", type=values.NEW_FOLDER,
    help="Folder that keeps the galleries for other runs; the default removes each once measured.")  # fmt: skip
@click.option("--interpreted", is_flag=True,
    help="Run without a GPU, kernels in Triton's interpreter: a test of the benchmark, no measurement.")  # fmt: skip
def main(
    only: str | None,
    without: str | None,
    sizes: tuple[int, ...],
    pairs: tuple[int, int],
    names: tuple[str, ...],
    seconds: float,
    demo: Path,
    out: Path | None,
    cases: Path | None,
    interpreted: bool,
) -> None:
    """Measure this project on this machine's GPU, beside its peers."""
    sections = _sections(only, without)
    gpu = GpuReport() if interpreted else examine_gpu()
    if gpu.problem is not None:
        raise click.ClickException(f"nothing was measured: there is no usable NVIDIA GPU here: {gpu.problem}")
    if out is None:
        out = RESULTS / f"gpu-{gpu.gpus[0].name.lower().replace(' ', '-') if gpu.gpus else 'interpreted'}.json"
    run = Run(head(gpu), out, None if interpreted else gpu.gpus[0].capability)
    chosen = [name for name in candidates() if not names or any(part in name for part in names)]
    shape = (4, 4, 64) if interpreted else (REGIONS, WORDS, DIM)  # Triton's interpreter is slow
    for section in sections:
        click.echo(f"\n== {section}")
        for what, request in requests(section, chosen, sorted(sizes), pairs, shape, seconds, demo, cases, run):
            run.measure(section, what, request)
    run.record["state after"] = gpu_state(run.gpu)
    run.write()
    click.echo(f"written: {out}")


def _sections(only: str | None, without: str | None) -> list[str]:
    given = [name.strip() for text in (only, without) if text for name in text.split(",")]
    if unknown := [name for name in given if name not in SECTIONS]:
        raise click.BadParameter(f"a section must be one of {', '.join(SECTIONS)}, got {unknown[0]}")
    wanted = SECTIONS if only is None else [name.strip() for name in only.split(",")]
    left_out = [] if without is None else [name.strip() for name in without.split(",")]
    return [name for name in SECTIONS if name in wanted and name not in left_out]


def requests(
    section: str,
    chosen: list[str],
    sizes: list[int],
    pairs: tuple[int, int],
    shape: tuple[int, int, int],
    seconds: float,
    demo: Path,
    cases: Path | None,
    run: Run,
) -> Iterator[tuple[str, Record]]:
    """What each process of a section is asked for, by a name for the results; galleries are made as they are needed."""
    if section in ("limits", "backends", "parity"):
        yield section, {"seconds": seconds, "demo": str(demo)}
        return
    for count in [pairs[0]] if section == "all-pairs" else sizes:
        captions = pairs[1] if section == "all-pairs" else _INTERPRETED if run.interpreted else CAPTIONS
        with _case(cases, count, captions, shape) as folder:
            common = {"case": folder, "seconds": seconds, "captions": min(captions, 20)}
            if section == "host":
                # the interpreter takes 20 times as long for certified searches, and under a profiler a minute each
                candidate, many = ("this, triton float16", 2) if run.interpreted else (CERTIFIED, 512)
                yield f"{count} images", common | {"candidate": candidate, "many": many}
                continue
            if section == "shortlist":
                for one_part in (False, True):
                    name = f"{count} images as {'one part' if one_part else 'segments'}"
                    yield name, common | {"candidate": CERTIFIED, "one_part": one_part}
                continue
            for candidate in chosen:
                yield f"{count} images: {candidate}", common | {"candidate": candidate, "count": count}


def keep_cases(cases: Path, images: int) -> None:
    """Make the galleries that `--cases` will find: of one caption among so many images, and of all pairs."""
    for count, captions in (PAIRS, (images, CAPTIONS)):
        with _case(cases, count, captions, (REGIONS, WORDS, DIM)):
            pass


@contextmanager
def _case(cases: Path | None, count: int, captions: int, shape: tuple[int, int, int]) -> Iterator[str]:
    """The folder of a gallery and its captions, made where `cases` has none yet."""
    with ExitStack() as leaving:
        if cases is None:
            folder = Path(leaving.enter_context(TemporaryDirectory(prefix="chan-bench-gpu-")))
        else:
            folder = cases / "-".join(map(str, (count, captions, *shape)))
            folder.mkdir(parents=True, exist_ok=True)
        if not (folder / DONE).exists():
            click.echo(f"making {count} images")
            make_case(folder, count, captions, *shape)
        yield str(folder)


class Run:
    """A run of the benchmark: its record, written after each measurement.

    Args:
        record: what `head` returned.
        out: the file.
        capability: of the GPU; None for the interpreter.

    Attributes:
        interpreted: whether the interpreter runs the kernels.
        gpu: name of the GPU, from `gpu_uuid`.
    """

    def __init__(self, record: Record, out: Path, capability: tuple[int, int] | None) -> None:
        self.record = record
        self._out = out
        self._capability = capability
        self.interpreted = capability is None
        self.gpu = None if capability is None else gpu_uuid()

    def measure(self, section: str, what: str, request: Record) -> None:
        """Carry out a request in a process of its own, and note what came of it."""
        request = request | {"section": section, "capability": self._capability}
        environment = os.environ | ({"TRITON_INTERPRET": "1"} if self.interpreted else {})
        with TemporaryDirectory(prefix="chan-bench-gpu-") as folder:
            Path(folder, "request.json").write_text(json.dumps(request))
            command = [sys.executable, "-m", "chan_rt.bench.gpu_worker", folder]
            try:
                with Clocks(self.gpu) as clocks:
                    done = subprocess.run(
                        command, env=environment, capture_output=True, text=True,
                        timeout=_MOST_SECONDS.get(section, _MOST),
                    )  # fmt: skip
                reason = (done.stderr.strip() or f"the process ended with status {done.returncode}").splitlines()[-1]
            except subprocess.TimeoutExpired as error:
                reason = f"it took longer than {error.timeout:.0f} s"
            report = Path(folder, "report.json")
            if report.exists():
                found = json.loads(report.read_text()) | {"clocks": clocks.summary()}
                self.record.setdefault(section, {})[what] = self._judged(found, request)
                click.echo(f"{what}: {_brief(found)}")
            else:
                self.record["not run"][f"{section}: {what}"] = reason
                click.echo(f"not run: {what}: {reason}")
        self.write()

    def write(self) -> None:
        """Write the record beside its file and move it into place."""
        write_file(self._out, (json.dumps(self.record, indent=2, sort_keys=True) + "\n").encode())

    def _judged(self, found: Record, request: Record) -> Record:
        """A search's figures as multiples of reading its vectors once, as fast as this run read memory.

        What it reads is a multiple of the vectors' bytes: less than 1 where a level was read first.
        """
        rate = self.record.get("limits", {}).get("limits", {}).get("read_bytes_a_second")
        precision = precision_of(request.get("candidate", ""))
        if rate is None or "search_ms" not in found or precision == "float32":
            return found
        size = request["count"] * REGIONS * DIM * (1 if precision == "int8" else 2)
        limit = size / rate * 1e3
        kernels = found["kernels_ms"]
        times = {"search": found["search_ms"]["p50"] / limit}
        if "bytes_read" in found:
            times |= {"bytes read": found["bytes_read"] / size}
        if kernels:
            times |= {"all kernels": sum(kernels.values()) / limit}
        if "scan" in kernels:
            times |= {"scan": kernels["scan"] / limit}
        return found | {"limit_ms": limit, "times the limit": times}


def head(gpu: GpuReport) -> Record:
    """Command, commit, date and machine that the figures belong to."""
    packages = (*PACKAGES, "triton", "cuda-python", "cuda-bindings", "late-interaction-kernels", "flash-maxsim")
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = done.stdout.strip()
    except OSError:  # no git on a bare machine
        commit = ""
    return {
        "command": " ".join([Path(sys.executable).name, "-m", "chan_rt.bench.gpu", *sys.argv[1:]]),
        "commit": commit or "unknown",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "gpu": asdict(gpu),
        "machine": machine(packages),
        "state before": gpu_state(gpu_uuid()) if gpu.gpus else {},
        "not run": {},
    }


def _brief(found: Record) -> str:
    """The numbers of a measurement, on a line."""
    if "search_ms" in found:
        latency, kernels = found["search_ms"], found["kernels_ms"]
        return (
            f"p50 {latency['p50']:.3f} ms, p90 {latency['p90']:.3f} ms, agreement {found['agreement']:.3f}"
            f"{''.join(f', {name} {spent:.3f} ms' for name, spent in kernels.items())}"
        )
    if "one" in found:
        return "; ".join(
            f"{each['captions']} at once in {each['ms']:.3f} ms, most of them in {each['functions'][0]['function']}"
            for each in (found["one"], found["many"])
        )
    if "listed" in found:
        return f"listed {found['listed']}, rescored {found['rescored']}"
    if "seconds" in found:
        return f"{found['seconds']:.3f} s, agreement {found['agreement']:.3f}"
    return "measured"


if __name__ == "__main__":
    main()
