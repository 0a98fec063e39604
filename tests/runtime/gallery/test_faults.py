"""Kills, full disks, read-only folders and flipped bits: acknowledged rows stay, half-done changes leave no trace."""

import errno
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import ChanError, GalleryCorrupt, GalleryError
from chan_rt.runtime.gallery import Gallery, GallerySettings, GalleryWriter, verify_gallery
from chan_rt.runtime.gallery.store.catalogue import read_catalogue

from .damage import flip
from .killed import possible_rows, run_child


def stored(path: Path) -> dict[str, int]:
    """The rows (id -> version) a gallery holds, from metadata and vectors, which must agree; all bytes verified."""
    with Gallery.open(path, threads=1) as gallery:
        assert gallery.verify() == []
        rows = {row.id: row.metadata["version"] for row in gallery.rows()}
        assert len(gallery) == len(rows)
        (snapshot,) = gallery._view().opened
        assert len(rows) == len(gallery.rows()), "an id occurs twice"
        for place, row in zip(np.flatnonzero(snapshot.live), gallery.rows(), strict=True):
            index, position = snapshot.locate(int(place))
            assert (snapshot.segments[index].fine(position)[:, 0] == rows[row.id]).all(), "vectors of another version"
        return rows


def kill_and_check(tmp_path: Path, seed: int, line: int) -> None:
    path = tmp_path / f"gallery {seed} {line}"
    GalleryWriter.create(path, GallerySettings("images", 16, AlignmentConfig(), "m")).close()
    possible = possible_rows({}, run_child(path, seed, line))
    assert stored(path) in possible, "the gallery is neither before nor after the change that was killed"
    with GalleryWriter.open(path) as writer:  # the lock is free, orphans are swept, and work goes on
        assert {file.name for file in (path / "segments").iterdir()} == writer._folders[0].catalogue.files.keys()
        writer.compact()
    assert stored(path) in possible
    shutil.rmtree(path)


