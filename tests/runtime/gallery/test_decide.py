"""The last step on a GPU, on a device made of host memory: rankings are the compiled search's to the bit.

Here numpy stands for the kernels. With CHAN_TEST_KERNELS=sm_90 the same tests run the real ones, compiled for that
architecture, on the machine of tests/ptx, and with CHAN_TEST_KERNELS=cuda on this machine's GPU; tests of
tests/export/test_kernels.py do that.
"""

import gc
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime.backends.fake import FakeDevice
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import BackendError, GalleryCorrupt, GpuMemoryError
from chan_rt.runtime.gallery import Gallery, GalleryWriter
from chan_rt.runtime.gallery import scanner as scanner_module
from chan_rt.runtime.gallery.compiled import CompiledSearch, CoreThreads, open_core
from chan_rt.runtime.gallery.cuda import ResidentSearch, SplitScan
from chan_rt.runtime.gallery.cuda import decide as decide_module
from chan_rt.runtime.gallery.cuda import held as held_module
from chan_rt.runtime.gallery.cuda import list_queue as queue_module
from chan_rt.runtime.gallery.cuda import memory as memory_module
from chan_rt.runtime.gallery.cuda.best import pooled
from chan_rt.runtime.gallery.cuda.decide import Codes, Decided
from chan_rt.runtime.gallery.cuda.kernels import FORMS
from chan_rt.runtime.gallery.cuda.lists import DeviceLists
from chan_rt.runtime.gallery.kernels.layout import stored_width
from chan_rt.runtime.gallery.proof.certify import Ranking
from chan_rt.runtime.gallery.proof.gallery_rows import GalleryRows
from chan_rt.runtime.gallery.proof.pooling import pool
from chan_rt.runtime.gallery.proof.prefix import SearchPlan, fit_axes
from chan_rt.runtime.gallery.proof.true_score import TrueRow, TrueRows, true_row

from .test_resident import SLOW, made_up, make_parts, open_scan

needs_core = pytest.mark.skipif(open_core() is None, reason="the compiled search was not built")


def searches(parts: list, kind: str, alignment: AlignmentConfig, scan: Any) -> tuple[ResidentSearch, CompiledSearch]:
    """The GPU's search of some parts, and the CPU's."""
    rows = GalleryRows(parts, kind, alignment)
    compiled = CompiledSearch(rows, parts[0].plan, CoreThreads(1))
    return ResidentSearch(rows, scan, compiled), compiled


def made_queries(lengths: Sequence[int], dim: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).standard_normal((n, dim)).astype(np.float32) for i, n in enumerate(lengths)]


