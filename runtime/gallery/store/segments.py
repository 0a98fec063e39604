"""Some rows of a gallery on disk: a segment's files, as a search and a writer read them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryCorrupt
from ...progress import WorkCounter
from ..kernels.layout import OFFSET, decoded, stored_width
from ..proof.bounds import block_edges, no_axes
from ..proof.fixed16 import join_bytes
from ..proof.prefix import (
    LANES,
    SearchPlan,
    block_order,
    pack_blocks,
    packed_vectors,
    rotate,
    unbounded,
    unpack_blocks,
)
from ..proof.rows import CODES, FINE, SECOND, ArrayPart, PartArrays, array_part, measured
from ..settings import FINE_DTYPES, GallerySettings
from .array_file import FileRecord
from .catalogue import SegmentRecord
from .files import MappedFile
from .rows import MappedRows, RowTable


def prepared_arrays(part: ArrayPart) -> dict[str, NDArray[Any]]:
    """What preparing search adds to a part, row by row and vector by vector; see `stored_arrays`."""
    arrays: dict[str, NDArray[Any]] = {"measures": np.concatenate([part.blocks, part.norms], axis=1)}
    if part.coded is not None:
        arrays |= {"first": part.coded.first, "second": part.coded.second, "loose": part.coded.loose}
    return arrays


def stored_arrays(arrays: Mapping[str, NDArray[Any]], starts: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """The arrays of a segment's third file: those of `prepared_arrays` with the first level in blocks of rows."""
    if "first" not in arrays:
        return dict(arrays)
    order = block_order(np.diff(starts))
    first = pack_blocks(arrays["first"], starts, order)
    return {"first": first, **{name: arrays[name] for name in ("second", "loose", "measures")}, "order": order}


