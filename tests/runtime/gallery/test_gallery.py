"""A gallery on disk: what is added is found, what is deleted is not, and an answer is the one from memory."""

import itertools
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import GalleryError, GalleryLocked, InputError, TensorError
from chan_rt.runtime.gallery import (
    Gallery,
    GalleryWriter,
    folder_writer,
    open_for_writing,
    scanner,
    split_gallery,
    verify_gallery,
)
from chan_rt.runtime.gallery.compiled import CompiledSearch, open_core
from chan_rt.runtime.gallery.prepare import Preparation, plan_for
from chan_rt.runtime.gallery.proof.rows import kept_vectors
from chan_rt.runtime.gallery.result import SearchResult
from chan_rt.runtime.gallery.store.catalogue import read_catalogue
from chan_rt.runtime.gallery.store.files import MappedFile
from chan_rt.runtime.gallery.store.segments import Segment


def scores_of(rows, query, alignment=AlignmentConfig()) -> np.ndarray:  # noqa: B008 - frozen
    """VHA with log-sum-exp in float64: [N]."""
    out = []
    for i in range(len(rows)):
        x = rows.vectors[i, : rows.lengths[i]].astype(np.float64)
        s = (x @ query.astype(np.float64).T).max(axis=0) / alignment.pooling_temperature
        out.append(np.log(np.exp(s - s.max()).sum()) + s.max())
    return np.array(out)


def ids(result) -> list[str]:
    return [hit.id for hit in result.hits]


def test_search_is_brute_force_with_ids_metadata_and_word_regions(gallery_path: Path, make_embeddings) -> None:
    parts = [make_embeddings(i, 10) for i in (0, 10, 20)]
    queries = make_embeddings(99, 5)
    with Gallery.open(gallery_path) as gallery:
        assert len(gallery) == 30
        results = gallery.search(queries, k=4)
    for i, result in enumerate(results):
        query = queries.vectors[i, : queries.lengths[i]]
        truth = np.concatenate([scores_of(part, query) for part in parts])
        assert ids(result) == [str(n) for n in np.argsort(-truth)[:4]]
        assert result.certified
        assert result.rows == 30
        assert 4 <= result.rescored <= 30
        for hit in result.hits:
            part, row = divmod(int(hit.id), 10)
            assert hit.score == pytest.approx(truth[int(hit.id)], abs=1e-12)
            assert hit.metadata == {"n": int(hit.id), "even": int(hit.id) % 2 == 0}
            similarities = parts[part].vectors[row, : parts[part].lengths[row]] @ query.T
            np.testing.assert_array_equal(hit.word_regions, similarities.argmax(axis=0))
            np.testing.assert_allclose(hit.word_scores, similarities.max(axis=0), atol=1e-6)


