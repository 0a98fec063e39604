"""Damaged bytes, failing callbacks, threads and forks under the compiled search."""

import importlib.util
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import GalleryCorrupt
from chan_rt.runtime.gallery import Gallery, GalleryWriter
from chan_rt.runtime.gallery.compiled import open_core
from chan_rt.runtime.gallery.store.catalogue import read_catalogue
from chan_rt.runtime.gallery.store.files import MappedFile
from chan_rt.runtime.gallery.store.segments import Segment

if importlib.util.find_spec("chan_rt.runtime.gallery._core") is None:
    pytest.skip("the search core is not compiled here", allow_module_level=True)

DIM, ROWS = 256, 600


@pytest.fixture
def prepared(tmp_path: Path, make_embeddings, make_settings) -> Path:
    """A gallery with both levels of codes: prepared without queries, so that nothing is timed."""
    with GalleryWriter.create(tmp_path / "g", make_settings(dim=DIM)) as writer:
        writer.add([str(i) for i in range(ROWS)], make_embeddings(1, ROWS, dim=DIM), [{"n": i} for i in range(ROWS)])
        assert writer.prepare().plan.first is not None
    return tmp_path / "g"


def answers(gallery: Gallery, queries: Embeddings, k: int = 10, **how: object) -> list:
    return [
        [(hit.id, hit.score, hit.word_regions.tolist()) for hit in result.hits]
        for result in gallery.search(queries, k, **how)
    ]


def damage(path: Path, array: str) -> None:
    """Flip a bit in the middle of one array of the only segment, on a page that holds nothing else."""
    record = read_catalogue(path)[1].segments[0]
    file = record.prepared if array == "second" else record.vectors
    place = MappedFile(path / "segments", file)
    values = place.unchecked(array)
    begin = values.ctypes.data - place._bytes.ctypes.data + values.nbytes // 2
    data = bytearray((path / "segments" / file.name).read_bytes())
    data[begin] ^= 1
    (path / "segments" / file.name).write_bytes(data)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("array", ["second", "codes", "fine"])
def test_damage_is_found_by_the_search_that_touches_it(
    prepared: Path, make_embeddings, array: str, threads: int
) -> None:
    with GalleryWriter.open(prepared) as writer:
        writer.add([f"more {i}" for i in range(3000)], make_embeddings(3, 3000, dim=DIM))
        writer.compact()
        writer.prepare()
    damage(prepared, array)
    with Gallery.open(prepared, scan="compiled", threads=threads) as gallery:
        for _ in range(3):  # also once it was found
            with pytest.raises(GalleryCorrupt, match=rf"\({array}.*not those that were committed"):
                gallery.search(make_embeddings(2, 20, dim=DIM), 4000 if array == "fine" else 10)


@pytest.mark.parametrize("threads", [1, 4])
def test_any_error_of_the_callback_is_raised_and_the_next_search_works(
    prepared: Path, make_embeddings, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    def fail(self: Segment, row: int, what: int) -> None:
        raise ZeroDivisionError("made to fail")

    queries = make_embeddings(2, 20, dim=DIM)
    with Gallery.open(prepared, scan="numpy") as gallery:
        expected = answers(gallery, queries)
    with Gallery.open(prepared, scan="compiled", threads=threads) as gallery:
        with monkeypatch.context() as patch:
            patch.setattr(Segment, "check", fail)
            for _ in range(3):
                with pytest.raises(ZeroDivisionError, match="made to fail"):
                    gallery.search(queries)
        assert answers(gallery, queries) == expected


def test_eight_threads_and_a_forked_child_get_the_same_answers(prepared: Path, make_embeddings) -> None:
    queries = [make_embeddings(seed, 6, dim=DIM) for seed in range(10, 18)]
    with Gallery.open(prepared, scan="numpy") as gallery:
        expected = [answers(gallery, query) for query in queries]
    with Gallery.open(prepared, scan="compiled", threads=4) as gallery, ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            assert list(pool.map(lambda query: answers(gallery, query), queries)) == expected
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if answers(gallery, queries[0]) == expected[0] else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert answers(gallery, queries[1]) == expected[1]


@pytest.mark.parametrize(
    ("dim", "rows", "longest", "equal"), [(64, 3000, 2, True), (8192, 12, 3, False), (32, 20, 300, False)]
)
def test_large_shapes_and_equal_rows_answer_as_numpy(
    tmp_path: Path, make_embeddings, make_settings, dim: int, rows: int, longest: int, equal: bool
) -> None:
    found = make_embeddings(1, rows, longest, even=True, dim=dim)
    if equal:
        found = Embeddings(np.repeat(found.vectors[:1], rows, axis=0), found.lengths)
    with GalleryWriter.create(tmp_path / "g", make_settings(dim=dim)) as writer:
        writer.add([str(i) for i in range(rows)], found)
        if dim < 8192:  # whose axes take long
            writer.prepare()
    queries = make_embeddings(2, 3, dim=dim)
    with Gallery.open(tmp_path / "g", scan="numpy") as one, Gallery.open(tmp_path / "g", scan="compiled") as other:
        for k in (1, 10, rows + 5):
            assert answers(one, queries, k) == answers(other, queries, k)


def test_deletions_filters_and_compactions_answer_as_numpy(prepared: Path, make_embeddings) -> None:
    queries = make_embeddings(2, 5, dim=DIM)
    with (
        Gallery.open(prepared, scan="numpy") as one,
        Gallery.open(prepared, scan="compiled", threads=2) as other,
        GalleryWriter.open(prepared) as writer,
    ):
        for change in (lambda: writer.delete([str(i) for i in range(0, ROWS, 3)]), writer.compact):
            change()
            for k in (1, 10, ROWS + 5):
                assert answers(one, queries, k) == answers(other, queries, k)
                where = {"n": {"$lt": 50}}
                assert answers(one, queries, k, where=where) == answers(other, queries, k, where=where)


def test_a_core_of_other_sources_is_not_used(
    prepared: Path, make_embeddings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queries = make_embeddings(7, 3, dim=DIM)
    with Gallery.open(prepared) as gallery:
        assert gallery.scan == "compiled"
        expected = answers(gallery, queries)
    monkeypatch.setattr("chan_rt.runtime.gallery._core.INTERFACE", 1)
    open_core.cache_clear()
    try:
        with Gallery.open(prepared) as gallery:
            assert gallery.scan != "compiled"
            assert answers(gallery, queries) == expected
        assert "the compiled search is of another version" in caplog.text
    finally:
        open_core.cache_clear()
