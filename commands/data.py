"""`chan data`: make a data folder from one's own pictures and captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..runtime.errors import quoted
from . import options, values
from .terminal import echo, print_json, progress_bar, say_next, visible, visible_word, warn

if TYPE_CHECKING:
    from ..runtime.own_data.report import DataReport, Range
    from ..runtime.skipped import SkippedItem

_SHOWN = 5  # items of each kind that are listed; data.json has all


def _share_option(split: str, use: str) -> options.Decorator:
    return click.option(
        f"--{split}-share",
        type=values.NumberRange(0, 1, max_open=True),
        default=0.1,
        show_default=True,
        help=f"Share of the pictures to {use} on, where SOURCES name no splits.",
    )


@click.command("data", short_help="Make a data folder from pictures and captions of your own, and report on it.")
@click.argument("sources", nargs=-1, required=True, type=values.TEXT, metavar="SOURCES...")
@options.out_option(values.NEW_FOLDER, "Data folder to write.")
@click.option(
    "--pictures",
    multiple=True,
    type=values.FOLDER,
    help="Folder below which the pictures of SOURCES lie; may be repeated. The default is the folder of each source.",
)
@click.option("--path-column", type=values.TEXT, help="Column of a table that has the path of the picture.")
@click.option("--caption-column", type=values.TEXT, help="Column of a table that has the caption.")
@click.option(
    "--first-line", is_flag=True, help="Use only the first line of each text file that lies beside a picture."
)
@_share_option("dev", "validate")
@_share_option("test", "test")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the splits. Another seed makes other splits.",
)
@click.option(
    "--min-count",
    type=values.COUNT,
    default=4,
    show_default=True,
    help="A word that is rarer than this in train is reported as unknown, as `chan train` treats it.",
)
@options.force_option("Replace the data in OUT, and remove its features. Pictures are never removed.")
@options.skipping_options
@options.json_option
@click.pass_context
def command(
    context: click.Context,
    /,
    sources: tuple[str, ...],
    out: Path,
    pictures: tuple[Path, ...],
    path_column: str | None,
    caption_column: str | None,
    first_line: bool,
    dev_share: float,
    test_share: float,
    seed: int,
    min_count: int,
    force: bool,
    max_bad: int,
    strict: bool,
    as_json: bool,
) -> None:
    """Check SOURCES, make splits, and write the captions into OUT for `chan features`, `chan train` and `chan index`.

    SOURCES are files of captions, or folders of pictures with a text file of the same name beside each. A .json file
    is Karpathy's (dataset_*.json) or COCO's (captions_*.json). A .jsonl, .csv, .tsv or other file is a table of paths
    and captions. Write train=FILE, dev=FILE or test=FILE to give all of a file one split.

    Where SOURCES name no splits, each picture's content decides about its split. Pictures of equal content become one,
    so none is in two splits. OUT/data.json has the report, with everything that was left out.
    """
    from ..runtime.own_data.find import PictureFolders
    from ..runtime.own_data.gather import gather
    from ..runtime.own_data.report import report
    from ..runtime.own_data.sources import OwnSource, read_source
    from ..runtime.own_data.splits import Shares
    from ..runtime.own_data.write import check_place, write_data

    check_place(out, force)
    shares = Shares(dev_share, test_share, seed)
    found = [OwnSource.parse(source) for source in sources]
    if not any(source.is_table for source in found):
        options.refuse_given(context, ("path_column", "caption_column"), "where no source is a table")
    if not any(source.path.is_dir() for source in found):
        options.refuse_given(context, ("first_line",), "where no source is a folder")
    columns = (path_column, caption_column)
    entries = (
        (
            PictureFolders(pictures or [source.folder]),
            read_source(source, first_line=first_line, columns=columns, leave_out=out / "precomp"),
        )
        for source in found
    )
    with progress_bar("pictures") as progress:
        gathered = gather(entries, shares, max_bad=max_bad, progress=progress)
    if gathered.split_by == "the source":
        options.refuse_given(context, ("dev_share", "test_share", "seed"), "where SOURCES name the splits")
    counted = report(gathered, min_count)
    write_data(out, gathered, counted, force)
    if as_json:
        print_json(counted.to_dict())
    else:
        _print(counted, out)
    if strict and counted.left_out:
        raise click.exceptions.Exit(1)


def _print(counted: DataReport, out: Path) -> None:
    heads = f"{'per picture':>15}  {'words a caption':>17}  {'unknown words':>14}"
    echo(f"{'split':6} {'pictures':>9} {'captions':>9}  {heads}")
    for name, split in counted.splits.items():
        share = split.unknown_words / split.words
        echo(
            f"{name:6} {split.pictures:9,} {split.captions:9,}  {_range(split.captions_of_picture):>15}  "
            f"{_range(split.words_of_caption):>17}  {share:14.1%}"
        )
    echo(f"The splits are made by {counted.split_by}. Ranges are: least, median, most.")
    if "train" in counted.splits:
        echo(
            f"train has {counted.train_words:,} different words, of which {counted.vocabulary:,} occur at least "
            f"{counted.min_count} times; the others are unknown words (--min-count)."
        )
    if counted.examples:
        echo(f"The most frequent unknown words of other splits: {', '.join(map(visible_word, counted.examples))}")
    for name, split in counted.splits.items():
        if split.shared_captions:
            warn(f"captions of {name} that describe more than one of its pictures: {split.shared_captions}")
        if split.in_train:
            warn(f"captions of {name} that train has too, so that recalls on {name} are easier: {split.in_train}")
        if split.unknown_captions and name != "train":
            warn(
                f"captions of {name} without a known word (use a lower --min-count, or BERT): {split.unknown_captions}"
            )
    for kind, items in counted.left_out.items():
        _list(kind, items, out)
    if counted.alike:
        _list("pictures of dev and test that look like one of train, so that recalls are easier", counted.alike, out)
    say_next(out, f"chan features {quoted(out)} -o {quoted(out)}")


def _list(kind: str, items: Sequence[SkippedItem], out: Path) -> None:
    warn(f"{kind}: {len(items)}")
    for one in items[:_SHOWN]:
        echo(f"  {visible(one.item)}: {visible(one.reason)}", err=True)
    if len(items) > _SHOWN:
        echo(f"  and {len(items) - _SHOWN} more in {visible(out / 'data.json')}", err=True)


def _range(values: Range) -> str:
    return f"{values.least}, {values.median:g}, {values.most}"
