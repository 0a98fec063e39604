"""A checkpoint's configuration and place, without its tensors: what can be said of it before torch is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..runtime.contract import has_keys
from ..runtime.errors import CheckpointError, reason_of
from ..runtime.strict_json import unique_keys
from .config import ModelConfig

SCHEMA = 1
CONFIG = "config.json"


def check_place(path: str | Path, force: bool) -> None:
    """Raise CheckpointError unless a checkpoint may be written to PATH.

    It may where nothing or an empty folder is, and with `force` also where a checkpoint is. Nothing else is replaced.
    """
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not _is_checkpoint(path):
        raise CheckpointError(f"{path} exists and is not a checkpoint: choose another place or remove it")
    if not force:
        raise CheckpointError(f"{path} holds a checkpoint already: --force replaces it, or choose another place")


def _is_checkpoint(path: Path) -> bool:
    """Return whether PATH holds a configuration of any schema; Hugging Face's folders have a config.json too."""
    return has_keys(path / CONFIG, "schema", "model")


def read_config(path: str | Path) -> ModelConfig:
    """Read the sizes and choices of a checkpoint, without its weights; raises CheckpointError as `load` does."""
    try:
        return read_record(Path(path))[0]
    except OSError as error:
        raise not_a_checkpoint(Path(path), error) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error


def not_a_checkpoint(path: Path, error: OSError) -> CheckpointError:
    """The error of a folder of which a file cannot be read."""
    missing = isinstance(error, FileNotFoundError) and error.filename
    why = f"it has no {Path(os.fsdecode(error.filename)).name}" if missing else reason_of(error)
    if (path / "best" / CONFIG).is_file():
        return CheckpointError(f"{path} is not a checkpoint but the folder of a run: give {path / 'best'}")
    return CheckpointError(f"{path} is not a checkpoint: {why}; make one with `chan train` or `chan import`")


def read_record(path: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """Read `config.json`: the model's configuration, and the record beside it."""
    raw = json.loads((path / CONFIG).read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise CheckpointError(f"{path / CONFIG}: schema must be {SCHEMA}, got {found!r}")
    try:
        config = ModelConfig.from_dict(raw.get("model", {}))
    except CheckpointError as error:
        raise CheckpointError(f"{path / CONFIG}: {error}") from error
    return config, {key: value for key, value in raw.items() if key not in ("schema", "model")}
