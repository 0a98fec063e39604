"""Readers that may not write, as other users and on read-only mounts, beside a writer: never stale, never in the way.

Run as root these are real users and real mounts; elsewhere they are skipped with the reason.
"""

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chan_rt.runtime.errors import GalleryError, GalleryLocked
from chan_rt.runtime.gallery import Gallery, GalleryWriter, verify_gallery
from chan_rt.runtime.gallery.store import lock as lock_module

root_only = pytest.mark.skipif(os.getuid() != 0, reason="becomes other users, which only root may")
OWNER, OTHER = 61001, 61002

# Imports first: the other user may not read this one's Python files.
CHILD = """
import json, os, sys
import numpy as np
import chan_rt.runtime.gallery as gallery_package
from chan_rt.runtime.gallery.kernels.choose import open_kernel
from chan_rt.runtime.errors import ChanError
sys.path.insert(0, sys.argv[1])
from conftest import embeddings
open_kernel("numpy")
path, uid = sys.argv[2], int(sys.argv[3])
os.umask(int(sys.argv[4], 8))
if uid:
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
Gallery, GalleryWriter = gallery_package.Gallery, gallery_package.GalleryWriter
held = {}
for line in sys.stdin:
    word, *rest = json.loads(line)
    try:
        if word == "open": held["g"] = Gallery.open(path, scan="numpy", threads=1); out = len(held["g"])
        elif word == "len": out = len(held["g"])
        elif word == "search":
            result = held["g"].search(embeddings(99, 1), 3)[0]
            out = [result.rows, result.certified, [hit.id for hit in result.hits]]
        elif word == "add":
            with GalleryWriter.open(path) as writer: writer.add([rest[0]], embeddings(7, 1))
            out = "added"
        elif word == "hold": held["w"] = GalleryWriter.open(path); out = "held"
        elif word == "race":
            seen, wrong = set(), 0
            while len(seen) < rest[0] and len(held["g"]) < rest[1]:
                result = held["g"].search(embeddings(99, 1), 10000)[0]
                seen.add(result.rows)
                wrong += not result.certified or len(result.hits) != result.rows or result.rows % 5 != 0
            out = [len(seen), wrong]
        elif word == "close": held.clear(); out = "closed"
    except ChanError as error: out = f"{type(error).__name__}: {error}"
    except BaseException as error: out = f"RAW {type(error).__name__}: {error}"
    print(json.dumps(out), flush=True)
"""


