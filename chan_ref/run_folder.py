"""The folder of a training run: what can be said of it before torch is loaded."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from ..runtime.contract import MANIFEST, has_keys
from ..runtime.errors import CheckpointError, InputError, reason_of
from ..runtime.files import is_utf8, recover
from ..runtime.locks import only_one
from .checkpoint_config import CONFIG, read_config

_WRITTEN = ("best", "log.jsonl", "log.csv", "curve.svg", "optimizer-*.safetensors")  # by a run, besides `last`


def check_new(run: Path) -> None:
    """InputError where a folder holds a run already, a checkpoint, a bundle, or what a run would replace."""
    if (run / "last").exists() or any(run.glob(".last.*/old")):  # where a killed process has left it
        raise InputError(f"{run} holds a run already: continue it with --resume, or choose another folder")
    if has_keys(run / CONFIG, "schema", "model"):
        raise InputError(f"{run} holds a checkpoint: choose another folder for the run; --start trains it further")
    if has_keys(run / MANIFEST, "schema", "graphs"):
        raise InputError(f"{run} holds a bundle: choose another folder for the run")
    if taken := _written(run):
        raise InputError(
            f"{run} holds {', '.join(taken)}, which the run would replace, and no finished epoch to resume from: "
            "choose another folder, or move this away"
        )


def check_tensorboard(run: Path) -> None:
    """InputError where TensorBoard, which takes paths in UTF-8 only, cannot write below a run's folder."""
    if not is_utf8(run):
        raise InputError(f"{run}: --tensorboard needs a folder whose path is UTF-8: rename it")


def check_there(run: Path) -> None:
    """InputError where there is no folder of a run that could be resumed."""
    if not run.is_dir():
        raise nothing_to_resume(run)


def nothing_to_resume(run: Path) -> InputError:
    """The error of a folder without a finished epoch."""
    taken = _written(run)  # by a process that ended within its first epoch's last step
    away = f"move {', '.join(taken)} away and " if taken else ""
    return InputError(f"{run} has no finished epoch to resume from: {away}leave --resume out")


def _written(run: Path) -> list[str]:
    """Names of what a run has written into a folder, besides `last`."""
    return sorted(found.name for name in _WRITTEN for found in run.glob(name))


def alone(run: Path) -> AbstractContextManager[None]:
    """Keep other processes from training in RUN, from before the first epoch on."""
    return only_one(run / ".lock", f"another process trains in {run}: wait for it to end, or choose another folder")


def check_best(run: Path, logs: list[dict[str, Any]]) -> None:
    """CheckpointError unless RUN/best is there, which later epochs may not replace."""
    try:
        recover(run / "best")
        read_config(run / "best")
    except CheckpointError as error:
        best = max((log["epoch"] for log in logs if log["best"]), default=0)
        raise CheckpointError(
            f"{run / 'best'} does not hold the best epoch so far, {best}, any more: bring it back, or copy "
            f"{run / 'last'} there to go on without it"
        ) from error


def last_epoch(run: str | Path) -> int | None:
    """Return the epoch that RUN/last holds, counted from 0, or None if no epoch was finished."""
    record = _last_record(run)
    return None if record is None else int(record["epoch"])


def stopped_early(run: str | Path) -> bool:
    """Return whether RUN ended before its last epoch."""
    record = _last_record(run)
    return record is not None and int(record["epoch"]) + 1 < int(record["options"]["epochs"])


def _last_record(run: str | Path) -> dict[str, Any] | None:
    """What RUN/last records of its training; None if no epoch was finished."""
    config = Path(run) / "last" / CONFIG
    if not config.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))["training"]
        int(record["epoch"]), int(record["options"]["epochs"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{config} was not written by `chan train`: {reason_of(error)}") from error
    return record
