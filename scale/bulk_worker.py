"""What runs on the nodes of a Ray cluster when a source is encoded: a check of the node, and the shards."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.errors import BackendError, ChanError, GalleryError, GalleryLocked, InputError
from ..runtime.gallery.settings import GallerySettings
from ..runtime.gallery.sharded.manifest import ShardEntry
from ..runtime.gallery.sharded.staged import StagedShard
from ..runtime.gallery.store.refusals import write_errors
from ..runtime.gallery.store.rows import Relabel
from ..runtime.indexing.identity import SOURCE, same_content
from ..runtime.indexing.index import COMMIT_ROWS, encode_items
from ..runtime.indexing.sources import Source
from ..runtime.matcher import Matcher
from ..runtime.regions import PictureBackbone
from ..runtime.skipped import Skipped, SkippedItem
from .connection import other_version

RUN = ".run"  # in OUT while it is filled: who fills it
ATTEMPTS = 20  # that may end with their actor or node before a shard has one more row; more is a fault of the rows
LOCK_SECONDS = 60.0  # that a shard may stay locked by the process that filled it before


@dataclass(frozen=True)
class Job:
    """What all nodes are told of a run.

    Attributes:
        out: the folder of the gallery.
        run: what `OUT/.run` holds while this run lasts.
        version: of this package, where the run was started.
        bundle, backend, precision: as of `Matcher.open`. Each actor uses one CPU thread.
        backbone: makes what takes the place of the bundle's backbone.
        settings: of every shard.
        max_bad: how many rows may be unreadable.
    """

    out: Path
    run: str
    version: str
    bundle: Path
    backend: str
    precision: str
    backbone: Callable[[], PictureBackbone] | None
    settings: GallerySettings
    max_bad: int


@dataclass(frozen=True)
class Work:
    """The rows of one shard.

    Attributes:
        folder: the shard's.
        gallery: as in `StagedShard.open_staged`.
        rows: their ids and metadata are those that the gallery will keep.
    """

    folder: Path
    gallery: str
    rows: Source


@dataclass(frozen=True)
class Filled:
    """What became of one shard.

    Attributes:
        entry: for the manifest.
        encoded: rows that were encoded; the others were there from an earlier run.
        skipped: what could not be encoded.
    """

    entry: ShardEntry
    encoded: int
    skipped: tuple[SkippedItem, ...]


def check_node(job: Job) -> str | None:
    """Why this machine cannot take part in a run, in words; None where it can."""
    if (problem := other_version(job.version)) is not None:
        return problem
    try:
        if (job.out / RUN).read_text() != job.run:
            return f"{job.out} is filled by another run, or is not the same folder there"
        (job.out / f"{RUN}-{socket.gethostname()}-{os.getpid()}").touch()
        (job.out / f"{RUN}-{socket.gethostname()}-{os.getpid()}").unlink()
    except OSError as error:
        return f"{job.out} cannot be written there ({error.strerror}): the nodes need a folder that all of them reach"
    return None if job.bundle.is_dir() else f"the bundle {job.bundle} is not there"


class Encoder:
    """An actor: one matcher, which fills one shard after another.

    Args:
        job: the run.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._matcher: Matcher | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Fill the shards of a batch; what is returned is small, whatever the shards hold."""
        return {"done": np.array([pickle.dumps(self._try(work)) for work in batch["work"]], object)}

    def _try(self, work: bytes) -> Filled | ChanError:
        try:
            reason = check_node(self._job)
            if reason is not None:
                return GalleryError(f"the node {socket.gethostname()} cannot take part: {reason}")
            return fill_shard(self._open(), self._job, pickle.loads(work))
        except InputError as error:
            return InputError(str(error))  # some of its kinds cannot be sent
        except ChanError as error:
            return error

    def _open(self) -> Matcher:
        if self._matcher is None:
            job = self._job
            backbone = None if job.backbone is None else job.backbone()
            self._matcher = Matcher.open(job.bundle, job.backend, job.precision, 1, backbone, batch=COMMIT_ROWS)
        return self._matcher


def fill_shard(matcher: Matcher, job: Job, work: Work) -> Filled:
    """Encode what a shard lacks, and commit it `COMMIT_ROWS` items at a time.

    Where these items begin and end depends on the shard's rows alone, so a shard that was filled by several processes,
    one after the other, has the same bytes as one that was filled at once.

    Raises:
        GalleryError: it cannot be written; what was committed is kept.
        InputError: more than `job.max_bad` rows cannot be encoded.
        BackendError: the processes that tried this before were ended again and again.
    """
    rows, skipped = work.rows, Skipped(job.max_bad)
    metadata = [dict(row) for row in rows.metadata]
    with _open_shard(work, job.settings, rows.ids) as shard:
        _count_attempt(job, shard)
        todo = _todo(shard, rows, metadata)
        encoded = 0
        for begin in range(0, len(rows.ids), COMMIT_ROWS):
            items = [item for item in todo[begin : begin + COMMIT_ROWS] if item >= 0]
            if items:
                encoded += len(encode_items(shard, matcher, rows, rows.ids, metadata, items, skipped))
        shard.compact()
        return Filled(shard.entry, encoded, skipped.items)


def _count_attempt(job: Job, shard: StagedShard) -> None:
    """Note that a process begins; Ray would start one after the other for rows that end each."""
    note = job.out / f"{RUN}-{shard.path.name}"
    with write_errors(job.out):
        earlier = note.read_text().split() if note.exists() else []
        begun = 1 + (int(earlier[1]) if earlier[:1] == [str(len(shard))] else 0)
        note.write_text(f"{len(shard)} {begun}")
    if begun > ATTEMPTS:
        raise BackendError(
            f"{ATTEMPTS} actors ended while they encoded the rows of {shard.path.name} after the first {len(shard)}: "
            "the logs of Ray have the reason, such as memory that ran out"
        )


def _todo(shard: StagedShard, rows: Source, metadata: Sequence[dict[str, Any]]) -> list[int]:
    """For each item its number where it must be encoded, and -1 where it is there; rows of other items are removed."""
    known = {row.id: row.metadata for row in shard.rows()}
    todo, relabeled = [], []
    for item, id in enumerate(rows.ids):
        same = id in known
        if same and rows.origins:
            same = same_content(rows.origins[item], metadata[item][SOURCE], known[id][SOURCE])
        if same and (details := {**known[id], **metadata[item]}) != known[id]:
            relabeled.append(Relabel(id, id, details))
        todo.append(-1 if same else item)
    gone = sorted(known.keys() - set(rows.ids))
    if gone:
        shard.delete(gone)
    if relabeled:
        shard.relabel(relabeled)
    return todo


def _open_shard(work: Work, settings: GallerySettings, ids: Sequence[str]) -> StagedShard:
    """The shard, for writing; empty where it has no row of this work."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            shard = StagedShard.open_staged(work.folder, settings, work.gallery)
        except GalleryLocked:  # by a process that Ray is about to end
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
            continue
        if len(shard) and not shard.ids(ids):
            shard.close()
            shutil.rmtree(work.folder)
            continue
        return shard
