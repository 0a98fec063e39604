"""The rows of a gallery in a GPU's memory: each part as it was uploaded, and one list of all rows.

int8 holds the gallery's codes, float16 a half-precision copy. Each part lies where it was uploaded, so that a commit
uploads only what is new. The list has the place of each row's vectors and the numbers that bound its scores, so a
search launches each kernel once, however many parts there are.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...counts import counted
from ...errors import BackendError, GpuMemoryError, TensorError
from ..kernels.layout import OFFSET
from ..proof.bounds import MOST_BLOCKS
from ..proof.prefix import Axes, PrefixLevel
from ..proof.rows import Part
from .kernels import MOST_NORMS, UNIT, KernelRecord
from .levels import COVERED, LEAST, Levels, Weights, coded_vectors, common_plan, joined_places
from .memory import Arena, gib
from .plans import PlanHolder, SentPlans

_MOST_VALUES = 1 << 31  # of a row: GPU kernels count them in int32
ROW_BYTES = 49  # that lie beside the vectors of a row
_PIECE = 8 << 20  # bytes of a part that are made ready for the upload at a time


@dataclass(eq=False)
class _Coded:
    """A part's vectors at the first level of its plan on the device."""

    address: int = 0


@dataclass(eq=False)
class HeldPart:
    """A part's vectors on the device, and at the first level of its plan, where they are needed."""

    part: Part
    vectors: int = 0
    coded: _Coded | None = None


@dataclass(eq=False)
class HeldRows:
    """All rows on the device, by the addresses of what each kernel reads.

    Attributes:
        held: the parts.
        count: rows (N).
        base: where the vectors begin; the places of rows count from there, in units of UNIT bytes.
        coded: the axes of each plan, (1') of bounds.py; rows have the number of theirs.
        largest: no less than the norm of any vector.
        everything: a 1 for each row, where every row is allowed.
    """

    held: tuple[HeldPart, ...]
    count: int
    base: int
    coded: SentPlans
    largest: float
    places: int = 0
    lengths: int = 0
    scale: int = 0
    error: int = 0
    norm: int = 0
    blocks: int = 0
    plans: int = 0
    everything: int = 0
    levels: Levels | None = None


