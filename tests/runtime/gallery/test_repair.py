"""A gallery with damaged files: all damage is named, intact rows are searched on request, and repair saves them."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chan_rt.runtime.errors import GalleryCorrupt, GalleryLocked
from chan_rt.runtime.gallery import Gallery, GalleryWriter, repair_gallery, verify_gallery
from chan_rt.runtime.gallery.store import array_file as array_file_module
from chan_rt.runtime.gallery.store import catalogue as catalogue_module
from chan_rt.runtime.gallery.store import files as files_module
from chan_rt.runtime.gallery.store.catalogue import CATALOGUE, SegmentRecord, read_catalogue
from chan_rt.runtime.gallery.store.files import MappedFile

from ...run_chan import chan, ok
from .damage import flip
from .killed import killed_at

ROWS = 3000
PAGE = 4096  # instead of 256 KiB: small files of many pages


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (array_file_module, files_module, catalogue_module):
        monkeypatch.setattr(module, "PAGE", PAGE)


@pytest.fixture
def make_embeddings(make_embeddings: Callable[..., Any], request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Wide enough that preparing makes levels, where the gallery is `path`."""
    return partial(make_embeddings, dim=192) if "path" in request.fixturenames else make_embeddings


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of whole galleries, each made once: preparing them takes most of the time of a test."""
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def path(kept: Path, tmp_path: Path, make_embeddings, make_settings, request: pytest.FixtureRequest) -> Path:
    """A copy of three segments of 3,000 rows, prepared; a deleted row in each."""
    fine = getattr(request, "param", "float32")
    if not (kept / fine).exists():
        with GalleryWriter.create(kept / f"{fine}-unfinished", make_settings(fine=fine, dim=192)) as writer:
            for part in range(3):
                ids = [f"{part}-{i}" for i in range(ROWS)]
                writer.add(ids, make_embeddings(part, ROWS, 4), [{"n": i, "part": part} for i in range(ROWS)])
            writer.delete([f"{part}-7" for part in range(3)])
            if fine != "none":
                writer.prepare()
        (kept / f"{fine}-unfinished").rename(kept / fine)
    return Path(shutil.copytree(kept / fine, tmp_path / "g"))


def segment(path: Path, index: int = 1) -> SegmentRecord:
    return read_catalogue(path)[1].segments[index]


def place(path: Path, kind: str, array: str, share: float) -> tuple[Path, int]:
    """A byte in an array of the middle segment, past its file's first page."""
    record = getattr(segment(path), kind)
    found = MappedFile(path / "segments", record)._places[array]
    return path / "segments" / record.name, max(PAGE, int(found.begin + share * (found.end - found.begin - 1)))


def answer(gallery: Gallery, queries) -> list:
    return [[(hit.id, hit.score, hit.metadata) for hit in result.hits] for result in gallery.search(queries, 20)]


def expected(path: Path, queries, lost: set[str]) -> list:
    """The answer of a gallery of the rows that are not lost, built anew from the whole one."""
    with GalleryWriter.open(path) as writer:
        if lost:
            writer.delete(sorted(lost))
    with Gallery.open(path) as gallery:
        return answer(gallery, queries)


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "header"])
@pytest.mark.parametrize("kind", ["vectors", "rows"])
def test_a_lost_file_loses_its_segment_and_nothing_else(path: Path, make_embeddings, kind: str, how: str) -> None:
    whole = path.with_name("whole")
    shutil.copytree(path, whole)
    file = path / "segments" / getattr(segment(path), kind).name
    if how == "missing":
        file.unlink()
    elif how == "header":
        flip(file, 20)
    else:
        file.write_bytes(file.read_bytes()[: 0 if how == "empty" else -1])
    queries = make_embeddings(99, 3)
    with pytest.raises(GalleryCorrupt, match=file.name), Gallery.open(path) as gallery:
        gallery.search(queries)
    (named,) = verify_gallery(path)
    assert file.name in named
    lost = {f"1-{i}" for i in range(ROWS) if i != 7}
    right = expected(whole, queries, lost)
    with Gallery.open(path, damaged="skip") as gallery:
        assert answer(gallery, queries) == right
        assert not any(result.certified for result in gallery.search(queries))
        assert f"{ROWS - 1} rows are lost to damage" in gallery.search(queries)[0].reason
        assert gallery.info()["lost_rows"] == ROWS - 1
        assert gallery.damage == [named]
        result = repair_gallery(path)
        assert (result.kept, result.saved, len(result.lost)) == (2 * (ROWS - 1), 0, ROWS - 1)
        assert result.damage == (named,)
        if kind == "vectors":
            assert set(result.lost) == lost
        assert answer(gallery, queries) == right
        assert gallery.search(queries)[0].certified, "the rows that were lost are no part of the gallery any more"
    assert verify_gallery(path) == []
    assert (path / "damaged" / file.name).exists() == (how != "missing")


