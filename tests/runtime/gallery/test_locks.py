"""The lock of a gallery's writer: what fails early leaves none behind, and a file that was removed holds nobody."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chan_rt.runtime import AlignmentConfig, Embeddings, Gallery, GalleryWriter
from chan_rt.runtime.errors import ChanError, GalleryError, GalleryLocked, InputError
from chan_rt.runtime.gallery import open_for_writing, split_gallery
from chan_rt.runtime.gallery.store.lock import LOCK, WriterLock
from chan_rt.scale import bulk

from ...run_chan import chan


def make(path: Path) -> GalleryWriter:
    return GalleryWriter.create(path, dim=8, alignment=AlignmentConfig.maxsim())


def row(seed: int = 0) -> Embeddings:
    return Embeddings.from_rows([np.random.default_rng(seed).standard_normal((2, 8)).astype(np.float32)])


def test_a_lock_that_is_discarded_leaves_nothing_that_it_made(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for folder in ("mine", "mine/a/b", "c"):
        lock = WriterLock(tmp_path / folder, make=True)
        lock.discard()
        lock.discard()
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    lock = WriterLock(tmp_path / "c", make=True)
    (tmp_path / "c/notes").write_text("mine")
    lock.discard()
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["notes"]


def test_a_lock_whose_file_was_removed_before_it_was_held_is_taken_again(tmp_path: Path, monkeypatch) -> None:
    real, first = fcntl.flock, [True]

    def removed_meanwhile(descriptor: int, how: int) -> None:
        if first.pop() if first else False:
            (tmp_path / LOCK).unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    lock = WriterLock(tmp_path)
    assert not first
    lock.check()
    with pytest.raises(GalleryLocked):
        WriterLock(tmp_path)
    lock.release()


def test_a_lock_that_nobody_refers_to_is_given_back(tmp_path: Path) -> None:
    """As after Ctrl-C between the making of a lock and the block that gives it back."""
    lock = WriterLock(tmp_path)
    with pytest.raises(GalleryLocked):
        WriterLock(tmp_path)
    del lock
    WriterLock(tmp_path).release()


def test_a_lock_that_is_never_in_place_is_an_error(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda descriptor, how: (tmp_path / LOCK).unlink())
    with pytest.raises(GalleryLocked, match=r"writer\.lock is removed or replaced all the time"):
        WriterLock(tmp_path)


@pytest.mark.parametrize("there", [False, True], ids=["new folder", "empty folder"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_gallery_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch, there: bool, call: str) -> None:
    folder = tmp_path / "some/gallery"
    if there:
        folder.mkdir(parents=True)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        with pytest.raises(GalleryError, match="No space"):
            make(folder)
    assert [path.name for path in tmp_path.rglob("*")] == (["some", "gallery"] if there else [])
    make(folder).close()
    assert len(Gallery.open(folder)) == 0


@pytest.mark.parametrize(
    ("work", "kept"),
    [
        (lambda writer: None, False),
        (lambda writer: writer.set_bundle("bundle"), False),
        (lambda writer: writer.add(["a"], row()), True),
        (lambda writer: writer.close(), True),
    ],
    ids=["nothing", "a commit without rows", "a row", "closed"],
)
def test_an_error_removes_a_gallery_that_was_made_and_has_no_rows(
    tmp_path: Path, work: Callable[[GalleryWriter], None], kept: bool
) -> None:
    def fails() -> None:
        with make(tmp_path / "new") as writer:
            work(writer)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert (tmp_path / "new").exists() == kept
    if kept:
        open_for_writing(tmp_path / "new").close()


def test_an_error_removes_no_gallery_that_was_there(tmp_path: Path) -> None:
    make(tmp_path / "empty").close()
    with pytest.raises(InputError), open_for_writing(tmp_path / "empty") as writer:
        writer.delete(["no such id"])
    assert len(Gallery.open(tmp_path / "empty")) == 0


@pytest.mark.parametrize("kind", ["one", "many"])
def test_a_gallery_that_cannot_be_opened_is_not_locked(tmp_path: Path, kind: str) -> None:
    with make(tmp_path / "one") as writer:
        writer.add(["a", "b"], Embeddings.from_rows([np.ones((1, 8), np.float32)] * 2))
    split_gallery(tmp_path / "one", tmp_path / "many", 2)
    catalogue = tmp_path / ("one/catalogue" if kind == "one" else "many/shard-000002/catalogue")
    whole = catalogue.read_bytes()
    catalogue.write_bytes(whole[:-1])
    with pytest.raises(ChanError):
        open_for_writing(tmp_path / kind)
    catalogue.write_bytes(whole)
    open_for_writing(tmp_path / kind).close()


@pytest.mark.parametrize("flags", [(), ("--ray",)], ids=["here", "on a cluster"])
@pytest.mark.parametrize("wrong", ["pictures", "backend", "kind"])
def test_chan_index_that_fails_early_leaves_nothing(
    make_small_model: Callable, tmp_path: Path, monkeypatch, flags: tuple[str, ...], wrong: str
) -> None:
    def no_cluster(address: str | None) -> None:
        raise InputError("there is no cluster")

    monkeypatch.setattr(bulk, "cluster", no_cluster)
    bundle, photos, out = make_small_model(pictures=True).bundle, tmp_path / "photos", tmp_path / "new/gallery"
    photos.mkdir()
    Image.new("RGB", (24, 24)).save(photos / "0.png")
    if wrong == "pictures":
        (photos / "0.png").write_bytes(b"no picture")
    extra = {"pictures": [], "backend": ["--backend", "tensorrt"], "kind": ["--captions"]}[wrong]
    command = ["index", str(bundle), str(photos), "-o", str(out), *extra, *flags]
    result = chan(*command)
    assert result.exit_code == 1, result.output
    assert not out.parent.exists()
