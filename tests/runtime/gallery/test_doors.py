"""What a writer may delete, kills while a gallery is made, use after close, galleries that change under a reader."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chan_rt.runtime.errors import ChanError, GalleryCorrupt, GalleryError, GalleryLocked, InputError
from chan_rt.runtime.gallery import Gallery, GalleryWriter, repair_gallery, verify_gallery
from chan_rt.runtime.gallery.store.catalogue import CATALOGUE, read_catalogue
from chan_rt.runtime.gallery.store.files import SEGMENTS
from chan_rt.runtime.gallery.store.lock import LOCK

# -- what a writer deletes


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def change_everything(path: Path, make_embeddings) -> None:
    """Every change there is; each may remove files."""
    with GalleryWriter.open(path) as writer:
        writer.add(["x", "y"], make_embeddings(1, 2))
        writer.add(["x"], make_embeddings(2, 1), overwrite=True)
        writer.delete(["y"])
        writer.prepare(make_embeddings(3, 4))
        writer.compact()
        writer.delete(["x"])
        writer.compact()
    GalleryWriter.open(path).close()


def test_a_writer_removes_only_files_of_its_own(gallery_path: Path, make_embeddings) -> None:
    segments = gallery_path / SEGMENTS
    gallery = read_catalogue(gallery_path)[1].gallery
    first = read_catalogue(gallery_path)[1].segments[0].vectors.name
    others = {
        *(".DS_Store", "notes.txt", "Thumbs.db", ".nfs000012", f"{first}.bak", f"copy of {first}", f"{first} (1)"),
        *("0" * 32 + ".safetensors", "f" * 32 + "-99.safetensors", f"{gallery}-x.safetensors", f"{gallery}-5.rows"),
        *(f"{gallery}.safetensors", f"{gallery}-99.safetensors.txt", f"{gallery.upper()}-99.safetensors"),
    }
    for name in others:
        (segments / name).write_text("mine")
    for name in ("@eaDir", "lost+found", f"{gallery}-77.safetensors", f"{gallery}-8.safetensors"):
        (segments / name).mkdir()
        (segments / name / "inside").write_text("mine")
    (gallery_path.parent / "elsewhere").write_text("mine")
    (segments / f"{gallery}-78.safetensors").symlink_to(gallery_path.parent / "elsewhere")
    for name in ("README", "notes.txt"):
        (gallery_path / name).write_text("mine")
    left_by_a_kill = segments / f"{gallery}-79.safetensors"
    left_by_a_kill.write_bytes(b"half")
    change_everything(gallery_path, make_embeddings)
    assert not left_by_a_kill.exists()
    assert all((segments / name).read_text() == "mine" for name in others)
    assert (segments / "@eaDir" / "inside").read_text() == "mine"
    assert (segments / f"{gallery}-77.safetensors" / "inside").read_text() == "mine"
    assert (segments / f"{gallery}-8.safetensors" / "inside").read_text() == "mine"
    assert (gallery_path.parent / "elsewhere").read_text() == "mine"
    assert (gallery_path / "notes.txt").read_text() == "mine"
    assert verify_gallery(gallery_path) == []
    with Gallery.open(gallery_path) as opened:
        assert len(opened) == 30


def test_an_old_copy_of_the_catalogue_costs_no_rows(gallery_path: Path, make_embeddings) -> None:
    old = (gallery_path / CATALOGUE).read_bytes()
    with GalleryWriter.open(gallery_path) as writer:
        writer.add(["x"], make_embeddings(1, 1))
        writer.delete(["0"])
        writer.compact()
    new, files = (gallery_path / CATALOGUE).read_bytes(), names(gallery_path / SEGMENTS)
    (gallery_path / CATALOGUE).write_bytes(old)
    with pytest.raises(GalleryCorrupt, match="is missing"):
        Gallery.open(gallery_path)
    GalleryWriter.open(gallery_path).close()
    assert names(gallery_path / SEGMENTS) == files
    repair_gallery(gallery_path)
    assert names(gallery_path / SEGMENTS) == files
    (gallery_path / CATALOGUE).write_bytes(new)
    with Gallery.open(gallery_path) as gallery:
        assert len(gallery) == 30
        assert gallery.verify() == []


@pytest.mark.parametrize("old", [False, True])
def test_a_gallery_whose_segments_are_a_link_is_refused(
    gallery_path: Path, tmp_path: Path, make_embeddings, downgrade, old: bool
) -> None:
    home = tmp_path / "home"
    if old:
        downgrade(gallery_path)
    shutil.move(gallery_path / SEGMENTS, home)
    (home / "thesis.tex").write_text("mine")
    before = names(home)
    (gallery_path / SEGMENTS).symlink_to(home)
    for door in (GalleryWriter.open, Gallery.open):
        with pytest.raises(GalleryError, match="must be a folder, but is a link"):
            door(gallery_path)
    assert names(home) == before


@pytest.mark.parametrize("name", [LOCK, "catalogue.new"])
def test_links_in_the_place_of_other_files_are_not_written_through(
    gallery_path: Path, tmp_path: Path, make_embeddings, name: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (gallery_path / name).unlink(missing_ok=True)
    (gallery_path / name).symlink_to(victim)
    if name == LOCK:
        with pytest.raises(GalleryError, match="the lock is a link"):
            GalleryWriter.open(gallery_path)
    else:
        change_everything(gallery_path, make_embeddings)
    assert victim.read_text() == "mine"
    assert not victim.is_symlink()


def test_new_galleries_go_into_folders_that_hold_nothing_of_anyones(tmp_path: Path, make_settings) -> None:
    for i, name in enumerate([".gitkeep", ".DS_Store", "lost+found", "@eaDir"]):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / name).write_text("")
        GalleryWriter.create(tmp_path / str(i), make_settings()).close()
        with Gallery.open(tmp_path / str(i)) as gallery:
            assert len(gallery) == 0
    for i, name in enumerate(["notes.txt", "segments/notes.txt", "catalogue", "catalogue.sqlite"]):
        file = tmp_path / f"not {i}" / name
        file.parent.mkdir(parents=True)
        file.write_text("mine")
        with pytest.raises(GalleryError, match="already exists and is not empty"):
            GalleryWriter.create(tmp_path / f"not {i}", make_settings())
        assert file.read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(GalleryError, match="cannot be written"):
        GalleryWriter.create(tmp_path / "file", make_settings())


# -- kills while a gallery is made


def lines_of_create(path: Path, settings, kill_at: int) -> int:
    """Makes a gallery in a child that kills itself at a line inside the package; how many lines there were."""
    reader, teller = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def trace(frame, event, _):
            nonlocal count
            if "/runtime/gallery/" not in frame.f_code.co_filename:
                return None
            if event == "line":
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            sys.settrace(trace)
            GalleryWriter.create(path, settings).close()
            sys.settrace(None)
            os.write(teller, str(count).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(teller)
    with open(reader) as file:
        return int(file.read() or 0)


def test_a_creation_that_was_killed_is_done_again(tmp_path: Path, make_settings, make_embeddings) -> None:
    """Killed at every line of it."""
    lines = lines_of_create(tmp_path / "whole", make_settings(), 0)
    assert lines > 50
    for kill_at in range(1, lines + 1):
        path = tmp_path / str(kill_at)
        lines_of_create(path, make_settings(), kill_at)
        writer = (
            GalleryWriter.open(path) if (path / CATALOGUE).exists() else GalleryWriter.create(path, make_settings())
        )
        with writer:
            writer.add(["a"], make_embeddings(1, 1))
        assert names(path) == {CATALOGUE, SEGMENTS, LOCK}


def test_what_a_killed_creation_of_the_old_version_left(tmp_path: Path, make_settings) -> None:
    folder = tmp_path / "g"
    (folder / SEGMENTS).mkdir(parents=True)
    for suffix in ("", "-wal", "-shm", "-journal"):
        (folder / f"catalogue.sqlite.new{suffix}").write_bytes(b"half")
    (folder / LOCK).touch()
    GalleryWriter.create(folder, make_settings()).close()
    assert names(folder) == {CATALOGUE, SEGMENTS, LOCK}


def test_two_creators_make_one_gallery(tmp_path: Path, make_settings) -> None:
    with GalleryWriter.create(tmp_path / "g", make_settings()):
        with pytest.raises(GalleryError, match="already exists"):
            GalleryWriter.create(tmp_path / "g", make_settings())
        (tmp_path / "g" / CATALOGUE).unlink()
        with pytest.raises(GalleryLocked):
            GalleryWriter.create(tmp_path / "g", make_settings())


# -- misuse is named as what it is


def test_use_after_close(gallery_path: Path, make_embeddings) -> None:
    gallery, writer = Gallery.open(gallery_path), GalleryWriter.open(gallery_path)
    gallery.close()
    gallery.close()
    writer.close()
    writer.close()
    query = make_embeddings(1, 1)
    uses: list[Callable[[], object]] = [
        lambda: len(gallery),
        gallery.info,
        gallery.rows,
        gallery.verify,
        lambda: gallery.prepared,
        lambda: gallery.search(query),
        lambda: gallery.damage,
        lambda: writer.add(["x"], query),
        lambda: writer.delete(["1"]),
        lambda: writer.ids(["1"]),
        writer.rows,
        writer.compact,
        writer.prepare,
        lambda: writer.set_bundle("b"),
        lambda: writer.relabel([], {"a": "b"}),
    ]
    for use in uses:
        with pytest.raises(GalleryError, match=r"is closed; open") as refused:
            use()
        assert not isinstance(refused.value, GalleryCorrupt)
    with Gallery.open(gallery_path) as again:
        assert len(again) == 30


def test_a_changed_working_directory(gallery_path: Path, make_embeddings, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(gallery_path.parent)
    with Gallery.open("gallery") as gallery, GalleryWriter.open("gallery") as writer:
        monkeypatch.chdir("/")
        writer.add(["new"], make_embeddings(3, 1))
        writer.compact()
        assert len(gallery) == 31
        assert len(gallery.search(make_embeddings(1, 1), 50)[0].hits) == 31
        assert gallery.verify() == []


def test_a_gallery_replaced_under_an_open_reader_is_noticed(
    gallery_path: Path, make_embeddings, make_settings, tmp_path: Path
) -> None:
    query = make_embeddings(1, 1)
    gallery, writer = Gallery.open(gallery_path), GalleryWriter.open(gallery_path)
    shutil.move(gallery_path, tmp_path / "old")
    for use in (lambda: gallery.search(query), lambda: writer.add(["x"], query)):
        with pytest.raises(GalleryError):
            use()
    with GalleryWriter.create(gallery_path, make_settings()) as other:
        other.add([str(i) for i in range(30)], make_embeddings(8, 30))
    with pytest.raises(GalleryError, match="was replaced by another gallery; open it again"):
        gallery.search(query)
    with pytest.raises(GalleryError, match="open it again"):
        writer.add(["x"], query)
    gallery.close()
    writer.close()
    with Gallery.open(gallery_path) as again:
        assert len(again) == 30
        assert verify_gallery(gallery_path) == []


def test_a_copy_put_back_is_read_from_then_on(gallery_path: Path, make_embeddings, tmp_path: Path) -> None:
    """A restored backup is an older commit of the same gallery, under the same names of files."""
    shutil.copytree(gallery_path, tmp_path / "backup")
    query = make_embeddings(1, 1)
    with Gallery.open(gallery_path) as gallery:
        with GalleryWriter.open(gallery_path) as writer:
            writer.add(["a"], make_embeddings(3, 1))
        assert len(gallery.search(query, 50)[0].hits) == 31
        shutil.rmtree(gallery_path)
        shutil.copytree(tmp_path / "backup", gallery_path)
        assert len(gallery.search(query, 50)[0].hits) == 30
        with GalleryWriter.open(gallery_path) as writer:
            writer.add(["b"], make_embeddings(4, 1))
        found = gallery.search(make_embeddings(4, 1), 50)[0]
        assert found.certified
        assert {hit.id for hit in found.hits} == {*map(str, range(30)), "b"}
        with Gallery.open(gallery_path) as fresh:
            assert [(h.id, h.score) for h in fresh.search(make_embeddings(4, 1), 50)[0].hits] == [
                (h.id, h.score) for h in found.hits
            ]


def test_a_writer_whose_lock_was_removed_stops(gallery_path: Path, make_embeddings) -> None:
    with GalleryWriter.open(gallery_path) as first:
        (gallery_path / LOCK).unlink()
        with GalleryWriter.open(gallery_path) as second:
            second.add(["second"], make_embeddings(1, 1))
            with pytest.raises(GalleryLocked, match="was removed or replaced"):
                first.add(["first"], make_embeddings(2, 1))
    assert verify_gallery(gallery_path) == []


def test_misused_values_are_no_damage(gallery_path: Path, make_embeddings) -> None:
    query = make_embeddings(1, 1)
    with Gallery.open(gallery_path) as gallery:
        for where in ({'a"b': 1}, {"a\\": [1]}, {"'; DROP TABLE rows; --": 1}, {"n": object()}, {"n": float("nan")}):
            with pytest.raises(InputError):
                gallery.search(query, where=where)
        assert gallery.search(query, where={"n": 2**70})[0].hits == ()
        with pytest.raises(InputError):
            Gallery.open(gallery_path, damaged="ignore")
        assert len(gallery.search(query, ids=["1", "2"])[0].hits) == 2


# -- files that change while they are open


def vectors(path: Path, index: int = 0) -> Path:
    return path / SEGMENTS / read_catalogue(path)[1].segments[index].vectors.name


@pytest.fixture
def large(tmp_path: Path, make_embeddings, make_settings) -> Path:
    with GalleryWriter.create(tmp_path / "large", make_settings()) as writer:
        writer.add(
            [str(i) for i in range(4000)], make_embeddings(1, 4000, 4, even=True), [{"n": i} for i in range(4000)]
        )
    return tmp_path / "large"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_segment_cut_short_after_it_was_read_is_an_error_and_no_crash(
    large: Path, make_embeddings, share: float
) -> None:
    """In a child: a process that reads behind the end of a mapped file is killed by SIGBUS."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with Gallery.open(large, threads=1) as gallery:
                gallery.search(make_embeddings(2, 1), 20)
                os.truncate(vectors(large), int(share * vectors(large).stat().st_size))
                for _ in range(2):
                    try:
                        gallery.search(make_embeddings(3, 1), 20)
                    except GalleryCorrupt as error:
                        code = 0 if "were committed" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_segment_overwritten_in_place_after_it_was_read_is_an_error(large: Path, make_embeddings) -> None:
    queries = make_embeddings(1, 4000, 4, even=True)
    file = vectors(large)
    whole = file.read_bytes()
    with Gallery.open(large) as gallery:
        before = gallery.search(queries[17], 3)[0]
        assert before.hits[0].id == "17"
        for data in (bytes(len(whole)), whole[:-100] + bytes(100), whole[: len(whole) // 2] + whole[: len(whole) // 2]):
            with open(file, "r+b") as opened:
                opened.write(data[: len(whole)])
            try:  # a page that this search does not need may have changed
                found = gallery.search(queries[17], 3)[0]
                assert data != bytes(len(whole))
                assert [(h.id, h.score) for h in found.hits] == [(h.id, h.score) for h in before.hits]
            except GalleryCorrupt as error:
                problem = str(error)
                assert "the bytes are not those that were committed" in problem
            with open(file, "r+b") as opened:
                opened.write(whole)
            after = gallery.search(queries[17], 3)[0]
            assert [(h.id, h.score) for h in after.hits] == [(h.id, h.score) for h in before.hits], "restored in place"


def test_a_segment_touched_but_not_changed_is_read_on(large: Path, make_embeddings) -> None:
    query = make_embeddings(2, 1)
    with Gallery.open(large) as gallery:
        before = gallery.search(query)[0]
        os.utime(vectors(large))
        vectors(large).chmod(0o600)
        os.link(vectors(large), large / "backup")
        copy = large / SEGMENTS / "copy"
        shutil.copy(vectors(large), copy)
        os.replace(copy, vectors(large))
        after = gallery.search(query)[0]
        assert [(h.id, h.score) for h in after.hits] == [(h.id, h.score) for h in before.hits]
        os.unlink(vectors(large))
        assert gallery.search(query)[0].certified, "what is mapped stays"
        with pytest.raises(GalleryCorrupt, match="is missing"):
            Gallery.open(large)


@pytest.mark.parametrize(
    ("seed", "seconds"), [(1, 3), *(pytest.param(s, 60, marks=pytest.mark.nightly) for s in (2, 3))]
)
def test_a_file_overwritten_at_random_moments_never_changes_an_answer(
    large: Path, make_embeddings, seed: int, seconds: int
) -> None:
    """Another process writes over files in place, and back again, while searches run."""
    files = [large / SEGMENTS / name for name in read_catalogue(large)[1].files]
    whole = {file: file.read_bytes() for file in files}
    queries = make_embeddings(5, 8)
    with Gallery.open(large, threads=1) as gallery:
        right = [[(h.id, h.score, h.metadata) for h in result.hits] for result in gallery.search(queries, 5)]
        child = os.fork()
        if child == 0:
            choose = random.Random(seed)
            while True:
                file = choose.choice(files)
                at = choose.randrange(len(whole[file]) - 64)
                with open(file, "r+b") as opened:
                    opened.seek(at)
                    opened.write(choose.randbytes(64))
                    opened.flush()
                    time.sleep(choose.random() * 0.02)
                    opened.seek(at)
                    opened.write(whole[file][at : at + 64])
                time.sleep(choose.random() * 0.02)
        try:
            refused = answers = 0
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                try:
                    found = gallery.search(queries, 5)
                except ChanError:
                    refused += 1
                    continue
                answers += 1
                assert [[(h.id, h.score, h.metadata) for h in result.hits] for result in found] == right
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    assert answers + refused > 5
