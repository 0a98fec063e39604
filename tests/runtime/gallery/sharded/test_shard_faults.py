"""Kills, lost and damaged shards, half-made commits: a change of all shards is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import GalleryCorrupt, GalleryError, GalleryLocked, InputError
from chan_rt.runtime.gallery import (
    Gallery,
    GallerySettings,
    GalleryWriter,
    ShardedWriter,
    repair_gallery,
    split_gallery,
    verify_gallery,
)
from chan_rt.runtime.gallery.sharded import arrange, shard_writer
from chan_rt.runtime.gallery.sharded.manifest import NEXT, read_manifest

from ..damage import flip
from ..killed import possible_rows, run_child


def found(gallery: Gallery, queries: Embeddings) -> list[list[tuple[str, float]]]:
    return [[(hit.id, hit.score) for hit in result.hits] for result in gallery.search(queries, 7)]


def rows(path: Path) -> list[tuple]:
    with Gallery.open(path, threads=1) as gallery:
        assert gallery.verify() == []
        return [(row.id, dict(row.metadata)) for row in gallery.rows()]


def folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if entry.is_dir())


# -- kills


def stored(path: Path) -> dict[str, int]:
    """The rows (id -> version) that metadata and vectors agree on; all bytes verified."""
    with Gallery.open(path, threads=1) as gallery:
        assert gallery.verify() == []
        state = {row.id: row.metadata["version"] for row in gallery.rows()}
        assert len(state) == len(gallery)
        for id, version in state.items():
            vectors = gallery.embeddings([id])
            assert (vectors.vectors[0, : vectors.lengths[0], 0] == version).all(), "vectors of another version"
        return state


def kill_at_points(tmp_path: Path, seed: int, count: int) -> None:
    start = tmp_path / f"start {seed}"
    with GalleryWriter.create(
        tmp_path / f"one {seed}", GallerySettings("images", 16, AlignmentConfig(), "m")
    ) as writer:
        vectors = np.zeros((9, 1, 16), np.float32)
        writer.add([f"0-{i}" for i in range(9)], Embeddings(vectors, np.ones(9, np.int32)), [{"version": 0}] * 9)
    split_gallery(tmp_path / f"one {seed}", start, 3)
    begin = stored(start)
    path = tmp_path / f"gallery {seed}"
    shutil.copytree(start, path)
    lines = run_child(path, seed, 0)[-1]["lines"]
    for line in random.Random(seed).sample(range(1, lines), count):
        shutil.rmtree(path)
        shutil.copytree(start, path)
        possible = possible_rows(begin, run_child(path, seed, line))
        assert stored(path) in possible, f"line {line}: neither before nor after the change that was killed"
        with ShardedWriter.open(path) as writer:  # the locks are free, what is left over is swept, and work goes on
            assert folders(path) == [entry.name for entry in read_manifest(path)[1].shards]
            for place in folders(path):
                assert not (path / place / NEXT).exists()
            writer.compact()
        assert stored(path) in possible


@pytest.mark.parametrize(
    ("seed", "count"),
    [(0, 5), (1, 5), *(pytest.param(seed, 10, marks=pytest.mark.nightly) for seed in range(100, 200))],
)
def test_kill_at_random_points(tmp_path: Path, seed: int, count: int) -> None:
    kill_at_points(tmp_path, seed, count)


@pytest.mark.parametrize("name", ["fsync", "replace"])
@pytest.mark.parametrize("nth", range(1, 14))
def test_a_disk_that_fails_leaves_the_shards_as_they_were_or_changed(
    shards: Path, make_embeddings, monkeypatch: pytest.MonkeyPatch, name: str, nth: int
) -> None:
    """The nth call of the system fails, while rows of all shards are replaced."""
    before, real, calls = rows(shards), getattr(os, name), [0]

    def fail(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] == nth:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*args, **kwargs)

    with ShardedWriter.open(shards) as writer:
        monkeypatch.setattr(os, name, fail)
        try:
            writer.add(["3", "13", "23", "new"], make_embeddings(3, 4), [{"n": -1}] * 4, overwrite=True)
            done = True
        except GalleryError:
            done = False
        monkeypatch.undo()
    after = [row for row in before if row[0] not in ("3", "13", "23")] + [
        (id, {"n": -1}) for id in ("3", "13", "23", "new")
    ]
    now = rows(shards)
    assert now == after if done else now in (before, after)
    if calls[0] < nth:
        assert done
    with ShardedWriter.open(shards) as writer:
        writer.delete(["7"])
    assert rows(shards) == [row for row in now if row[0] != "7"]


def test_a_commit_whose_catalogues_wait_is_read_and_finished(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery.open(shards) as gallery:
        with ShardedWriter.open(shards) as writer:
            monkeypatch.setattr(shard_writer.ShardWriter, "settle", lambda self, named: None)
            writer.delete(["1", "21"])
            monkeypatch.undo()
        assert (shards / "shard-000001" / NEXT).exists()
        assert len(gallery) == 28, "the manifest is what counts"
        assert len(rows(shards)) == 28
        ShardedWriter.open(shards).close()
        assert not (shards / "shard-000001" / NEXT).exists()
        assert len(gallery) == 28
    assert len(rows(shards)) == 28


def test_a_commit_that_the_manifest_does_not_name_is_nothing(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardedWriter, "_publish", lambda self, **changes: os.kill(0, 0) or 1 / 0)
    monkeypatch.setattr(shard_writer.ShardWriter, "settle", lambda self, named: None)
    with ShardedWriter.open(shards) as writer, pytest.raises(ZeroDivisionError):
        writer.delete(["1", "21"])
    monkeypatch.undo()
    assert (shards / "shard-000001" / NEXT).exists()
    assert len(rows(shards)) == 30
    ShardedWriter.open(shards).close()
    assert not (shards / "shard-000001" / NEXT).exists()
    assert len(rows(shards)) == 30


# -- one writer, and readers beside it


def test_there_is_one_writer_and_none_of_a_shard_alone(shards: Path, gallery_path: Path) -> None:
    with ShardedWriter.open(shards), pytest.raises(GalleryLocked):
        ShardedWriter.open(shards)
    with pytest.raises(GalleryError, match="is a shard: change it through"):
        GalleryWriter.open(shards / "shard-000002")
    with pytest.raises(GalleryError, match="is a gallery in shards"):
        GalleryWriter.open(shards)
    with pytest.raises(GalleryError, match="is not a gallery in shards"):
        ShardedWriter.open(gallery_path)
    with Gallery.open(shards / "shard-000002") as alone:
        assert [row.id for row in alone.rows()] == [str(i) for i in range(10, 20)]


def test_ids_are_unique_in_all_shards(shards: Path, make_embeddings) -> None:
    with ShardedWriter.open(shards) as writer:
        with pytest.raises(InputError, match=r"already in the gallery .*: 4"):
            writer.add(["4", "new"], make_embeddings(3, 2))
        with pytest.raises(InputError, match="must have an order"):
            writer.add({"new"}, make_embeddings(3, 1))
        with pytest.raises(InputError, match="not in the gallery: 99"):
            writer.delete(["4", "99"])
        with pytest.raises(InputError, match="D must be"):
            writer.add(["4", "new"], make_embeddings(3, 2, dim=8), overwrite=True)
        with pytest.raises(InputError, match="at most the number of rows, 30, got 31"):
            writer.rebalance(31)
    assert len(rows(shards)) == 30
    assert folders(shards) == ["shard-000001", "shard-000002", "shard-000003"]


def test_too_many_shards_are_refused_before_their_folders_are_listed(
    shards: Path, gallery_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of 10^9 names takes more memory than there is."""
    monkeypatch.setattr(arrange, "shard_name", lambda number: pytest.fail("listed"))
    with ShardedWriter.open(shards) as writer, pytest.raises(InputError, match="at most the number of rows, 30, got"):
        writer.rebalance(10**9)
    for path in (gallery_path, shards):
        with pytest.raises(InputError, match="at most the number of rows, 30, got"):
            split_gallery(path, shards.with_name("out"), 10**9)
    assert not shards.with_name("out").exists()


