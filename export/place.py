"""Where a bundle may be written: asked before torch is loaded."""

from __future__ import annotations

from pathlib import Path

from ..runtime.contract import MANIFEST, has_keys
from ..runtime.errors import InputError


def check_place(out: Path, force: bool) -> None:
    """InputError unless a bundle may be written to a folder: where nothing is, or with `force` a bundle."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_bundle(out):
        raise InputError(f"{out} exists and is not a bundle: choose another place or remove it")
    if not force:
        raise InputError(f"{out} exists: --force replaces it, with its calibration and engines")


def is_bundle(path: Path) -> bool:
    """Whether PATH holds a manifest of any schema."""
    return has_keys(path / MANIFEST, "schema", "graphs")
