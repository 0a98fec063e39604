"""`chan index BUNDLE SOURCES`: encode images or captions into a gallery on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..runtime.counts import counted
from . import options
from .index_embeddings import report_preparation
from .terminal import echo, print_json, progress_bar, report_skipped, skipped_as_dicts, stdout_to_stderr, visible, warn

if TYPE_CHECKING:
    from ..runtime.gallery import GallerySettings
    from ..runtime.gallery.prepare import Preparation
    from ..runtime.indexing.index import IndexResult
    from ..runtime.indexing.sources import Source
    from .index import IndexOptions

_NAMED = 20  # lines of metadata that are named, of those that fit no picture


def index_sources(context: click.Context, asked: IndexOptions) -> None:
    """Bring the gallery up to date with sources, here or on a cluster."""
    bundle, *sources = asked.arguments
    if isinstance(bundle, str) or not bundle.is_dir() or not sources:
        raise click.UsageError("give BUNDLE SOURCES..., where BUNDLE is a folder, or --embeddings FILES...")

    from ..runtime.indexing.metadata_file import read_metadata, with_metadata
    from ..runtime.indexing.sources import read_lines
    from ..runtime.session import gallery_settings

    settings = gallery_settings(bundle, asked.kind, precision=asked.precision, fine=asked.fine)
    source, unmatched = _open_source(sources, asked), list[str]()
    if asked.metadata is not None:
        source, unmatched = with_metadata(source, read_metadata(asked.metadata))
    queries = source.queries if asked.queries is None else read_lines(asked.queries)
    index = _index_here if asked.address is None else _index_on_cluster
    indexed = index(context, asked, bundle, settings, source, queries)
    _report(asked, indexed, source, unmatched)
    if unmatched:
        named = counted(len(unmatched), f"line of {asked.metadata} names", f"lines of {asked.metadata} name")
        warn(f"{named} no picture of SOURCES:")
        for name in unmatched[:_NAMED]:
            echo(f"  {visible(name)}", err=True)
        if len(unmatched) > _NAMED:
            echo(f"  and {len(unmatched) - _NAMED} more, which --json names, too", err=True)
    for note in source.notes:
        warn(note)
    report_skipped(indexed.rows.skipped, source.passed_over)
    if asked.strict and (indexed.rows.skipped or unmatched):
        raise click.exceptions.Exit(1)


@dataclass(frozen=True)
class _Indexed:
    """What a run did.

    Attributes:
        rows: counts of its rows.
        prepared: how search was fitted; None where it was not.
        held: what the gallery has now, in words.
        earlier: rows among the encoded ones that an interrupted run on the cluster had encoded; None of other runs.
    """

    rows: IndexResult
    prepared: Preparation | None
    held: str
    earlier: int | None = None

    @property
    def encoded(self) -> int:
        """Rows that this run encoded."""
        return self.rows.encoded - (self.earlier or 0)


def _open_source(sources: Sequence[Path | str], asked: IndexOptions) -> Source:
    if not any(isinstance(path, str) for path in sources):
        from ..runtime.indexing.data_sources import open_source

        return open_source(sources, asked.split, captions=asked.captions)
    from ..scale.bucket import bucket_source

    if len(sources) > 1 or asked.captions:
        raise click.UsageError("an address must be the only source, and it holds pictures")
    return bucket_source(str(sources[0]))


def _index_here(
    context: click.Context,
    asked: IndexOptions,
    bundle: Path,
    settings: GallerySettings,
    source: Source,
    queries: Sequence[str],
) -> _Indexed:
    from ..runtime.indexing.index import index_source, prepare_search
    from ..runtime.matcher import Matcher
    from ..runtime.session import open_writer

    network = options.open_backbone(context, asked.backbone, asked.weights)
    with (
        Matcher.open(bundle, asked.backend, asked.precision, backbone=network, device=asked.device) as matcher,
        open_writer(asked.out, settings) as writer,
    ):
        with progress_bar("index", len(source.ids)) as progress:
            rows = index_source(
                writer,
                matcher,
                source,
                replace=asked.replace,
                prune=asked.prune,
                max_bad=asked.max_bad,
                progress=progress,
            )
        return _Indexed(rows, prepare_search(writer, matcher, queries), writer.describe())


def _index_on_cluster(
    context: click.Context,
    asked: IndexOptions,
    bundle: Path,
    settings: GallerySettings,
    source: Source,
    queries: Sequence[str],
) -> _Indexed:
    from ..scale.bulk import SHARD_ROWS, Encoding, index_on_cluster

    encoding = Encoding(
        address=asked.address or None,
        actors=asked.actors,
        shard_rows=asked.shard_rows or SHARD_ROWS,
        backend=asked.backend,
        backbone=options.backbone_maker(context, asked.backbone, asked.weights),
    )
    # Ray prints about nodes that it lost
    with stdout_to_stderr(), progress_bar("index", len(source.ids)) as progress:
        ran = index_on_cluster(
            bundle,
            source,
            asked.out,
            settings,
            encoding,
            queries=queries,
            replace_rows=asked.replace,
            prune=asked.prune,
            max_bad=asked.max_bad,
            progress=progress,
        )
    return _Indexed(ran.rows, ran.prepared, ran.held, ran.earlier)


def _report(asked: IndexOptions, indexed: _Indexed, source: Source, unmatched: Sequence[str]) -> None:
    rows = indexed.rows
    if asked.as_json:
        print_json(
            {
                "gallery": str(asked.out),
                "encoded": indexed.encoded,
                **({} if indexed.earlier is None else {"encoded_earlier": indexed.earlier}),
                "added": rows.added,
                "refreshed": rows.refreshed,
                "moved": rows.moved,
                "already_there": rows.unchanged,
                "relabeled": rows.relabeled,
                "missing": list(rows.missing),
                "removed": len(rows.missing) if rows.removed else 0,
                "metadata_without_picture": unmatched,
                "skipped": skipped_as_dicts(rows.skipped),
                "not_read": dict(source.passed_over),
                "notes": list(source.notes),
                "prepared": None if indexed.prepared is None else indexed.prepared.describe(),
            }
        )
        return
    echo(f"{indexed.encoded} encoded, {rows.unchanged} already there")
    for count, text in (
        (indexed.earlier or 0, "encoded by an earlier run, which was interrupted"),
        (rows.refreshed, "of these encoded again, because the content changed or --replace was given"),
        (rows.moved, "renamed, because the same content lies elsewhere now"),
        (rows.relabeled, "of those that were there have other metadata now"),
        (len(rows.missing) * asked.prune, "removed, because the item is gone"),
    ):
        if count:
            echo(f"{count} {text}")
    if rows.missing and not asked.prune:
        gone = f"{len(rows.missing)} kept although the item is gone"
        echo(f"{gone}, such as {rows.missing[0]}; --prune removes these")
    report_preparation(indexed.prepared, asked.queries)
    echo(f"{asked.out}: {indexed.held}")