DAMAGE = [
    *[("vectors", array, share) for array in ("codes", "fine") for share in (0.1, 0.5, 0.9)],
    *[("vectors", array, 0.5) for array in ("scale", "error", "norm")],
    *[("rows", array, share) for array in ("hashes", "id_bytes", "metadata_bytes") for share in (0.1, 0.9)],
    *[("prepared", array, share) for array in ("first", "second", "measures") for share in (0.5, 0.9)],
]


@pytest.mark.parametrize(("kind", "array", "share"), DAMAGE)
def test_a_flipped_bit_loses_the_rows_it_lies_in(
    path: Path, make_embeddings, kind: str, array: str, share: float
) -> None:
    whole, queries = path.with_name("whole"), make_embeddings(99, 3)
    shutil.copytree(path, whole)
    file, at = place(path, kind, array, share)
    flip(file, at)
    (named,) = verify_gallery(path)
    assert file.name in named
    with Gallery.open(path, damaged="skip") as gallery:
        assert gallery.damage
        found = answer(gallery, queries)
        ids = {row.id for row in gallery.rows()}
        file.touch()
        assert answer(gallery, queries) == found, "a new time is no new damage"
    with Gallery.open(whole) as gallery:
        lost = {row.id for row in gallery.rows()} - ids
    assert found == expected(whole, queries, lost)
    result = repair_gallery(path)
    assert result.kept + len(result.lost) == 3 * (ROWS - 1)
    if array in ("fine", "metadata_bytes", "id_bytes"):
        assert 0 < len(result.lost) < ROWS / 4
    else:
        assert not result.lost, "whatever follows from what is intact is computed again"
    assert verify_gallery(path) == []
    with Gallery.open(path) as gallery:
        assert all(row.certified for row in gallery.search(queries))
        assert gallery.prepared is not None


@pytest.mark.parametrize("path", ["none", "float16", "fixed16"], indirect=True)
def test_other_fine_copies(path: Path, make_embeddings) -> None:
    queries = make_embeddings(99, 3)
    with Gallery.open(path) as gallery:
        before = answer(gallery, queries)
    flip(*place(path, "rows", "metadata_bytes", 1.0))
    result = repair_gallery(path)
    assert 0 < len(result.lost) < ROWS / 4
    with Gallery.open(path) as gallery:
        after = answer(gallery, queries)
    for found, old in zip(after, before, strict=True):
        kept = [hit for hit in old if hit[0] not in result.lost]
        assert found[: len(kept)] == kept, "the same scores"
    assert verify_gallery(path) == []


@pytest.mark.parametrize("kill_at", range(1, 12))
def test_a_repair_that_was_killed_is_done_again(path: Path, kill_at: int) -> None:
    """Killed at each call that changes the disk: nothing is lost that the first run would have saved."""
    flip(*place(path, "vectors", "fine", 0.5))
    flip(*place(path, "rows", "metadata_bytes", 0.5))
    whole = path.with_name("whole")
    shutil.copytree(path, whole)
    right = repair_gallery(whole)
    killed_at(kill_at, lambda: repair_gallery(path))
    assert repair_gallery(path).kept == right.kept
    assert verify_gallery(path) == []
    with Gallery.open(path) as one, Gallery.open(whole) as other:
        assert one.rows() == other.rows()