class Segment:
    """A `Part` on disk: a file of vectors, one of ids and metadata, and once search was prepared one more.

    Opening one reads and checks what search holds for each row: the arrays must be of the shapes and types that the
    gallery's settings ask for, and no index may point outside of its file. So no file, damaged or made to mislead,
    makes a search read what is not its own.

    Args:
        folder: the gallery's folder of files.
        record: what the catalogue keeps of the segment.
        settings: the gallery's.
        plan: of the gallery, where search was prepared.
        table: ids and metadata, where they do not lie in a file.

    Attributes:
        files: all of them.
        table: ids and metadata.
        masks: for a filter the rows that pass it, and the keys that the rows have; kept by searches.

    Raises:
        FileNotFoundError: one of its files is missing.
        GalleryCorrupt: one of its files is damaged, or not what the settings ask for.
    """

    def __init__(
        self,
        folder: Path,
        record: SegmentRecord,
        settings: GallerySettings,
        plan: SearchPlan | None = None,
        table: RowTable | None = None,
    ) -> None:
        self.record = record
        self._settings = settings
        self._count = count = len(record.live)
        self._file = file = MappedFile(folder, record.vectors)
        self.files = [file]
        file.expect("starts", np.int64, count + 1)
        for name in ("scale", "error", "norm"):
            file.expect(name, np.float32, count)
        self.starts = file.read("starts").copy()  # indices: never to be changed under a kernel
        vectors = int(self.starts[-1])
        if self.starts[0] != 0 or vectors < count or (self.starts[1:] <= self.starts[:-1]).any():
            raise GalleryCorrupt(f"{file.path}: starts must rise from 0, each row having one vector at least")
        file.expect("codes", np.uint8, vectors, stored_width(settings.dim))
        file.check_alignment("codes")
        if settings.fine != "none":
            file.expect("fine", FINE_DTYPES[settings.fine], vectors, settings.dim)
        elif "fine" in file:
            raise GalleryCorrupt(f"{file.path}: there must be no fine copy in this gallery")
        self.scale, self.error, self.norm = (file.read(name) for name in ("scale", "error", "norm"))
        _check_measures(file, self.scale, self.error, self.norm)
        if not np.isfinite(self.scale).all():
            raise GalleryCorrupt(f"{file.path}: scales must be finite")
        self._finite = bytearray(count)  # rows whose fine copy is known to hold finite values
        if table is None:
            rows = MappedFile(folder, record.rows)
            self.files.append(rows)
            table = MappedRows(rows, count)
        self.table = table
        self.masks: dict[Hashable, tuple[NDArray[np.bool_], frozenset[str]]] = {}
        self.plan: SearchPlan | None = None
        self.blocks = self.norms = self._measures = np.zeros((count, 0), np.float32)
        self._prepared: MappedFile | None = None
        self._order = np.zeros(0, np.int64)
        self._checked = np.zeros(count, np.uint8)
        if record.prepared is not None and plan is not None:
            self._open_prepared(folder, record.prepared, plan, vectors)

    def _open_prepared(self, folder: Path, record: FileRecord, plan: SearchPlan, vectors: int) -> None:
        file = MappedFile(folder, record)
        blocks = len(block_edges(plan.axes.leading.shape[1])) - 1
        file.expect("measures", np.float32, self._count, 2 * blocks + 1)
        self._measures = file.read("measures")
        _check_measures(file, self._measures)
        if plan.first is not None and plan.second is not None:
            file.expect("order", np.int64, self._count)
            self._order = file.read("order").copy()  # indices: never to be changed under a kernel
            if not np.array_equal(np.sort(self._order), np.arange(self._count)):
                raise GalleryCorrupt(f"{file.path}: order must hold the number of each row once")
            file.expect("first", np.uint8, packed_vectors(self.starts, self._order), plan.first.width * LANES)
            file.expect("second", np.uint8, vectors, plan.second.width)
            file.expect("loose", np.uint8, self._count)
        self.files.append(file)
        self._prepared, self.plan = file, plan
        self.blocks, self.norms = self._measures[:, :blocks], self._measures[:, blocks:]

    @property
    def has_fine(self) -> bool:
        """Whether the fine copy is kept."""
        return "fine" in self._file

    def codes(self, first: int, last: int) -> NDArray[np.uint8]:
        """Stored codes of rows first..last - 1."""
        return self._file.read("codes", int(self.starts[first]), int(self.starts[last]))

    def fine(self, row: int) -> NDArray[np.floating]:
        """The fine copy of one row."""
        fine = self._read_fine(row, row + 1)
        if not self._finite[row]:
            self._check_finite(fine, f"row {row}")
            self._finite[row] = 1
        return fine

    def _read_fine(self, first: int, last: int) -> NDArray[np.floating]:
        fine = self._file.read("fine", int(self.starts[first]), int(self.starts[last]))
        if self._settings.fine != "fixed16":
            return fine
        scale = np.repeat(self.scale[first:last], np.diff(self.starts[first : last + 1]))
        return join_bytes(self.codes(first, last)[:, : self._settings.dim], fine, scale)

    def second(self, first: int, last: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """The second level's codes of rows first..last - 1, and which rows they bound."""
        if self._prepared is None:
            raise LookupError("this segment has no levels")
        codes = self._prepared.read("second", int(self.starts[first]), int(self.starts[last]))
        return codes, self._prepared.read("loose", first, last) & 2 == 0

    def arrays(self) -> PartArrays:
        """Every array: the first level is checked, and so are the codes where there is no level; else see `check`."""
        codes, fine = self._file.unchecked("codes"), self._file.unchecked("fine")
        if self.plan is None or self.plan.first is None or self._prepared is None:
            self._file.read("codes")
            self._checked |= CODES
            measures = None if self.plan is None else self._measures
            return PartArrays(codes, fine, self._checked, measures)
        return PartArrays(
            codes, fine, self._checked, self._measures, self._prepared.read("first"), self._order,
            self._prepared.read("loose"), self._prepared.unchecked("second"),
        )  # fmt: skip

    def check(self, row: int, what: int) -> None:
        """Check bytes of one row before the compiled search reads them for the first time."""
        begin, end = int(self.starts[row]), int(self.starts[row + 1])
        if what & CODES:
            self._file.read("codes", begin, end)
        if what & SECOND and self._prepared is not None:
            self._prepared.read("second", begin, end)
        if what & FINE:
            self.fine(row)
        self._checked[row] |= what

    def vectors(self, first: int, last: int) -> NDArray[np.float32]:
        """Vectors of rows first..last - 1 as float32, from the fine copy or else from the codes: [vectors, D]."""
        if self.has_fine:
            fine: NDArray[np.float32] = self._read_fine(first, last).astype(np.float32, copy=False)
            self._check_finite(fine, f"rows {first} to {last - 1}")
            return fine
        scale = np.repeat(self.scale[first:last], np.diff(self.starts[first : last + 1]))
        return decoded(self.codes(first, last), self._settings.dim, scale[:, None])

    def kept(self, name: str, live: NDArray[np.bool_]) -> NDArray[Any]:
        """An array's values for the rows where `live` is True: per row, or per vector for `codes` and `fine`."""
        keep = np.repeat(live, np.diff(self.starts)) if name in ("codes", "fine") else live
        return self._file.read(name)[keep]

    def kept_prepared(self, live: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
        """The arrays of `prepared_arrays`, of the rows where `live` is True."""
        if self.plan is None or self._prepared is None:
            raise LookupError("this segment was not prepared")
        arrays: dict[str, NDArray[Any]] = {"measures": self._measures[live]}
        if self.plan.first is not None:
            keep = np.repeat(live, np.diff(self.starts))
            first = unpack_blocks(self._prepared.read("first"), self.starts, self._order)
            arrays |= {"first": first[keep], "second": self._prepared.read("second")[keep]}
            arrays["loose"] = self._prepared.read("loose")[live]
        return arrays

    def prepare(self, plan: SearchPlan, work: WorkCounter) -> dict[str, NDArray[Any]]:
        """The arrays of a third file for this plan, made a piece of rows at a time, which `work` counts."""
        made: dict[str, list[NDArray[Any]]] = {}
        for first in range(0, self._count, 256):
            last = min(first + 256, self._count)
            starts = self.starts[first : last + 1] - self.starts[first]
            part = array_part(self.vectors(first, last), starts, self._settings.fine, plan)
            for name, array in prepared_arrays(part).items():
                made.setdefault(name, []).append(array)
            work.add(last - first)
        return stored_arrays({name: np.concatenate(pieces) for name, pieces in made.items()}, self.starts)

    def check_bounds(self, work: WorkCounter) -> None:
        """GalleryCorrupt unless all that is stored of rows bounds what their codes lose of the fine copy.

        work: counts the rows whose measures are checked.
        """
        if not self.has_fine:
            return
        for first in range(0, self._count, 256):
            rows = slice(first, min(first + 256, self._count))
            starts = self.starts[rows.start : rows.stop + 1] - self.starts[first]
            exact = self.vectors(rows.start, rows.stop).astype(np.float64)
            codes = self.codes(rows.start, rows.stop)[:, : self._settings.dim].astype(np.float64) - OFFSET
            restored = np.repeat(self.scale[rows].astype(np.float64), np.diff(starts))[:, None] * codes
            axes = no_axes(self._settings.dim) if self.plan is None else self.plan.axes.leading
            sizes = measured(exact - restored, restored, axes)
            stored = np.column_stack([self.error[rows], self.norm[rows], self._measures[rows]])
            wrong = np.maximum.reduceat(sizes, starts[:-1]) > stored * (1 + 1e-6)
            self._refuse(rows, np.logical_or.reduce(wrong, axis=1), self._file, "codes and measures")
            work.add(rows.stop - first)
        if self._prepared is None or self.plan is None or self.plan.first is None or self.plan.second is None:
            return
        first_codes = unpack_blocks(self._prepared.read("first"), self.starts, self._order)
        second_codes, loose = self._prepared.read("second"), self._prepared.read("loose")
        for first in range(0, self._count, 256):
            rows = slice(first, min(first + 256, self._count))
            begin, end = self.starts[rows.start], self.starts[rows.stop]
            rotated = rotate(self.vectors(rows.start, rows.stop), self.plan.axes, allow=False)
            for level, coded, bit, name in (
                (self.plan.first, first_codes, 1, "the first level"),
                (self.plan.second, second_codes, 2, "the second level"),
            ):
                wrong = np.logical_or.reduceat(unbounded(rotated, coded[begin:end], level), self.starts[rows] - begin)
                self._refuse(rows, wrong & (loose[rows] & bit == 0), self._prepared, name)

    def _refuse(self, rows: slice, wrong: NDArray[np.bool_], file: MappedFile, what: str) -> None:
        if wrong.any():
            row = rows.start + int(np.flatnonzero(wrong)[0])
            raise GalleryCorrupt(f"{file.path}: {what} of row {row} do not fit its fine copy")

    def recheck(self) -> bool:
        """Whether a file was touched since the last check; GalleryCorrupt if one was changed. See files.py."""
        return True in [file.recheck() for file in self.files]

    def check_untouched(self) -> None:
        """GalleryCorrupt if a file was touched since the last check: what was read of it may not be right."""
        if self.recheck():
            raise GalleryCorrupt(
                f"{self._file.path}: it, or a file beside it, was written to while it was read; try again"
            )

    def damaged(self) -> list[str]:
        """Every damaged page of its files, in words. Reads them whole."""
        return [text for file in self.files for text in file.damaged()]

    def damaged_rows(self) -> NDArray[np.bool_]:
        """[rows], which of them cannot be read whole. Reads the files whole.

        Afterwards a scan passes over damaged codes without an error, so the caller must leave these rows out.
        """
        self._file.accept_damage()  # first: the rows of whatever is accepted are found below
        lost = np.zeros(self._count, bool)
        for name in ("codes", *(["fine"] if self.has_fine else [])):
            lost |= np.logical_or.reduceat(self._file.damaged_rows(name), self.starts[:-1])
        for position in np.flatnonzero(~lost).tolist():
            try:
                self.table.row(position)
            except GalleryCorrupt:
                lost[position] = True
        return lost

    def _check_finite(self, fine: NDArray[np.floating], rows: str) -> None:
        if not np.isfinite(fine).all():
            raise GalleryCorrupt(f"{self._file.path}: the fine copy of {rows} must be finite")


def _check_measures(file: MappedFile, *measures: NDArray[np.float32]) -> None:
    """GalleryCorrupt unless what was measured is no less than 0."""
    if not all((values >= 0).all() for values in measures):
        raise GalleryCorrupt(f"{file.path}: no scale, error or norm may be negative or NaN")