def test_searches_that_take_long_hold_up_no_other(
    gallery_path: Path, make_embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many queries at once need no turn; a few wait for one, but not for ever."""
    with Gallery.open(gallery_path) as gallery, ExitStack() as held:
        expected = gallery.search(make_embeddings(99, 9), 3)
        while gallery._scanner.turns._slots.acquire(blocking=False):
            held.callback(gallery._scanner.turns._slots.release)
        few = gallery.search(make_embeddings(99, 9)[:8], 3)
        monkeypatch.setattr(scanner, "_PATIENCE", 600)
        many = gallery.search(make_embeddings(99, 9), 3)
        late = threading.Thread(target=gallery.search, args=(make_embeddings(99, 1), 3))
        late.start()
        late.join(0.2)
        assert late.is_alive(), "it waits for its turn"
        held.close()
        late.join(60)
        assert not late.is_alive()
    assert [ids(result) for result in few + many] == [ids(result) for result in expected[:8] + expected]


def test_hits_of_one_row_do_not_share_its_metadata(tmp_path: Path, make_embeddings, make_settings) -> None:
    """Whoever notes something in one hit's metadata finds it in no other hit, however deep it is."""
    metadata = {"tags": ["a", {"b": [1]}], "split": "test"}
    with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
        writer.add(["only"], make_embeddings(0, 1), [metadata])
    with Gallery.open(tmp_path / "g") as gallery:
        (first, *others) = (result.hits[0] for result in gallery.search(make_embeddings(1, 4), 1))
    first.metadata["split"] = "changed"
    first.metadata["tags"][1]["b"].append(2)
    first.word_scores[:] = 0
    for other in others:
        assert other.metadata == metadata
        assert other.word_scores.any()
    others[0].metadata["tags"].clear()
    assert others[1].metadata == metadata


@pytest.mark.parametrize("coding", ["VHA", "THA", "VSA"])
@pytest.mark.parametrize("kind", ["images", "captions"])
def test_each_word_of_a_hit_names_its_best_region(tmp_path: Path, make_embeddings, make_settings, kind, coding) -> None:
    rows, queries = make_embeddings(1, 12), make_embeddings(2, 2)
    with GalleryWriter.create(tmp_path / "g", make_settings(kind=kind, alignment=AlignmentConfig(coding))) as writer:
        writer.add([str(i) for i in range(12)], rows)
    with Gallery.open(tmp_path / "g") as gallery:
        for i, result in enumerate(gallery.search(queries, k=12)):
            for hit in result.hits:
                row = rows.vectors[int(hit.id), : rows.lengths[int(hit.id)]]
                query = queries.vectors[i, : queries.lengths[i]]
                regions, words = (row, query) if kind == "images" else (query, row)
                np.testing.assert_array_equal(hit.word_regions, (regions @ words.T).argmax(axis=0))


def test_filters_restrict_the_rows(gallery_path: Path, make_embeddings) -> None:
    query = make_embeddings(99, 1)
    with Gallery.open(gallery_path) as gallery:
        every = ids(gallery.search(query, k=30)[0])
        assert ids(gallery.search(query, k=30, where={"even": True})[0]) == [i for i in every if int(i) % 2 == 0]
        assert (
            ids(gallery.search(query, k=2, ids=["3", "17", "8"])[0]) == [i for i in every if i in {"3", "17", "8"}][:2]
        )
        assert ids(gallery.search(query, ids=["3", "4"], where={"n": 4})[0]) == ["4"]
        nothing = gallery.search(query, where={"n": -1})[0]
        assert (nothing.hits, nothing.certified, nothing.rescored_share) == ((), True, 0.0)
        with pytest.raises(InputError, match="not in the gallery: x"):
            gallery.search(query, ids=["x"])


def test_open_galleries_see_adds_deletes_replacements_and_compaction(gallery_path: Path, make_embeddings) -> None:
    query = make_embeddings(99, 1)
    with Gallery.open(gallery_path) as gallery, GalleryWriter.open(gallery_path) as writer:
        before = gallery.search(query, k=40)[0]
        best = before.hits[0].id
        writer.delete([best])
        after = gallery.search(query, k=40)[0]
        assert [(h.id, h.score) for h in after.hits] == [(h.id, h.score) for h in before.hits if h.id != best]
        writer.add([best], make_embeddings(0, 10)[int(best)] if int(best) < 10 else make_embeddings(7, 1))
        assert len(gallery) == 30
        second = before.hits[1].id
        writer.add([second, "new"], make_embeddings(5, 2), [{"v": 2}, {}], overwrite=True)
        middle = gallery.search(query, k=40)[0]
        assert sorted(ids(middle)) == sorted([*(h.id for h in before.hits), "new"])
        assert next(h for h in middle.hits if h.id == second).metadata == {"v": 2}
        order = [row.id for row in gallery.rows()]
        files = len(list((gallery_path / "segments").iterdir()))
        writer.compact()
        assert len(list((gallery_path / "segments").iterdir())) == 2 < files, "one segment of two files"
        compacted = gallery.search(query, k=40)[0]
        assert [(h.id, h.score, h.metadata) for h in compacted.hits] == [
            (h.id, h.score, h.metadata) for h in middle.hits
        ]
        assert [row.id for row in gallery.rows()] == order
        assert gallery.verify() == []
        writer.delete(ids(compacted))
        writer.compact()
        assert len(gallery) == 0
        assert gallery.search(query)[0].hits == ()
        assert gallery.verify() == []


def test_compaction_leaves_full_segments_alone(gallery_path: Path, monkeypatch, make_embeddings) -> None:
    monkeypatch.setattr(folder_writer, "SEGMENT_BYTES", 1)
    with GalleryWriter.open(gallery_path) as writer:
        files = {path.name for path in (gallery_path / "segments").iterdir()}
        writer.delete(["11"])
        writer.compact()
        kept = {path.name for path in (gallery_path / "segments").iterdir()}
        assert len(files & kept) == 4
        writer.add(["a", "b", "c"], make_embeddings(3, 3))
        assert len(list((gallery_path / "segments").iterdir())) == 12, "a large addition is cut into several files"
    with Gallery.open(gallery_path) as gallery:
        assert [row.id for row in gallery.rows()] == [str(i) for i in range(30) if i != 11] + ["a", "b", "c"]
        assert gallery.verify() == []


def test_ties_go_to_the_row_added_first_and_survive_compaction(tmp_path: Path, make_embeddings, make_settings) -> None:
    same = make_embeddings(1, 1)
    with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
        for name in ("c", "a", "b"):
            writer.add([name], same)
        with Gallery.open(tmp_path / "g") as gallery:
            assert ids(gallery.search(make_embeddings(2, 1), k=2)[0]) == ["c", "a"]
            writer.delete(["c"])
            writer.add(["c"], same)
            writer.compact()
            assert ids(gallery.search(make_embeddings(2, 1), k=3)[0]) == ["a", "b", "c"]


@pytest.mark.parametrize("fine", ["float32", "fixed16", "float16", "none"])
def test_fine_copies(tmp_path: Path, make_embeddings, make_settings, fine: str) -> None:
    rows, query = make_embeddings(1, 20), make_embeddings(2, 1)
    with GalleryWriter.create(tmp_path / "g", make_settings(fine=fine)) as writer:
        writer.add([str(i) for i in range(20)], rows)
    with Gallery.open(tmp_path / "g") as gallery:
        result = gallery.search(query, k=20)[0]
    assert result.certified == (fine != "none")
    assert ("no fine copy" in result.reason) == (fine == "none")
    starts = np.r_[0, np.cumsum(rows.lengths)]
    held = kept_vectors(np.concatenate(rows.rows()), starts, "float32" if fine == "none" else fine)
    kept = type(rows).padded(np.split(held, starts[1:-1]), rows.kind)
    truth = scores_of(kept, query.vectors[0, : query.lengths[0]])
    if fine == "none":
        np.testing.assert_allclose([h.score for h in result.hits], truth[[int(h.id) for h in result.hits]], atol=0.5)
    else:
        assert ids(result) == [str(i) for i in np.argsort(-truth)]


@pytest.mark.parametrize("kernel", ["compiled", "onnxruntime", "numpy"])
def test_kernels_and_threads_give_the_same_bytes(gallery_path: Path, make_embeddings, kernel: str) -> None:
    queries = make_embeddings(99, 20)
    with (
        Gallery.open(gallery_path, scan="numpy", threads=1) as one,
        Gallery.open(gallery_path, scan=kernel, threads=3) as other,
    ):
        assert other.scan == kernel
        for a, b in zip(one.search(queries), other.search(queries), strict=True):
            assert [(h.id, h.score, h.word_regions.tolist()) for h in a.hits] == [
                (h.id, h.score, h.word_regions.tolist()) for h in b.hits
            ]
            assert a.rescored == b.rescored or kernel == "compiled", "which takes other bounds"


def test_no_more_searches_run_at_once_than_there_are_cpus(
    gallery_path: Path, make_embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chan_rt.runtime.gallery.scanner.usable_cpus", lambda: 3)
    monkeypatch.setattr("chan_rt.runtime.gallery.scanner._PATIENCE", 60)  # a busy machine must not end it
    queries, now, most = make_embeddings(99, 1), [], []
    three = threading.Barrier(3)
    answers = Gallery._answers

    def watched(gallery: Gallery, *rest) -> list[SearchResult]:
        now.append(1)
        most.append(len(now))
        try:
            if len(most) <= 3:
                three.wait(60)  # three do run at once
            elif len(most) == 7:
                raise ZeroDivisionError  # which must give its place to another
            return answers(gallery, *rest)
        finally:
            now.pop()

    with Gallery.open(gallery_path) as gallery:
        monkeypatch.setattr(Gallery, "_answers", watched)
        with ThreadPoolExecutor(8) as threads:
            found = [threads.submit(gallery.search, queries) for _ in range(30)]
            found += [threads.submit(gallery.at_one_commit, lambda now: now.search(queries)) for _ in range(30)]
        assert sum(each.exception() is not None for each in found) == 1
        assert max(most) == 3


def test_many_queries_are_served_in_turns(gallery_path: Path, make_embeddings, monkeypatch) -> None:
    from chan_rt.runtime.gallery import rank

    queries = make_embeddings(99, 33)
    with Gallery.open(gallery_path, scan="numpy") as gallery:
        whole = gallery.search(queries, k=3)
        monkeypatch.setattr(rank, "_ESTIMATE_BYTES", 16 * 30 * 7)
        for a, b in zip(whole, gallery.search(queries, k=3), strict=True):
            assert [(h.id, h.score) for h in a.hits] == [(h.id, h.score) for h in b.hits]


@pytest.mark.parametrize("fine", ["float32", "none"])
@pytest.mark.parametrize("coding", ["VHA", "THA", "VSA"])
@pytest.mark.parametrize("scan", ["auto", "compiled", "numpy"])
def test_scan_names_what_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_embeddings, make_settings, scan: str, coding: str, fine: str
) -> None:
    if open_core() is None:
        pytest.skip("the search core is not compiled here")
    ranked, real = [], CompiledSearch.rank
    monkeypatch.setattr(CompiledSearch, "rank", lambda *args: ranked.append(1) or real(*args))
    settings = make_settings(alignment=AlignmentConfig(coding), fine=fine)
    with GalleryWriter.create(tmp_path / "g", settings) as writer, Gallery.open(tmp_path / "g", scan=scan) as gallery:
        named = gallery.scan  # of a gallery that is empty
        writer.add(["a", "b"], make_embeddings(1, 2))
        gallery.search(make_embeddings(2, 1))
        assert gallery.scan == gallery.info()["scan"] == named
        assert (named == "compiled") is bool(ranked)
        if scan == "compiled":
            assert (named == "compiled") is (coding != "VSA" and fine != "none")


def test_a_folder_without_a_gallery_and_one_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(GalleryError, match="is not a gallery; make one with: chan index"):
        Gallery.open(tmp_path)
    with pytest.raises(GalleryError, match="none is not a gallery, as it does not exist; make one with: chan index"):
        Gallery.open(tmp_path / "none")


@pytest.mark.parametrize(("dim", "shares"), [(64, ""), (512, "second level 20.0%, int8 6.4%, ")])
def test_a_preparation_names_the_levels_that_its_search_reads(dim: int, shares: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((400, dim)).astype(np.float32)
    prepared = Preparation(plan_for(vectors, None, [vectors]), 10, 30, second=0.2, codes=0.064, rescored=0.0618)
    assert (prepared.plan.first is None) is (not shares)
    assert prepared.describe().endswith(f"; top 10 over 30 queries: {shares}rescored 6.18% of the rows")
    assert str(prepared) == prepared.describe()
    assert "array" not in repr(prepared)


@pytest.mark.parametrize("scan", ["compiled", "onnxruntime", "numpy"])
def test_preparing_measures_and_changes_no_answer(tmp_path: Path, make_embeddings, make_settings, scan: str) -> None:
    rows = make_embeddings(1, 1200)
    rows.vectors[:, :, 8:] *= 0.05  # nearly all of every vector lies in 8 dimensions
    captions = make_embeddings(2, 60)

    def answers(gallery: Gallery) -> list:
        return [
            [(hit.id, hit.score, hit.word_regions.tolist()) for hit in result.hits]
            for result in gallery.search(captions)
            if result.certified
        ]

    with GalleryWriter.create(tmp_path / "g", make_settings()) as writer:
        writer.add([str(i) for i in range(1200)], rows)
        with Gallery.open(tmp_path / "g", scan=scan) as gallery:
            before = answers(gallery)
            assert len(before) == 60
            assert gallery.prepared is gallery.info()["prepared"] is None
            assert "not measured" in writer.prepare().describe()
            assert answers(gallery) == before
            prepared = writer.prepare([captions[:25], captions[25:]])
            assert (prepared.queries, prepared.k) == (30, 10)
            assert 10 / 1200 <= prepared.rescored <= 1
            assert answers(gallery) == before
            assert all(result.rows == 1200 for result in gallery.search(captions))
            assert gallery.prepared.describe() == gallery.info()["prepared"] == prepared.describe()
            writer.add(["late"], make_embeddings(9, 1))
            writer.delete(["late"])
            writer.compact()
            assert gallery.prepared.describe() == prepared.describe(), "the preparation stays"
            assert answers(gallery) == before
            assert gallery.verify() == []


def test_a_gallery_without_a_fine_copy_is_not_prepared(tmp_path: Path, make_embeddings, make_settings) -> None:
    with GalleryWriter.create(tmp_path / "g", make_settings(fine="none")) as writer:
        writer.add(["1"], make_embeddings(1, 1))
        with pytest.raises(InputError, match="without a fine copy cannot be prepared"):
            writer.prepare()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda some: {"queries": [some, some.vectors]}, "queries: must be Embeddings, .*, got ndarray"),
        (lambda some: {"queries": some.vectors}, "queries: must be Embeddings"),
        (lambda some: {"queries": [some, replace(some, vectors=some.vectors[..., 1:])]}, "queries: D must be this"),
        (lambda some: {"queries": replace(some, vectors=some.vectors * np.nan)}, "queries: values must be finite"),
        (lambda some: {"directions": some.vectors[0] * np.nan}, "directions: must be finite"),
        (lambda some: {"directions": some.vectors[0].astype(float)}, "directions: dtype must be float32, got float64"),
        (lambda some: {"directions": some.vectors[0, :, 1:]}, r"directions: shape must be \[r, "),
    ],
)
def test_search_is_not_fitted_to_what_is_no_query(gallery_path: Path, make_embeddings, change, message: str) -> None:
    with GalleryWriter.open(gallery_path) as writer, Gallery.open(gallery_path) as gallery:
        before = gallery.info()
        with pytest.raises(InputError, match=f"^{message}"):
            writer.prepare(**change(make_embeddings(1, 4)))
        assert gallery.info() == before


