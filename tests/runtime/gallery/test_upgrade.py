"""Galleries that the version of schema 2 wrote (folder schema2): read as they are, upgraded by a writer."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import Gallery, GalleryWriter, verify_gallery

from .killed import killed_at

STORED = Path(__file__).with_name("schema2")
ANSWERS = json.loads((STORED / "answers.json").read_text())


def queries(seed: int, count: int) -> Embeddings:
    """The queries that ANSWERS are of."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 4, count)
    vectors = rng.standard_normal((count, 3, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    vectors[np.arange(3) >= lengths[:, None]] = 0
    return Embeddings(vectors, lengths.astype(np.int32))


def check_answers(path: Path, name: str) -> None:
    with Gallery.open(path) as gallery:
        assert [[row.id, row.metadata] for row in gallery.rows()] == ANSWERS[name]["rows"]
        for result, expected in zip(gallery.search(queries(99, 3), 5), ANSWERS[name]["hits"], strict=True):
            assert result.certified
            assert [hit.id for hit in result.hits] == [id for id, _ in expected]
            np.testing.assert_allclose([hit.score for hit in result.hits], [score for _, score in expected], rtol=1e-12)
    assert verify_gallery(path) == []


@pytest.fixture(params=["plain", "killed"])
def name(request: pytest.FixtureRequest) -> str:
    """`plain` was closed and prepared; most commits of `killed` are in the log that its killed writer left."""
    return str(request.param)


@pytest.fixture
def old(tmp_path: Path, name: str) -> Path:
    shutil.copytree(STORED / name, tmp_path / "g")
    return tmp_path / "g"


def test_an_old_gallery_is_read_as_it_is(old: Path, name: str) -> None:
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    check_answers(old, name)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


def test_a_writer_upgrades_it_beside_a_reader(old: Path, name: str, make_embeddings) -> None:
    with Gallery.open(old) as reader:
        count = len(reader)
        with GalleryWriter.open(old) as writer:
            assert len(writer) == count
            assert len(reader) == count
            check_answers(old, name)
            assert reader.prepared is None, "what was prepared then is not used any more"
            writer.add(["new"], make_embeddings(3, 1, dim=16))
            assert len(reader) == count + 1
            writer.delete(["new"])
            writer.compact()
    check_answers(old, name)
    assert not list(old.glob("catalogue.sqlite*"))
    assert {file.name for file in (old / "segments").iterdir()} == read_names(old)


def read_names(path: Path) -> set[str]:
    from chan_rt.runtime.gallery.store.catalogue import read_catalogue

    return set(read_catalogue(path)[1].files)


@pytest.mark.parametrize("kill_at", range(1, 12))
def test_an_upgrade_that_was_killed_is_done_again(old: Path, name: str, kill_at: int) -> None:
    """Killed at each call that changes the disk."""
    killed_at(kill_at, lambda: GalleryWriter.open(old).close())
    check_answers(old, name)
    GalleryWriter.open(old).close()
    check_answers(old, name)
    assert not list(old.glob("catalogue.sqlite*"))
    assert {file.name for file in (old / "segments").iterdir()} == read_names(old)
