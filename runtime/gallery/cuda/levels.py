"""The first level of a plan on a GPU: an eighth of the int8 codes' bytes excludes most rows of a large gallery.

Its coded vectors (prefix.py) lie beside the codes. `project` has the coordinates of the queries' vectors, and `weigh`
makes integers of them. `bound` multiplies the coded vectors with these, high digits and low ones, on the tensor cores,
and pools upper bounds by (3) of bounds.py. Rows that a plan did not code, or whose norms
did not fit, get infinite bounds. Tensor cores multiply signed bytes, so 128 is taken from each byte on its way to the
GPU, and 128 times the sum of a query's integers is added to its constant instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..kernels.layout import OFFSET
from ..proof.prefix import AXES, Axes, PrefixLevel, SearchPlan, unpack_blocks
from ..proof.rows import Part
from .kernels import MOST_NORMS

LEAST = 512 << 20  # bytes of codes from which on the level is read first; fewer are read as fast as it takes to begin
MOST_QUERIES = 4  # of a call that reads it; more of them are multiplied with every row's codes at once
FEW = 256  # rows of the best upper bounds, each of another group, whose codes give the first threshold
COVERED = 3, 4  # three of four rows at least must be coded by one plan
SHARE = 2  # one row in so many may reach it; where more do, every row's codes are scanned
_MOST_WORDS = 1 << 12  # of a query; see `bound` in export/scan_kernels.py


@dataclass(eq=False)
class Weights:
    """A plan's axes and its first level on the device, as `project` and `weigh` read them.

    Attributes:
        axes, level: of the plan.
        addresses: of columns, mean, block_of, norm_steps, coordinate_of and steps, in this order.
    """

    axes: Axes
    level: PrefixLevel
    addresses: Sequence[int] = ()

    def arrays(self, width: int, stride: int) -> list[NDArray[Any]]:
        """What lies at these addresses.

        Args:
            width: values that a vector takes on the device, padding included.
            stride: bytes that a coded vector takes there.
        """
        axes, level = self.axes, self.level
        columns, mean = np.zeros((width, AXES)), np.zeros(width)
        columns[: axes.basis.shape[1], : axes.count], mean[: len(axes.middle)] = axes.columns, axes.middle
        block_of = np.searchsorted(level.edges[1:-1], np.arange(AXES), side="right").astype(np.int32)
        norm_steps, steps, coordinate_of = np.zeros(MOST_NORMS), np.zeros(stride), np.zeros(stride, np.int32)
        norm_steps[: level.norms] = level.norm_step
        steps[level.codes], coordinate_of[level.codes] = level.steps, level.coordinate_of
        return [columns, mean, block_of, norm_steps, coordinate_of, steps]

    @cached_property
    def numbers(self) -> tuple[int | float, ...]:
        """The numbers of `weigh` from J to the size of the mean."""
        axes, level = self.axes, self.level
        held, middle = max(0.0, 1 - float(axes.deviation)), float(np.linalg.norm(axes.middle))
        return level.norms, axes.basis.shape[1], level.width, held, axes.lost, level.size, middle


@dataclass(eq=False)
class Levels:
    """The coded vectors of some rows on the device.

    Attributes:
        weights: of the plan that coded them.
        base: where the vectors begin.
        largest: no less than the norm of any row's vectors, nor of what their codes stand for.
        places: of each row, where its vectors begin beyond that, in units of UNIT bytes; -1 where it has none. int64
            [rows] on the device.
    """

    weights: Weights
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
