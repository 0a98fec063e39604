"""Whether a file of a gallery was touched: asked of the core for all at once, and without it of each file."""

from __future__ import annotations

import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import pytest

from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import GalleryCorrupt
from chan_rt.runtime.gallery import Gallery, split_gallery, watch
from chan_rt.runtime.gallery.compiled import open_core
from chan_rt.runtime.gallery.sharded.open import open_for_writing
from chan_rt.runtime.gallery.store.array_file import write_arrays
from chan_rt.runtime.gallery.store.files import MappedFile
from chan_rt.runtime.gallery.watch import Watch

Watched = tuple[list[Path], Watch]
ARRAY = np.arange(100_000, dtype=np.float32)


@pytest.fixture(params=["core", "python"])
def watched(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Three files, all of whose bytes were read and whose times are past, and a watch of them."""
    if request.param == "python":
        monkeypatch.setattr(watch, "open_core", lambda: None)
    elif open_core() is None:
        pytest.skip("the core was not built")
    names = ["a", "b\n", "ü"]
    files = [MappedFile(tmp_path, write_arrays(tmp_path, name, {"x": ARRAY})) for name in names]
    for file in files:
        file.read("x")
    found = Watch(files)
    wait_for_clock()
    assert not found.recheck()
    return [tmp_path / name for name in names], found


def wait_for_clock() -> None:
    """Until a change gives a file another time than one before: see `_TICK` in store/files.py."""
    time.sleep(0.05)


def write(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


def test_a_file_that_is_read_is_not_touched(watched: Watched) -> None:
    paths, found = watched
    for path in paths:
        path.read_bytes()
    assert not found.recheck()
    assert not found.recheck()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_file_with_the_same_bytes_and_a_new_time_is_touched_once(watched: Watched, which: int) -> None:
    paths, found = watched
    os.utime(paths[which])
    assert found.recheck()
    assert not found.recheck()
    wait_for_clock()
    assert not found.recheck()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_changed_bytes_are_an_error_from_then_on(watched: Watched, which: int) -> None:
    paths, found = watched
    times = os.stat(paths[which])
    write(paths[which], 5000, b"\xff" * 8)
    os.utime(paths[which], ns=(times.st_atime_ns, times.st_mtime_ns))  # what a change leaves is its time of change
    for _ in range(3):
        with pytest.raises(GalleryCorrupt, match="not those that were committed"):
            found.recheck()


def test_a_second_change_under_the_time_of_a_first_is_noticed(watched: Watched) -> None:
    paths, found = watched
    os.utime(paths[1])
    assert found.recheck()
    write(paths[1], 5000, b"\xff" * 8)  # perhaps within one tick of the file system's clock
    with pytest.raises(GalleryCorrupt, match="not those that were committed"):
        found.recheck()


def test_a_file_that_is_cut_short_is_an_error(watched: Watched) -> None:
    paths, found = watched
    os.truncate(paths[2], 4096)
    with pytest.raises(GalleryCorrupt, match="has 4096 bytes"):
        found.recheck()


@pytest.mark.parametrize("change", [Path.unlink, lambda path: replace(path)], ids=["removed", "replaced"])
def test_a_file_that_is_gone_stays_as_it_was_mapped(watched: Watched, change: Callable[[Path], object]) -> None:
    paths, found = watched
    change(paths[1])
    assert not found.recheck()
    write(paths[0], 5000, b"\xff" * 8)  # the others are watched as before
    with pytest.raises(GalleryCorrupt, match="not those that were committed"):
        found.recheck()


@pytest.mark.parametrize("change", [Path.unlink, lambda path: replace(path)], ids=["removed", "replaced"])
def test_bytes_that_are_changed_by_another_name_are_an_error(
    watched: Watched, change: Callable[[Path], object]
) -> None:
    paths, found = watched
    other = paths[1].with_name("linked")
    os.link(paths[1], other)
    change(paths[1])
    for _ in range(2):
        assert not found.recheck()
        assert found.replaced == paths[1].exists()
        wait_for_clock()
    write(other, 5000, b"\xff" * 8)
    for _ in range(2):
        with pytest.raises(GalleryCorrupt, match="not those that were committed"):
            found.recheck()


@pytest.mark.parametrize("cut", [False, True], ids=["one folder", "shards"])
def test_an_open_gallery_follows_a_link_to_a_copy_of_itself(
    gallery_path: Path, make_embeddings: Callable[..., Embeddings], cut: bool
) -> None:
    """As where a gallery moves to another disk: the old files may change once a search has met the new ones."""
    if cut:
        split_gallery(gallery_path, gallery_path.with_name("shards"), 2)
        gallery_path = gallery_path.with_name("shards")
    copy, link = gallery_path.with_name("copy"), gallery_path.with_name("link")
    shutil.copytree(gallery_path, copy)
    link.symlink_to(gallery_path.name)
    queries = make_embeddings(99, 3)

    def answer(gallery: Gallery) -> list[list[tuple[str, float]]]:
        return [[(hit.id, hit.score) for hit in result.hits] for result in gallery.search(queries)]

    with Gallery.open(link) as gallery:
        expected = answer(gallery)
        wait_for_clock()
        assert answer(gallery) == expected
        link.unlink()
        link.symlink_to(copy.name)
        assert answer(gallery) == expected
        for folder in gallery_path.glob("**/segments"):
            for file in folder.iterdir():
                write(file, 200, b"\xff" * (file.stat().st_size - 200))
        assert answer(gallery) == expected
        wait_for_clock()
        for folder in copy.glob("**/segments"):
            for file in folder.iterdir():
                write(file, 200, b"\xff" * (file.stat().st_size - 200))
        for _ in range(2):
            with pytest.raises(GalleryCorrupt, match="not those that were committed"):
                answer(gallery)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"\0" * path.stat().st_size)
    other.rename(path)


def test_no_files_are_never_touched() -> None:
    found = Watch([])
    assert not found.recheck()
    assert not found.recheck()


def facts_of(path: Path) -> list[int]:
    """What the core knows a file by."""
    found = path.lstat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def need_core() -> ModuleType:
    core = open_core()
    if core is None:
        pytest.skip("the core was not built")
    return core


def test_the_core_compares_all_that_is_known_of_a_file(tmp_path: Path) -> None:
    core, folder = need_core(), os.fsencode(tmp_path)
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("a")
    os.utime(tmp_path / "a", ns=(1, 1_700_000_000_123_456_789))
    seen = facts_of(tmp_path / "a") + facts_of(tmp_path / "link")

    def untouched(seen: list[int], names: tuple[bytes, ...] = (b"a", b"link")) -> bool:
        return core.untouched(((folder, (), b""), (folder, names, struct.pack(f"={len(seen)}Q", *seen))))

    assert untouched(seen)
    for place in range(len(seen)):
        assert not untouched([number + (i == place) for i, number in enumerate(seen)])
    assert not untouched(seen, (b"link", b"a"))
    assert not untouched(seen, (b"a", b"none"))
    assert not core.untouched(((folder + b"/none", (b"a",), bytes(40)),))
    with pytest.raises(TypeError):
        untouched(seen, ("a", "link"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="40 bytes for each name"):
        untouched(seen[:5])


def test_the_core_compares_the_line_of_the_newest_commit(tmp_path: Path) -> None:
    core, line = need_core(), b"a line\n"
    for name, data in {"same": line + b"more", "other": b"b" + line[1:], "short": line[:-1], "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "link").symlink_to("same")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken").symlink_to("nowhere")

    def is_newest(name: str, absent: str | None = None) -> bool:
        other = None if absent is None else os.fsencode(tmp_path / absent)
        return core.untouched((), os.fsencode(tmp_path / name), line, other)

    assert is_newest("same")
    for name in ("other", "short", "empty", "link", "folder", "pipe", "broken", "none"):
        assert not is_newest(name), name
        assert is_newest("same", name) == (name == "none"), name
    assert not is_newest("same", "same/below")  # which cannot be told: "same" is no folder
    with pytest.raises(TypeError):
        core.untouched((), b"path", line, "absent")


@pytest.mark.parametrize("cut", [False, True], ids=["one folder", "shards"])
def test_an_untouched_gallery_is_asked_for_in_one_call(
    gallery_path: Path, make_embeddings: Callable[..., Embeddings], monkeypatch: pytest.MonkeyPatch, cut: bool
) -> None:
    need_core()
    if cut:
        split_gallery(gallery_path, gallery_path.with_name("shards"), 2)
        gallery_path = gallery_path.with_name("shards")
    queries = make_embeddings(99, 3)
    with Gallery.open(gallery_path) as gallery:
        gallery.search(queries)
        wait_for_clock()
        expected = gallery.search(queries)
        with monkeypatch.context() as patched:
            patched.setattr(Gallery, "_view", lambda gallery: pytest.fail("the catalogue was read by Python"))
            patched.setattr(Watch, "recheck", lambda watch, **_: pytest.fail("a file was asked by itself"))
            found = gallery.search(queries)
        assert [[hit.id for hit in one.hits] for one in found] == [[hit.id for hit in one.hits] for one in expected]
        with open_for_writing(gallery_path) as writer:
            writer.delete([expected[0].hits[0].id])
        assert expected[0].hits[0].id not in {hit.id for hit in gallery.search(queries)[0].hits}


def test_a_file_of_a_later_time_is_summed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a copy keeps it from a machine whose clock is ahead."""
    file = MappedFile(tmp_path, write_arrays(tmp_path, "a", {"x": ARRAY}))
    file.read("x")
    os.utime(file.path, (3 * 10**9, 3 * 10**9))
    wait_for_clock()
    found = Watch([file])
    assert found.recheck()
    with monkeypatch.context() as patched:
        patched.setattr(MappedFile, "_intact", lambda file, page: pytest.fail("summed again"))
        assert not found.recheck()
    write(file.path, 5000, b"\xff" * 8)
    with pytest.raises(GalleryCorrupt, match="not those that were committed"):
        found.recheck()


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="needs a file system that keeps any time")
@pytest.mark.parametrize("seconds", [-62_135_596_800, -(10**10), -1, 10**10, 253_402_300_799])
def test_a_file_may_be_of_any_year(seconds: int) -> None:
    """Nanoseconds since 1970 fit 64 bits in the years 1678 to 2261 only."""
    with TemporaryDirectory(dir="/dev/shm") as folder:
        file = MappedFile(Path(folder), write_arrays(Path(folder), "a", {"x": ARRAY}))
        file.read("x")
        os.utime(file.path, (seconds, seconds))
        assert os.stat(file.path).st_mtime == seconds
        wait_for_clock()
        found = Watch([file])
        assert found.recheck()
        for _ in range(2):
            assert not found.recheck()
        write(file.path, 5000, b"\xff" * 8)
        os.utime(file.path, (seconds, seconds))
        with pytest.raises(GalleryCorrupt, match="not those that were committed"):
            found.recheck()


def test_a_file_that_a_newer_commit_removed_is_not_summed(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or compacting would hold up every search that runs for the time of reading all that it touched before."""
    paths, found = watched
    paths[1].unlink()
    monkeypatch.setattr(MappedFile, "_intact", lambda file, page: pytest.fail(f"{file.path} was summed"))
    assert not found.recheck(may_be_removed=True)


def test_files_that_were_moved_and_changed_are_an_error(
    gallery_path: Path, make_embeddings: Callable[..., Embeddings]
) -> None:
    queries = make_embeddings(99, 3)
    with Gallery.open(gallery_path) as gallery:
        expected = [[(hit.id, hit.score) for hit in result.hits] for result in gallery.search(queries)]
        wait_for_clock()
        moved = gallery_path.with_name("moved")
        moved.mkdir()
        for file in (gallery_path / "segments").iterdir():
            file.rename(moved / file.name)
        again = [[(hit.id, hit.score) for hit in result.hits] for result in gallery.search(queries)]
        assert again == expected
        for file in moved.iterdir():
            write(file, 200, b"\xff" * (file.stat().st_size - 200))
        with pytest.raises(GalleryCorrupt, match="not those that were committed"):
            gallery.search(queries)
