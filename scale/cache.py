"""A cache on the disk of galleries in object storage: bounded, and shared by the processes of a user.

CACHE/KEY             a gallery: one commit of one address, never changed
CACHE/KEY.lock        locked by who fills it, shared by who uses it; its time is that of the last use
CACHE/KEY.size        its bytes
CACHE/cache.lock      held while it is decided what is removed
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.errors import GalleryError, InputError
from ..runtime.gallery.store.lock import LOCK
from ..runtime.gallery.store.refusals import write_errors
from ..runtime.progress import Progress
from .head import Head, parse_head
from .pull import fill, lock_file, read_head, remove_folder
from .remote import Remote

CACHE = "CHAN_CACHE"  # environment variables: the folder, and its bytes
CACHE_BYTES = "CHAN_CACHE_BYTES"
_DEFAULT_BYTES = 100 << 30
_held: dict[Path, int] = {}  # folder -> descriptor whose lock keeps it there until this process ends


def cache_folder() -> Path:
    """Where galleries are kept: CHAN_CACHE, or chan-rt in the user's cache."""
    given = os.environ.get(CACHE)
    return Path(given).absolute() if given else Path.home() / ".cache" / "chan-rt"


def cache_bytes() -> int:
    """How many bytes they may take: CHAN_CACHE_BYTES, or 100 GiB.

    Raises:
        InputError: that is no positive integer.
    """
    given = os.environ.get(CACHE_BYTES, str(_DEFAULT_BYTES))
    if not given.isdecimal() or int(given) < 1:
        raise InputError(f"{CACHE_BYTES} must be a positive integer, got {given!r}")
    return int(given)


def cached_gallery(url: str, *, progress: Progress | None = None) -> Path:
    """The folder of the newest commit at an address, for `Gallery.open`; what is not in the cache is fetched.

    It stays there until this process ends; later the galleries that were used longest ago make room for others. It must
    not be written to: to change a gallery, pull it, change it and push it.

    Args:
        url: where `push_gallery` has put it.
        progress: called with the bytes that are done, and those of all files.

    Raises:
        GalleryError: there is no gallery at the address; it does not fit the cache; the storage or the disk refuses.
        GalleryCorrupt: what is stored is not what was pushed.
        InputError, MissingExtra: as `Remote`; CHAN_CACHE_BYTES is no positive integer.
    """
    remote, cache = Remote(url), cache_folder()
    data = read_head(remote)
    head = parse_head(data, remote.url)
    folder = cache / hashlib.sha256(f"{remote.url}\n".encode() + data).hexdigest()[:32]
    if folder in _held:
        return folder
    with write_errors(cache):
        cache.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock_file(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not folder.exists():
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # waits for another process that fills it
            if not folder.exists():
                _fetch(remote, head, folder, progress)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if not folder.exists():
                raise GalleryError(f"{folder} was removed; try again")
        os.utime(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    _held[folder] = descriptor
    return folder


def _fetch(remote: Remote, head: Head, folder: Path, progress: Progress | None) -> None:
    """Make room, and fill a folder that then gets its name."""
    _make_room(folder, head.size)
    partial = folder.with_name(f"{folder.name}.part")
    others = [other for other in _galleries(folder.parent) if other != folder]
    fill(remote, head, partial, others, progress)
    with write_errors(folder):
        os.symlink("this-is-a-copy-of-what-is-in-object-storage", partial / LOCK)  # so that nothing is written to it
        os.replace(partial, folder)


def _make_room(folder: Path, needed: int) -> None:
    """Remove the galleries that were used longest ago, and that no process uses, until a new one fits.

    Raises:
        GalleryError: it does not fit.
    """
    cache, limit = folder.parent, cache_bytes()
    if needed > limit:
        raise GalleryError(f"the gallery has {needed} bytes, the cache {cache} may have {limit}: raise {CACHE_BYTES}")
    with _cache_lock(cache), write_errors(cache):
        size_file(folder).write_text(str(needed))
        others = [other for other in _galleries(cache) if other != folder]
        sizes = {other: int(size_file(other).read_text() or 0) for other in others}
        for other in sorted(others, key=lambda other: lock_file(other).stat().st_mtime_ns):
            if sum(sizes.values()) + needed <= limit:
                break
            if _remove_unused(other):
                del sizes[other]
        if sum(sizes.values()) + needed > limit:
            size_file(folder).unlink()
            raise GalleryError(f"the cache {cache} is full of galleries that are in use: raise {CACHE_BYTES}")


def _remove_unused(folder: Path) -> bool:
    """Remove a gallery from the cache; False where a process uses or fills it."""
    with open(lock_file(folder), "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        remove_folder(folder)
        remove_folder(folder.with_name(f"{folder.name}.part"))
        size_file(folder).unlink(missing_ok=True)
        return True


def _galleries(cache: Path) -> list[Path]:
    """The folders of the galleries in the cache, and of those that are being filled."""
    return [file.with_suffix("") for file in cache.glob("*.size") if lock_file(file.with_suffix("")).exists()]


def size_file(folder: Path) -> Path:
    """The file that holds the bytes of a gallery in the cache."""
    return folder.with_name(f"{folder.name}.size")


@contextmanager
def _cache_lock(cache: Path) -> Iterator[None]:
    with open(cache / "cache.lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
