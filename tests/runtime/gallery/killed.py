"""Writers that are killed (`kill_child.py`), and what may be left of their changes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
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
