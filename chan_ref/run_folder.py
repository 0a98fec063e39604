"""The folder of a training run: what can be said of it before torch is loaded."""

from __future__ import annotations

from pathlib import Path

from ..runtime.errors import InputError


def check_new(run: Path) -> None:
    """InputError where a folder holds a run already."""
    if (run / "last").exists() or (run / "log.jsonl").exists():
        raise InputError(f"{run} holds a run already: continue it with --resume, or choose another folder")


def check_there(run: Path) -> None:
    """InputError where there is no folder of a run that could be resumed."""
    if not run.is_dir():
        raise nothing_to_resume(run)


def nothing_to_resume(run: Path) -> InputError:
    """The error of a folder without a finished epoch."""
    return InputError(f"{run} has no finished epoch to resume from: leave --resume out")
