"""Writing what preparing search adds to the rows of one gallery, or of all shards of one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..embeddings import Embeddings
from ..errors import InputError, TensorError
from ..progress import Progress, WorkCounter
from ..tensor_checks import check_array
from .answer import check_queries
from .prepare import Preparation, choose, fit_plan
from .proof.prefix import SearchPlan, plan_arrays
from .settings import GallerySettings
from .store.array_file import FileRecord
from .store.catalogue import SegmentRecord
from .store.commit import NewFiles
from .store.segments import Segment


@dataclass
class RowsToPrepare:
    """The rows of one folder.

    Attributes:
        folder: of its files.
        records: its segments.
        files: where new files are written.
        plan_file: what was written of the plan.
    """

    folder: Path
    records: Sequence[SegmentRecord]
    files: NewFiles
    plan_file: FileRecord | None = None

    def segments(self, settings: GallerySettings, plan: SearchPlan | None = None) -> list[Segment]:
        """Its segments, opened; without a plan as if search were not prepared."""
        records = [record if plan is not None else replace(record, prepared=None) for record in self.records]
        return [Segment(self.folder, record, settings, plan) for record in records]

    def write(self, plan: SearchPlan, settings: GallerySettings, work: WorkCounter) -> None:
        """Write the plan, and what it adds to each segment."""
        segments = self.segments(settings)
        self.plan_file = self.files.write(plan_arrays(plan))
        self.records = [
            replace(record, prepared=self.files.write(segment.prepare(plan, work)))
            for record, segment in zip(self.records, segments, strict=True)
        ]
        for segment in segments:
            segment.check_untouched()

    def leave_out_levels(self, plan: SearchPlan, settings: GallerySettings) -> None:
        """Keep the measures, and no codes that nothing reads."""
        written = [self.plan_file, *(record.prepared for record in self.records)]
        parts = self.segments(settings, plan)
        self.plan_file = self.files.write(plan_arrays(plan))
        self.records = [
            replace(record, prepared=self.files.write(part.kept_prepared(np.ones(len(record.live), bool))))
            for record, part in zip(self.records, parts, strict=True)
        ]
        self.files.remove(file for file in written if file is not None)


def prepare_rows(
    rows: Sequence[RowsToPrepare],
    settings: GallerySettings,
    queries: Embeddings | Iterable[Embeddings] | None,
    directions: NDArray[np.float32] | None,
    progress: Progress | None = None,
) -> tuple[Preparation, list[dict[str, Any]]]:
    """Fit one plan to all rows and their queries, and write what it adds to them; see `GalleryWriter.prepare`.

    Returns:
        The preparation, and for each folder what its next commit changes.
    """
    if directions is not None:
        check_array("directions", directions, np.float32, ("r", settings.dim))
        if not np.isfinite(directions).all():
            raise TensorError("directions", "must be finite", "NaN or infinity")
    if settings.fine == "none":
        raise InputError("a gallery without a fine copy cannot be prepared: its answers are not certified")
    given = [queries] if isinstance(queries, Embeddings) else () if queries is None else queries
    vectors = [vectors for some in given for vectors in check_queries(settings, some, True, None)[0]]
    asked = np.concatenate(vectors) if vectors else directions
    alive = [record.live for some in rows for record in some.records]
    count = sum(map(len, alive))
    work = WorkCounter(3 * count, progress)  # to fit the plan, to code the rows, to measure
    plan = fit_plan([segment for some in rows for segment in some.segments(settings)], alive, asked, settings, work)
    work.reach(count)
    for some in rows:
        some.write(plan, settings, work)
    parts = [part for some in rows for part in some.segments(settings, plan)]
    live = np.concatenate(alive) if alive else np.zeros(0, bool)
    found = choose(parts, live, settings, vectors, plan, work)
    if found.plan.first is None:
        for some in rows:
            some.leave_out_levels(found.plan, settings)
    work.reach(3 * count)
    changes = [
        {"segments": tuple(some.records), "prepared": found.to_record(some.plan_file)}
        for some in rows
        if some.plan_file is not None
    ]
    return found, changes
