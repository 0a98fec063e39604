"""Some rows of a gallery on disk: a segment's two files, as a search and a writer read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryError
from ..kernels.layout import OFFSET
from ..proof.bounds import no_axes
from ..proof.rows import ArrayPart, Prefix, array_part
from ..settings import Precision
from .files import FileRecord, MappedFile


def segment_arrays(part: ArrayPart) -> dict[str, NDArray[Any]]:
    """The arrays of a segment file; each begins where its values may, without gaps."""
    arrays: dict[str, NDArray[Any]] = {"codes": part.stored, "starts": part.starts}
    arrays |= {"scale": part.scale, "error": part.error, "norm": part.norm}
    if part.exact is not None:
        arrays["fine"] = part.exact
    return arrays


def fast_arrays(part: ArrayPart) -> dict[str, NDArray[Any]]:
    """The arrays of a segment's second file: what preparing search adds to a part."""
    if part.prefix is None or part.stored_prefix is None:
        raise LookupError("this part was not prepared")
    scale, norms = part.prefix.scale, part.prefix.norms
    return {"codes": part.stored_prefix, "scale": scale, "norms": norms, "blocks": part.blocks}


class Segment:
    """A `Part` on disk: one segment file and, once search was prepared, one more.

    basis, axes: of the gallery's preparation, where there is one.
    """

    def __init__(
        self,
        folder: Path,
        record: FileRecord,
        fast: FileRecord | None = None,
        basis: NDArray[np.floating] | None = None,
        axes: NDArray[np.floating] | None = None,
    ) -> None:
        self._file = _open(folder, record)
        self.starts = self._file.read("starts")
        self.scale = self._file.read("scale")
        self.error = self._file.read("error")
        self.norm = self._file.read("norm")
        self.prefix: Prefix | None = None
        self.axes = no_axes(0)
        self.blocks = np.zeros((len(self.scale), 0), np.float32)
        self._fast: MappedFile | None = None
        if fast is not None and basis is not None and axes is not None:
            self._fast = _open(folder, fast)
            self.prefix = Prefix(basis, self._fast.read("scale"), self._fast.read("norms"))
            self.axes, self.blocks = axes, self._fast.read("blocks")

    @property
    def has_fine(self) -> bool:
        """Whether the fine copy is kept."""
        return "fine" in self._file

    def codes(self, first: int, last: int) -> NDArray[np.uint8]:
        """Stored codes of rows first..last - 1."""
        return self._file.read("codes", int(self.starts[first]), int(self.starts[last]))

    def prefix_codes(self, first: int, last: int) -> NDArray[np.uint8]:
        """Stored codes of the rows' coordinates."""
        if self._fast is None:
            raise LookupError("this segment has no prefix")
        return self._fast.read("codes", int(self.starts[first]), int(self.starts[last]))

    def fine(self, row: int) -> NDArray[np.floating]:
        """The fine copy of one row."""
        return self._file.read("fine", int(self.starts[row]), int(self.starts[row + 1]))

    def vectors(self, first: int, last: int, dim: int) -> NDArray[np.float32]:
        """Vectors of rows first..last - 1 as float32, from the fine copy or else from the codes: [vectors, dim]."""
        begin, end = int(self.starts[first]), int(self.starts[last])
        if self.has_fine:
            fine: NDArray[np.float32] = self._file.read("fine", begin, end).astype(np.float32, copy=False)
            return fine
        scale = np.repeat(self.scale[first:last], np.diff(self.starts[first : last + 1]))
        codes: NDArray[np.float32] = self._file.read("codes", begin, end)[:, :dim].astype(np.float32)
        codes -= OFFSET
        codes *= scale[:, None]
        return codes

    def kept(self, name: str, live: NDArray[np.bool_]) -> NDArray[Any]:
        """An array's values for the living rows: per row, or per vector for `codes` and `fine`."""
        keep = np.repeat(live, np.diff(self.starts)) if name in ("codes", "fine") else live
        return self._file.read(name)[keep]

    def prepare(self, basis: NDArray[np.floating], axes: NDArray[np.floating]) -> dict[str, NDArray[Any]]:
        """The arrays of a second file for these axes, made a piece of rows at a time; see `fast_arrays`."""
        made: dict[str, list[NDArray[Any]]] = {}
        precision: Precision = "none"
        if self.has_fine:
            precision = "float16" if self._file.read("fine", 0, 0).dtype == np.float16 else "float32"
        for first in range(0, len(self.scale), 256):
            last = min(first + 256, len(self.scale))
            starts = self.starts[first : last + 1] - self.starts[first]
            part = array_part(self.vectors(first, last, len(basis)), starts, precision, basis, axes)
            for name, array in fast_arrays(part).items():
                made.setdefault(name, []).append(array)
        return {name: np.concatenate(pieces) for name, pieces in made.items()}

    def kept_fast(self, live: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """The living rows' part of the second file's arrays."""
        if self._fast is None:
            raise LookupError("this segment has no prefix")
        keep = np.repeat(live, np.diff(self.starts))
        return {name: self._fast.read(name)[keep if name == "codes" else live] for name in self._fast.names}

    def damaged(self) -> list[str]:
        """Every damaged page of its files, in words."""
        return self._file.damaged() + (self._fast.damaged() if self._fast else [])


def _open(folder: Path, record: FileRecord) -> MappedFile:
    try:
        return MappedFile(folder, record)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise GalleryError(f"{folder / record.name} cannot be read: {error.strerror}") from error
