"""Writers that are killed (`kill_child.py`), and what may be left of their changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

CHILD = Path(__file__).with_name("kill_child.py")
Rows = dict[str, int]  # id -> version


def run_child(path: Path, seed: int, line: int) -> list[dict[str, Any]]:
    """The changes that the child began and finished before it was killed at `line`."""
    command = [sys.executable, str(CHILD), str(path), str(seed), str(line)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, -9), done.stderr
    return [json.loads(text) for text in done.stdout.splitlines() if text.endswith("}")]


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do some work in a child that is killed before its call number `step` that changes the disk; whether it was."""
    child = os.fork()
    if child == 0:
        calls = 0

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            return call

        for name in ("fsync", "replace", "unlink", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def possible_rows(rows: Rows, events: Iterable[dict[str, Any]]) -> list[Rows]:
    """The rows before and after the change that was killed, or those after the last change where none was."""
    pending = None
    for event in events:
        if event.get("phase") == "begin":
            pending = event
        elif event.get("phase") == "done":
            rows, pending = _after(rows, event), None
    return [rows] if pending is None else [rows, _after(rows, pending)]


def _after(rows: Rows, change: dict[str, Any]) -> Rows:
    if change["kind"] == "add":
        return {**rows, **dict.fromkeys(change["ids"], change["version"])}
    if change["kind"] == "relabel":
        new = dict(zip(change["ids"], change["new"], strict=True))
        return {new.get(id, id): version for id, version in rows.items()}
    if change["kind"] == "delete":
        return {id: version for id, version in rows.items() if id not in change["ids"]}
    return rows
