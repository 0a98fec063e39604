"""A run of the GPU benchmark: jobs in order, each in a process of its own, until its time is up; and its record."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import click

from ..runtime.files import write_file
from .gpu_candidates import precision_of
from .gpu_cases import Cases, CaseShape
from .gpu_process import Record, ask_worker
from .nvidia_smi import Clocks, gpu_uuid
from .search import DIM, REGIONS

CORE = ("limits", "search", "all-pairs", "host", "shortlist")
MINUTES = 10.0  # of CORE together
_MOST_SECONDS = {"cases": 300, "backends": 900, "parity": 1800}  # of a process; the others may take _MOST
_MOST = 120
_LEAST = 5  # seconds that must be left for a process to be started
_NO_TIME = "time is up"
_TIMES = "times as fast as torch eager"


@dataclass(frozen=True)
class Job:
    """What a process is asked for.

    Attributes:
        section: of the record.
        name: in the section.
        request: what `gpu_worker` reads.
        case: the gallery that it needs.
        first: whether it comes before what is worth less.
    """

    section: str
    name: str
    request: Record
    case: CaseShape | None = None
    first: bool = True


class Run:
    """A run of the benchmark: its record, written after each measurement.

    Args:
        record: what `head` returned.
        out: the file.
        capability: of the GPU; None for the interpreter.
        minutes: as of `--minutes`.

    Attributes:
        interpreted: whether the interpreter runs the kernels.
        gpu: name of the GPU, from `gpu_uuid`; None where it has none, and then no clocks are sampled.
    """

    def __init__(
        self, record: Record, out: Path, capability: tuple[int, int] | None, minutes: float | None = None
    ) -> None:
        self.record = record
        self._out = out
        self._capability = capability
        self._minutes, self._began = minutes, time.monotonic()
        self.interpreted = capability is None
        self.gpu, reason = (None, "") if capability is None else gpu_uuid()
        if reason:
            record["not run"]["clocks"] = reason

    def left(self, section: str) -> float:
        """Seconds that a section may still take."""
        minutes = self._minutes or (MINUTES if section in (*CORE, "cases") else math.inf)
        return self._began + 60 * minutes - time.monotonic()

    def carry_out(self, todo: Sequence[Job], cases: Cases) -> None:
        """Every job; a gallery is made when it is first needed, and dropped when no later job needs it."""
        section = None
        for place, job in enumerate(todo):
            if job.section != section:
                click.echo(f"\n== {job.section}")
            section, request = job.section, job.request
            if job.case is not None:
                if not self._made(job, job.case, cases):
                    continue
                request = request | {"case": str(cases.folder(job.case))}
            self.measure(job.section, job.name, request)
            if job.case is not None and all(later.case != job.case for later in todo[place + 1 :]):
                cases.drop(job.case)

    def _made(self, job: Job, shape: CaseShape, cases: Cases) -> bool:
        """Whether a job's gallery is there; where it cannot be made, that is noted, and not tried again."""
        failed = f"cases: {shape.name}"
        if not cases.has(shape):
            if failed not in self.record["not run"]:
                click.echo(f"making {shape.images} images")
                cases.folder(shape).mkdir(parents=True, exist_ok=True)
                self.measure("cases", shape.name, {"case": str(cases.folder(shape)), "shape": astuple(shape)})
            if reason := self.record["not run"].get(failed):
                self.refuse(job.section, job.name, _NO_TIME if reason == _NO_TIME else f"its images: {reason}")
                return False
        return True

    def refuse(self, section: str, what: str, reason: str) -> None:
        """Note why something was not measured."""
        self.record["not run"][f"{section}: {what}"] = reason
        click.echo(f"not run: {what}: {reason}")
        self.write()

    def measure(self, section: str, what: str, request: Record) -> None:
        """Carry out a request in a process of its own, and note what came of it."""
        most, left = _MOST_SECONDS.get(section, _MOST), self.left(section)
        if left < _LEAST:
            self.refuse(section, what, _NO_TIME)
            return
        request = request | {"section": section, "capability": self._capability}
        with Clocks(self.gpu) as clocks:
            found, reason = ask_worker(request, min(most, left), self.interpreted)
        if found is None:
            self.refuse(section, what, _NO_TIME if left < most and self.left(section) <= 0 else reason)
            return
        found |= {"clocks": clocks.summary()}
        self.record.setdefault(section, {})[what] = self._judged(found, request)
        click.echo(f"{what}: {_brief(found)}")
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


def _brief(found: Record) -> str:
    """The numbers of a measurement, on a line."""
    if "search_ms" in found:
        latency, kernels = found["search_ms"], found["kernels_ms"]
        return (
            f"p50 {latency['p50']:.3f} ms, p90 {latency['p90']:.3f} ms, agreement {found['agreement']:.3f}"
            f"{''.join(f', {name} {spent:.3f} ms' for name, spent in kernels.items())}"
        )
    if _TIMES in found:
        rows = []
        for operation, ratios in found[_TIMES].items():
            row = ", ".join(f"{name} {ratio:.2f} times" for name, ratio in ratios.items())
            rows.append(f"{operation}: {row or 'nothing else ran'}")
        return f"as fast as torch eager: {'; '.join(rows)}"
    if "one" in found:
        return "; ".join(
            f"{each['captions']} at once in {each['ms']:.3f} ms, most of them in {each['functions'][0]['function']}"
            for each in (found["one"], found["many"])
        )
    if "listed" in found:
        return f"listed {found['listed']}, rescored {found['rescored']}"
    if "bytes" in found:
        spent = found["process"]
        return f"{found['bytes'] / 1e9:.1f} GB in {spent['seconds']:.0f} s" + (
            f", with {spent['own_bytes'] / 1e9:.1f} GB of the host's memory" if "own_bytes" in spent else ""
        )
    if "seconds" in found:
        return f"{found['seconds']:.3f} s, agreement {found['agreement']:.3f}"
    return "measured"
