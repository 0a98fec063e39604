"""A source and a gallery are compared by place and content: each kind of change is one kind of work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import InputError
from chan_rt.runtime.gallery import Gallery, GallerySettings, GalleryWriter
from chan_rt.runtime.indexing import index
from chan_rt.runtime.indexing.index import IndexResult, index_source
from chan_rt.runtime.indexing.metadata_file import read_metadata, with_metadata
from chan_rt.runtime.indexing.sources import Encoded, Source, picture_source
from chan_rt.runtime.skipped import SkippedItem

DIM = 8


def encode(paths: Sequence[Path], rows: Sequence[int]) -> Encoded:
    """Embeddings that tell the content of the files apart; a file that begins with `bad` cannot be read."""
    good = [row for row in rows if not paths[row].read_bytes().startswith(b"bad")]
    problems = [SkippedItem(str(paths[row]), "damaged") for row in rows if row not in good]
    vectors = np.zeros((len(good), 1, DIM), np.float32)
    for i, row in enumerate(good):
        vectors[i, 0, paths[row].read_bytes()[0] % DIM] = 1
    lengths = np.ones(len(good), np.int32)
    return Encoded(good, Embeddings(vectors, lengths, "images") if good else None, problems)


def source_of(*paths: Path) -> Source:
    found = picture_source(paths)
    files = [Path(row["path"]) for row in found.metadata]
    return Source(**{**vars(found), "encode": lambda matcher, rows: encode(files, rows), "at_once": None})


class Bench:
    """A folder of pictures and a gallery of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.photos = tmp_path / "photos"
        self.gallery = tmp_path / "g"
        for name, content in {"a.jpg": b"a", "b.jpg": b"bb", "more/c.jpg": b"ccc"}.items():
            self.write(name, content)
        settings = GallerySettings("images", DIM, AlignmentConfig(), model="m")
        GalleryWriter.create(self.gallery, settings).close()

    def write(self, name: str, content: bytes) -> None:
        path = self.photos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def run(self, *paths: Path, **options: Any) -> IndexResult:
        with GalleryWriter.open(self.gallery) as writer:
            result = index_source(writer, None, source_of(*paths or (self.photos,)), **options)  # type: ignore[arg-type]
        with Gallery.open(self.gallery) as gallery:
            assert gallery.verify() == []
        return result

    def rows(self) -> dict[str, dict[str, Any]]:
        with Gallery.open(self.gallery) as gallery:
            return {row.id: dict(row.metadata) for row in gallery.rows()}

    def content(self, id: str) -> int:
        """The coordinate of a row's one vector: which content was encoded."""
        query = Embeddings(np.eye(DIM, dtype=np.float32)[:, None], np.ones(DIM, np.int32), "captions")
        with Gallery.open(self.gallery) as gallery:
            scores = [result.hits[0].score for result in gallery.search(query, 1, ids=[id])]
        return int(np.argmax(scores))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def counts(result: IndexResult) -> tuple[int, int, int, int, int]:
    return result.added, result.refreshed, result.moved, result.unchanged, len(result.missing)


def test_the_first_run_adds_and_the_second_changes_nothing(bench: Bench) -> None:
    assert counts(bench.run()) == (3, 0, 0, 0, 0)
    rows = bench.rows()
    assert list(rows) == ["photos/a.jpg", "photos/b.jpg", "photos/more/c.jpg"]
    assert rows["photos/a.jpg"]["path"] == str(bench.photos / "a.jpg")
    assert counts(bench.run()) == (0, 0, 0, 3, 0)
    assert bench.rows() == rows


def test_a_changed_picture_is_encoded_again(bench: Bench) -> None:
    bench.run()
    bench.write("b.jpg", b"xx")
    assert bench.content("photos/b.jpg") == ord("b") % DIM
    assert counts(bench.run()) == (0, 1, 0, 2, 0)
    assert bench.content("photos/b.jpg") == ord("x") % DIM
    assert counts(bench.run()) == (0, 0, 0, 3, 0)


