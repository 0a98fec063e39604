"""`chan index`: encode images or captions, or take embeddings of another model, into a gallery on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..runtime.counts import counted
from . import options, values
from .index_embeddings import index_files, report_preparation
from .terminal import echo, print_json, progress_bar, report_skipped, skipped_as_dicts, stdout_to_stderr, warn


@click.command("index", short_help="Encode images or captions into a gallery for `chan search`.")
@click.argument(
    "arguments",
    nargs=-1,
    required=True,
    type=values.Source(),
    metavar="BUNDLE SOURCES... | --embeddings FILES...",
)
@click.option(
    "--embeddings",
    is_flag=True,
    help="Index FILES of embeddings of another model: .npy, .npz, .safetensors, .parquet, .pt, or folders of them.",
)
@click.option(
    "--coding", type=values.CODING, default="VHA", show_default=True, help="Coding of the scores, with --embeddings."
)
@click.option(
    "--pooling",
    type=values.POOLING,
    default="Sum",
    show_default=True,
    help="Pooling of the scores, with --embeddings. VHA with Sum is MaxSim.",
)
@options.out_option(values.NEW_FOLDER, "Folder of a new gallery, or of a gallery to add to.")
@options.split_option("test", "Split of a data folder to index.")
@click.option(
    "--captions",
    is_flag=True,
    help="Index the captions of a data folder, the lines of text files, or embeddings of words.",
)
@click.option("--replace", is_flag=True, help="Encode the rows that the gallery already has again.")
@click.option(
    "--fine",
    type=click.Choice(["float32", "fixed16", "float16", "none"]),
    default="float32",
    show_default=True,
    help="Copy of the vectors that exact search ranks by. fixed16 adds a quarter of float32's bytes to the int8 codes, "
    "and loses less than float16. With none only the int8 codes are kept, and nothing is certified.",
)
@click.option("--prune", is_flag=True, help="Remove the rows of SOURCES whose picture or data row is gone.")
@click.option(
    "--metadata",
    type=values.FILE,
    help="Metadata to filter by: a CSV file with a header, JSON lines, or Parquet. Each line names the `path` of its "
    "picture. With --embeddings there is a line for each row, which may name the row's `id`.",
)
@options.backbone_options("Network that turns pictures into regions, in place of the backbone of BUNDLE.")
@options.queries_option
@options.ray_option(
    "Encode on the Ray cluster at this address, into a gallery in shards. All nodes must reach BUNDLE, SOURCES and OUT "
    "by the same paths."
)
@click.option(
    "--actors",
    type=values.COUNT,
    help="Number of processes that encode, with --ray. The default is one for each GPU of the cluster, or for each CPU "
    "if it has no GPU.",
)
@click.option("--shard-rows", type=values.COUNT, help="Number of rows in each shard, with --ray. The default is 16384.")
@options.backend_option
@options.device_option
@options.precision_option
@options.skipping_options
@options.json_option
@click.pass_context
def command(
    context: click.Context,
    arguments: tuple[Path | str, ...],
    embeddings: bool,
    coding: Any,
    pooling: Any,
    out: Path,
    split: Any,
    captions: bool,
    replace: bool,
    fine: Any,
    prune: bool,
    metadata: Path | None,
    backbone: str | None,
    weights: str,
    queries: Path | None,
    address: str | None,
    actors: int | None,
    shard_rows: int | None,
    backend: str,
    device: str,
    precision: str,
    max_bad: int,
    strict: bool,
    as_json: bool,
) -> None:
    """Encode SOURCES with BUNDLE, or take FILES of embeddings of another model, and keep them in the gallery OUT.

    \b
    chan index BUNDLE photos/ -o GALLERY
    chan index --embeddings pages.safetensors -o GALLERY
    chan index BUNDLE photos/ -o GALLERY --ray 10.0.0.1:6379

    SOURCES are pictures and folders of pictures, or one data folder in the precomp layout, or one address of pictures
    in object storage, such as s3://bucket/photos. With --captions they are a data folder or text files.

    Run the same command again to continue after an interruption and to bring the gallery up to date: what is new is
    added, what changed is encoded again, what moved within SOURCES is renamed, and with --prune what is gone is
    removed. The id of a row is the name of its folder and the path below it. A picture that cannot be read is skipped
    and listed at the end.

    A gallery keeps its --fine, --precision, --coding and --pooling: they need not be given again.

    FILES hold one vector or several for each row, in the forms that docs/embeddings.md lists. A score is made of their
    inner products as they are. The gallery knows no words: search it with `chan search GALLERY --embeddings FILE`.
    """
    coding, pooling, fine, precision = _as_before(context, out, coding, pooling, fine, precision)
    if embeddings:
        encoding = ("split", "replace", "prune", "backbone", "weights", "backend", "device", "precision")
        options.refuse_given(context, (*encoding, "address", "actors", "shard_rows"), "with --embeddings")
        alignment = coding, pooling
        files = [Path(file) for file in arguments]
        index_files(files, out, alignment, captions, fine, metadata, queries, max_bad, strict, as_json)
        return
    options.refuse_given(context, ("coding", "pooling"), "without --embeddings: the bundle decides it")
    bundle, *sources = arguments
    if isinstance(bundle, str) or not bundle.is_dir() or not sources:
        raise click.UsageError("give BUNDLE SOURCES..., where BUNDLE is a folder, or --embeddings FILES...")

    if address is None:
        options.refuse_given(context, ("actors", "shard_rows"), "without --ray")
    else:
        options.refuse_given(context, ("device",), "with --ray, which gives each process a GPU")

    from ..runtime.indexing.data_sources import open_source
    from ..runtime.indexing.index import index_source, prepare_search
    from ..runtime.indexing.metadata_file import read_metadata, with_metadata
    from ..runtime.indexing.sources import read_lines
    from ..runtime.matcher import Matcher
    from ..runtime.session import gallery_settings, open_writer

    settings = gallery_settings(bundle, "captions" if captions else "images", precision=precision, fine=fine)
    if any(isinstance(path, str) for path in sources):
        from ..scale.bucket import bucket_source

        if len(sources) > 1 or captions:
            raise click.UsageError("an address must be the only source, and it holds pictures")
        source = bucket_source(str(sources[0]))
    else:
        source = open_source(sources, split, captions=captions)
    unmatched: list[str] = []
    if metadata is not None:
        source, unmatched = with_metadata(source, read_metadata(metadata))
    texts = source.queries if queries is None else read_lines(queries)
    earlier = None  # rows that an interrupted run on the cluster had encoded
    if address is not None:
        from ..scale.bulk import SHARD_ROWS, index_on_cluster

        make_network = options.backbone_maker(context, backbone, weights)
        # Ray prints about nodes that it lost
        with stdout_to_stderr(), progress_bar("index", len(source.ids)) as progress:
            ran = index_on_cluster(
                bundle,
                source,
                out,
                settings,
                address=address or None,
                actors=actors,
                shard_rows=shard_rows or SHARD_ROWS,
                backend=backend,
                backbone=make_network,
                queries=texts,
                replace_rows=replace,
                prune=prune,
                max_bad=max_bad,
                progress=progress,
            )
        result, prepared, held, earlier = ran.rows, ran.prepared, ran.held, ran.earlier
    else:
        network = options.open_backbone(context, backbone, weights)
        with (
            Matcher.open(bundle, backend, precision, backbone=network, device=device) as matcher,
            open_writer(out, settings) as writer,
        ):
            with progress_bar("index", len(source.ids)) as progress:
                result = index_source(
                    writer, matcher, source, replace=replace, prune=prune, max_bad=max_bad, progress=progress
                )
            prepared = prepare_search(writer, matcher, texts)
            held = writer.describe()
    encoded = result.encoded - (earlier or 0)
    if as_json:
        print_json(
            {
                "gallery": str(out),
                "encoded": encoded,
                **({} if earlier is None else {"encoded_earlier": earlier}),
                "added": result.added,
                "refreshed": result.refreshed,
                "moved": result.moved,
                "already_there": result.unchanged,
                "relabeled": result.relabeled,
                "missing": list(result.missing),
                "removed": len(result.missing) if result.removed else 0,
                "metadata_without_picture": unmatched,
                "skipped": skipped_as_dicts(result.skipped),
                "not_read": dict(source.passed_over),
                "prepared": None if prepared is None else prepared.describe(),
            }
        )
    else:
        echo(f"{encoded} encoded, {result.unchanged} already there")
        for count, text in (
            (earlier or 0, "encoded by an earlier run, which was interrupted"),
            (result.refreshed, "of these encoded again, because the content changed or --replace was given"),
            (result.moved, "renamed, because the same content lies elsewhere now"),
            (result.relabeled, "of those that were there have other metadata now"),
            (len(result.missing) * prune, "removed, because the item is gone"),
        ):
            if count:
                echo(f"{count} {text}")
        if result.missing and not prune:
            gone = f"{len(result.missing)} kept although the item is gone"
            echo(f"{gone}, such as {result.missing[0]}; --prune removes these")
        report_preparation(prepared, queries)
        echo(f"{out}: {held}")
    if unmatched:
        warn(
            f"{counted(len(unmatched), f'line of {metadata} names', f'lines of {metadata} name')} no picture of "
            f"SOURCES, such as {unmatched[0]}"
        )
    report_skipped(result.skipped, source.passed_over)
    if strict and result.skipped:
        raise click.exceptions.Exit(1)


def _as_before(context: click.Context, out: Path, *choices: Any) -> tuple[Any, ...]:
    """Coding, pooling, fine copy and precision: where they are not given, those of the gallery that is added to."""
    from ..runtime.gallery import Gallery, is_gallery

    if not is_gallery(out):
        return choices
    with Gallery.open(out) as opened:
        kept = opened.settings
    before = kept.alignment.coding, kept.alignment.pooling, kept.fine, kept.precision or choices[-1]
    names = ("coding", "pooling", "fine", "precision")
    given = [context.get_parameter_source(name) is ParameterSource.COMMANDLINE for name in names]
    return tuple(choice if is_given else old for choice, old, is_given in zip(choices, before, given, strict=True))
