"""Copying galleries from object storage: what is here already is not fetched, and every byte is checked."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from ..runtime.counts import counted
from ..runtime.errors import GalleryCorrupt, GalleryError, quoted
from ..runtime.files import publish, sync_tree
from ..runtime.gallery import Gallery
from ..runtime.gallery.store.refusals import write_errors
from ..runtime.progress import Progress
from .head import AT_ONCE, HEAD, PIECE_BYTES, PIECES, Head, StoredFile, parse_head
from .remote import Remote


def pull_gallery(url: str, out: str | Path, *, progress: Progress | None = None) -> Head:
    """Copy a gallery from object storage to a new folder, where it is an ordinary one.

    What was pulled of it before an interruption is kept beside the folder, and the same call continues from there.

    Args:
        url: where `push_gallery` has put it.
        out: a folder that does not exist yet, or is empty.
        progress: called with the bytes that are done, and those of all files.

    Raises:
        GalleryError: there is no gallery at the address; something is already at `out`; the storage or the disk
            refuses.
        GalleryCorrupt: what is stored is not what was pushed.
        InputError, MissingExtra: as `Remote`.
    """
    remote, out = Remote(url), Path(out).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise GalleryError(f"{out} already exists and is not empty; choose another folder")
    head = parse_head(read_head(remote), remote.url)
    partial = out.with_name(f".{out.name}.pull")
    with _locked(partial):
        fill(remote, head, partial, (), progress)
        with write_errors(out):
            publish(partial, out, new=True)
            lock_file(partial).unlink()
    return head


def read_head(remote: Remote) -> bytes:
    """The head at an address; GalleryError where there is none."""
    data = remote.get(HEAD)
    if data is None:
        raise GalleryError(
            f"{remote.url} holds no gallery; put one there with: chan gallery push GALLERY {quoted(remote.url)}"
        )
    return data


def fill(remote: Remote, head: Head, folder: Path, others: Iterable[Path], progress: Progress | None) -> None:
    """Make a folder hold exactly the files of a head, and check that they make a gallery.

    Args:
        remote: where its pieces are.
        head: the commit.
        folder: what an interrupted call has left, or nothing.
        others: folders of other commits of the gallery, whose files are taken over where they are the same.
        progress: called with the bytes that are done, and those of all files.
    """
    done = 0
    wanted = {file.path for file in head.files}
    with write_errors(folder):
        for inner, _, names in os.walk(folder):
            for name in names:
                place = Path(inner, name).relative_to(folder)
                if str(place).removesuffix(".part") not in wanted:
                    (folder / place).unlink()
        for file in head.files:
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if not _is_there(path, file):
                _take_over(path, file, others)
            if not path.exists():
                _fetch(remote, path, file)
            done += file.length
            if progress is not None:
                progress(done, head.size)
        sync_tree(folder)
    with Gallery.open(folder, threads=1) as gallery:
        if len(gallery) != head.rows:
            raise GalleryCorrupt(f"{remote.url} says {counted(head.rows, 'row')}, but its files have {len(gallery)}")


def _is_there(path: Path, file: StoredFile) -> bool:
    """Whether a file is whole; removes it where it is another one."""
    if not path.exists():
        return False
    if path.stat().st_size == file.length and list(_hashes(path)) == list(file.pieces):
        return True
    path.unlink()
    return False


def _hashes(path: Path) -> Iterator[str]:
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield hashlib.sha256(piece).hexdigest()


def _take_over(path: Path, file: StoredFile, others: Iterable[Path]) -> None:
    """Give a file that another commit has on this disk a second name, if it is the same."""
    for other in others:
        if (other / file.path).is_file() and (other / file.path).stat().st_size == file.length:
            os.link(other / file.path, path)
            if _is_there(path, file):
                return


def _fetch(remote: Remote, path: Path, file: StoredFile) -> None:
    """Write a file from its pieces, after those that are there already."""
    part = path.with_name(f"{path.name}.part")
    kept = 0
    if part.exists():
        kept = next(
            (i for i, (a, b) in enumerate(zip(_hashes(part), file.pieces, strict=False)) if a != b),
            part.stat().st_size // PIECE_BYTES,
        )
        os.truncate(part, min(kept * PIECE_BYTES, part.stat().st_size))
    with open(part, "ab") as target, ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = []
        for piece in file.pieces[kept:]:
            waiting.append(pool.submit(_piece, remote, piece))
            if len(waiting) >= AT_ONCE:
                target.write(waiting.pop(0).result())
        for future in waiting:
            target.write(future.result())
    if part.stat().st_size != file.length:
        raise GalleryCorrupt(f"{remote.url}: the pieces of {file.path} do not have its {file.length} bytes")
    os.replace(part, path)


def _piece(remote: Remote, name: str) -> bytes:
    data = remote.get(f"{PIECES}/{name}")
    if data is None:
        raise GalleryError(
            f"{remote.url}/{PIECES}/{name} is not there: the gallery was pushed again meanwhile; try again"
        )
    if hashlib.sha256(data).hexdigest() != name:
        raise GalleryCorrupt(f"{remote.url}/{PIECES}/{name} is not what was pushed; push the gallery again")
    return data


def lock_file(folder: Path) -> Path:
    """The file whose lock is held by who fills a folder."""
    return folder.with_name(f"{folder.name}.lock")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Fill a folder that no other process fills."""
    with write_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock_file(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise GalleryError(f"{folder} is being filled by another process; wait for it to end") from error
        yield
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it; one that is not there is no error."""
    shutil.rmtree(folder, ignore_errors=True)