def points(seed: int, tmp_path: Path, count: int) -> list[int]:
    """Random lines of one run."""
    path = tmp_path / f"whole {seed}"
    GalleryWriter.create(path, GallerySettings("images", 16, AlignmentConfig(), "m")).close()
    lines = run_child(path, seed, 0)[-1]["lines"]
    return random.Random(seed).sample(range(1, lines), count)


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(100, 200))]
)
def test_kill_at_random_points(tmp_path: Path, seed: int) -> None:
    for line in points(seed, tmp_path, 10):
        kill_and_check(tmp_path, seed, line)


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, name: str, nth: int, code: int) -> Iterator[None]:
    """The nth call of os.NAME raises OSError(code)."""
    real, calls = getattr(os, name), [0]

    def fail(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == nth:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        yield


def contents(path: Path) -> list[tuple]:
    with Gallery.open(path) as gallery:
        assert gallery.verify() == []
        return [(row.id, row.metadata) for row in gallery.rows()]


@pytest.mark.parametrize(
    ("change", "nth"),
    [
        *(("add", n) for n in range(1, 5)),
        *(("compact", n) for n in range(1, 5)),
        *(("prepare", n) for n in range(1, 7)),
    ],
)
def test_a_disk_that_fails_to_sync_changes_nothing(
    gallery_path: Path, make_embeddings, monkeypatch, change: str, nth: int
) -> None:
    """Every fsync before the new catalogue is in place: of each file, of their folder, of the catalogue."""
    before = contents(gallery_path)
    with GalleryWriter.open(gallery_path) as writer:
        run = {
            "add": lambda: writer.add(["new"], make_embeddings(3, 1), [{"n": -1}]),
            "compact": writer.compact,
            "prepare": writer.prepare,
        }[change]
        rows = "; the rows are there, and search is as it was before" if change == "prepare" else ""
        full = pytest.raises(GalleryError, match=f"No space left on device; nothing of this change was kept{rows}$")
        with failing(monkeypatch, "fsync", nth, errno.ENOSPC), full:
            run()
        assert len(list((gallery_path / "segments").iterdir())) == 6, "no leftovers"
        assert contents(gallery_path) == before
        writer.add(["new"], make_embeddings(3, 1))
    assert len(contents(gallery_path)) == 31


def test_a_commit_that_the_disk_does_not_confirm_is_there_and_reported(
    gallery_path: Path, make_embeddings, monkeypatch
) -> None:
    with GalleryWriter.open(gallery_path) as writer:
        doubt = pytest.raises(GalleryError, match="this change is in the gallery, but the disk did not confirm it")
        with failing(monkeypatch, "fsync", 5, errno.EIO), doubt:
            writer.add(["new"], make_embeddings(3, 1))
        assert len(contents(gallery_path)) == 31
        writer.delete(["new"])
    assert len(contents(gallery_path)) == 30


FULL_DISK = """
import resource, signal, sys
from chan_rt.runtime.errors import GalleryError
from chan_rt.runtime.gallery import GalleryWriter
sys.path.insert(0, sys.argv[1])
from conftest import embeddings
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with GalleryWriter.open(sys.argv[2]) as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    try:
        writer.add([f"new {i}" for i in range(4000)], embeddings(5, 4000, 2))
    except GalleryError as error:
        print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        sys.exit(3)
"""


@pytest.mark.parametrize("limit", [50_000, 900_000])
def test_a_full_disk(gallery_path: Path, limit: int) -> None:
    """A file-size limit makes the kernel refuse real writes, early or late in a file."""
    before = contents(gallery_path)
    arguments = [sys.executable, "-c", FULL_DISK, str(Path(__file__).parent), str(gallery_path), str(limit)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 3, (result.stdout, result.stderr)
    assert contents(gallery_path) == before
    GalleryWriter.open(gallery_path).close()
    assert len(list((gallery_path / "segments").iterdir())) == 6


def test_a_read_only_folder_is_searched_and_not_written(gallery_path: Path, make_embeddings, make_read_only) -> None:
    query = make_embeddings(1, 1)
    with Gallery.open(gallery_path) as gallery:
        expected = gallery.search(query)[0]
    before = {path.name: path.stat().st_mtime_ns for path in gallery_path.rglob("*")}
    make_read_only()
    with Gallery.open(gallery_path) as gallery:
        found = gallery.search(query)[0]
        assert [(h.id, h.score, h.metadata) for h in found.hits] == [(h.id, h.score, h.metadata) for h in expected.hits]
        assert gallery.verify() == []
    assert {path.name: path.stat().st_mtime_ns for path in gallery_path.rglob("*")} == before
    with pytest.raises(GalleryError, match="cannot be written: Read-only file system"):
        GalleryWriter.open(gallery_path)
    with pytest.raises(GalleryError, match="cannot be written: Read-only file system"):
        GalleryWriter.create(gallery_path.parent / "new", gallery.settings)


def verify_and_search(path: Path, damaged: str, query: Embeddings) -> None:
    """Open the gallery, see that `verify` names the damaged file and nothing else, and search it all the same."""
    with Gallery.open(path) as gallery:
        (named,) = gallery.verify()
        assert damaged in named
        gallery.search(query, k=30)


def test_every_flipped_bit_of_a_segment_is_named_and_never_searched(gallery_path: Path, make_embeddings) -> None:
    query = make_embeddings(99, 1)
    file = sorted((gallery_path / "segments").iterdir())[0]
    whole = file.read_bytes()
    choose = random.Random(1)
    for bit in [0, 70, *(choose.randrange(8 * len(whole)) for _ in range(40)), 8 * len(whole) - 1]:
        flip(file, *divmod(bit, 8))
        with pytest.raises(GalleryCorrupt, match=file.name):
            verify_and_search(gallery_path, file.name, query)
        file.write_bytes(whole)
    assert contents(gallery_path)


def test_a_damaged_page_is_refused_only_by_searches_that_need_it(
    tmp_path: Path, make_embeddings, make_settings
) -> None:
    path = tmp_path / "g"
    with GalleryWriter.create(path, make_settings()) as writer:
        writer.add([str(i) for i in range(4000)], make_embeddings(1, 4000, 4, even=True))
    file = path / "segments" / read_catalogue(path)[1].segments[0].vectors.name
    flip(file, -4)  # the fine copy of the last row
    query = make_embeddings(1, 4000, 4, even=True)
    with Gallery.open(path) as gallery:
        assert gallery.search(query[5], k=1)[0].hits[0].id == "5", "a hit far from the damage is certified as ever"
        with pytest.raises(
            GalleryCorrupt, match=r"bytes \d+ to \d+ \(fine\): the bytes are not those that were committed"
        ):
            gallery.search(query[3999], k=1)
        (named,) = gallery.verify()
        assert "(fine)" in named


def test_a_missing_or_cut_segment_is_named(gallery_path: Path) -> None:
    file = next((gallery_path / "segments").iterdir())
    data = file.read_bytes()
    file.write_bytes(data[:-1])
    with pytest.raises(GalleryCorrupt, match=f"has {len(data) - 1} bytes, {len(data)} were committed"):
        Gallery.open(gallery_path)
    file.unlink()
    with pytest.raises(GalleryCorrupt, match=r"is missing: .* is incomplete"):
        Gallery.open(gallery_path)


def test_every_flipped_bit_of_the_catalogue_is_refused(gallery_path: Path) -> None:
    file = gallery_path / "catalogue"
    expected = contents(gallery_path)
    whole = file.read_bytes()
    choose = random.Random(2)
    for bit in choose.sample(range(8 * len(whole)), 200):
        flip(file, *divmod(bit, 8))
        for door in (Gallery.open, GalleryWriter.open):
            with pytest.raises(ChanError) as refused:
                door(gallery_path)
            assert str(gallery_path) in str(refused.value)
        file.write_bytes(whole)
    assert contents(gallery_path) == expected


def test_verify_names_a_changed_record(gallery_path: Path) -> None:
    file = gallery_path / "segments" / read_catalogue(gallery_path)[1].segments[0].rows.name
    file.write_bytes(file.read_bytes().replace(b'"n": 7', b'"n": 8'))
    (found,) = verify_gallery(gallery_path)
    assert file.name in found
