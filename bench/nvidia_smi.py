"""What nvidia-smi says of a GPU: its name, its state, and its clocks while something runs.

https://docs.nvidia.com/deploy/nvidia-smi/
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import uuid
from typing import IO, Self

import numpy as np

_STATE = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.draw,temperature.gpu,memory.used"
_PATIENCE = 30.0  # seconds that its first line may take: a driver that nobody holds is loaded first


def gpu_uuid(index: int = 0) -> tuple[str | None, str]:
    """What nvidia-smi calls a GPU by CUDA's count, whatever CUDA_VISIBLE_DEVICES says, or why it has no name.

    CUDA's own UUID of a MIG instance is that of a `MIG-...` in nvidia-smi's list. Clocks and power are of the whole GPU
    that it is a part of, so that is named.
    """
    from cuda.bindings import runtime

    status, properties = runtime.cudaGetDeviceProperties(index)
    if status != 0:
        return None, "CUDA does not say which GPU it uses"
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None, "nvidia-smi is not installed"
    wanted, whole = str(uuid.UUID(bytes=bytes(properties.uuid.bytes))), None
    for name in re.findall(r"UUID: ([^)]+)", subprocess.run([tool, "-L"], capture_output=True, text=True).stdout):
        whole = name if name.startswith("GPU-") else whole
        if name in (f"GPU-{wanted}", f"MIG-{wanted}"):
            return whole or name, ""
    return None, f"nvidia-smi -L lists no GPU and no MIG instance {wanted}"


class Clocks:
    """Samples a GPU's clocks, power and temperature while a block runs.

    nvidia-smi is started once, before the block, which begins when its first line has come: by then the driver is
    awake, and nothing of the start is in what the block times. That line is of before and does not count.

    Args:
        gpu: its name, from `gpu_uuid`; None samples nothing.
        every: seconds between samples.

    Attributes:
        samples: what nvidia-smi reported, in order.
    """

    def __init__(self, gpu: str | None, every: float = 0.5) -> None:
        self._gpu, self._every = gpu, every
        self._came = threading.Event()
        self.samples: list[dict[str, str]] = []

    def __enter__(self) -> Self:
        tool = shutil.which("nvidia-smi")
        self._process = None
        if self._gpu is not None and tool is not None:
            command = [*_asking(tool, self._gpu), f"--loop-ms={max(1, round(1e3 * self._every))}"]
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self._thread = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
            self._thread.start()
            self._came.wait(_PATIENCE)
            self.samples.clear()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._thread.join()

    def summary(self) -> dict[str, list[float]]:
        """Smallest, middle and largest of each number sampled."""
        found = {}
        for name in ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu"):
            values = [number for each in self.samples if (number := _number(each.get(name, ""))) is not None]
            if values:
                found[name] = [min(values), float(np.median(values)), max(values)]
        return found

    def _read(self, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                if (state := _state(line)) is not None:
                    self.samples.append(state)
                    self._came.set()
        self._came.set()  # nothing more will come


def _number(text: str) -> float | None:
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return None


def gpu_state(gpu: str | None = None) -> dict[str, str]:
    """Clocks, power, temperature and memory in use, as nvidia-smi tells them; empty where it is not installed.

    gpu: its UUID; None for the first.
    """
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    done = subprocess.run(_asking(tool, gpu or "0"), capture_output=True, text=True)
    state = _state(done.stdout) if done.returncode == 0 else None
    return {"nvidia-smi": done.stderr.strip() or done.stdout.strip()} if state is None else state


def _asking(tool: str, gpu: str) -> list[str]:
    """The command that has nvidia-smi tell of a GPU."""
    return [tool, f"--query-gpu={_STATE}", "--format=csv,noheader", f"--id={gpu}"]


def _state(line: str) -> dict[str, str] | None:
    """What a line of nvidia-smi's tells; None of one that is a message."""
    values = [value.strip() for value in line.strip().split(",")]
    names = _STATE.split(",")
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else None