def test_a_picture_that_was_only_touched_is_not(bench: Bench) -> None:
    bench.run()
    before = bench.rows()["photos/a.jpg"]["source"]
    (bench.photos / "a.jpg").touch()
    assert counts(bench.run()) == (0, 0, 0, 3, 0)
    after = bench.rows()["photos/a.jpg"]["source"]
    assert after["mtime_ns"] != before["mtime_ns"]
    assert after["sha256"] == before["sha256"]


def test_a_moved_picture_keeps_its_vectors(bench: Bench) -> None:
    bench.run()
    (bench.photos / "more").rename(bench.photos / "other")
    assert counts(bench.run()) == (0, 0, 1, 2, 0)
    assert list(bench.rows()) == ["photos/a.jpg", "photos/b.jpg", "photos/other/c.jpg"]
    assert bench.content("photos/other/c.jpg") == ord("c") % DIM


def test_a_missing_picture_is_named_and_removed_by_prune(bench: Bench) -> None:
    bench.run()
    (bench.photos / "b.jpg").unlink()
    result = bench.run()
    assert result.missing == ("photos/b.jpg",)
    assert not result.removed
    assert len(bench.rows()) == 3
    assert bench.run(prune=True).removed
    assert list(bench.rows()) == ["photos/a.jpg", "photos/more/c.jpg"]
    assert counts(bench.run(prune=True)) == (0, 0, 0, 2, 0)


def test_two_pictures_of_one_content_are_two_rows(bench: Bench) -> None:
    bench.write("copy.jpg", b"a")
    assert counts(bench.run()) == (4, 0, 0, 0, 0)
    (bench.photos / "a.jpg").rename(bench.photos / "z.jpg")
    assert counts(bench.run()) == (0, 0, 1, 3, 0)
    assert sorted(bench.rows()) == ["photos/b.jpg", "photos/copy.jpg", "photos/more/c.jpg", "photos/z.jpg"]


def test_a_folder_that_moved_as_a_whole_keeps_its_ids(bench: Bench, tmp_path: Path) -> None:
    bench.run()
    before = list(bench.rows())
    (tmp_path / "away").mkdir()
    bench.photos = bench.photos.rename(tmp_path / "away" / "photos")
    assert counts(bench.run(prune=True)) == (0, 0, 0, 3, 0)
    assert list(bench.rows()) == before
    assert bench.rows()["photos/a.jpg"]["path"] == str(bench.photos / "a.jpg")


def test_a_second_folder_of_the_same_name_has_rows_of_its_own(bench: Bench, tmp_path: Path) -> None:
    bench.run()
    other = tmp_path / "elsewhere" / "photos"
    other.mkdir(parents=True)
    (other / "a.jpg").write_bytes(b"other")
    assert counts(bench.run(other, prune=True)) == (1, 0, 0, 0, 0)
    assert list(bench.rows())[-1] == "photos-2/a.jpg"
    assert counts(bench.run(other, bench.photos, prune=True)) == (0, 0, 0, 4, 0)


def test_a_folder_within_a_known_one(bench: Bench) -> None:
    bench.run()
    bench.write("more/d.jpg", b"d")
    (bench.photos / "more" / "c.jpg").unlink()
    result = bench.run(bench.photos / "more")
    assert counts(result) == (1, 0, 0, 0, 1)
    assert "photos/more/d.jpg" in bench.rows()
    assert result.missing == ("photos/more/c.jpg",)


def test_a_folder_around_a_known_one(bench: Bench) -> None:
    bench.run(bench.photos / "more")
    assert counts(bench.run()) == (2, 0, 0, 1, 0)
    assert list(bench.rows()) == ["more/c.jpg", "photos/a.jpg", "photos/b.jpg"]


def test_single_files_never_make_others_missing(bench: Bench) -> None:
    bench.run()
    (bench.photos / "b.jpg").unlink()
    assert counts(bench.run(bench.photos / "a.jpg", prune=True)) == (0, 0, 0, 1, 0)
    assert len(bench.rows()) == 3


def test_replace_encodes_everything_again(bench: Bench) -> None:
    bench.run()
    assert counts(bench.run(replace=True)) == (0, 3, 0, 0, 0)