def test_damage_in_several_files_is_all_named(path: Path) -> None:
    catalogue = read_catalogue(path)[1]
    (path / "segments" / catalogue.segments[0].vectors.name).unlink()
    flip(path / "segments" / catalogue.segments[1].vectors.name, 5 * PAGE)
    flip(path / "segments" / catalogue.segments[1].vectors.name, 7 * PAGE)
    flip(path / "segments" / catalogue.segments[2].rows.name, PAGE + 5)
    assert catalogue.prepared is not None
    flip(path / "segments" / catalogue.prepared.file.name, 5)
    named = "\n".join(verify_gallery(path))
    assert len(named.splitlines()) == 5
    for text in ("is missing", f"bytes {5 * PAGE} to", f"bytes {7 * PAGE} to", catalogue.segments[2].rows.name):
        assert text in named
    result = repair_gallery(path)
    assert len(result.damage) == 5
    assert len(result.moved) == 3
    assert verify_gallery(path) == []
    assert result.kept + len(result.lost) == 3 * (ROWS - 1)


def test_a_whole_gallery_is_not_changed(path: Path) -> None:
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    result = repair_gallery(path)
    assert (result.damage, result.lost, result.saved, result.kept) == ((), (), 0, 3 * (ROWS - 1))
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_repair_takes_the_writers_lock_and_needs_the_catalogue(gallery_path: Path) -> None:
    with GalleryWriter.open(gallery_path), pytest.raises(GalleryLocked):
        repair_gallery(gallery_path)
    flip(gallery_path / CATALOGUE, 300)
    with pytest.raises(GalleryCorrupt, match="is not what was committed"):
        repair_gallery(gallery_path)


def test_additions_go_on_beside_damage(gallery_path: Path, make_embeddings) -> None:
    """A damaged segment is not merged with what is added."""
    flip(gallery_path / "segments" / segment(gallery_path, 2).vectors.name, -1)
    with GalleryWriter.open(gallery_path) as writer:
        for i in range(20):
            writer.add([f"new {i}"], make_embeddings(i, 1))
        with pytest.raises(GalleryCorrupt):
            writer.compact()
    result = repair_gallery(gallery_path)
    assert set(result.lost) < {str(i) for i in range(20, 30)}
    assert result.kept == 50 - len(result.lost) < 50
    assert verify_gallery(gallery_path) == []


def test_an_old_gallery_with_an_id_nobody_can_explain(tmp_path: Path) -> None:
    """An enum of str: its row stopped the whole gallery of schema 2, and no call removed it."""
    shutil.copytree(Path(__file__).with_name("schema2") / "ids", tmp_path / "g")
    with pytest.raises(GalleryCorrupt, match="row 'enum' is not what was committed"):
        GalleryWriter.open(tmp_path / "g")
    result = repair_gallery(tmp_path / "g")
    assert result.lost == ()
    assert ["'enum'" in text for text in result.damage] == [True]
    with Gallery.open(tmp_path / "g") as gallery:
        ids = [row.id for row in gallery.rows()]
    assert ids == ["text", "numpy", "5", "7.5", "1", "9", "2.5", "enum", "last"]
    with GalleryWriter.open(tmp_path / "g") as writer:
        writer.delete(["enum"])
    assert verify_gallery(tmp_path / "g") == []


def test_the_command(gallery_path: Path) -> None:
    whole = chan("gallery", "repair", gallery_path)
    assert whole.output == f"{gallery_path}: 30 rows; nothing was damaged\n"
    flip(gallery_path / "segments" / segment(gallery_path).vectors.name, -1)
    verified = chan("gallery", "verify", gallery_path)
    assert verified.exit_code == 1
    found = ok("gallery", "repair", gallery_path)
    lost = found.count("lost: ")
    assert 0 < lost < 10
    assert found.endswith(f"{30 - lost} rows; {lost} lost, {10 - lost} written again\n")
    again = json.loads(chan("gallery", "repair", gallery_path, "--json").output)
    assert (again["kept"], again["lost"], again["saved"]) == (30 - lost, [], 0)
