"""How many CPUs this process may use: the machine's, less what a container or a scheduler takes away."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs this process may run on at once, at least 1: those of its affinity, within its cgroup's quota.

    A quota of 1.5 CPUs counts as 2. `root` is where the file systems `proc` and `sys` are mounted.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), https://docs.kernel.org/scheduler/sched-bwc.html (v1)
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Every quota that holds for this process's cgroup, in CPUs: its own and those of the groups above it."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and not controllers:
            mounts = [""]
        elif "cpu" in controllers.split(","):
            mounts = [controllers, "cpu"]
        else:
            continue
        for mount in mounts:
            # A container often sees the group's path on its host, and the group itself at the mount's root.
            folder = root / "sys/fs/cgroup" / mount
            for place in (Path(group.lstrip("/")), *Path(group.lstrip("/")).parents):
                quota, period = _limit(folder / place)
                if quota > 0 and period > 0:
                    yield quota / period


def _limit(group: Path) -> tuple[int, int]:
    """Microseconds of CPU time, and the period they are for; zeros where the group has no limit."""
    text = _read(group / "cpu.max") or " ".join(_read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    try:
        quota, period = map(int, text.split())
    except ValueError:  # "max 100000", or no such files
        return 0, 0
    return quota, period


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
