"""Every score of some rows with some queries, by the compiled core: float32 products, no bounds and no codes.

Nothing is padded, and the products of four rows with a query stay in a core's cache until they are pooled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import AlignmentConfig
from ..embeddings import Embeddings
from .compiled import CoreThreads, core_is_fastest, need_core
from .proof.rows import FINE

_PAIRS = 1 << 19  # of one call of compiled code, which cannot be interrupted


def can_score(alignment: AlignmentConfig) -> bool:
    """Whether `all_scores` can compute such scores here, and sooner than other code: not by VSA coding."""
    return alignment.coding != "VSA" and core_is_fastest()


def all_scores(
    images: Embeddings,
    captions: Embeddings,
    alignment: AlignmentConfig,
    threads: CoreThreads,
    instructions: str | None = None,
) -> NDArray[np.float32]:
    """The score of every image with every caption: [I, C]. Similarities are float32, and pooled in float64.

    Args:
        images, captions: of one width, and finite.
        alignment: by any coding but VSA.
        threads: what the core uses.
        instructions: name of an instruction set (`_core.features()`); None for the best one of this CPU.

    Raises:
        BackendError: the core was not built.
    """
    scores = np.empty((len(images), len(captions)), np.float32)
    core = need_core()
    vectors, starts = _unpadded(images)
    search = core.Search(_plan(images.dim, alignment, instructions), [_part(vectors, starts)], None)
    for columns in _pieces(len(captions), max(1, _PAIRS // len(images))):
        words, word_starts = _unpadded(captions[columns])
        found = np.empty((len(images), len(word_starts) - 1), np.float32)
        search.all_scores(words, word_starts, threads.started(), found)
        scores[:, columns] = found
    return scores


def _pieces(count: int, most: int) -> Iterator[slice]:
    return (slice(first, min(first + most, count)) for first in range(0, count, most))


def _unpadded(embeddings: Embeddings) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All vectors [V, D] without padding, and where each row's begin [N + 1]."""
    valid = np.arange(embeddings.vectors.shape[1]) < embeddings.lengths[:, None]
    starts = np.r_[0, np.cumsum(embeddings.lengths, dtype=np.int64)]
    return np.ascontiguousarray(embeddings.vectors[valid], np.float32), starts


def _plan(dim: int, alignment: AlignmentConfig, instructions: str | None) -> dict[str, Any]:
    """What core/module.cpp reads of a plan without axes and levels."""
    level: dict[str, Any] = {"norms": 0, "coordinates": 0, "again": 0, "edges": []}
    level |= dict.fromkeys(("steps", "norm_step", "norm_typical"))
    return {
        "instructions": instructions,
        "dim": dim,
        "pools_query": alignment.coding == "VHA",
        "pooling": alignment.pooling,
        "temperature": alignment.pooling_temperature,
        "digits": 2,
        "deviation": 0.0,
        "axes": 0,
        "edges": [],
        "mean": None,
        "basis": None,
        **{f"{name}_{key}": value for name in ("first", "second") for key, value in level.items()},
    }


def _part(vectors: NDArray[np.float32], starts: NDArray[np.int64]) -> dict[str, Any]:
    """What core/module.cpp reads of rows that have a fine copy and nothing else."""
    rows = len(starts) - 1
    nothing = np.zeros(rows, np.float32)
    return {
        "rows": rows,
        "starts": starts,
        "stride": 0,
        "form": 0,
        "codes": np.zeros(0, np.uint8),
        "scale": nothing,
        "error": nothing,
        "norm": nothing,
        "fine": vectors,
        "checked": np.full(rows, FINE, np.uint8),
        **dict.fromkeys(("measures", "first", "order", "second", "loose")),
    }