def test_a_gallery_of_an_earlier_version_is_recognized_by_its_paths(bench: Bench) -> None:
    paths = sorted(bench.photos.rglob("*.jpg"))
    with GalleryWriter.open(bench.gallery) as writer:
        embeddings = encode(paths, range(3)).embeddings
        assert embeddings is not None
        writer.add([str(path) for path in paths], embeddings, [{"path": str(path), "mine": 1} for path in paths])
    assert counts(bench.run()) == (0, 0, 0, 3, 0)
    rows = bench.rows()
    assert list(rows) == [str(path) for path in paths]
    assert all(row["mine"] == 1 and row["source"]["sha256"] for row in rows.values())
    bench.write("a.jpg", b"x")
    assert counts(bench.run()) == (0, 1, 0, 2, 0)
    assert bench.content(str(paths[0])) == ord("x") % DIM
    assert bench.rows()[str(paths[0])]["mine"] == 1


def test_a_changed_picture_that_cannot_be_read_is_reported_and_its_row_stays(bench: Bench) -> None:
    bench.run()
    bench.write("a.jpg", b"bad now")
    bench.write("new.jpg", b"bad too")
    result = bench.run()
    assert counts(result) == (0, 0, 0, 2, 0)
    assert [item.reason for item in result.skipped] == ["damaged", "damaged"]
    assert list(bench.rows()) == ["photos/a.jpg", "photos/b.jpg", "photos/more/c.jpg"]


def test_progress_begins_before_the_first_row_is_encoded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a bar is there at once, though rows are counted as they are committed."""
    monkeypatch.setattr(index, "COMMIT_ROWS", 2)
    seen: list[tuple[int, int]] = []
    bench.run(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (2, 3), (3, 3)]
    bench.run(progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == 3  # nothing to encode, so nothing to show


def test_progress_is_shown_within_a_commit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow backbone takes minutes for the rows of one commit."""
    for row in range(7):
        bench.write(f"{row}.jpg", b"bad" if row == 1 else b"%d" % row)
    source = source_of(bench.photos)
    seen: list[tuple[int, int]] = []
    commits: list[int] = []
    add = GalleryWriter.add

    def counted_add(writer: GalleryWriter, ids: list[str], *given: Any, **how: Any) -> None:
        commits.append(len(ids))
        add(writer, ids, *given, **how)

    monkeypatch.setattr(GalleryWriter, "add", counted_add)
    with GalleryWriter.open(bench.gallery) as writer:
        source = replace(source, at_once=lambda matcher: 3)
        result = index_source(writer, None, source, progress=lambda *done: seen.append(done))  # type: ignore[arg-type]
    assert seen == [(0, 10), (2, 10), (5, 10), (7, 10), (10, 10)]
    assert commits == [9]
    assert len(result.skipped) == 1
    assert sorted(bench.rows()) == sorted([f"photos/{row}.jpg" for row in (0, 2, 3, 4, 5, 6)] + [
        "photos/a.jpg", "photos/b.jpg", "photos/more/c.jpg",
    ])  # fmt: skip


def test_an_interrupted_run_is_continued(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "COMMIT_ROWS", 1)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.run(progress=stop)
    assert len(bench.rows()) == 2
    assert counts(bench.run()) == (1, 0, 0, 2, 0)


def test_random_changes_leave_what_the_folder_holds(bench: Bench) -> None:
    rng = np.random.default_rng(5)
    for step in range(30):
        files = sorted(path for path in bench.photos.rglob("*.jpg"))
        choice = rng.integers(4)
        if choice == 0 or len(files) < 2:
            bench.write(f"{rng.integers(3)}/{step}.jpg", bytes([97 + rng.integers(20)]) * int(rng.integers(1, 4)))
        elif choice == 1:
            files[rng.integers(len(files))].unlink()
        elif choice == 2:
            files[rng.integers(len(files))].write_bytes(bytes([97 + rng.integers(20)]) * int(rng.integers(1, 4)))
        else:
            target = bench.photos / f"moved{step}.jpg"
            shutil.move(files[rng.integers(len(files))], target)
        bench.run(prune=True)
        found = {Path(row["path"]): id for id, row in bench.rows().items()}
        assert set(found) == set(bench.photos.rglob("*.jpg"))
        for path, id in found.items():
            assert bench.content(id) == path.read_bytes()[0] % DIM


