"""Copying galleries to object storage: what is there already is not sent."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.errors import GalleryCorrupt, GalleryError
from ..runtime.gallery.sharded.committed import read_committed
from ..runtime.gallery.store.array_file import PAGE, FileRecord
from ..runtime.progress import Progress
from .head import AT_ONCE, HEAD, PIECE_BYTES, PIECES, Head, StoredFile, parse_head
from .remote import Remote

_ATTEMPTS = 3  # to push a gallery that a writer changes, or that another process pushes too


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        rows: of the gallery.
        bytes: of all its files.
        sent: bytes that were not there yet.
        removed: pieces that no commit needs any more.
    """

    rows: int
    bytes: int
    sent: int
    removed: int


def push_gallery(path: str | Path, url: str, *, prune: bool = False, progress: Progress | None = None) -> Pushed:
    """Copy the newest commit of a gallery to object storage.

    Whoever opens the address finds the commit that was there before until all of the new one is there. A push that was
    interrupted continues where it stopped.

    Args:
        path: the gallery, in one folder or in shards.
        url: where it goes, such as `s3://bucket/gallery`; nothing else may be there.
        prune: remove the pieces that the new commit does not need. Whoever is reading the one before must start again.
        progress: called with the bytes that are done, and those of all files.

    Raises:
        GalleryError: there is no gallery; another one is at the address; other processes push to it all the time; the
            storage refuses.
        GalleryCorrupt: bytes to send are not those that were committed; the address is as it was.
        InputError, MissingExtra: as `Remote`.
    """
    folder = Path(path).absolute()
    for attempt in range(_ATTEMPTS):
        try:
            return _push(url, folder, prune, progress)
        except FileNotFoundError as error:
            if attempt + 1 == _ATTEMPTS:
                raise GalleryCorrupt(f"{error.filename} is missing: {folder} is incomplete") from error
        except _Overtaken:
            continue
    raise GalleryError(f"{url}: other processes push to this address at the same time; try again")


class _Overtaken(Exception):
    """Another process has pushed to the address, or pruned it, since this push began."""


def _push(url: str, folder: Path, prune: bool, progress: Progress | None) -> Pushed:
    commit = read_committed(folder)  # first, so that no folder is made for what is no gallery
    remote = Remote(url, create=True)
    there, tag = remote.get_tagged(HEAD) or (None, None)
    if there is not None and parse_head(there, remote.url).gallery != commit.header.gallery:
        raise GalleryError(f"{remote.url} holds another gallery; push to another address")
    known = remote.sizes(PIECES)
    total = sum(map(len, commit.small.values())) + sum(record.length for record in commit.files.values())
    done = sent = 0
    files: list[StoredFile] = []

    def send(piece: bytes) -> tuple[str, int, int]:
        name = hashlib.sha256(piece).hexdigest()
        if known.get(name) == len(piece):
            return name, len(piece), 0
        remote.put(f"{PIECES}/{name}", piece)
        return name, len(piece), len(piece)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for place, length, pieces in _contents(folder, commit.small, commit.files):
            names = []
            for name, size, new in _in_order(pool, send, pieces):
                names.append(name)
                done, sent = done + size, sent + new
                if progress is not None:
                    progress(done, total)
            files.append(StoredFile(place, length, tuple(names)))
    head = Head(commit.header.gallery, commit.header.generation, commit.rows, tuple(files))
    needed = head.pieces
    if there != (data := head.to_bytes()):
        if not needed.keys() <= remote.sizes(PIECES).keys() or not remote.replace(HEAD, data, tag):
            raise _Overtaken
    elif remote.get(HEAD) != data:
        raise _Overtaken
    old = [name for name in known if name not in needed] if prune else []
    remote.delete(f"{PIECES}/{name}" for name in old)
    return Pushed(commit.rows, total, sent, len(old))


def _contents(
    folder: Path, small: dict[str, bytes], files: dict[str, FileRecord]
) -> Iterator[tuple[str, int, Iterable[bytes]]]:
    """Path, length and pieces of each file."""
    for place, record in files.items():
        yield place, record.length, _pieces(folder / place, record)
    for place, data in small.items():
        yield place, len(data), [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]


def _pieces(path: Path, record: FileRecord) -> Iterator[bytes]:
    """The pieces of a file, whose bytes are checked to be those that were committed."""
    sums = np.frombuffer(record.sums, "<u4").tolist()
    length = 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            for at in range(0, len(piece), PAGE):
                page = (length + at) // PAGE
                if page >= len(sums) or zlib.crc32(piece[at : at + PAGE]) != sums[page]:
                    raise GalleryCorrupt(f"{path}: the bytes are not those that were committed; nothing was pushed")
            length += len(piece)
            yield piece
    if length != record.length:
        raise GalleryCorrupt(f"{path} has {length} bytes, {record.length} were committed; nothing was pushed")


def _in_order(
    pool: ThreadPoolExecutor, send: Callable[[bytes], tuple[str, int, int]], pieces: Iterable[bytes]
) -> Iterator[tuple[str, int, int]]:
    """`send` of each piece, a few at once, in order."""
    waiting = []
    for piece in pieces:
        waiting.append(pool.submit(send, piece))
        if len(waiting) >= AT_ONCE:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()
