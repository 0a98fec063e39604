"""What a search of a gallery returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Hit:
    """One row found.

    Attributes:
        id, metadata: as they were added.
        score: float64, from the fine copy.
        word_regions: int32 [W], for each word of the caption (the query, or this hit) the region it chose.
        word_scores: float32 [W], that region's similarity with the word.
    """

    id: str
    score: float
    metadata: Mapping[str, Any]
    word_regions: NDArray[np.int32]
    word_scores: NDArray[np.float32]


@dataclass(frozen=True)
class SearchResult:
    """The answer to one query.

    Attributes:
        hits: best first, ties by order of addition.
        certified: whether this is proven to be the top k of scoring every row's fine copy in float64.
        reason: why it is certified, or why not.
        rows: rows that could have been found.
        rescored: rows that were scored again from the fine copy.
        second, codes: rows of which the second level and the int8 codes were read to bound their scores; 0 where the
            compiled search did not run.
    """

    hits: tuple[Hit, ...]
    certified: bool
    reason: str
    rows: int
    rescored: int
    second: int = 0
    codes: int = 0

    @property
    def rescored_share(self) -> float:
        """rescored / rows; 0 where there were no rows."""
        return self.rescored / self.rows if self.rows else 0.0

    def without(self, id: str, k: int) -> Self:
        """The best k hits but for one row: of the best k + 1, which have it if it is among the best k."""
        return replace(self, hits=tuple(hit for hit in self.hits if hit.id != id)[:k])
