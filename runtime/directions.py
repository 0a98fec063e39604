"""The directions of a model's embeddings, which a bundle keeps so that search can be fitted without queries at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from .contract import Manifest, verified
from .embeddings import Kind
from .errors import BundleError, reason_of

DIRECTIONS_FILE = "calibration/directions.npz"
NAMES: Mapping[Kind, str] = {"images": "regions", "captions": "words"}
MOST = 256  # directions of each kind: as many as a gallery has axes


def directions_of(moment: NDArray[np.float64]) -> NDArray[np.float32]:
    """At most 256 vectors [r, D] whose second moment is nearest to this one [D, D], divided by its trace."""
    energy, axes = np.linalg.eigh(moment / max(float(np.trace(moment)), np.finfo(float).tiny))
    kept = np.sqrt(np.maximum(energy[::-1][:MOST], 0))[:, None] * axes[:, ::-1][:, :MOST].T
    return np.ascontiguousarray(kept, np.float32)


def read_directions(bundle: str | Path, manifest: Manifest, kind: Kind) -> NDArray[np.float32] | None:
    """The directions of a bundle's embeddings of a kind: float32 [r, D], or None where the bundle keeps none.

    Args:
        bundle: the bundle's folder.
        manifest: its manifest.
        kind: `images` for those of regions, `captions` for those of words.

    Raises:
        BundleError: the file is missing, altered or not what `chan calibrate` writes.
    """
    if DIRECTIONS_FILE not in manifest.calibration:
        return None
    path = verified(bundle, DIRECTIONS_FILE, manifest.calibration[DIRECTIONS_FILE])
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found: NDArray[Any] = arrays[NAMES[kind]]
    except (ValueError, KeyError, OSError, BadZipFile) as error:
        raise BundleError(f"{path} cannot be read: {reason_of(error)}") from error
    if found.ndim != 2 or found.shape[1] != manifest.embed_dim or found.dtype != np.float32:
        raise BundleError(
            f"{path}: {NAMES[kind]} must be float32 [directions, {manifest.embed_dim}], got {found.dtype} {found.shape}"
        )
    if not np.isfinite(found).all():
        raise BundleError(f"{path}: {NAMES[kind]} must be finite")
    return found
