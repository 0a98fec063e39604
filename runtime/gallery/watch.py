"""Whether files were touched since they were last checked, asked for all files of a gallery in one call.

This question stands before and after every search, and each file of each segment is asked. For 30 files that takes
67 us in Python, which lets go of its lock and takes it again each time, and 24 us in one call to the core (a Zen 5).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from .compiled import open_core
from .store.files import MappedFile

_IDENTITY = struct.Struct("=5Q")  # device, inode, size, times; core/identities.h has the same
_MASK = (1 << 64) - 1  # where a file system keeps any time, nanoseconds can leave 64 bits; the core cuts them off, too

Watched = tuple[bytes, tuple[bytes, ...], bytes]  # a folder, its files, and what they were known by; see _core.pyi


class Watch:
    """Watches files of one folder; any number of threads may use one.

    Args:
        files: what to watch.
    """

    def __init__(self, files: Sequence[MappedFile]) -> None:
        self._files = tuple(files)
        self._folder = os.fsencode(files[0].path.parent) if files else b""
        self._names = tuple(os.fsencode(file.path.name) for file in files)
        self._watched: Watched | None = None
        self._replaced = False  # whether a file was, when they were last asked one by one

    @property
    def watched(self) -> Watched | None:
        """What the core is asked; None where the files themselves must be, as one of them may have been touched."""
        return self._watched

    @property
    def replaced(self) -> bool:
        """Whether the name of a file is another file's, as the last check found."""
        return self._replaced and any(file.replaced for file in self._files)

    def recheck(self, *, may_be_removed: bool = False) -> bool:
        """Whether a file was touched since the last check; see `MappedFile.recheck`.

        Raises:
            GalleryCorrupt: a file was cut short, or its bytes are not those that were committed.
        """
        core, watched = open_core(), self._watched
        if core is not None and watched is not None and core.untouched((watched,)):
            return False
        touched = True in [file.recheck(may_be_removed=may_be_removed) for file in self._files]
        self._replaced = any(file.replaced for file in self._files)
        known = [file.identity for file in self._files]
        seen = None if None in known else b"".join(_packed(one) for one in known if one is not None)
        self._watched = None if seen is None else (self._folder, self._names, seen)
        return touched


def _packed(identity: tuple[int, ...]) -> bytes:
    return _IDENTITY.pack(*(number & _MASK for number in identity))
