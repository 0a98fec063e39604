"""The first level of a plan on a GPU: an eighth of the int8 codes' bytes excludes most rows of a large gallery.

Its coded vectors (prefix.py) lie beside the codes. `bound` multiplies them with the queries' integers, high digits and
low ones, on the tensor cores, and pools upper bounds by (3) of bounds.py. Rows that a plan did not code, or whose norms
did not fit, get infinite bounds. Tensor cores multiply signed bytes, so 128 is taken from each byte on its way to the
GPU, and 128 times the sum of a query's integers is added to its constant instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...contract import AlignmentConfig
from ..kernels.layout import OFFSET
from ..proof.pooling import Float64Array
from ..proof.prefix import Axes, PrefixLevel, SearchPlan, unpack_blocks
from ..proof.prefix_bounds import weigh_integers
from ..proof.rows import Part

LEAST = 512 << 20  # bytes of codes from which on the level is read first; fewer are read as fast as it takes to begin
MOST_QUERIES = 4  # of a call that reads it; more of them are multiplied with every row's codes at once
FEW = 256  # rows of the best upper bounds, each of another group, whose codes give the first threshold
COVERED = 3, 4  # three of four rows at least must be coded by one plan
SHARE = 2  # one row in so many may reach it; where more do, every row's codes are scanned
_MOST_WORDS = 1 << 12  # of a query; see `bound` in export/scan_kernels.py
_DIGIT = 7  # bits of the low digit


@dataclass(eq=False)
class Levels:
    """The coded vectors of some rows on the device.

    Attributes:
        axes, level: of the plan that coded them.
        base: where the vectors begin.
        largest: no less than the norm of any row's vectors, nor of what their codes stand for.
        places: of each row, where its vectors begin beyond that, in units of UNIT bytes; -1 where it has none. int64
            [rows] on the device.
    """

    axes: Axes
    level: PrefixLevel
    base: int
    largest: float
    places: int = 0


def coded_vectors(part: Part, stride: int) -> NDArray[np.uint8] | None:
    """A part's vectors at the first level as the kernel reads them [V, stride]; None where it was not coded."""
    arrays = part.arrays() if part.has_fine else None
    if part.plan is None or part.plan.first is None or arrays is None or arrays.first is None or arrays.order is None:
        return None
    width = part.plan.first.width
    if width > stride:
        return None
    blocks = arrays.first.reshape(-1, width * 16)
    stored = np.zeros((int(part.starts[-1]), stride), np.uint8)
    stored[:, :width] = unpack_blocks(blocks, part.starts, arrays.order)
    return stored ^ np.uint8(OFFSET)


def is_bounded(part: Part) -> NDArray[np.bool_]:
    """Which rows of a coded part its first level bounds: [n]."""
    loose = part.arrays().loose
    return np.zeros(len(part.starts) - 1, bool) if loose is None else loose & 1 == 0


def common_plan(parts: Sequence[Part]) -> SearchPlan | None:
    """The plan by which most rows were coded, of those that have levels."""
    rows: dict[int, int] = {}
    plans: dict[int, SearchPlan] = {}
    for part in parts:
        if part.plan is not None and part.plan.first is not None:
            plans[id(part.plan.axes)] = part.plan
            rows[id(part.plan.axes)] = rows.get(id(part.plan.axes), 0) + len(part.starts) - 1
    return plans[max(rows, key=lambda key: rows[key])] if rows else None


def serves(queries: Sequence[NDArray[np.float32]]) -> bool:
    """Whether the level is read for these queries."""
    return len(queries) <= MOST_QUERIES and max(map(len, queries)) <= _MOST_WORDS


def weigh_queries(
    levels: Levels, queries: Sequence[NDArray[np.float32]], stride: int, alignment: AlignmentConfig
) -> tuple[NDArray[np.int8], Float64Array, Float64Array]:
    """The queries' vectors as `bound` reads them: digits [2, Q, stride], scales [Q] and offsets [Q]."""
    vectors = np.concatenate(queries).astype(np.float64)
    counts = np.concatenate([np.full(len(query), float(len(query))) for query in queries])
    found = weigh_integers(vectors, levels.axes, levels.level, levels.largest, counts, alignment)
    high = (found.integers + (1 << _DIGIT - 1)) >> _DIGIT
    digits = np.zeros((2, len(vectors), stride), np.int8)
    digits[0, :, : levels.level.width] = high
    digits[1, :, : levels.level.width] = found.integers - (high << _DIGIT)
    return digits, found.scale, found.constant + found.scale * (OFFSET * found.integers.sum(axis=1, dtype=np.int64))


def joined_places(held: Sequence[tuple[Part, int]], plan: SearchPlan, stride: int, unit: int) -> tuple[int, Any]:
    """Where coded vectors begin, and each row's place beyond that.

    held: parts, and where their coded vectors lie; 0 where they have none.
    """
    own = [at if at and part.plan is not None and part.plan.axes is plan.axes else 0 for part, at in held]
    base = min((at for at in own if at), default=0)
    places = []
    for (part, _), at in zip(held, own, strict=True):
        begins = (at - base) // unit + part.starts[:-1] * (stride // unit)
        places.append(np.where(is_bounded(part), begins, -1) if at else np.full(len(begins), -1))
    return base, np.concatenate([np.zeros(0), *places]).astype(np.int64)