def test_a_second_writer_is_told_and_readers_are_not_hindered(gallery_path: Path, make_embeddings) -> None:
    with GalleryWriter.open(gallery_path):
        with pytest.raises(GalleryLocked, match="by another process, or by another writer of this one; wait for it"):
            GalleryWriter.open(gallery_path)
        with Gallery.open(gallery_path) as gallery:
            assert len(gallery.search(make_embeddings(1, 1))[0].hits) == 10
    GalleryWriter.open(gallery_path).close()


@pytest.mark.parametrize("shards", [0, 2])
def test_threads_that_share_a_writer_take_turns(
    gallery_path: Path, tmp_path: Path, make_embeddings, shards: int
) -> None:
    path = gallery_path
    if shards:
        path = tmp_path / "shards"
        split_gallery(gallery_path, path, shards)

    def change(thread: int) -> None:
        for turn in range(5):
            writer.add([f"{thread}-{turn}"], make_embeddings(thread, 1))
            assert writer.ids([f"{thread}-{turn}", "nobody"]) == {f"{thread}-{turn}"}
            if turn:
                writer.delete([f"{thread}-{turn - 1}"])

    with open_for_writing(path) as writer:
        before = len(writer)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(change, range(4)))
        assert len(writer) == before + 4
    assert verify_gallery(path) == []
    with Gallery.open(path) as gallery:
        assert {row.id for row in gallery.rows()} >= {f"{thread}-4" for thread in range(4)}


