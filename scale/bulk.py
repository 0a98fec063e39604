"""Encode a source on a Ray cluster, into a gallery in shards. docs/scale.md has the commands.

The rows to encode are cut into shards of the same number of rows, in the source's order. Each shard is one piece of
work for an actor, which encodes it and writes it into the gallery's folder; nothing but names and counts travels. A
shard is committed every 256 rows, so whatever ends an actor, the next one continues from there. When all shards are
filled, one commit makes them part of the gallery (runtime/gallery/sharded/staged.py).
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Self

from ..runtime.checks import check_positive
from ..runtime.errors import GalleryCorrupt, GalleryError, InputError, quoted
from ..runtime.files import write_file
from ..runtime.gallery import ShardedWriter, is_gallery
from ..runtime.gallery.prepare import Preparation
from ..runtime.gallery.settings import GallerySettings
from ..runtime.gallery.sharded.manifest import is_sharded, shard_name, shard_number
from ..runtime.gallery.sharded.staged import StagedShard, check_only_staged, staged_rows
from ..runtime.gallery.store.lock import WriterLock
from ..runtime.gallery.store.refusals import write_errors
from ..runtime.indexing.identity import SOURCE, Plan, compare
from ..runtime.indexing.index import IndexResult, nothing_readable, plan_source, prepare_search, result_of
from ..runtime.indexing.sources import Source
from ..runtime.matcher import Matcher
from ..runtime.progress import Progress
from ..runtime.regions import PictureBackbone
from ..runtime.skipped import MAX_BAD, Skipped
from .bulk_worker import RUN, Filled, Job, Work
from .cluster import cluster, fill

_log = logging.getLogger(__name__)
SHARD_ROWS = 16384
_PROGRESS_SECONDS = 1.0


@dataclass(frozen=True)
class Encoding:
    """How a cluster encodes.

    Attributes:
        address: of the cluster; None for the one that Ray finds, or else one on this machine that is started for this
            run. Where `ray.init` was called already, that cluster is used.
        actors: how many actors encode; None for one for each GPU, or each CPU where the cluster has no GPU or
            `backend` is onnxruntime.
        shard_rows: rows of a shard; the last one may have fewer.
        backend: as of `Matcher.open`.
        backbone: makes, on each node, what takes the place of the bundle's backbone.
    """

    address: str | None = None
    actors: int | None = None
    shard_rows: int = SHARD_ROWS
    backend: str = "auto"
    backbone: Callable[[], PictureBackbone] | None = None

    def __post_init__(self) -> None:
        check_positive("shard_rows", self.shard_rows)


@dataclass(frozen=True)
class BulkResult:
    """What a run did.

    Attributes:
        rows: what it did to the rows.
        earlier: rows of `rows.encoded` that an interrupted run had encoded.
        shards: shards that were added.
        prepared: how search was prepared, if it was.
        held: what the gallery holds now, in words.
    """

    rows: IndexResult
    earlier: int
    shards: int
    prepared: Preparation | None
    held: str


def index_on_cluster(
    bundle: str | Path,
    source: Source,
    out: str | Path,
    settings: GallerySettings,
    encoding: Encoding | None = None,
    *,
    queries: Sequence[str] = (),
    replace_rows: bool = False,
    prune: bool = False,
    max_bad: int = MAX_BAD,
    progress: Progress | None = None,
) -> BulkResult:
    """Bring a gallery in shards up to date with a source, as `index_source` does, by the actors of a Ray cluster.

    The same call continues a run that was interrupted or killed: what it has encoded is not encoded again unless its
    content changed.

    Args:
        bundle: the bundle's folder, which every node reaches by the same path.
        source: the rows; every node reaches its files.
        out: the gallery's folder, which every node reaches.
        settings: of the gallery (`gallery_settings`).
        encoding: which cluster encodes, and how; None for the defaults.
        queries: as of `prepare_search`.
        replace_rows, prune, max_bad: as of `index_source`.
        progress: called from another thread with the rows finished and the rows there are to encode.

    Raises:
        MissingExtra: Ray is not installed.
        InputError: there is no cluster at the address; the source is of the other kind; too many rows are unreadable.
        GalleryError: the gallery is not one in shards, is of another model, or cannot be written from a node.
        BackendError: the cluster cannot do the work.
    """
    encoding = encoding or Encoding()
    bundle, folder = Path(bundle).resolve(), Path(out).absolute()
    skipped = Skipped(max_bad)
    for left_out in source.skipped:
        skipped.add(left_out)
    with _Target(folder, settings) as target:
        plan = target.plan(source)
        items, old = plan.to_encode(replace_rows)
        target.relabel(plan)
        works = target.cut(source, plan, items, encoding.shard_rows)
        done: list[Filled] = []
        if works:
            with cluster(encoding.address), _run(folder) as run, _watched(works, len(items), progress):
                names = bundle, encoding.backend, settings.precision or "fp32"
                job = Job(folder, run, version("chan-rt"), *names, encoding.backbone, target.settings, max_bad)
                for filled in fill(job, works, encoding.actors):
                    done.append(filled)
                    for problem in filled.skipped:
                        _log.info("skipped %s: %s", problem.item, problem.reason)
                        skipped.add(problem)
        gone = plan.missing if prune else []
        replaced = target.commit(done, {plan.ids[item] for item in old}, gone, plan.roots)
        filled_rows, encoded = sum(one.entry.rows for one in done), sum(one.encoded for one in done)
        if target.writer is None or (skipped.items and not (plan.kept or filled_rows or gone)):
            raise nothing_readable(skipped)
        if filled_rows or gone:
            target.writer.compact()
        with Matcher.open(bundle, "auto", settings.precision or "fp32") as matcher:
            prepared = prepare_search(target.writer, matcher, queries or source.queries)
        rows = result_of(plan, filled_rows - replaced, replaced, replace_rows, prune, skipped)
        return BulkResult(rows, filled_rows - encoded, len(done), prepared, target.writer.describe())


class _Target:
    """The gallery that is filled: locked, and with the shards of an interrupted run.

    Attributes:
        writer: of the gallery; None until there is one.
        settings: of its shards.
    """

    def __init__(self, folder: Path, settings: GallerySettings) -> None:
        self._folder = folder
        self.settings = settings
        self.writer: ShardedWriter | None = None
        self._lock: WriterLock | None = None

    def __enter__(self) -> Self:
        folder = self._folder
        if is_gallery(folder):
            if not is_sharded(folder):
                raise GalleryError(
                    f"{folder} is a gallery in one folder, and a cluster fills shards: make one in shards of it with: "
                    f"chan gallery split {quoted(folder)} -o NEW"
                )
            self.writer = ShardedWriter.open(folder, keep_staged=True)
            try:
                self.writer.check(self.settings)
            except BaseException:
                self.writer.close()
                raise
            self.settings = self.writer.settings
        else:
            if folder.exists():
                with write_errors(folder):
                    check_only_staged(folder)
            self._lock = WriterLock(folder, make=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
        elif self._lock is not None:
            self._lock.discard()

    def plan(self, source: Source) -> Plan:
        """What there is to do, from what the gallery holds; shards that are not part of it yet do not count."""
        if source.kind != self.settings.kind:
            raise InputError(f"kind must be this gallery's {self.settings.kind}, got {source.kind}")
        if self.writer is not None:
            return plan_source(self.writer, source)
        if source.origins:
            return compare(source.origins, source.metadata, (), {}, source.whole)
        return Plan(list(source.ids), [dict(row) for row in source.metadata], list(range(len(source.ids))))

    def relabel(self, plan: Plan) -> None:
        """Rename what moved, in a commit of its own."""
        if self.writer is not None:
            self.writer.relabel(plan.relabels, plan.roots)

    def cut(self, source: Source, plan: Plan, items: Sequence[int], rows: int) -> list[Work]:
        """The items in shards of so many rows, in order; the same items of the same folders make the same shards."""
        first = 1 if self.writer is None else self.writer.next_shard
        whole = "" if self.writer is None else self.writer.gallery
        works = []
        for number, begin in enumerate(range(0, len(items), rows), first):
            part = items[begin : begin + rows]
            ids, metadata = [plan.ids[item] for item in part], [plan.metadata[item] for item in part]
            # a file of another folder is another one, even if its id, size and time are the same
            roots = sorted({plan.roots[row[SOURCE]["root"]] for row in metadata}) if source.origins else []
            gallery = sha256(f"{whole} {number} {self.settings.model} {roots}".encode()).hexdigest()[:32]
            only = replace(source.only(part), ids=ids, metadata=metadata)
            works.append(Work(self._folder / shard_name(number), gallery, only))
        return works

    def commit(self, done: Sequence[Filled], old: set[str], gone: Sequence[str], roots: Mapping[str, str]) -> int:
        """Make shards part of the gallery and remove rows, in one commit.

        Args:
            done: the shards.
            old: ids that the gallery has and the shards may have; then the shards' rows take their place.
            gone: ids of other rows to remove.
            roots: as of the gallery.

        Returns:
            How many rows of the gallery were replaced.
        """
        with ExitStack() as stack:
            shards = []
            for entry in sorted(
                (one.entry for one in done if one.entry.rows), key=lambda entry: shard_number(entry.name) or 0
            ):
                with write_errors(self._folder):
                    shard = StagedShard.open_staged(self._folder / entry.name, self.settings, entry.header.gallery)
                stack.callback(shard.close)
                if shard.entry != entry:
                    raise GalleryCorrupt(f"{shard.path} is not what was written there by a node; run the command again")
                shards.append(shard)
            replaced = {id for shard in shards for id in shard.ids(old)} if old else set()
            if self.writer is not None:
                self.writer.adopt(shards, {*replaced, *gone}, roots)
            elif shards:
                assert self._lock is not None
                self.writer = ShardedWriter.create(self._folder, self._lock, self.settings, shards, roots)
        return len(replaced)


@contextmanager
def _run(folder: Path) -> Iterator[str]:
    """Mark a folder as filled by this run; shards are given to nobody who does not find the mark."""
    run = secrets.token_hex(16)
    with write_errors(folder):
        write_file(folder / RUN, run)
    try:
        yield run
    finally:
        with suppress(OSError):
            for file in folder.glob(f"{RUN}*"):
                file.unlink(missing_ok=True)


@contextmanager
def _watched(works: Sequence[Work], total: int, progress: Progress | None) -> Iterator[None]:
    """Report the rows that were committed to the shards, from a thread, while a block runs."""
    if progress is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        full: set[Path] = set()
        rows = 0
        while not over.wait(_PROGRESS_SECONDS):
            counts = {work.folder: staged_rows(work.folder) for work in works if work.folder not in full}
            for work in works:
                if counts.get(work.folder) == len(work.rows.ids):
                    full.add(work.folder)
                    rows += counts.pop(work.folder)
            progress(rows + sum(counts.values()), total)

    thread = threading.Thread(target=watch, name="chan-progress", daemon=True)
    thread.start()
    try:
        yield
        over.set()
        thread.join()
        progress(total, total)
    finally:
        over.set()
        thread.join()
