"""Preparing search: axes fitted to a gallery and its queries, and a choice of levels measured on those queries.

A row that is coded along these axes needs an eighth of its int8 codes' bytes for a first bound on its score, and a
quarter for a better one, at 1024-d (proof/prefix.py). How many rows that excludes depends on the embeddings, so it is
measured. Where it does not pay, as with vectors that have no structure, every search scans the int8 codes of all rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from ..counts import counted
from ..errors import GalleryCorrupt
from ..progress import WorkCounter
from .compiled import CompiledSearch, CoreThreads, core_is_fastest, core_searches
from .proof.gallery_rows import GalleryRows
from .proof.prefix import SearchPlan, fit_axes, fit_level, largest_coordinates, level_widths, plan_of, rotate
from .proof.rows import Part
from .settings import GallerySettings
from .store.array_file import FileRecord
from .store.catalogue import MEASURED, PreparedRecord
from .store.files import MappedFile
from .store.segments import Segment

_SAMPLE = 20_000  # vectors that axes and steps are fitted to
_ASKED = 64  # queries that are timed
_K = 10


@dataclass(frozen=True, eq=False)
class Preparation:
    """How search of a gallery was prepared.

    Attributes:
        plan: how rows and queries are coded.
        k: length of the rankings that were measured.
        queries: number of queries that measured them.
        second, codes, rescored: shares of the rows of which a search read the second level, the int8 codes and the fine
            copy, on average; None if nothing was measured.
        kept: whether an earlier run fitted it, and the last one kept it.
    """

    plan: SearchPlan = field(repr=False)
    k: int = _K
    queries: int = 0
    second: float | None = None
    codes: float | None = None
    rescored: float | None = None
    kept: bool = field(default=False, kw_only=True)

    def to_record(self, file: FileRecord) -> PreparedRecord:
        """What the catalogue keeps of it; the plan's arrays lie in `file`."""
        return PreparedRecord(file, self.plan.digits, *(getattr(self, name) for name in MEASURED[1:]))

    def __str__(self) -> str:
        return self.describe()

    def describe(self) -> str:
        """What was chosen and measured, in words."""
        levels = (
            f"{self.plan.first.width} and {self.plan.second.width} bytes of each vector bound the scores first"
            if self.plan.first is not None and self.plan.second is not None
            else "the int8 codes of every row are scanned, because shorter codes exclude too few rows"
        )
        if self.second is None or self.codes is None or self.rescored is None:
            needs = "two queries or more (chan gallery prepare --queries) and the compiled search"
            return f"{levels}; what this reads was not measured: that needs {needs}"
        shares = f"rescored {self.rescored:.2%} of the rows"
        if self.plan.first is not None:
            shares = f"second level {self.second:.1%}, int8 {self.codes:.1%}, {shares}"
        return f"{levels}; top {self.k} over {counted(self.queries, 'query')}: {shares}"


def fit_plan(
    segments: Sequence[Segment],
    live: Sequence[NDArray[np.bool_]],
    queries: NDArray[np.float32] | None,
    settings: GallerySettings,
    work: WorkCounter,
) -> SearchPlan:
    """A plan for living rows' vectors, evenly sampled, and queries' vectors [Q, D]; with levels if D allows them.

    work: counts the rows, which are read once more for the levels.
    """
    total = sum(int(s.starts[-1]) for s in segments)
    step = max(1, total // _SAMPLE)
    pieces = [np.zeros((0, settings.dim), np.float32)]
    for segment, alive in zip(segments, live, strict=True):
        for row in np.flatnonzero(alive):
            first = int(-segment.starts[row] % step)
            pieces.append(segment.vectors(int(row), int(row) + 1)[first::step])
    sample = np.concatenate(pieces)
    if not len(sample):
        sample = np.zeros((1, settings.dim), np.float32)

    def everything() -> Iterator[NDArray[np.float32]]:
        for segment, alive in zip(segments, live, strict=True):
            for begin in range(0, len(alive), 256):
                end = min(begin + 256, len(alive))
                yield segment.vectors(begin, end)
                work.add(end - begin)

    return plan_for(sample, queries, everything())


def plan_for(
    sample: NDArray[np.floating], queries: NDArray[np.floating] | None, vectors: Iterable[NDArray[np.floating]]
) -> SearchPlan:
    """A plan fitted to a sample of rows' vectors [S, D] and to queries' vectors [Q, D]; with levels if D allows them.

    vectors: all vectors of the rows, [V, D] at a time; no coordinate of theirs will be cut off.
    """
    axes = fit_axes(sample, queries)
    widths = level_widths(sample.shape[1])
    if widths is None:
        return SearchPlan(axes, None, None, digits=2)
    largest = np.zeros(axes.count, np.float32)
    for piece in vectors:
        largest = np.maximum(largest, largest_coordinates(piece, axes))
    rotated = rotate(sample, axes)
    levels = [fit_level(rotated, largest, width) for width in widths]
    return SearchPlan(axes, levels[0], levels[1], digits=2)


def choose(
    parts: Sequence[Part], live: NDArray[np.bool_], settings: GallerySettings, queries: Sequence[NDArray[np.float32]],
    plan: SearchPlan, work: WorkCounter,
) -> Preparation:  # fmt: skip
    """The fastest of what a plan allows, with and without its levels, one digit or two, timed on half of the queries.

    The other half measures how much is read. Without queries, or where nothing compiled runs, nothing is timed.

    work: counts the rows, in shares of them for the queries that are timed.
    """
    if len(queries) < 2 or not live.any() or not core_is_fastest() or not core_searches(settings):
        return Preparation(plan)
    rows = GalleryRows(parts, settings.kind, settings.alignment)
    timed, held_out = queries[::2][:_ASKED], queries[1::2]
    candidates = [replace(plan, digits=digits) for digits in (1, 2)]
    candidates += [replace(candidate, first=None, second=None) for candidate in candidates]
    searches = [CompiledSearch(rows, candidate, CoreThreads(1)) for candidate in candidates]
    seconds: list[list[float]] = [[] for _ in candidates]
    begun = work.done
    for number, query in enumerate([timed[0], *timed]):  # the first once more, so that all pages are in memory
        for search, found in zip(searches, seconds, strict=True):
            start = time.perf_counter()
            search.rank([query], _K, live)
            found.append(time.perf_counter() - start)
        work.reach(begun + len(live) * (number + 1) // (len(timed) + 2))
    best = min(range(len(candidates)), key=lambda i: median(seconds[i][1:]))
    rankings = searches[best].rank(held_out, _K, live)
    count = len(held_out) * np.count_nonzero(live)
    shares = [sum(getattr(ranking, name) for ranking in rankings) / count for name in ("second", "codes", "rescored")]
    return Preparation(candidates[best], _K, len(held_out), *(float(min(1, share)) for share in shares))


def load_preparation(record: PreparedRecord | None, segments: Path, dim: int) -> Preparation | None:
    """The preparation that a catalogue keeps.

    Raises:
        FileNotFoundError: its file is missing.
        GalleryCorrupt: its file is damaged, or not what a gallery of this width D can have.
    """
    if record is None:
        return None
    file = MappedFile(segments, record.file)
    try:
        plan = plan_of({name: file.read(name).copy() for name in file.names}, dim, record.digits)
    except ValueError as error:
        raise GalleryCorrupt(f"{file.path}: {error}") from error
    return Preparation(plan, *(getattr(record, name) for name in MEASURED[1:]))
