"""Where a change becomes durable.

A change first writes its new files and makes them durable (`NewFiles`). Then `publish` writes the new catalogue beside
the old one, makes its bytes durable, and moves it into place: until that move nothing of the change exists, after it
all of it does. Files are never changed once written. So a crash at any point leaves the last commit, and files that it
does not name; `sweep` removes those when the next writer opens.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from ...errors import GalleryError
from ...files import sync
from .array_file import FileRecord, write_arrays
from .catalogue import CATALOGUE, Catalogue, read_catalogue
from .files import SEGMENTS
from .header import Header

_log = logging.getLogger(__name__)
NEW = f"{CATALOGUE}.new"  # the next catalogue while it is written


class NewFiles:
    """Files written for one commit; a context manager that removes them again if the commit fails.

    Args:
        folder: the gallery.
        catalogue: the commit before.
        mode: permission bits of the files.
        current: name of the file that holds the newest commit.
    """

    def __init__(self, folder: Path, catalogue: Catalogue, mode: int | None, current: str = CATALOGUE) -> None:
        self._current = folder / current
        self._folder = folder / SEGMENTS
        self._gallery = catalogue.gallery
        self._mode = mode
        self._names: list[str] = []
        self.next_file = catalogue.next_file

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> FileRecord:
        """Write one file and make its bytes durable; raises OSError."""
        while os.path.lexists(self._folder / (name := f"{self._gallery}-{self.next_file}.safetensors")):
            self.next_file += 1  # a folder or a link in its place: not this program's, so it stays
        self._names.append(name)
        record = write_arrays(self._folder, name, arrays, self._mode)
        self.next_file += 1
        return record

    def link(self, folder: Path, record: FileRecord) -> FileRecord:
        """Take over a file of another gallery, without a copy where the disk can do that; raises OSError."""
        while True:
            name = f"{self._gallery}-{self.next_file}.safetensors"
            self.next_file += 1
            try:
                os.link(folder / record.name, self._folder / name, follow_symlinks=False)
            except FileExistsError:
                continue
            except OSError as error:
                if error.errno == errno.ENOENT:
                    raise
                if os.path.lexists(self._folder / name):
                    continue
                self._names.append(name)
                shutil.copyfile(folder / record.name, self._folder / name, follow_symlinks=False)
                sync(self._folder / name)
            else:
                self._names.append(name)
            return replace(record, name=name)

    def remove(self, records: Iterable[FileRecord]) -> None:
        """Take back some of the files."""
        for record in records:
            self._names.remove(record.name)
            (self._folder / record.name).unlink()

    def sync(self) -> None:
        """Make the names durable; raises OSError."""
        if self._names:
            sync(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._discard()

    def _discard(self) -> None:
        """Remove the files, unless the newest commit names them: Ctrl-C may come after the moment of the commit."""
        named: Collection[str] = ()
        if os.path.lexists(self._current):
            try:
                named = read_catalogue(self._current.parent, self._current.name)[1].files
            except GalleryError:
                return  # nobody knows whether it names them; the next writer removes what it does not
        for name in self._names:
            if name not in named:
                with contextlib.suppress(OSError):
                    (self._folder / name).unlink(missing_ok=True)


def publish(folder: Path, catalogue: Catalogue, mode: int | None, name: str = CATALOGUE) -> Header:
    """Make a commit the newest one of the gallery in a folder, or keep it there under another name.

    Raises:
        OSError: the disk is full or refuses; the commit before stays the newest one.
        GalleryError: the commit is the newest one, but the disk did not confirm it.
    """
    header, data = catalogue.to_bytes()
    new = folder / NEW
    new.unlink(missing_ok=True)
    try:
        with open(new, "xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, folder / name)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    try:
        sync(folder)
    except OSError as error:
        raise GalleryError(
            f"{folder}: this change is in the gallery, but the disk did not confirm it ({error.strerror}): "
            "a power cut could undo it",
        ) from error
    return header


def sweep(folder: Path, catalogue: Catalogue, needed: Collection[str]) -> None:
    """Remove what an interrupted or finished change left: nothing but files that this gallery's own naming made.

    Those are the files that the catalogue lists as dropped, and those whose number no commit has reached yet. Where one
    of the needed files is missing, all stay: the catalogue may be an old copy, put beside the files of newer commits,
    which hold the only rows there are.
    """
    segments = folder / SEGMENTS
    dropped = set(catalogue.dropped)
    with os.scandir(segments) as listing:
        entries = {entry.name: entry for entry in listing}
    if not entries.keys() >= set(needed):
        _log.warning("%s is incomplete, so no file was removed from it", folder)
        return
    for name, entry in entries.items():
        number = catalogue.file_number(name)
        unfinished = number is not None and number >= catalogue.next_file
        if (unfinished or name in dropped) and stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            os.unlink(entry.path)