class RowHolder:
    """Uploads parts, and lists their rows. Callers take turns.

    Args:
        arena: what allocates them.
        record: of the kernels that read them.
        dim: D.
    """

    def __init__(self, arena: Arena, record: KernelRecord, dim: int) -> None:
        self._arena, self._dim = arena, dim
        self._plans = PlanHolder(arena, record.width)
        self._precision, self._width, self._codes = record.precision, record.width, record.precision == "int8"
        self._stride = record.stride
        self._known: weakref.WeakValueDictionary[tuple[int, int], Weights] = weakref.WeakValueDictionary()

    def upload(self, part: Part) -> HeldPart:
        """A part's vectors on the device.

        Raises:
            BackendError: the device has too little memory; the message gives how much is needed and what to do.
            TensorError: a value that float16 cannot hold.
        """
        longest = int(np.diff(part.starts).max(initial=0))
        if longest * self._width >= _MOST_VALUES:
            most = (_MOST_VALUES - 1) // self._width
            raise BackendError(
                f"a row on a GPU must have at most {counted(most, 'vector')} of this width, got {longest}: "
                "search with device='cpu'"
            )
        held = HeldPart(part)
        size = int(part.starts[-1]) * self._vector_bytes
        rows = counted(len(part.starts) - 1, "row needs", "rows need")
        need = f"{rows} {gib(size)} at {self._precision}"
        held.vectors = self._arena.upload(held, size, self._pieces(part), need)
        return held

    def require(self, parts: Sequence[Part]) -> None:
        """GpuMemoryError if there is no room for all of these parts, before any of them is uploaded."""
        rows = sum(len(part.starts) - 1 for part in parts)
        size = sum(int(part.starts[-1]) for part in parts) * self._vector_bytes + rows * ROW_BYTES
        self._arena.require(size, f"{counted(rows, 'row needs', 'rows need')} {gib(size)} at {self._precision}")

    @property
    def _vector_bytes(self) -> int:
        return self._width * (1 if self._codes else 2)

    def gather(self, held: Sequence[HeldPart], least: int | None = None) -> HeldRows:
        """Parts as one sequence of rows.

        least: bytes of codes from which on the first level of a plan is read before them; None for LEAST of levels.py.

        Raises:
            GpuMemoryError: the device has too little memory.
        """
        parts = [each.part for each in held]
        counts = [len(part.starts) - 1 for part in parts]
        base = min((each.vectors for each in held if each.vectors), default=0)
        places = [(each.vectors - base) // UNIT + each.part.starts[:-1] * (self._vector_bytes // UNIT) for each in held]
        axes: dict[int, tuple[int, Axes | None]] = {}
        plans, blocks = [], np.zeros((MOST_BLOCKS, sum(counts)), np.float32)
        for part, count, first in zip(parts, counts, np.cumsum([0, *counts]), strict=False):
            own = None if part.plan is None else part.plan.axes
            number, _ = axes.setdefault(id(own), (len(axes), own))  # parts prepared together share their axes
            plans.append(np.full(count, number, np.int32))
            blocks[: part.blocks.shape[1], first : first + count] = part.blocks.T
        largest = max((float((part.norm + part.error).max(initial=0)) for part in parts), default=0.0) * (1 + 1e-6)
        rows = HeldRows(tuple(held), sum(counts), base, self._plans.hold([own for _, own in axes.values()]), largest)
        scales = [part.scale if self._codes else np.ones_like(part.scale) for part in parts]
        arrays: list[NDArray[Any]] = [
            _joined(places, np.int64),
            _joined([np.diff(part.starts) for part in parts], np.int32),
            _joined(scales, np.float32),
            _joined([part.error for part in parts], np.float32),
            _joined([part.norm for part in parts], np.float32),
            blocks,
            _joined(plans, np.int32),
            np.ones(sum(counts), np.uint8),
        ]
        addresses = self._arena.keep(rows, arrays, f"the numbers beside {counted(rows.count, 'row')}")
        rows.places, rows.lengths, rows.scale, rows.error, rows.norm, rows.blocks, rows.plans, rows.everything = (
            addresses
        )
        rows.levels = self._levels(rows, LEAST if least is None else least)
        return rows

    def _levels(self, rows: HeldRows, least: int) -> Levels | None:
        """The rows at the first level of their plan, uploaded where they were not; None where that does not pay."""
        plan = common_plan([each.part for each in rows.held]) if self._stride else None
        size = sum(int(each.part.starts[-1]) for each in rows.held) * self._width
        if plan is None or plan.first is None or size < least:
            return None
        if plan.first.norms > MOST_NORMS or plan.first.width > self._stride:
            return None
        coded = [each for each in rows.held if each.part.plan is not None and each.part.plan.axes is plan.axes]
        if sum(len(each.part.starts) - 1 for each in coded) * COVERED[1] < rows.count * COVERED[0]:
            return None
        fresh = [each for each in coded if each.coded is None]
        try:
            for each in fresh:
                vectors = coded_vectors(each.part, self._stride)
                if vectors is not None:
                    own = _Coded()
                    (own.address,) = self._arena.keep(own, [vectors], "coded vectors")
                    each.coded = own
            held = [(each.part, each.coded.address if each.coded else 0) for each in rows.held]
            base, places = joined_places(held, plan, self._stride, UNIT)
            levels = Levels(self._weights(plan.axes, plan.first), base, rows.largest)
            (levels.places,) = self._arena.keep(levels, [places], "their places")
        except GpuMemoryError:  # they only save time, so those of the other parts give their room back
            for each in fresh:
                each.coded = None
            return None
        return levels

    def _weights(self, axes: Axes, level: PrefixLevel) -> Weights:
        """A plan's axes and level on the device, each uploaded once."""
        weights = self._known.get((id(axes), id(level)))
        if weights is None:
            weights = Weights(axes, level)
            weights.addresses = self._arena.keep(weights, weights.arrays(self._width, self._stride), "a plan's weights")
            self._known[id(axes), id(level)] = weights  # they live as long as their weights, so their ids are their own
        return weights

    def _pieces(self, part: Part) -> Iterator[NDArray[Any]]:
        """The part's vectors as the kernels read them, some rows at a time: [vectors, width]."""
        rows = len(part.starts) - 1
        longest = int(np.diff(part.starts).max(initial=1))
        step = max(1, _PIECE // (longest * self._width * 2))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            if self._codes:
                yield part.codes(first, last) ^ np.uint8(OFFSET)  # two's complement again
                continue
            fine = np.concatenate([part.fine(row) for row in range(first, last)])
            padded = np.zeros((len(fine), self._width), np.float16)
            with np.errstate(over="ignore"):
                padded[:, : self._dim] = fine
            if not np.isfinite(padded).all():
                raise TensorError("vectors", "must fit float16 to be held so on a GPU", float(np.abs(fine).max()))
            yield padded


def _joined(arrays: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    """Arrays of the parts, one after another; of no parts, none."""
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype, copy=False)