def assert_equal(found: list[Ranking], expected: list[Ranking]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.certified
        assert one.rows.dtype == other.rows.dtype
        assert one.rows.tolist() == other.rows.tolist()
        assert one.scores.tolist() == other.scores.tolist()
        assert one.candidates == other.candidates
        assert len(one.details) == len(other.details)
        for mine, theirs in zip(one.details, other.details, strict=True):
            assert mine.score == theirs.score
            assert mine.maxima.tolist() == theirs.maxima.tolist()
            assert mine.winners.tolist() == theirs.winners.tolist()
            assert mine.winners.dtype == theirs.winners.dtype


@needs_core
@pytest.mark.parametrize(
    ("case", "form"),
    [("plain", "float32"), ("ties", "float16"), ("near", "fixed16"), ("zero", "float32"), ("huge", "fixed16")],
)
@pytest.mark.parametrize(
    ("kind", "coding", "pooling", "longest", "words"),
    [
        ("images", "VHA", "LSE", 7, (12, 1, 16, 5)),
        ("images", "VHA", "LSE", 40, (12, 12, 3, 3, 20, 33)),
        ("images", "VHA", "Mean", 7, (9,)),
        ("images", "VHA", "Sum", 3, (5, 65)),
        ("captions", "THA", "Max", 7, (4, 1)),
    ],
)
def test_answers_are_the_compiled_searchs_to_the_bit(case, form, kind, coding, pooling, longest, words) -> None:
    """Ragged rows, ties, zeros, sizes from 1e-6 to 1e5; a filter, floors, and more rows asked for than there are."""
    dim, count = (20, 12) if SLOW else (70, 60)
    alignment, queries = AlignmentConfig(coding, pooling), made_queries(words, dim)
    plan = SearchPlan(fit_axes(queries[0], None), None, None, 2)
    rows = made_up(case, 5, count, longest, dim)
    parts = make_parts(rows, (count // 3, count // 3, count // 2), precision=form, plan=plan)
    scan, device = open_scan("int8", dim, alignment)
    ours, compiled = searches(parts, kind, alignment, scan)
    for allowed in (np.ones(count, bool), np.random.default_rng(1).random(count) < 0.6):
        for k in (1, 5, count + 1):
            expected = compiled.rank(queries, k, allowed)
            assert_equal(ours.rank(queries, k, allowed), expected)
            floors = np.array([ranking.scores[len(ranking.scores) // 2] for ranking in expected])
            assert_equal(ours.rank(queries, k, allowed, floors), compiled.rank(queries, k, allowed, floors))
    assert f"decide_{form}" in device.launched
    del ours, compiled
    gc.collect()
    scan.close()
    assert device.empty


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dim", [1, 8, 70])
@pytest.mark.parametrize(("ahead", "slot"), [(0, 64), (7, None), (1024, 64)])
def test_each_pair_is_the_true_row(
    form: str, dim: int, ahead: int, slot: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long rows and long queries, in several turns; what lies beyond a list's end is no row at all."""
    monkeypatch.setattr(decide_module, "_AHEAD", ahead)
    monkeypatch.setattr(decide_module, "RESULTS", 12 * 40 * 3)
    rng, alignment = np.random.default_rng(dim), AlignmentConfig()
    rows = [rng.standard_normal((length, dim)).astype(np.float32) for length in (1, 37, 16, 17, 5)]
    rows += [np.repeat(rows[0], 20, axis=0), np.zeros((3, dim), np.float32), -rows[1]]
    parts, queries = make_parts(rows, (3,), precision=form), made_queries((40, 1, 16), dim)
    scan, _ = open_scan("int8", dim, alignment)
    held = scan.gather([scan.hold(part) for part in parts])
    fine = scan._fine.hold(parts)
    assert fine.form == form
    lists = [[4, 0, 7, 5], [], [6, 1, 2, 3, 0]]
    listed = np.full((3, 6), 1 << 30, np.int32)
    for own, chosen in zip(listed, lists, strict=True):
        own[: len(chosen)] = chosen
    found = np.array([4, 0, 5], np.int32)
    sent = scan._arena.send("found", found), scan._arena.send("rows", listed)
    asked = scan._sender.send(queries, slot)
    terms = scan._sender.terms(asked, held.coded, held.largest)
    on_device = DeviceLists(3, 6, 0, 0, *sent, 0, 0, 0, terms)
    bounds = held.error, held.norm, held.blocks, held.plans
    codes = Codes(held.base, held.places, held.scale, held.lengths, *bounds, len(rows), len(held.coded.columns))
    finish = scan._decider.decide(fine, codes, on_device, asked, 6, 40)
    scan._arena.wait()
    decided = finish()
    assert decided.found.tolist() == [4, 0, 5]
    pairs = list(zip(decided.queries.tolist(), decided.rows.tolist(), strict=True))
    assert sorted(pairs) == sorted((i, row) for i, chosen in enumerate(lists) for row in chosen)
    every = [part.fine(i) for part in parts for i in range(len(part.starts) - 1)]
    for (i, row), maxima, winners in zip(pairs, decided.maxima, decided.winners, strict=True):
        truth, length = true_row(every[row], queries[i], "images", alignment), len(queries[i])
        assert maxima[:length].tolist() == truth.maxima.tolist()
        assert winners[:length].tolist() == truth.winners.tolist()


@pytest.mark.parametrize(("pooling", "k"), [("LSE", 3), ("Max", 1), ("Mean", 10), ("Sum", 43)])
def test_true_scores_of_a_few_rows_make_the_lists_short(pooling: str, k: int) -> None:
    """Rows closer than their codes can tell: the k-th largest true score is the threshold, to float64 rounding.

    43 rows and those beyond are more than the smaller `reach` takes.
    """
    rng, dim, count = np.random.default_rng(0), 64, 80 if SLOW else 100
    base = rng.standard_normal((4, dim)).astype(np.float32)
    rows = [base * np.float32(1 + 2e-4 * i) for i in rng.permutation(count)]
    queries, alignment = [base, base[:1], -base[:3]], AlignmentConfig(pooling=pooling)
    scan, device = open_scan("int8", dim, alignment)
    held = scan.gather([scan.hold(part) for part in make_parts(rows, (30,))])
    everything, none = np.ones(count, bool), np.full(3, -np.inf)
    listed = scan.shortlist(held, queries, k, everything, none)
    every: list[Decided] = []
    scan.decider(held)(queries, k, everything, none, 3, every.append)
    (decided,) = every
    assert device.launched.count("reach_64" if k < 43 else "reach_256") == 1
    for i, own in enumerate(listed):
        truth = np.array([true_row(row, queries[i], "images", alignment).score for row in rows])
        kth = np.sort(truth)[-k]
        chosen = np.sort(decided.rows[decided.queries == i])
        assert set(np.flatnonzero(truth >= kth)) <= set(chosen.tolist()) <= set(own.rows.tolist())
        upper = dict(zip(own.rows.tolist(), (own.scores + own.radii).tolist(), strict=True))
        assert own.threshold < kth - 1e-6
        assert decided.found[i] == sum(upper[row] >= kth - 1e-9 * abs(kth) for row in own.rows.tolist())
    assert decided.found.sum() < sum(len(own.rows) for own in listed)


@pytest.mark.parametrize("pooling", ["LSE", "Max", "Mean", "Sum"])
@pytest.mark.parametrize(("count", "k", "floored"), [(40, 3, False), (100, 4, True)])
def test_of_long_lists_the_gpu_leaves_the_best(pooling: str, count: int, k: int, floored: bool) -> None:
    """All rows are listed, as close as they are, and only those of the k largest scores that reach the floor come back.

    But where more rows than there is room for are equal to the k-th, all of the list does.
    """
    rng, dim, alignment = np.random.default_rng(count), 64, AlignmentConfig(pooling=pooling)
    sizes = 1 + 1e-6 * np.arange(count)[:, None, None]
    rows = list((rng.standard_normal((2, dim)) * sizes).astype(np.float32))
    queries = [*made_queries((3, 16, 1), dim), np.zeros((2, dim), np.float32)]
    scan, device = open_scan("int8", dim, alignment)
    parts = make_parts(rows, (30,), precision="float32")
    held = scan.gather([scan.hold(part) for part in parts])
    truth = np.array([[true_row(row, query, "images", alignment).score for row in rows] for query in queries])
    floors = np.sort(truth)[:, -2] if floored else np.full(4, -np.inf)
    every: list[Decided] = []
    scan.decider(held)(queries, k, np.ones(count, bool), floors, 4, every.append)
    (decided,) = every
    assert device.launched.count("select_64" if count <= 64 else "select_256") == 1
    assert decided.found.tolist() == [count] * 4
    for i, own in enumerate(truth):
        pairs = decided.choose(decided.queries == i)
        best = np.flatnonzero(own >= max(floors[i], np.sort(own)[-k]))
        assert sorted(pairs.rows.tolist()) == best.tolist()
        assert len(best) == (count if i == 3 else 2 if floored else k)
        for row, maxima, winners in zip(pairs.rows, pairs.maxima, pairs.winners, strict=True):
            known = true_row(rows[row], queries[i], "images", alignment)
            assert maxima[: len(queries[i])].tolist() == known.maxima.tolist()
            assert winners[: len(queries[i])].tolist() == known.winners.tolist()


@pytest.mark.parametrize("equal", [6, 7, 8])
def test_where_one_row_too_many_is_left_the_whole_list_is_decided(equal: int) -> None:
    """k + 4 rows have room; all rows that are equal to the k-th come back, and none twice."""
    dim, k, alignment = 64, 3, AlignmentConfig()
    (best,), rest = made_queries((2,), dim), made_up("plain", 1, 30, 3, dim)
    rows = [*rest[:20], *[best] * equal, *rest[20:]]
    scan, device = open_scan("int8", dim, alignment)
    held = scan.gather([scan.hold(part) for part in make_parts(rows, precision="float32")])
    every: list[Decided] = []
    floors = np.full(4, true_row(rest[0], best, "images", alignment).score - 1e6)
    scan.decider(held)([best] * 4, k, np.ones(len(rows), bool), floors, 4, every.append)
    assert any(name.startswith("select") for name in device.launched)
    assert device.launched.count("decide_float32") == (3 if equal > k + 4 else 2), "for the threshold, and the lists"
    for i in range(4):
        assert sorted(every[0].choose(every[0].queries == i).rows.tolist()) == list(range(20, 20 + equal))


def test_the_last_queries_alone_have_their_own_numbers() -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig())
    held = scan.gather([scan.hold(part) for part in make_parts(made_up("plain", 3, 5, 5, 24))])
    queries = [np.float32(10.0**i) * query for i, query in enumerate(made_queries((3, 5, 2), 24))]
    sent = scan._sender.send(queries, None)
    scan._sender.terms(sent, held.coded, held.largest)
    scan._arena.wait()
    alone = sent.alone(1)
    assert alone.lengths == (5, 2)
    for name, kind in (("starts", np.int32), ("query_starts", np.int32), ("margins", np.float64)):
        every, own = (device.array(getattr(each, name), kind) for each in (sent, alone))
        assert own[:2].tolist() == every[1:3].tolist()
        assert own[0] != every[0]


@needs_core
@pytest.mark.skipif(SLOW, reason="many rows")
@pytest.mark.parametrize("capacity", [8, 24])
@pytest.mark.parametrize("gpus", [1, 3])
def test_lists_that_overflow_are_made_again_and_decided(
    gpus: int, capacity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some queries' lists, on some GPUs; the compiled search is asked for nothing."""
    monkeypatch.setattr(queue_module, "CAPACITY", capacity)
    alignment, dim = AlignmentConfig(), 24
    rows = made_up("plain", 4, 50, 5, dim) + made_up("near", 3, 100, 5, dim)
    parts = make_parts(rows, (25, 50, 60, 120))
    scans = [open_scan("int8", dim, alignment)[0] for _ in range(gpus)]
    ours, compiled = searches(parts, "images", alignment, SplitScan(scans) if gpus > 1 else scans[0])
    monkeypatch.setattr(compiled, "rank_listed", None)
    queries = [*made_queries((4, 12, 3), dim), rows[60][:1].repeat(3, axis=0)]
    overflowed = 0
    for k in (1, 5, 20):
        found = ours.rank(queries, k, np.ones(150, bool))
        assert_equal(found, compiled.rank(queries, k))
        overflowed += sum(ranking.rescored > capacity * gpus for ranking in found)
    assert overflowed


@needs_core
def test_where_the_fine_copy_does_not_fit_the_compiled_search_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    alignment, dim, queries = AlignmentConfig(), 24, made_queries((4, 12), 24)
    parts = make_parts(made_up("plain", 3, 30, 5, dim), (10,))
    size = sum(len(part.stored) for part in parts) * 64 * 4
    for room, fits in ((2 * size - 1, False), (2 * size, True)):
        scan, device = open_scan("int8", dim, alignment)
        monkeypatch.setattr(device, "free_memory", lambda room=room: room)
        ours, compiled = searches(parts, "images", alignment, scan)
        assert_equal(ours.rank(queries, 5, np.ones(30, bool)), compiled.rank(queries, 5))
        assert ("decide_float32" in device.launched) == fits
        scan.close()


def test_fine_copies_of_several_forms_are_not_held() -> None:
    scan, _ = open_scan("int8", 24, AlignmentConfig())
    parts = [part for form in FORMS for part in make_parts(made_up("plain", 3, 5, 5, 24), precision=form)]
    assert scan._fine.hold(parts) is None
    assert scan.decider(scan.gather([scan.hold(part) for part in parts])) is None
    assert scan.decider(scan.gather([])) is None


def test_memory_that_runs_out_all_the_same_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig(), capacity=40_000)
    rows = scan.gather([scan.hold(part) for part in make_parts(made_up("plain", 3, 100, 5, 24), (50,))])
    monkeypatch.setattr(device, "free_memory", lambda: 1 << 30)
    before = len(device.memory)
    with pytest.raises(GpuMemoryError, match=r"the fine copy of 50 rows needs 0\.00 GiB .* are free: .*out of memory"):
        scan.decider(rows)
    gc.collect()
    assert len(device.memory) == before
    scan.close()
    assert device.empty


def test_a_fine_copy_is_uploaded_once_and_freed_with_its_last_holder() -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig())
    parts = make_parts(made_up("plain", 3, 30, 5, 24), (10,))
    held = [scan.hold(part) for part in parts]
    first, both = scan.gather(held[:1]), scan.gather(held)
    kept = len(device.memory)
    one = scan.decider(first)
    before = device.copied_in
    two = scan.decider(both)
    assert device.copied_in - before == len(parts[1].stored) * 64 * 4 + 8 * 30, "the second part's, and all places"
    del one
    before = device.copied_in
    one = scan.decider(first)
    assert device.copied_in - before == 8 * 10
    del one, two
    assert len(device.memory) == kept
    scan.close()


def test_a_damaged_fine_copy_is_refused_and_its_memory_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    (part,) = make_parts(made_up("plain", 3, 30, 5, 24))

    def check(self: Any, row: int, what: int) -> None:
        assert what == 4
        if row == 29:
            raise GalleryCorrupt("row 29")

    monkeypatch.setattr(type(part), "check", check)
    scan, device = open_scan("int8", 24, AlignmentConfig())
    rows = scan.gather([scan.hold(part)])
    kept = len(device.memory)
    with pytest.raises(GalleryCorrupt, match="row 29"):
        scan.decider(rows)
    gc.collect()
    assert len(device.memory) == kept
    scan.close()


@needs_core
@pytest.mark.parametrize("fine", FORMS)
def test_a_gallery_answers_as_on_the_cpu_through_changes(
    tmp_path, make_embeddings, make_settings, fine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are added, replaced and deleted; only new ones are uploaded."""
    devices: list[FakeDevice] = []

    def opened(path: Any, settings: Any, precision: str, index: int) -> Any:
        scan, device = open_scan(precision, settings.dim, settings.alignment)
        devices.append(device)
        return scan

    def answers(gallery: Gallery) -> list:
        results = gallery.search(make_embeddings(99, 3), 4)
        return [[(hit.id, hit.score, hit.word_regions.tolist()) for hit in result.hits] for result in results]

    monkeypatch.setattr(scanner_module, "open_resident", opened)
    with GalleryWriter.create(tmp_path / "g", make_settings(fine=fine)) as writer:
        for i in range(2):
            writer.add([f"{i}-{n}" for n in range(10)], make_embeddings(i, 10))
        writer.delete(["0-3", "1-9"])
    with Gallery.open(tmp_path / "g") as cpu, Gallery.open(tmp_path / "g", device="cuda") as gpu:
        assert answers(gpu) == answers(cpu)
        before = devices[0].copied_in
        with GalleryWriter.open(tmp_path / "g") as writer:
            writer.add(["new"], make_embeddings(50, 1))
            writer.delete(["0-1"])
        assert answers(gpu) == answers(cpu)
        assert devices[0].copied_in - before < 20_000
        assert devices[0].launched.count(f"decide_{fine}") == 4, "for the threshold and for the list of each search"
    assert devices[0].empty


@pytest.mark.parametrize("pooling", ["LSE", "Max", "Mean", "Sum"])
def test_pairs_are_pooled_as_one_row_is(pooling: str) -> None:
    rng, alignment = np.random.default_rng(0), AlignmentConfig(pooling=pooling)
    for longest, shortest in ((12, 12), (70, 1)):
        maxima, lengths = rng.standard_normal((200, longest)), rng.integers(shortest, longest + 1, 200)
        expected = [float(pool(own[:length], alignment)) for own, length in zip(maxima, lengths, strict=True)]
        assert pooled(maxima, lengths, alignment).tolist() == expected


def test_details_are_a_sequence_of_true_rows() -> None:
    scores, maxima = np.array([3.0, 2.0, 1.0]), np.arange(6.0).reshape(3, 2)
    details = TrueRows(scores, maxima, maxima.astype(np.int32))
    assert [each.score for each in details] == [3, 2, 1]
    assert isinstance(details[-1], TrueRow)
    assert details[-1].maxima.tolist() == [4, 5]
    assert [each.winners.tolist() for each in itertools.islice(details[1:], 1)] == [[2, 3]]
    with pytest.raises(IndexError):
        details[3]


@needs_core
@pytest.mark.parametrize("what", ["malloc", "malloc_host"])
def test_nothing_that_was_freed_is_read_after_memory_ran_out(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever allocation of a larger call fails, the next smaller call finds what it found before."""
    monkeypatch.setattr(memory_module, "_LETTER", 4096)  # not enough for the larger call
    dim, alignment, allowed = 24, AlignmentConfig(), np.ones(60, bool)
    parts = make_parts(made_up("plain", 3, 60, 5, dim))
    few, many = made_queries((5,), dim), made_queries((5,) * 20, dim)
    failed = True
    for turn in itertools.count():
        scan, device = open_scan("int8", dim, alignment)
        ours, compiled = searches(parts, "images", alignment, scan)
        expected = compiled.rank(few, 3, allowed)
        assert_equal(ours.rank(few, 3, allowed), expected)
        allocate, left = getattr(device, what), turn

        def fail_once(size: int, allocate: Any = allocate) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                raise GpuMemoryError("CUDA: out of memory")
            return allocate(size)

        monkeypatch.setattr(device, what, fail_once)
        failed = False
        try:
            ours.rank(many, 3, allowed)
        except GpuMemoryError:
            failed = True
        assert_equal(ours.rank(few, 3, allowed), expected)
        del ours
        scan.close()
        assert device.empty
        if not failed:
            break
    assert turn > 3


@needs_core
@pytest.mark.parametrize("k", [2**31, 2**70])
def test_k_is_any_number(k: int) -> None:
    scan, _ = open_scan("int8", 24, AlignmentConfig())
    ours, compiled = searches(make_parts(made_up("plain", 3, 20, 5, 24)), "images", AlignmentConfig(), scan)
    query, allowed = made_queries((5,), 24), np.ones(20, bool)
    assert_equal(ours.rank(query, k, allowed), compiled.rank(query, 20, allowed))
    assert len(scan.shortlist(ours._rows, query, k, allowed, np.full(1, -np.inf))[0].rows) == 20


@pytest.mark.parametrize(("longest", "most"), [(12, 1024), (400, 54), (4096, 5)])
def test_no_more_is_decided_ahead_than_is_soon_copied(longest: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a list whose length is not known yet: 1024 rows, or as many as 256 KiB of results hold."""
    scan, _ = open_scan("int8", 24, AlignmentConfig())
    asked: list[int] = []

    def queue(fine: Any, codes: Any, lists: Any, sent: Any, chosen: np.ndarray, longest: int) -> Any:
        asked.append(len(chosen))
        return np.zeros(0, np.int32), np.zeros((0, longest)), np.zeros((0, longest), np.int32)

    monkeypatch.setattr(scan._decider, "_fetch", queue)
    lists = DeviceLists(1, 4096, 0, 0, scan._arena.send("found", np.zeros(1, np.int32)), *[0] * 5)
    scan._decider.decide(None, None, lists, None, 600, longest)
    assert asked == [most]
    scan.close()


@needs_core
def test_long_queries_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of queries so long that results would not fit, no row is picked, and none is decided before lists are known."""
    monkeypatch.setattr(decide_module, "_LONGEST", 4)
    monkeypatch.setattr(queue_module, "RESULTS", 12 * 25 * 4)
    scan, device = open_scan("int8", 24, AlignmentConfig())
    ours, compiled = searches(make_parts(made_up("plain", 3, 60, 5, 24)), "images", AlignmentConfig(), scan)
    query, allowed = made_queries((5,), 24), np.ones(60, bool)
    assert_equal(ours.rank(query, 3, allowed), compiled.rank(query, 3, allowed))
    assert not any(name.startswith("reach") for name in device.launched)


def test_a_row_that_is_too_long_for_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_module, "_MOST_VALUES", 4 * stored_width(24))
    scan, device = open_scan("int8", 24, AlignmentConfig())
    (short,), (long,) = (make_parts([np.ones((length, 24), np.float32)]) for length in (3, 4))
    scan.hold(short)
    with pytest.raises(BackendError, match="at most 3 vectors of this width, got 4: search with device='cpu'"):
        scan.hold(long)
    scan.close()
    assert device.empty


@needs_core
def test_a_search_after_the_end_is_an_error_and_keeps_no_memory() -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig())
    ours, _ = searches(make_parts(made_up("plain", 3, 20, 5, 24)), "images", AlignmentConfig(), scan)
    query, allowed = made_queries((5,), 24), np.ones(20, bool)
    ours.rank(query, 3, allowed)
    scan.close()
    with pytest.raises(BackendError, match="the gallery was closed"):
        ours.rank(query, 3, allowed)
    assert device.empty