class User:
    """A process of another user."""

    def __init__(self, path: Path, uid: int, umask: str = "022") -> None:
        command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(path), str(uid), umask]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/")

    def start(self, *words: Any) -> None:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(words) + "\n")
        self._child.stdin.flush()

    def result(self) -> Any:
        assert self._child.stdout is not None
        return json.loads(self._child.stdout.readline())

    def ask(self, *words: Any) -> Any:
        self.start(*words)
        return self.result()

    def end(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.wait()


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can enter, which pytest's are not."""
    folder = Path(tempfile.mkdtemp(prefix="chan-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def path(open_folder: Path, make_embeddings, make_settings) -> Path:
    path = open_folder / "g"
    with GalleryWriter.create(path, make_settings()) as writer:
        writer.add([str(i) for i in range(10)], make_embeddings(0, 10))
    return path


def give(path: Path, uid: int, folders: int = 0o755, files: int = 0o644) -> None:
    """To a user, with these permission bits."""
    for each in (path, *path.rglob("*")):
        os.chown(each, uid, uid)
        each.chmod(folders if each.is_dir() else files)


@root_only
def test_another_user_sees_each_commit_and_leaves_nothing(path: Path, make_embeddings) -> None:
    give(path, 0)
    reader = User(path, OTHER)
    assert reader.ask("open") == 10
    with GalleryWriter.open(path) as writer, Gallery.open(path, threads=1) as beside:
        for turn in range(1, 6):
            writer.add([f"{turn}-{i}" for i in range(20)], make_embeddings(turn, 20))
            assert reader.ask("len") == len(beside) == 10 + 20 * turn
            rows, certified, ids = reader.ask("search")
            assert certified
            assert (rows, ids) == (10 + 20 * turn, [h.id for h in beside.search(make_embeddings(99, 1), 3)[0].hits])
        writer.delete([str(i) for i in range(5)])
        writer.compact()
        assert reader.ask("search")[0] == 105
        files = {file.name for file in path.rglob("*")}
    assert reader.ask("close") == "closed"
    reader.end()
    assert {file.name for file in path.rglob("*")} == files
    assert {file.stat().st_uid for file in path.rglob("*")} == {0}


@root_only
def test_another_user_beside_a_writer_that_never_rests(path: Path, make_embeddings) -> None:
    """Every answer is a whole commit, certified; no healthy gallery is called corrupt."""
    give(path, 0)
    reader = User(path, OTHER)
    assert reader.ask("open") == 10
    reader.start("race", 40, 10 + 5 * 200)
    with GalleryWriter.open(path) as writer:
        for turn in range(200):
            writer.add([f"{turn}-{i}" for i in range(5)], make_embeddings(turn, 5))
            if turn % 20 == 19:
                writer.compact()
            if turn % 7 == 6:
                writer.delete([f"{turn - 3}-{i}" for i in range(5)])
                writer.add([f"{turn - 3}-{i}" for i in range(5)], make_embeddings(turn, 5))
    seen, wrong = reader.result()
    reader.end()
    assert wrong == 0
    assert seen > 10


@root_only
def test_a_read_only_copy_has_what_a_killed_writer_committed(open_folder: Path, path: Path, make_embeddings) -> None:
    child = os.fork()
    if child == 0:
        writer = GalleryWriter.open(path)
        writer.add([f"new {i}" for i in range(20)], make_embeddings(5, 20))
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    copy = open_folder / "copy"
    shutil.copytree(path, copy)
    give(copy, 0, folders=0o555, files=0o444)
    reader = User(copy, OTHER)
    assert reader.ask("open") == 30
    assert reader.ask("search")[:2] == [30, True]
    assert "cannot be written: Permission denied" in reader.ask("add", "x")
    reader.end()
    assert verify_gallery(copy) == []


@root_only
def test_two_users_share_a_folder(path: Path) -> None:
    """One who only searches never stops the other; both may write where both may write in the folder."""
    give(path, OWNER, folders=0o777)
    owner, other = User(path, OWNER), User(path, OTHER)
    assert other.ask("open") == 10
    assert other.ask("search")[0] == 10
    assert {file.stat().st_uid for file in path.rglob("*")} == {OWNER}, "a search leaves no file"
    assert owner.ask("add", "first") == "added"
    assert other.ask("search")[0] == 11
    assert other.ask("close") == "closed"
    assert owner.ask("add", "second") == "added"
    assert other.ask("add", "third") == "added"
    assert owner.ask("add", "fourth") == "added"
    assert owner.ask("open") == other.ask("open") == 14
    assert owner.ask("hold") == "held"
    assert "GalleryLocked" in other.ask("add", "fifth")
    assert other.ask("search")[:2] == [14, True]
    owner.end()
    other.end()
    assert verify_gallery(path) == []


@root_only
def test_permissions_of_a_gallery_stay_as_they_were_set(path: Path) -> None:
    """A writer with a narrow umask does not lock readers out that its folder was opened for."""
    give(path, OWNER)
    owner, other = User(path, OWNER, umask="077"), User(path, OTHER)
    assert owner.ask("add", "new") == "added"
    assert other.ask("open") == 11
    assert other.ask("search")[:2] == [11, True]
    (path / "catalogue").chmod(0o600)
    assert "cannot be read: Permission denied" in other.ask("len")
    owner.end()
    other.end()


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is refused here: {done.stderr.strip()}")


@root_only
def test_a_read_only_mount_beside_a_writer(open_folder: Path, path: Path, make_embeddings) -> None:
    """As `docker -v gallery:/data:ro`: the reader is root, the writer outside."""
    view = open_folder / "view"
    view.mkdir()
    mount("--bind", path, view)
    try:
        mount("-o", "remount,bind,ro", view)
        with Gallery.open(view, threads=1) as gallery, GalleryWriter.open(path) as writer:
            writer.add(["new"], make_embeddings(5, 1))
            result = gallery.search(make_embeddings(5, 1), 20)[0]
            assert (result.rows, result.certified) == (11, True)
            writer.delete(["new"])
            writer.compact()
            assert len(gallery) == 10
            with pytest.raises(GalleryError, match="cannot be written: Read-only file system"):
                GalleryWriter.open(view)
        assert verify_gallery(view) == []
    finally:
        subprocess.run(["umount", view], check=True)


@root_only
def test_a_full_disk_beside_a_reader(open_folder: Path, make_embeddings, make_settings) -> None:
    """A real one, of 600 KB: what does not fit leaves no trace, and space that is freed can be used again."""
    disk = open_folder / "disk"
    disk.mkdir()
    mount("-t", "tmpfs", "-o", "size=600k", "tmpfs", disk)
    try:
        with GalleryWriter.create(disk / "g", make_settings()) as writer, Gallery.open(disk / "g", threads=1) as reader:
            added, problem = 0, None
            while problem is None:
                try:
                    writer.add([f"{added}-{i}" for i in range(20)], make_embeddings(added, 20))
                    added += 1
                except GalleryError as error:
                    problem = str(error)
            assert "No space left on device; nothing of this change was kept" in problem
            assert added > 3
            assert len(reader) == len(writer) == 20 * added
            assert reader.search(make_embeddings(99, 1))[0].certified
            assert verify_gallery(disk / "g") == []
            writer.delete([f"{turn}-{i}" for turn in range(added) for i in range(20)])
            writer.add(["again"], make_embeddings(1, 1))
            assert [row.id for row in reader.rows()] == ["again"]
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_an_error_at_once(
    gallery_path: Path, make_settings, monkeypatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock_module.fcntl, "flock", refuse)
    began = time.monotonic()
    for door in (GalleryWriter.open, lambda path: GalleryWriter.create(path.parent / "new", make_settings())):
        with pytest.raises(GalleryError, match="its file system does not lock files") as refused:
            door(gallery_path)
        assert not isinstance(refused.value, GalleryLocked)
    assert time.monotonic() - began < 5
    with Gallery.open(gallery_path) as gallery:
        assert len(gallery) == 30, "reading needs no lock"
