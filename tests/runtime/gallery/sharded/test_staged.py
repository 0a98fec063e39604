"""Shards that are filled before a gallery has them: nothing opens them, and one commit adopts them all or none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import GalleryError, GalleryLocked, InputError
from chan_rt.runtime.gallery import Gallery, GallerySettings, ShardedWriter, is_gallery
from chan_rt.runtime.gallery.sharded.manifest import NEXT, shard_name
from chan_rt.runtime.gallery.sharded.staged import StagedShard, check_only_staged, staged_rows
from chan_rt.runtime.gallery.store.lock import WriterLock

SETTINGS = GallerySettings("images", 16, AlignmentConfig(), "m")


class Killed(BaseException):
    """Stands for the end of a process: no handler of errors runs on purpose for it."""


def vectors(seed: int, count: int) -> Embeddings:
    rng = np.random.default_rng(seed)
    return Embeddings(rng.standard_normal((count, 2, 16)).astype(np.float32), np.full(count, 2, np.int32))


def stage(folder: Path, number: int, ids: list[str]) -> StagedShard:
    shard = StagedShard.open_staged(folder / shard_name(number), SETTINGS, f"{number:032}")
    new = [id for id in ids if not shard.ids([id])]
    try:
        if new:
            shard.add(new, vectors(number, len(new)))
    except BaseException:
        shard.close()
        raise
    return shard


def ids_of(folder: Path) -> list[str] | None:
    """Ids of the gallery in a folder; None where there is none."""
    if not is_gallery(folder):
        return None
    with Gallery.open(folder, threads=1) as gallery:
        assert gallery.verify() == []
        return [row.id for row in gallery.rows()]


def make(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    lock = WriterLock(folder)
    try:
        with stage(folder, 1, ["a", "b"]) as one, stage(folder, 2, ["c"]) as two:
            ShardedWriter.create(folder, lock, SETTINGS, [one, two], {"photos": "/photos"}).close()
    finally:
        lock.release()


def adopt(folder: Path) -> None:
    with (
        ShardedWriter.open(folder, keep_staged=True) as writer,
        stage(folder, 3, ["b", "d"]) as three,
        stage(folder, 4, ["e"]) as four,
    ):
        writer.adopt([three, four], {"b", "c"}, {"photos": "/elsewhere"})


def test_nothing_opens_a_shard_before_it_is_adopted(tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    with stage(folder, 1, ["a", "b"]) as shard:
        assert staged_rows(shard.path) == len(shard) == 2
        for place in (folder, shard.path):
            assert not is_gallery(place)
            with pytest.raises(GalleryError):
                Gallery.open(place)
        with pytest.raises(GalleryLocked):
            stage(folder, 1, [])
    check_only_staged(folder)
    with stage(folder, 1, []) as again:
        assert again.ids(["a", "b"]) == {"a", "b"}


def test_adopted_rows_lie_behind_the_others_and_replaced_ones_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    make(folder)
    assert ids_of(folder) == ["a", "b", "c"]
    adopt(folder)
    assert ids_of(folder) == ["a", "b", "d", "e"]
    with ShardedWriter.open(folder) as writer:
        assert writer.roots == {"photos": "/elsewhere"}
        assert writer.next_shard == 5
    with Gallery.open(folder) as gallery:
        kept = gallery.embeddings(["b"]).vectors[0]
    assert np.array_equal(kept, vectors(3, 2).vectors[0])


@pytest.mark.parametrize("name", ["replace", "fsync", "unlink"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Killed()])
@pytest.mark.parametrize("change", [make, adopt])
def test_a_fault_at_any_call_leaves_all_or_nothing_and_the_rows_that_were_filled(
    change: object, error: BaseException, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tmp_path / "start"
    if change is adopt:
        make(start)
    before = ids_of(start)
    complete = tmp_path / "complete"
    if start.exists():
        shutil.copytree(start, complete)
    change(complete)  # type: ignore[operator]
    after, real, seen = ids_of(complete), getattr(os, name), set()
    for nth in range(1, 60):
        folder, calls = tmp_path / f"gallery {nth}", [0]
        if start.exists():
            shutil.copytree(start, folder)

        def failing(*arguments: object, calls: list[int] = calls, nth: int = nth, **options: object) -> object:
            calls[0] += 1
            if calls[0] == nth:
                raise error
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing)
            try:
                change(folder)  # type: ignore[operator]
            except (GalleryError, Killed):
                pass
            else:
                if calls[0] < nth:
                    break
        found = ids_of(folder)
        assert found in (before, after), (nth, found)
        seen.add(found == after)
        if found == before:
            change(folder)  # type: ignore[operator]
        else:
            ShardedWriter.open(folder).close()
        assert ids_of(folder) == after
        assert not list(folder.glob(f"*/{NEXT}"))
    assert nth > 4, "nothing was tried"
    assert seen


def test_two_folders_that_are_filled_alike_have_the_same_bytes(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        make(tmp_path / name)
        adopt(tmp_path / name)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        contents.append([(path.relative_to(tmp_path / name), path.read_bytes()) for path in files])
    assert contents[0] == contents[1]


def test_what_is_not_a_shard_of_this_run_is_not_touched(tmp_path: Path) -> None:
    folder = tmp_path / "gallery"
    make(folder)
    with pytest.raises(GalleryError, match="is a gallery, not a shard that is being filled"):
        StagedShard.open_staged(folder / shard_name(1), SETTINGS, f"{1:032}")
    (folder / "shards").rename(tmp_path / "lost")  # the manifest of a gallery is lost: its shards stay
    with pytest.raises(GalleryError, match="not empty"):
        check_only_staged(folder)


def test_a_shard_of_another_gallery_or_without_its_files_is_filled_anew(tmp_path: Path) -> None:
    stage(tmp_path, 1, ["a"]).close()
    with StagedShard.open_staged(tmp_path / shard_name(1), SETTINGS, f"{2:032}") as other:
        assert len(other) == 0
        other.add(["a"], vectors(0, 1))
    next((tmp_path / shard_name(1) / "segments").iterdir()).unlink()
    with StagedShard.open_staged(tmp_path / shard_name(1), SETTINGS, f"{2:032}") as empty:
        assert len(empty) == 0


def test_ids_stay_unique(tmp_path: Path) -> None:
    make(tmp_path)
    with (
        ShardedWriter.open(tmp_path, keep_staged=True) as writer,
        stage(tmp_path, 3, ["c"]) as shard,
    ):
        with pytest.raises(InputError, match="already in the gallery: c"):
            writer.adopt([shard])
        with pytest.raises(InputError, match="delete: not in the gallery: z"):
            writer.adopt([shard], ["z"])
    assert ids_of(tmp_path) == ["a", "b", "c"]