def test_misuse_is_named(gallery_path: Path, tmp_path: Path, make_embeddings, make_settings) -> None:
    with pytest.raises(GalleryError, match="not a gallery, as it does not exist; make one with: chan index"):
        Gallery.open(tmp_path / "none")
    with pytest.raises(GalleryError, match="not a gallery"):
        GalleryWriter.open(tmp_path / "none")
    with pytest.raises(GalleryError, match="already exists and is not empty"):
        GalleryWriter.create(gallery_path, make_settings())
    with pytest.raises(GalleryError, match="made with another model"):
        Gallery.open(gallery_path, model="x" * 64)
    with pytest.raises(InputError, match="kind must be one of images, captions, got 'videos'"):
        make_settings(kind="videos")
    with pytest.raises(InputError, match="fine must be one of"):
        make_settings(fine="int4")
    with GalleryWriter.open(gallery_path) as writer, Gallery.open(gallery_path) as gallery:
        with pytest.raises(InputError, match="already in the gallery"):
            writer.add(["5"], make_embeddings(1, 1))
        with pytest.raises(InputError, match="ids: must be unique, got x"):
            writer.add(["x", "x"], make_embeddings(1, 2))
        with pytest.raises(InputError, match="must agree, got 2, 1, 2"):
            writer.add(["x", "y"], make_embeddings(1, 1))
        with pytest.raises(InputError, match="D must be this gallery's 24, got 8"):
            writer.add(["x"], make_embeddings(1, 1, dim=8))
        with pytest.raises(InputError, match="D must be this gallery's 24, got 8"):
            gallery.search(make_embeddings(1, 1, dim=8))
        broken = make_embeddings(1, 1)
        broken.vectors[0, 0, 0] = np.nan
        with pytest.raises(TensorError, match="values must be finite"):
            writer.add(["x"], broken)
        for name, use in {"embeddings": partial(writer.add, ["x"]), "queries": gallery.search}.items():
            with pytest.raises(TensorError, match=rf"{name}: must be Embeddings, .*from_rows .*, got ndarray"):
                use(broken.vectors)
        with pytest.raises(TensorError, match="queries: values must be finite"):
            gallery.search(broken)
        with pytest.raises(
            InputError, match=r"ids: not in the gallery: a, b, c, d, e and 2 more; `chan gallery list` shows its ids"
        ):
            writer.delete(["1", *"abcdefg"])
        with pytest.raises(InputError, match="k must be positive, got 0"):
            gallery.search(make_embeddings(1, 1), k=0)
        for least, rule in (
            ([1, 2], r"must be one number or one for each of 1 query, got \[2\]"),
            (np.nan, "must be numbers, got NaN"),
            ("much", "must be numbers, got 'much'"),
            (1j, "must be numbers, got 1j"),
            (10**400, "must be numbers, got 1000"),
            (np.ma.array([0.5], mask=[True]), "must not be masked: .*, got 1 masked value"),
        ):
            with pytest.raises(InputError, match=f"^at_least: {rule}"):
                gallery.search(make_embeddings(1, 1), at_least=least)
        assert len(gallery) == 30
        assert len(list((gallery_path / "segments").iterdir())) == 6


