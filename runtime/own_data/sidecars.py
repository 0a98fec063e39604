"""A folder of pictures with a text file of the same name beside each: cat.png and cat.txt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import reason_of
from ..pictures.load import list_pictures
from .entries import Entry, Stray


def read_folder(folder: Path, first_line: bool, leave_out: Path | None = None) -> Iterator[Entry | Stray]:
    """The pictures below a folder with the lines of their text files, in sorted order.

    Args:
        folder: is searched through; links to folders are not followed.
        first_line: use only the first line of each text file; otherwise every line that is not blank is a caption.
        leave_out: a folder below it that is not looked at.

    Raises:
        InputError: there is no picture at all.
    """
    found = list_pictures([folder])
    below = [file for file in found.files if leave_out is None or leave_out not in file.parents]
    texts = {file.with_suffix(".txt") for file in below}
    for picture in below:
        text = picture.with_suffix(".txt")
        name = picture.relative_to(folder).as_posix()
        if not text.is_file():
            yield Entry(str(picture), (name,), ())
            continue
        try:
            lines = text.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            yield Stray(str(text), f"it cannot be read: {reason_of(error)}")
            continue
        yield Entry(str(text), (name,), tuple(lines[:1] if first_line else filter(str.strip, lines)))
    for text in sorted(folder.rglob("*.txt")):
        if text not in texts and (leave_out is None or leave_out not in text.parents):
            yield Stray(str(text), "no picture of this name lies beside it")
    for unreadable, reason in found.unreadable.items():
        yield Stray(str(unreadable), f"the folder cannot be read: {reason}")
