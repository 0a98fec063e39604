"""Which kind of source a file or folder is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError
from .annotations import read_json
from .entries import SPLIT_NAMES, Entry, Stray
from .sidecars import read_folder
from .tables import read_table


@dataclass(frozen=True)
class OwnSource:
    """A file of captions, or a folder of pictures with text files beside them.

    Attributes:
        path: the file or folder.
        split: the split of everything in it, where it was given with the path; otherwise None.
    """

    path: Path
    split: str | None = None

    @classmethod
    def parse(cls, text: str) -> OwnSource:
        """Read PATH, or SPLIT=PATH where no file is called that.

        Raises:
            InputError: there is no such file or folder.
        """
        word, sign, rest = text.partition("=")
        if sign and word.lower() in SPLIT_NAMES and not Path(text).exists():
            text, split = rest, SPLIT_NAMES[word.lower()]
        else:
            split = None
        if not Path(text).exists():
            raise InputError(f"{text} does not exist: give a file of captions, or a folder of pictures with text files")
        return cls(Path(text), split)

    @property
    def is_table(self) -> bool:
        """Whether it is a file of rows with columns."""
        return not self.path.is_dir() and self.path.suffix.lower() != ".json"

    @property
    def folder(self) -> Path:
        """Where its names of pictures lead, unless another folder is given."""
        return self.path if self.path.is_dir() else self.path.parent


def read_source(
    source: OwnSource, *, first_line: bool, columns: tuple[str | None, str | None], leave_out: Path | None
) -> Iterator[Entry | Stray]:
    """Everything that a source holds, in its order.

    Args:
        source: `.json` is an annotation file, another file a table, and a folder has text files beside its pictures.
        first_line: of text files beside pictures, use only the first line.
        columns: names of the columns of the path and of the caption in tables; None finds them.
        leave_out: a folder that is not looked at.

    Raises:
        InputError: the source breaks its form, or names splits although one was given for all of it.
    """
    read: Iterable[Entry | Stray]
    if source.path.is_dir():
        read = read_folder(source.path, first_line, leave_out)
    elif source.is_table:
        read = read_table(source.path, *columns)
    else:
        read = read_json(source.path)
    for item in read:
        if source.split is None or isinstance(item, Stray):
            yield item
        elif item.split not in (None, source.split):
            raise InputError(
                f"{item.where}: names the split {item.split!r}, and {source.split}= was given for the file"
            )
        else:
            yield replace(item, split=source.split)
