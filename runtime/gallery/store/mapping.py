"""Opening and mapping a file of a gallery without keeping a descriptor, and without following what is no plain file."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import sys
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...errors import GalleryCorrupt, GalleryError


def open_regular(path: Path) -> int:
    """A descriptor for reading a regular file. Nothing is waited for, and no link is followed.

    Raises:
        FileNotFoundError: there is no such file.
        GalleryCorrupt: it is a link, a folder, a pipe or a device.
        GalleryError: the system refuses to open it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise GalleryCorrupt(f"{path} must be a regular file, but is a link or a device") from error
        raise GalleryError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise GalleryCorrupt(f"{path} must be a regular file, but is a folder, a pipe or a device")
    return descriptor


def check_folder(path: Path) -> None:
    """Check that a folder of a gallery is a folder of its own.

    Raises:
        GalleryCorrupt: it is missing.
        GalleryError: it is a link or no folder, so what lies behind it may belong to something else.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError as error:
        raise GalleryCorrupt(f"{path} is missing: the gallery is incomplete; restore the folder from a copy") from error
    except OSError as error:
        raise GalleryError(f"{path} cannot be read: {error.strerror}") from error
    if stat.S_ISLNK(mode):
        raise GalleryError(f"{path} must be a folder, but is a link; put the files themselves there")
    if not stat.S_ISDIR(mode):
        raise GalleryError(f"{path} must be a folder, but is a file")


ADVICE = ". Restore the file, or see what is lost with: "  # begins the part of an error that names the commands


def describe(error: Exception) -> str:
    """An error of a file in words, for a list of what is damaged: without the advice to make such a list."""
    return f"{error.filename} is missing" if isinstance(error, FileNotFoundError) else str(error).partition(ADVICE)[0]


def map_file(descriptor: int, length: int) -> NDArray[np.uint8]:
    """The first `length` bytes of a file, mapped for reading; the descriptor may be closed afterwards.

    The mapping lasts as long as the array or a view of it. Python's own mapping keeps a copy of the descriptor until
    3.13, and a gallery may have more files than a process may have descriptors.

    Raises:
        OSError: the system refuses to map the file.
    """
    if sys.version_info >= (3, 13):
        return np.frombuffer(mmap.mmap(descriptor, length, access=mmap.ACCESS_READ, trackfd=False), np.uint8)
    address = _libc().mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return np.asarray(_Mapping(address, length))


class _Mapping:
    """Bytes at an address, unmapped when nothing refers to them any more."""

    def __init__(self, address: int, length: int) -> None:
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (length,), "data": (address, True)}
        weakref.finalize(self, _libc().munmap, address, length).atexit = False


def _libc() -> ctypes.CDLL:
    global _loaded
    if _loaded is None:
        library = ctypes.CDLL(None, use_errno=True)
        size, pointer, integer = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int
        library.mmap.restype, library.mmap.argtypes = (
            pointer,
            [pointer, size, integer, integer, integer, ctypes.c_int64],
        )
        library.munmap.restype, library.munmap.argtypes = integer, [pointer, size]
        _loaded = library
    return _loaded


_loaded: ctypes.CDLL | None = None