def test_relabel_refuses_what_would_lose_a_row(bench: Bench) -> None:
    from chan_rt.runtime.gallery.store.rows import Relabel

    bench.run()
    before = bench.rows()
    with GalleryWriter.open(bench.gallery) as writer:
        for wrong in (
            [Relabel("photos/a.jpg", "photos/b.jpg", {})],
            [Relabel("nobody", "x", {})],
            [Relabel("photos/a.jpg", "x", {}), Relabel("photos/b.jpg", "x", {})],
        ):
            with pytest.raises(InputError, match="changes: "):
                writer.relabel(wrong)
        writer.relabel([Relabel("photos/a.jpg", "photos/b.jpg", {}), Relabel("photos/b.jpg", "photos/a.jpg", {})])
    assert sorted(bench.rows()) == sorted(before)


# -- metadata files


def test_metadata_of_csv_and_of_json_lines(bench: Bench, tmp_path: Path) -> None:
    table = tmp_path / "m.csv"
    table.write_text('\ufeffpath,year,name,ok\na.jpg,2020,003,true\nphotos/b.jpg,,"x, y",\nnone.jpg,1,a,b\n')
    source, unmatched = with_metadata(source_of(bench.photos), read_metadata(table))
    assert unmatched == ["none.jpg"]
    assert source.metadata[0] == {"year": 2020, "name": "003", "ok": True, "path": str(bench.photos / "a.jpg")}
    assert source.metadata[1] == {"name": "x, y", "path": str(bench.photos / "b.jpg")}
    lines = tmp_path / "m.jsonl"
    lines.write_text('{"path": "more/c.jpg", "tags": ["x"]}\n\n{"path": "%s", "n": 1}\n' % (bench.photos / "a.jpg"))
    source, unmatched = with_metadata(source_of(bench.photos), read_metadata(lines))
    assert not unmatched
    with GalleryWriter.open(bench.gallery) as writer:
        index_source(writer, None, source)  # type: ignore[arg-type]
    rows = bench.rows()
    assert rows["photos/more/c.jpg"]["tags"] == ["x"]
    assert rows["photos/a.jpg"]["n"] == 1
    bench.run()  # without the file, what it brought stays
    assert bench.rows() == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.csv", "year\n2020\n", "line 1: the header must have a column `path`"),
        ("m.csv", "", "line 1: the header must have a column `path`"),
        ("m.csv", "path,a,a\nx,1,2\n", "each column must have a name of its own"),
        ("m.csv", "path,a\nx,1,2\n", "line 2: must have 2 cells"),
        ("m.csv", "path,a\nx\n", "line 2: must have 2 cells"),
        ("m.csv", "path,a\n,1\n", "line 2: must have a `path`"),
        ("m.csv", "path,a\n", "at least one line"),
        ("m.csv", "path,source\nx,1\n", "rename the reserved key 'source'"),
        ("m.jsonl", '{"path": "x"}\n{"path": "x"}\n', "line 2: each path must occur once"),
        ("m.jsonl", "[1]\n", "line 1: must be a JSON object, got list"),
        ("m.jsonl", "{\n", "line 1: must be a JSON object"),
        ("m.jsonl", "[" * 100_000, "line 1: must be a JSON object"),
        ("m.jsonl", '{"path": "x", "n": NaN}\n', "must be finite"),
        ("m.jsonl", '{"path": 3}\n', "must have a `path`, got 3"),
    ],
)
def test_a_metadata_file_that_is_none(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_metadata(tmp_path / name)
    (tmp_path / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="must be text in UTF-8"):
        read_metadata(tmp_path / name)


def run_while(bench: Bench, change: Callable[[], object]) -> IndexResult:
    """An index run during which something else changes the folder once the pictures were encoded."""
    source = source_of(bench.photos)

    def encode_then_change(matcher: Any, rows: Sequence[int]) -> Encoded:
        encoded = source.encode(matcher, rows)
        change()
        return encoded

    with GalleryWriter.open(bench.gallery) as writer:
        return index_source(writer, None, Source(**{**vars(source), "encode": encode_then_change}))  # type: ignore[arg-type]


def test_a_picture_that_changes_while_it_is_indexed_is_found_by_the_next_run(bench: Bench) -> None:
    def change() -> None:
        bench.write("b.jpg", b"xx")
        os.utime(bench.photos / "b.jpg", (1e9, 1e9))

    run_while(bench, change)
    assert bench.content("photos/b.jpg") == ord("b") % DIM
    assert counts(bench.run()) == (0, 1, 0, 2, 0)
    assert bench.content("photos/b.jpg") == ord("x") % DIM


def test_a_picture_that_goes_while_it_is_indexed_is_missing_in_the_next_run(bench: Bench) -> None:
    assert counts(run_while(bench, (bench.photos / "b.jpg").unlink)) == (3, 0, 0, 0, 0)
    assert bench.run().missing == ("photos/b.jpg",)


def test_content_that_could_not_be_summed_is_encoded_again_once_its_file_changes(bench: Bench) -> None:
    source = source_of(bench.photos)

    def refuse() -> str:
        raise PermissionError("not now")

    refused = [replace(origin, digest=refuse) for origin in source.origins]
    with GalleryWriter.open(bench.gallery) as writer:
        index_source(writer, None, replace(source, origins=refused))  # type: ignore[arg-type]
    assert counts(bench.run()) == (0, 0, 0, 3, 0)
    (bench.photos / "a.jpg").touch()
    assert counts(bench.run()) == (0, 1, 0, 2, 0)
    assert len(bench.rows()["photos/a.jpg"]["source"]["sha256"]) == 64


def test_pictures_of_one_content_that_all_moved_are_all_renamed(bench: Bench) -> None:
    for name in ("c1.jpg", "c2.jpg", "c3.jpg"):
        bench.write(name, b"same")
    bench.run()
    for name in ("c1.jpg", "c2.jpg", "c3.jpg"):
        (bench.photos / name).rename(bench.photos / "more" / name)
    assert counts(bench.run()) == (0, 0, 3, 3, 0)


@pytest.mark.parametrize(
    "metadata",
    [
        {"path": ["x"]},
        {"path": {"a": 1}},
        {"path": None},
        {"path": "a\0b"},
        {"source": "web"},
        {"source": ["root", "size", "mtime_ns", "sha256"]},
        {"source": {"root": "photos", "size": [1], "mtime_ns": {}, "sha256": ["x"]}},
        {"source": {"root": ["photos"], "size": 1, "mtime_ns": 0, "sha256": "x"}},
    ],
    ids=repr,
)
def test_rows_with_metadata_of_their_callers_stay_as_they_are(bench: Bench, metadata: dict[str, Any]) -> None:
    embeddings = encode([bench.photos / "a.jpg"], [0]).embeddings
    assert embeddings is not None
    with GalleryWriter.open(bench.gallery) as writer:
        writer.add(["photos/mine.jpg"], embeddings, [metadata])
    for expected in ((3, 0, 0, 0, 0), (0, 0, 0, 3, 0)):
        assert counts(bench.run(prune=True)) == expected
    assert bench.rows()["photos/mine.jpg"] == metadata


def test_circles_of_links_are_skipped_by_name(bench: Bench) -> None:
    (bench.photos / "own.jpg").symlink_to("own.jpg")
    (bench.photos / "one.jpg").symlink_to("two.jpg")
    (bench.photos / "two.jpg").symlink_to("one.jpg")
    result = bench.run()
    assert counts(result) == (3, 0, 0, 0, 0)
    assert [Path(item.item).name for item in result.skipped] == ["one.jpg", "own.jpg", "two.jpg"]
    assert all("links" in item.reason for item in result.skipped)
