"""A process of the GPU benchmark: its answer, or why there is none, and what it took of the host's memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

Record = dict[str, Any]


def ask_worker(request: Record, seconds: float, interpreted: bool) -> tuple[Record | None, str]:
    """Carry out a request in a process of its own.

    Args:
        request: what `gpu_worker` is asked for.
        seconds: the longest it may take.
        interpreted: whether the interpreter runs the kernels.

    Returns:
        report: the answer, with `process`: seconds, and bytes of the host's memory at most. None where it has none.
        reason: why not.
    """
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if interpreted else {})
    with TemporaryDirectory(prefix="chan-bench-gpu-") as folder:
        Path(folder, "request.json").write_text(json.dumps(request))
        command = [sys.executable, "-m", "chan_rt.bench.gpu_worker", folder]
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        with process, HostMemory(process.pid) as memory:
            try:
                _, told = process.communicate(timeout=seconds)
                reason = (told.strip() or f"the process ended with status {process.returncode}").splitlines()[-1]
            except subprocess.TimeoutExpired:
                process.kill()
                reason = f"it took longer than {seconds:.0f} s"
        report = Path(folder, "report.json")
        if not report.exists():
            return None, reason
        spent = {"seconds": time.perf_counter() - began} | memory.most
        return json.loads(report.read_text()) | {"process": spent}, ""


class HostMemory:
    """Samples the memory of a process on the host while a block runs.

    Args:
        pid: of the process.
        every: seconds between samples.

    Attributes:
        most: the largest seen, in bytes: resident_bytes has the pages of mapped files in it, which the system takes
            back where it needs them; own_bytes has not. Empty where the system does not tell.
    """

    def __init__(self, pid: int, every: float = 0.1) -> None:
        self._status, self._every = Path(f"/proc/{pid}/status"), every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.most: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            for name, found in memory_of(self._status).items():
                self.most[name] = max(found, self.most.get(name, 0))
            if self._ended.wait(self._every):
                return


def memory_of(status: Path) -> dict[str, int]:
    """Bytes that Linux reports in /proc/PID/status; empty where there is no such file, or the process has ended."""
    try:
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        kilobytes = {name: int(fields[name].split()[0]) for name in ("VmHWM", "RssAnon", "RssShmem")}
    except (OSError, KeyError):
        return {}
    own = kilobytes["RssAnon"] + kilobytes["RssShmem"]
    return {"resident_bytes": kilobytes["VmHWM"] * 1024, "own_bytes": own * 1024}
