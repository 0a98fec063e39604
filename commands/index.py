"""`chan index`: encode images or captions, or take embeddings of another model, into a gallery on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from . import options, values
from .index_embeddings import index_files
from .index_sources import index_sources

if TYPE_CHECKING:
    from ..runtime.contract import Coding, Pooling


@dataclass(frozen=True)
class IndexOptions:
    """What the command line asks for; `chan index --help` describes each."""

    arguments: tuple[Path | str, ...]
    embeddings: bool
    coding: Coding
    pooling: Pooling
    out: Path
    split: Any
    captions: bool
    replace: bool
    fine: Literal["float32", "fixed16", "float16", "none"]
    prune: bool
    metadata: Path | None
    backbone: str | None
    weights: str
    queries: Path | None
    address: str | None
    actors: int | None
    shard_rows: int | None
    backend: str
    device: str
    precision: str
    max_bad: int
    strict: bool
    as_json: bool

    @property
    def kind(self) -> Literal["images", "captions"]:
        """Of the rows."""
        return "captions" if self.captions else "images"


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
    "picture; one that fits none is named, and with --strict makes the exit status 1. With --embeddings there is a "
    "line for each row, which may name the row's `id`.",
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
def command(context: click.Context, /, **given: Any) -> None:
    """Encode SOURCES with BUNDLE, or take FILES of embeddings of another model, and keep them in the gallery OUT.

    \b
    chan index BUNDLE photos/ -o GALLERY
    chan index --embeddings pages.safetensors -o GALLERY
    chan index BUNDLE photos/ -o GALLERY --ray 10.0.0.1:6379

    SOURCES are pictures and folders of pictures, or one data folder (precomp/SPLIT_ims.npy with region features,
    precomp/SPLIT_caps.txt with captions), or one address of pictures in object storage, such as s3://bucket/photos.
    With --captions they are a data folder or text files.

    Run the same command again to continue after an interruption and to bring the gallery up to date: what is new is
    added, what changed is encoded again, what moved within SOURCES is renamed, and with --prune what is gone is
    removed. The id of a row is the name of its folder and the path below it. A picture that cannot be read is skipped
    and listed at the end.

    A gallery keeps its --fine, --precision, --coding and --pooling: they need not be given again.

    FILES hold one vector or several for each row, in the forms that docs/embeddings.md lists. A score is made of their
    inner products as they are. The gallery knows no words: search it with `chan search GALLERY --embeddings FILE`.
    """
    asked = _as_before(context, IndexOptions(**given))
    if asked.embeddings:
        encoding = ("split", "replace", "prune", "backbone", "weights", "backend", "device", "precision")
        options.refuse_given(context, (*encoding, "address", "actors", "shard_rows"), "with --embeddings")
        index_files(asked)
        return
    options.refuse_given(context, ("coding", "pooling"), "without --embeddings: the bundle decides it")
    if asked.address is None:
        options.refuse_given(context, ("actors", "shard_rows"), "without --ray")
    else:
        options.refuse_given(context, ("device",), "with --ray, which gives each process a GPU")
    index_sources(context, asked)


def _as_before(context: click.Context, asked: IndexOptions) -> IndexOptions:
    """With coding, pooling, fine copy and precision of the gallery that is added to, where they are not given."""
    from ..runtime.gallery import Gallery, is_gallery

    if not is_gallery(asked.out):
        return asked
    with Gallery.open(asked.out) as opened:
        kept = opened.settings
    before: dict[str, Any] = {
        "coding": kept.alignment.coding,
        "pooling": kept.alignment.pooling,
        "fine": kept.fine,
        "precision": kept.precision or asked.precision,
    }
    given = {name for name in before if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    return replace(asked, **{name: value for name, value in before.items() if name not in given})