def test_a_newer_schema_is_refused(gallery_path: Path) -> None:
    file = gallery_path / "catalogue"
    file.write_bytes(file.read_bytes().replace(b"chan-gallery 4 ", b"chan-gallery 5 ", 1))
    for door in (Gallery.open, GalleryWriter.open):
        with pytest.raises(GalleryError, match="schema is 5, this version reads 4"):
            door(gallery_path)


def test_segment_files_are_safetensors(gallery_path: Path) -> None:
    from safetensors.numpy import load_file

    record = read_catalogue(gallery_path)[1].segments[0]
    arrays = load_file(gallery_path / "segments" / record.vectors.name)
    assert set(arrays) == {"starts", "scale", "error", "norm", "codes", "fine"}
    assert arrays["codes"].shape == (arrays["starts"][-1], 64)


@pytest.mark.parametrize("queries", [800, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_concurrent_queries_while_a_writer_appends(
    gallery_path: Path, make_embeddings, queries: int, request: pytest.FixtureRequest
) -> None:
    """Each answer is that of some commit: complete additions only, and never fewer rows than before."""
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(2e-4)  # far more interleavings than the default's, and no convoy of 5 ms waits
    query = make_embeddings(99, 1)
    stop = threading.Event()
    committed = [30]

    def append() -> None:
        with GalleryWriter.open(gallery_path) as writer:
            for n in itertools.count():
                if stop.is_set():
                    break
                writer.add([f"w{n}-{i}" for i in range(5)], make_embeddings(1000 + n, 5))
                if n >= 4:
                    writer.delete([f"w{n - 4}-{i}" for i in range(5)])
                if n % 10 == 9:
                    writer.compact()
                committed.append(0)

    failures: list[BaseException] = []

    def ask(count: int) -> None:
        try:
            for turn in range(count):
                if turn % 10:
                    assert len(gallery.search(query, k=3)[0].hits) == 3
                    continue
                result = gallery.search(query, k=10_000)[0]
                found = ids(result)
                assert len(set(found)) == len(found) == result.rows
                assert (len(found) - 30) % 5 == 0, "an addition was seen in part"
                assert set(map(str, range(30))) <= set(found)
        except BaseException as error:
            failures.append(error)

    with Gallery.open(gallery_path, threads=1) as gallery:
        writing = threading.Thread(target=append)
        asking = [threading.Thread(target=ask, args=(queries // 8,)) for _ in range(8)]
        writing.start()
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        stop.set()
        writing.join()
        assert failures == []
        assert len(committed) > 1
        assert gallery.verify() == []


def test_levels_that_do_not_pay_are_dropped_without_coding_rows_again(
    tmp_path: Path, make_embeddings, make_settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded = []
    prepare = Segment.prepare
    monkeypatch.setattr(Segment, "prepare", lambda segment, *given: coded.append(segment) or prepare(segment, *given))
    monkeypatch.setattr(
        "chan_rt.runtime.gallery.preparing.choose",
        lambda parts, live, settings, queries, plan, work: Preparation(replace(plan, first=None, second=None)),
    )
    path = tmp_path / "gallery"
    with GalleryWriter.create(path, make_settings(dim=192)) as writer:
        writer.add(range(30), make_embeddings(1, 30, dim=192))
        assert writer.prepare().plan.first is None
    assert len(coded) == 1
    (record,) = read_catalogue(path)[1].segments
    assert MappedFile(path / "segments", record.prepared).names == ("measures",)
    assert len(list((path / "segments").iterdir())) == 4
    assert verify_gallery(path) == []


def test_opening_reads_no_vectors(gallery_path: Path, monkeypatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("opened a gallery by reading its vectors")

    monkeypatch.setattr(Segment, "codes", refuse)
    monkeypatch.setattr(Segment, "fine", refuse)
    Gallery.open(gallery_path).close()


def test_clock_changes_do_not_matter(gallery_path: Path, monkeypatch, make_embeddings) -> None:
    import time

    for now in (0.0, 4e9, 1.0):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with GalleryWriter.open(gallery_path) as writer:
            writer.add([f"at {now}"], make_embeddings(int(now) % 97, 1))
    with Gallery.open(gallery_path) as gallery:
        assert [row.id for row in gallery.rows()][-3:] == ["at 0.0", "at 4000000000.0", "at 1.0"]


def test_the_catalogue_is_a_line_and_one_json_object(gallery_path: Path) -> None:
    line, body = (gallery_path / "catalogue").read_text().splitlines()
    assert line.split()[0] == "chan-gallery"
    assert line.split()[3] == "3", "the generation"
    assert [segment["count"] for segment in json.loads(body)["segments"]] == [10, 10, 10]


def test_rows_are_found_by_id_with_their_embeddings(gallery_path: Path, make_embeddings) -> None:
    with GalleryWriter.open(gallery_path) as writer:
        writer.delete(["3"])
    with Gallery.open(gallery_path) as gallery:
        rows = gallery.find([21, "4", "21"])
        assert [(row.id, row.metadata["n"]) for row in rows] == [("21", 21), ("4", 4), ("21", 21)]
        found = gallery.embeddings(["21", "4"])
        assert found.kind == "images"
        for row, (seed, place) in enumerate([(20, 1), (0, 4)]):
            part = make_embeddings(seed, 10)
            np.testing.assert_array_equal(
                found.vectors[row, : found.lengths[row]], part.vectors[place, : part.lengths[place]]
            )
        for missing in (["3"], ["4", "nine"]):
            with pytest.raises(InputError, match=f"ids: not in the gallery: {missing[-1]}"):
                gallery.find(missing)
            with pytest.raises(InputError, match=f"ids: not in the gallery: {missing[-1]}"):
                gallery.embeddings(missing)
        assert gallery.find([]) == []
        with pytest.raises(InputError, match="at least one id"):
            gallery.embeddings([])