def test_searches_find_the_same_while_the_shards_are_rebalanced(shards: Path, make_embeddings) -> None:
    queries, done, wrong = make_embeddings(99, 3), threading.Event(), []
    with Gallery.open(shards, threads=1) as gallery:
        expected, searches = found(gallery, queries), [0, 0]

        def search(number: int) -> None:
            while not done.is_set():
                with Gallery.open(shards, threads=1) if number else gallery_again(gallery) as opened:
                    results = opened.search(queries, 7)
                if not all(result.certified for result in results):
                    wrong.append("not certified")
                if [[(hit.id, hit.score) for hit in result.hits] for result in results] != expected:
                    wrong.append("other hits")
                searches[number] += 1

        threads = [threading.Thread(target=search, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        with ShardedWriter.open(shards) as writer:
            for count in (2, 5, 1, 4, 3, 7):
                writer.rebalance(count)
        done.set()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert min(searches) > 0
        assert found(gallery, queries) == expected


class gallery_again:
    def __init__(self, gallery: Gallery) -> None:
        self._gallery = gallery

    def __enter__(self) -> Gallery:
        return self._gallery

    def __exit__(self, *_: object) -> None:
        pass


def test_later_shards_read_less_because_of_what_was_found(tmp_path: Path, make_settings) -> None:
    """The best rows lie in the first shard: no row of the others is rescored."""
    rng = np.random.default_rng(0)
    query = rng.standard_normal((1, 1, 24)).astype(np.float32)
    near = query + 0.01 * rng.standard_normal((20, 1, 24)).astype(np.float32)
    far = rng.standard_normal((60, 1, 24)).astype(np.float32)
    vectors = np.concatenate([near, far])
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    asked = Embeddings(query, np.ones(1, np.int32))
    with GalleryWriter.create(tmp_path / "one", make_settings()) as writer:
        writer.add([str(i) for i in range(80)], Embeddings(vectors, np.ones(80, np.int32)))
    split_gallery(tmp_path / "one", tmp_path / "shards", 4)
    with Gallery.open(tmp_path / "shards") as gallery:
        (together,) = gallery.search(asked, 5, same_kind=True)
    alone = []
    for place in folders(tmp_path / "shards"):
        with Gallery.open(tmp_path / "shards" / place) as shard:
            alone.append(shard.search(asked, 5, same_kind=True)[0].rescored)
    assert together.rescored == alone[0]
    assert min(alone) >= 5


# -- shards that are missing or damaged


def test_a_missing_shard_is_an_error_or_an_answer_without_it(shards: Path, make_embeddings, gallery_path: Path) -> None:
    queries = make_embeddings(99, 3)
    with Gallery.open(gallery_path) as whole:
        left = [str(i) for i in range(30) if not 10 <= i < 20]
        expected = [[(hit.id, hit.score) for hit in one.hits] for one in whole.search(queries, 7, ids=left)]
    shutil.move(shards / "shard-000002", shards.parent / "elsewhere")
    with pytest.raises(GalleryCorrupt, match=r"incomplete: .*shard-000002 is missing"):
        Gallery.open(shards)
    with pytest.raises(GalleryCorrupt, match="shard-000002 is missing"):
        ShardedWriter.open(shards)
    assert verify_gallery(shards) == [f"{shards}/shard-000002 is missing"]
    with Gallery.open(shards, damaged="skip") as gallery:
        assert found(gallery, queries) == expected
        for result in gallery.search(queries, 7):
            assert not result.certified
            assert result.reason.startswith("10 rows are lost and were left out: shard-000002 with rows 10 to 19 (")
            assert result.rows == 20
        assert gallery.info()["lost_rows"] == 10
        assert gallery.damage == [f"{shards}/shard-000002 is missing"]
        with pytest.raises(InputError, match="not in the gallery: 12"):
            gallery.find(["12"])
    shutil.move(shards.parent / "elsewhere", shards / "shard-000002")
    with Gallery.open(shards) as gallery:
        assert all(result.certified for result in gallery.search(queries, 7))


def largest_file(shard: Path) -> Path:
    return max((shard / "segments").iterdir(), key=lambda file: file.stat().st_size)


def test_a_damaged_shard_is_named_left_out_and_repaired(shards: Path, make_embeddings) -> None:
    queries = make_embeddings(99, 3)
    flip(largest_file(shards / "shard-000002"), -40)
    with pytest.raises(GalleryCorrupt, match=rf"shard-000002/.* chan gallery repair {shards}$"):
        Gallery.open(shards)
    assert "shard-000002" in verify_gallery(shards)[0]
    with Gallery.open(shards, damaged="skip") as gallery:
        results = gallery.search(queries, 30)
        assert not any(result.certified for result in results)
        assert results[0].reason.startswith("10 rows are lost to damage and were left out (chan gallery verify")
    done = repair_gallery(shards)
    assert (done.kept, len(done.lost)) == (20, 10)
    assert done.moved
    assert all(name.startswith("shard-000002/") for name in done.moved)
    assert (shards / "shard-000002" / "damaged" / done.moved[0].partition("/")[2]).exists()
    assert verify_gallery(shards) == []
    with Gallery.open(shards) as gallery:
        assert all(result.certified for result in gallery.search(queries, 30))
    assert repair_gallery(shards).damage == ()


def test_a_shard_that_breaks_while_it_is_open_is_left_out(shards: Path, make_embeddings) -> None:
    queries = make_embeddings(99, 3)
    with Gallery.open(shards, damaged="skip") as gallery, Gallery.open(shards) as strict:
        assert all(result.certified for result in gallery.search(queries, 7))
        strict.search(queries, 30)
        flip(largest_file(shards / "shard-000003"), -40)
        results = gallery.search(queries, 30)
        assert [(result.certified, result.rows) for result in results] == [(False, 20)] * 3
        assert "shard-000003 with rows 20 to 29" in results[0].reason
        assert {hit.id for hit in results[0].hits} == {str(i) for i in range(20)}
        with pytest.raises(GalleryCorrupt, match="shard-000003"):
            strict.search(queries, 30)


def test_no_shard_is_taken_for_another(shards: Path) -> None:
    """Shards that changed places, another generation of one, or another gallery are not what the manifest names."""
    (shards / "shard-000001").rename(shards / "x")
    (shards / "shard-000002").rename(shards / "shard-000001")
    (shards / "x").rename(shards / "shard-000002")
    with pytest.raises(GalleryCorrupt, match=r"shard-000001/catalogue of generation 1 is missing"):
        Gallery.open(shards)
    with pytest.raises(GalleryCorrupt, match="not of the generation"):
        ShardedWriter.open(shards)


@pytest.mark.parametrize("place", [0, 20, 60, 100, 126, 130, 200, 700, -2])
def test_a_flipped_bit_of_the_manifest_is_an_error(shards: Path, place: int) -> None:
    flip(shards / "shards", place)
    for door in (Gallery.open, ShardedWriter.open):
        with pytest.raises(GalleryError, match="shards"):
            door(shards)
    assert verify_gallery(shards) or place


def doctored(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply_to(path: Path) -> None:
        from chan_rt.runtime.gallery.store.header import with_line

        header, _ = read_manifest(path)
        body = json.loads((path / "shards").read_bytes()[128:])
        change(body)
        text = json.dumps(body).encode()
        (path / "shards").write_bytes(with_line("chan-shards", 1, header.gallery, header.generation, text)[1])

    return apply_to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.update(shards=[]), "at least one shard"),
        (lambda body: body["shards"][1].update(name="../elsewhere"), r"shards\[1\].name must be the name of a shard"),
        (lambda body: body["shards"][1].update(name="shard-000001"), "a shard is named twice"),
        (lambda body: body["shards"][1].update(rows=-1), r"shards\[1\].rows must be an integer"),
        (lambda body: body["shards"][1].update(rows=11), "has 10 rows, its gallery's manifest says 11"),
        (lambda body: body["shards"][1].update(digest="x"), r"shards\[1\].digest must be 32 hex digits"),
        (lambda body: body.update(next_shard=2), "next_shard must be larger"),
        (lambda body: body.update(more=1), "the manifest must be an object with"),
        (lambda body: body["settings"].update(dim=25), "other settings"),
        (lambda body: body["settings"].update(dim="x"), "settings.dim must be an integer"),
        (lambda body: body.update(roots={"a": 1}), "roots must be an object of text"),
    ],
)
def test_a_manifest_that_breaks_a_rule_is_an_error(shards: Path, change, message: str) -> None:
    doctored(change)(shards)
    for door in (Gallery.open, ShardedWriter.open):
        with pytest.raises(GalleryCorrupt, match=message):
            door(shards)


def test_a_split_that_fails_leaves_nothing(shards: Path, gallery_path: Path, tmp_path: Path) -> None:
    flip(largest_file(gallery_path), -40)
    with pytest.raises(GalleryCorrupt):
        split_gallery(gallery_path, tmp_path / "out", 2)
    assert not (tmp_path / "out").exists()
    with pytest.raises(GalleryError, match="not empty"):
        split_gallery(shards, gallery_path, 2)
    with pytest.raises(InputError, match="shards must be positive"):
        split_gallery(shards, tmp_path / "out", 0)
    assert not [entry for entry in tmp_path.iterdir() if entry.name.startswith(".out")]
