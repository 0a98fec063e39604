"""The gallery's fine copy in a GPU's memory, as the gallery stores it: 4, 2 or 1 bytes a value.

Of fixed16 that is the lower byte, because the upper one is the code. It goes there where it takes no more than a share
of the memory that is free beside the codes, and decide.py reads it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...counts import counted
from ..proof.rows import FINE, Part
from .kernels import UNIT
from .memory import Arena, gib

SHARE = 0.5  # of the memory that is free beside the codes, that fine copies may take
_FORMS = {"float32": ("float32", 4), "float16": ("float16", 2), "uint8": ("fixed16", 1)}  # by the type that is stored
_PIECE = 8 << 20  # bytes of a fine copy that are made ready for the upload at a time


@dataclass(eq=False)
class _Copy:
    """A part's fine copy on the device."""

    part: Part
    vectors: int = 0


@dataclass(eq=False)
class Fine:
    """The fine copies of some rows on the device.

    Attributes:
        form: how they are stored, one of FORMS.
        copies: of each part.
        base: where the vectors begin.
        places: of each row, where its vectors begin beyond that; int64 [rows] on the device, in units of UNIT bytes.
    """

    form: str
    copies: tuple[_Copy, ...]
    base: int
    places: int = 0


class FineHolder:
    """Uploads fine copies. Callers take turns.

    Args:
        arena: what allocates them.
        width: values that a vector takes there, padding included.
        dim: D.
    """

    def __init__(self, arena: Arena, width: int, dim: int) -> None:
        self._arena, self._width, self._dim = arena, width, dim
        self._known: weakref.WeakValueDictionary[int, _Copy] = weakref.WeakValueDictionary()

    def hold(self, parts: Sequence[Part]) -> Fine | None:
        """The fine copies of parts on the device, each uploaded once; None where they do not fit.

        Raises:
            GpuMemoryError: the memory did not suffice after all; the message gives how much is needed and what to do.
            GalleryCorrupt: bytes of a fine copy are not those that were committed.
        """
        stored = [part.arrays().fine for part in parts]
        kinds = {each.dtype.name for each in stored}
        if len(kinds) != 1:
            return None
        form, size = _FORMS[kinds.pop()]
        fresh = [part for part in parts if id(part) not in self._known]
        need = sum(int(part.starts[-1]) for part in fresh) * self._width * size
        if need > SHARE * self._arena.device.free_memory():
            return None
        copies = tuple(self._copy(part, each) for part, each in zip(parts, stored, strict=True))
        base = min(each.vectors for each in copies)
        units = self._width * size // UNIT
        places = [(each.vectors - base) // UNIT + each.part.starts[:-1] * units for each in copies]
        fine = Fine(form, copies, base)
        (fine.places,) = self._arena.keep(fine, [np.concatenate(places).astype(np.int64, copy=False)], "its places")
        return fine

    def _copy(self, part: Part, stored: NDArray[Any]) -> _Copy:
        copy = self._known.get(id(part))
        if copy is None:
            copy = _Copy(part)
            size = len(stored) * self._width * stored.itemsize
            need = f"the fine copy of {counted(len(part.starts) - 1, 'row')} needs {gib(size)}"
            copy.vectors = self._arena.upload(copy, size, self._pieces(part, stored), need)
            self._known[id(part)] = copy  # the part lives as long as its copy, so its id is its own
        return copy

    def _pieces(self, part: Part, stored: NDArray[Any]) -> Iterator[NDArray[Any]]:
        """What is stored of the part's vectors, checked, some rows at a time: [vectors, width]."""
        rows = len(part.starts) - 1
        longest = int(np.diff(part.starts).max(initial=1))
        step = max(1, _PIECE // (longest * self._width * stored.itemsize))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            for row in range(first, last):
                part.check(row, FINE)
            vectors = stored[part.starts[first] : part.starts[last]]
            padded = np.zeros((len(vectors), self._width), stored.dtype)
            padded[:, : self._dim] = vectors
            yield padded
