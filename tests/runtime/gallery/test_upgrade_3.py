"""Galleries that the last version of schema 3 wrote (folder schema3): read as they are, upgraded by a writer.

Commit 77514cb wrote them, of 40 images and 24 captions in two segments each: rows deleted, search of prefixes prepared.
"""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import Gallery, GalleryWriter, verify_gallery
from chan_rt.runtime.gallery.compiled import open_core
from chan_rt.runtime.gallery.store.catalogue import read_catalogue

from .killed import killed_at

STORED = Path(__file__).with_name("schema3")
ANSWERS = json.loads((STORED / "answers.json").read_text())
OTHER = {"images": "captions", "captions": "images"}
OF_NEW_SEARCH = 3  # files: the plan, and one beside each segment


def queries(seed: int, count: int, name: str) -> Embeddings:
    """The queries that ANSWERS are of: seed 99, 3 of them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 4, count)
    vectors = rng.standard_normal((count, 3, 48)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    vectors[np.arange(3) >= lengths[:, None]] = 0
    return Embeddings(vectors, lengths.astype(np.int32), OTHER[name])


def hits(gallery: Gallery, name: str) -> list[list[tuple[str, float]]]:
    results = gallery.search(queries(99, 3, name), 5)
    assert all(result.certified for result in results)
    return [[(hit.id, hit.score) for hit in result.hits] for result in results]


@functools.cache
def stored_hits(name: str) -> list[list[tuple[str, float]]]:
    """What this version finds in the gallery as it was stored: the hits that commit found.

    That commit added the float64 products in another order, so its scores may differ in the last bits.
    """
    with Gallery.open(STORED / name, scan="numpy") as gallery:
        found = hits(gallery, name)
    for now, then in zip(found, ANSWERS[name]["hits"], strict=True):
        assert [id for id, _ in now] == [id for id, _ in then]
        np.testing.assert_allclose([score for _, score in now], [score for _, score in then], rtol=1e-12)
    return found


def check_answers(path: Path, name: str, scan: str) -> None:
    """Rows and hits are those of the stored gallery, scores to the bit."""
    with Gallery.open(path, scan=scan) as gallery:
        assert [[row.id, row.metadata] for row in gallery.rows()] == ANSWERS[name]["rows"]
        assert hits(gallery, name) == stored_hits(name)
    assert verify_gallery(path) == []


def vectors_of(path: Path) -> dict[str, bytes]:
    """The bytes of every file of vectors or of rows' names that the newest commit needs."""
    segments = read_catalogue(path)[1].segments
    files = [file for segment in segments for file in (segment.vectors, segment.rows)]
    return {file.name: (path / "segments" / file.name).read_bytes() for file in files}


def schema(path: Path) -> str:
    return " ".join((path / "catalogue").read_bytes().decode().split()[:2])


def names(path: Path) -> set[str]:
    return {file.name for file in (path / "segments").iterdir()}


@pytest.fixture(params=sorted(OTHER))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["compiled", "onnxruntime", "numpy"])
def scan(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled" and open_core() is None:
        pytest.skip("the search core is not compiled here")
    return str(request.param)


@pytest.fixture
def old(tmp_path: Path, name: str) -> Path:
    shutil.copytree(STORED / name, tmp_path / "g")
    return tmp_path / "g"


def test_it_is_read_as_it_is(old: Path, name: str, scan: str, make_read_only) -> None:
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    make_read_only()
    check_answers(old, name, scan)
    with Gallery.open(old) as gallery:
        assert gallery.prepared is None, "what was prepared then is not used any more"
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


def test_preparing_upgrades_it_without_encoding_anew(old: Path, name: str, scan: str) -> None:
    assert schema(old) == "chan-gallery 3"
    stored, kept = names(old), vectors_of(old)
    assert len(kept) == 4
    assert len(stored) == 7, "search of prefixes was prepared"
    with GalleryWriter.open(old) as writer:
        assert schema(old) == "chan-gallery 4"
        assert names(old) == kept.keys(), "files of the earlier search are gone"
        check_answers(old, name, scan)
        writer.prepare(queries(7, 6, name))
    assert vectors_of(old) == kept
    assert len(names(old)) == len(kept) + OF_NEW_SEARCH
    assert not names(old) - kept.keys() & stored, "a file's name was used twice"
    with Gallery.open(old) as gallery:
        assert gallery.prepared is not None
    check_answers(old, name, scan)


def test_a_reader_goes_on_beside_the_upgrade_and_the_changes_after_it(
    old: Path, name: str, scan: str, make_embeddings: Callable[..., Embeddings]
) -> None:
    with Gallery.open(old, scan=scan) as reader:
        count = len(reader)
        with GalleryWriter.open(old) as writer:
            assert len(reader) == count
            rows = make_embeddings(3, 1, dim=48)
            writer.add(["new"], Embeddings(rows.vectors, rows.lengths, name))
            assert len(reader) == count + 1
            writer.delete(["new"])
            writer.compact()
        assert [[row.id, row.metadata] for row in reader.rows()] == ANSWERS[name]["rows"]
    check_answers(old, name, scan)


def test_an_upgrade_that_was_killed_is_done_again(name: str, tmp_path: Path) -> None:
    """Killed at each call that changes the disk, one after another, until it is not."""
    step, schemas = 1, set()
    while True:
        path = tmp_path / str(step)
        shutil.copytree(STORED / name, path)
        if not killed_at(step, lambda path=path: GalleryWriter.open(path).close()):
            break
        schemas.add(schema(path))
        check_answers(path, name, "numpy")
        GalleryWriter.open(path).close()
        check_answers(path, name, "numpy")
        assert names(path) == read_catalogue(path)[1].files.keys()
        step += 1
    assert schemas == {"chan-gallery 3", "chan-gallery 4"}, "it was killed before the commit and after it"
