"""The axes along which rows were measured, in a GPU's memory: `terms` bounds scores by them, (1') of bounds.py."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..proof.bounds import block_edges
from ..proof.prefix import CODE_AXES, Axes
from .kernels import UNIT
from .memory import Arena


@dataclass(eq=False)
class _Columns:
    """A plan's axes on the device, float64 [width, CODE_AXES]."""

    axes: Axes
    address: int = 0


@dataclass(eq=False)
class SentPlans:
    """The axes along which rows were measured, on the device.

    Attributes:
        columns: of each plan, None where rows were not prepared.
        base: where the first columns lie.
        places: of each plan, where its columns begin beyond that, in units of UNIT bytes; int64 [plans].
        block_of: int32 [CODE_AXES], the block of (1') that each column is in.
        held: float64 [plans], f of (3').
    """

    columns: tuple[_Columns | None, ...]
    base: int = 0
    places: int = 0
    block_of: int = 0
    held: int = 0


class PlanHolder:
    """Uploads axes. Callers take turns.

    Args:
        arena: what allocates them.
        width: values that a vector takes on the device, padding included.
    """

    def __init__(self, arena: Arena, width: int) -> None:
        self._arena, self._width = arena, width
        self._known: weakref.WeakValueDictionary[int, _Columns] = weakref.WeakValueDictionary()

    def hold(self, plans: Sequence[Axes | None]) -> SentPlans:
        """The axes of some plans on the device, each uploaded once."""
        columns = tuple(None if axes is None else self._columns(axes) for axes in plans)
        base = min((each.address for each in columns if each is not None), default=0)
        places = [-1 if each is None else (each.address - base) // UNIT for each in columns]
        held = [0.0 if axes is None else max(0.0, 1 - axes.deviation) for axes in plans]
        edges = block_edges(CODE_AXES)
        block_of = np.repeat(np.arange(len(edges) - 1, dtype=np.int32), np.diff(edges))
        sent = SentPlans(columns)
        sent.places, sent.block_of, sent.held = self._arena.keep(
            sent, [np.array(places, np.int64), block_of, np.array(held)], "the plans' numbers"
        )
        sent.base = base or sent.places  # without any axes nothing is read there
        return sent

    def _columns(self, axes: Axes) -> _Columns:
        columns = self._known.get(id(axes))
        if columns is None:
            columns = _Columns(axes)
            padded = np.zeros((self._width, CODE_AXES))
            padded[: axes.leading.shape[0], : axes.leading.shape[1]] = axes.leading
            (columns.address,) = self._arena.keep(columns, [padded], "a plan's axes")
            self._known[id(axes)] = columns  # the axes live as long as their columns, so their id is their own
        return columns
