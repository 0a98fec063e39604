"""The first level of a plan on a GPU: rankings are the CPU's, and most rows' codes are not read.

On a device made of host memory, as test_resident.py; with CHAN_TEST_KERNELS the real kernels run.
"""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.bench.search import Concepts
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import Gallery, GallerySettings, GalleryWriter
from chan_rt.runtime.gallery import scanner as scanner_module
from chan_rt.runtime.gallery.compiled import open_core
from chan_rt.runtime.gallery.cuda import SplitScan
from chan_rt.runtime.gallery.cuda import fine as fine_module
from chan_rt.runtime.gallery.cuda import held as held_module
from chan_rt.runtime.gallery.cuda import list_queue as queue_module
from chan_rt.runtime.gallery.cuda.decide import Decided
from chan_rt.runtime.gallery.cuda.kernels import level_stride
from chan_rt.runtime.gallery.cuda.scan import KernelScan
from chan_rt.runtime.gallery.kernels.layout import stored_width
from chan_rt.runtime.gallery.proof.prefix import (
    CODE_AXES,
    SearchPlan,
    fit_axes,
    fit_level,
    largest_coordinates,
    level_widths,
    rotate,
)
from chan_rt.runtime.gallery.proof.prefix_bounds import weigh_integers
from chan_rt.runtime.gallery.proof.rows import ArrayPart
from chan_rt.runtime.gallery.proof.true_score import true_row
from chan_rt.runtime.gpu import examine_gpu

from .test_resident import SLOW, compiled_ranker, made_up, make_parts, open_scan, rankers

DIM = 150  # the narrowest stored width that has levels is 192


def plan_of(rows: list[np.ndarray], queries: list[np.ndarray]) -> SearchPlan:
    """A plan with both levels."""
    vectors = np.concatenate(rows)
    axes = fit_axes(vectors, np.concatenate(queries))
    widths, rotated, largest = level_widths(vectors.shape[1]), rotate(vectors, axes), largest_coordinates(vectors, axes)
    assert widths is not None
    first, second = (fit_level(rotated, largest, width) for width in widths)
    return SearchPlan(axes, first, second, 2)


def fallen(rng: np.random.Generator, rows: list[np.ndarray]) -> list[np.ndarray]:
    """Rows whose spectrum falls, so that a few coordinates tell most."""
    weights = np.arange(1, rows[0].shape[1] + 1, dtype=np.float32) ** np.float32(-1)
    return [row * weights for row in rows]


def upper_bounds(scan: KernelScan, device: Any, queries: int, rows: int) -> np.ndarray:
    """What `bound` left on the device."""
    return device.array(scan._arena._rooms["upper"][0], np.float64)[: queries * rows].reshape(queries, rows)


@pytest.fixture(autouse=True)
def at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small galleries read the level first, too, and go on where most rows remain."""
    monkeypatch.setattr(held_module, "LEAST", 0)
    monkeypatch.setattr(queue_module, "SHARE", 1)


@pytest.mark.parametrize("case", ["plain", "ties", "near", "zero", "huge"])
@pytest.mark.parametrize(
    ("kind", "coding", "pooling", "words", "gpus"),
    [
        ("images", "VHA", "LSE", (1, 12, 16), 1),
        ("images", "VHA", "LSE", (70, 20), 1),
        ("images", "VHA", "LSE", (9,), 3),
        ("images", "VHA", "Mean", (5, 17), 1),
        ("images", "VHA", "Sum", (5, 65), 1),
        ("captions", "THA", "Max", (4, 1), 1),
    ],
)
def test_rankings_by_levels_are_those_of_the_cpu(
    case: str, kind: str, coding: str, pooling: str, words: tuple[int, ...], gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without the fine copy on the GPU, rows of another plan, rows of none, filters, floors, any k."""
    count, rng = 24 if SLOW else 60, np.random.default_rng(1)
    alignment = AlignmentConfig(coding, pooling)
    rows = fallen(rng, made_up(case, 5, count, 20, DIM))
    queries = fallen(rng, [rng.standard_normal((n, DIM)).astype(np.float32) for n in words])
    cuts = count // 4, count // 2, count - 4, count - 2
    plan, other = plan_of(rows, queries), plan_of(rows[:3], queries)
    plans = [plan, plan, plan, other, None]
    edges = [0, *cuts, count]
    parts = [make_parts(rows[a:b], plan=own)[0] for (a, b), own in zip(itertools.pairwise(edges), plans, strict=True)]
    opened = [open_scan("int8", DIM, alignment) for _ in range(gpus)]
    scan: Any = opened[0][0] if gpus == 1 else SplitScan([each for each, _ in opened])
    searches = [rankers(parts, kind, alignment, scan)[0]]
    if open_core():
        searches.append(compiled_ranker(parts, kind, alignment, scan))
        with monkeypatch.context() as patch:
            patch.setattr(fine_module, "SHARE", 0.0)
            searches.append(compiled_ranker(parts, kind, alignment, scan))
    cpu = rankers(parts, kind, alignment, scan)[1]
    everything, some = np.ones(count, bool), rng.random(count) < 0.6
    for allowed, k, by_floors in (
        (everything, 5, False),
        (some, 1, True),
        (some, 5, True),
        (everything, count + 1, False),
    ):
        expected = cpu.exact(queries, k, allowed)
        least = np.array([ranking.scores[len(ranking.scores) // 2] for ranking in expected]) if by_floors else None
        expected = cpu.exact(queries, k, allowed, least)
        for search in searches:
            for one, of_cpu in zip(search.exact(queries, k, allowed, least), expected, strict=True):
                assert one.certified
                assert one.rows.tolist() == of_cpu.rows.tolist()
                assert one.scores.tolist() == of_cpu.scores.tolist()
    assert any(name.startswith("bound_") for _, device in opened for name in device.launched)
    searches.clear()
    del search
    scan.close()
    assert all(device.empty for _, device in opened)


@pytest.mark.parametrize("dim", [150, 200])
def test_queries_are_weighed_as_the_proof_has_it(dim: int) -> None:
    """`weigh_integers`, from what `project` and `weigh` leave; a query of zeros among them."""
    rng, alignment = np.random.default_rng(3), AlignmentConfig()
    rows = fallen(rng, [rng.standard_normal((n, dim)).astype(np.float32) for n in (1, 17, 36, 5) * 3])
    queries = fallen(rng, [rng.standard_normal((n, dim)).astype(np.float32) for n in (3, 17)])
    plan = plan_of(rows, queries)
    queries.append(np.concatenate([np.zeros((1, dim), np.float32), queries[0] * np.float32(1e-3)]))
    scan, device = open_scan("int8", dim, alignment)
    held = scan.gather([scan.hold(part) for part in make_parts(rows, (5,), plan=plan)])
    scan.shortlist(held, queries, 3, np.ones(len(rows), bool), np.full(3, -np.inf))
    vectors, words = np.concatenate(queries).astype(np.float64), sum(map(len, queries))
    counts = np.repeat([float(len(query)) for query in queries], [len(query) for query in queries])
    expected = weigh_integers(vectors, plan.axes, plan.first, held.levels.largest, counts, alignment)
    at = {name: room[0] for name, room in scan._arena._rooms.items()}
    stride = level_stride(stored_width(dim))
    digits = device.array(at["digits"], np.int8)[: 2 * words * stride].reshape(2, words, stride).astype(np.int64)
    scale, offset = (device.array(at[f"level_{name}"], np.float64)[:words] for name in ("scale", "offset"))
    integers = 128 * digits[0] + digits[1]
    assert np.abs(integers[:, : plan.first.width] - expected.integers).max() <= 1, "but for ties"
    assert (integers[:, : plan.first.width] == expected.integers).mean() > 0.999
    assert not integers[:, plan.first.width :].any()
    np.testing.assert_allclose(scale, expected.scale, rtol=1e-12)
    constant = expected.constant + expected.scale * (128 * expected.integers.sum(axis=1))
    norms = slice(plan.first.norms)
    ties = 128 * expected.scale * np.abs(integers[:, norms] - expected.integers[:, norms]).sum(axis=1)
    assert (np.abs(offset - constant) <= ties + 1e-9 * expected.scale).all()


@pytest.mark.parametrize("dim", [150, 1024])
@pytest.mark.parametrize("pooling", ["LSE", "Max", "Mean", "Sum"])
def test_bounds_are_above_true_scores_and_infinite_where_nothing_is_known(dim: int, pooling: str) -> None:
    rng = np.random.default_rng(3)
    rows = fallen(rng, [rng.standard_normal((n, dim)).astype(np.float32) for n in (1, 17, 36, 5, 16, 40, 2) * 2])
    queries = fallen(rng, [rng.standard_normal((n, dim)).astype(np.float32) for n in (3, 17)])
    rows[2] *= np.float32(100)  # its norms do not fit the plan's
    plan = plan_of([row for i, row in enumerate(rows) if i != 2], queries)
    coded, uncoded = make_parts(rows[:10], plan=plan)[0], make_parts(rows[10:])[0]
    assert isinstance(coded, ArrayPart)
    assert coded.coded is not None
    assert (coded.coded.loose & 1).nonzero()[0].tolist() == [2]
    alignment = AlignmentConfig(pooling=pooling)
    scan, device = open_scan("int8", dim, alignment)
    held = scan.gather([scan.hold(part) for part in (coded, uncoded)])
    assert held.levels is None, "too few rows are coded"
    held = scan.gather([scan.hold(part) for part in (coded, coded, uncoded)])
    allowed = np.ones(24, bool)
    allowed[[5, 21]] = False
    scan.shortlist(held, queries, 3, allowed, np.full(2, -np.inf))
    found = upper_bounds(scan, device, 2, 24)
    for i, query in enumerate(queries):
        truth = np.array([true_row(row, query, "images", alignment).score for row in [*rows[:10], *rows]])
        assert (found[i, allowed] >= truth[allowed]).all()
        assert np.flatnonzero(found[i] == np.inf).tolist() == [2, 12, 20, 22, 23]
        assert np.flatnonzero(found[i] == -np.inf).tolist() == [5, 21]
        finite = np.isfinite(found[i])
        spread = np.ptp(truth[finite & (truth < truth[finite].max())])
        assert np.median(found[i, finite] - truth[finite]) < spread, "and tell rows apart"


@pytest.mark.skipif(SLOW, reason="many rows")
def test_where_too_many_rows_remain_every_one_is_scanned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "SHARE", 40)  # 5 of 200
    rng, alignment = np.random.default_rng(0), AlignmentConfig()
    rows = fallen(rng, made_up("plain", 3, 200, 5, DIM))
    queries = [rng.standard_normal((4, DIM)).astype(np.float32) for _ in range(2)]
    parts = make_parts(rows, (50,), plan=plan_of(rows, queries))
    scan, device = open_scan("int8", DIM, alignment)
    ours, cpu = rankers(parts, "images", alignment, scan)
    searches = [ours, *([compiled_ranker(parts, "images", alignment, scan)] if open_core() else [])]
    everything = np.ones(200, bool)
    for search in searches:
        device.launched.clear()
        found, expected = search.exact(queries, 9, everything), cpu.exact(queries, 9, everything)
        assert [one.rows.tolist() for one in found] == [one.rows.tolist() for one in expected]
        assert [name for name in device.launched if name in ("bound_16", "scan_16")] == ["bound_16", "scan_16"]


@pytest.mark.skipif(SLOW, reason="many rows")
def test_lists_that_are_worth_nothing_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The level leaves more rows than there is room for, and so many are equal that every list overflows."""
    monkeypatch.setattr(queue_module, "SHARE", 2)
    monkeypatch.setattr(queue_module, "CAPACITY", 20)
    rng, alignment = np.random.default_rng(0), AlignmentConfig()
    rows = fallen(rng, [rng.standard_normal((5, DIM)).astype(np.float32)]) * 200
    queries = [rng.standard_normal((4, DIM)).astype(np.float32)]
    parts = make_parts(rows, (50,), plan=plan_of(rows[:1], queries))
    scan, device = open_scan("int8", DIM, alignment)
    held = scan.gather([scan.hold(part) for part in parts])
    every: list[Decided] = []
    device.launched.clear()
    scan.decider(held)(queries, 5, np.ones(200, bool), np.full(1, -np.inf), 1, every.append)
    assert [len(decided.rows) for decided in every] == [200]
    before, after = (
        device.launched[: device.launched.index("scan_16")],
        device.launched[device.launched.index("scan_16") :],
    )
    assert before.count("shortlist") == 2, "of the candidates, and the list that is worth nothing"
    assert after.count("shortlist") == 2, "the list that overflowed, and the one with room for all"


@pytest.mark.skipif(SLOW, reason="many rows")
def test_many_queries_and_small_galleries_are_scanned_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = fallen(rng, made_up("plain", 3, 60, 5, DIM))
    queries = [rng.standard_normal((4, DIM)).astype(np.float32) for _ in range(5)]
    parts = make_parts(rows, (30,), plan=plan_of(rows, queries))
    scan, device = open_scan("int8", DIM, AlignmentConfig())
    held = scan.gather([scan.hold(part) for part in parts])
    none, everything = np.full(5, -np.inf), np.ones(60, bool)
    scan.shortlist(held, queries, 3, everything, none)
    assert device.launched[:2] == ["quantize", "pairs_16"]
    scan.shortlist(held, queries[:3], 3, everything, none[:3])
    assert "bound_16" in device.launched
    monkeypatch.setattr(held_module, "LEAST", 60 * 5 * 192)
    assert scan.gather([scan.hold(part) for part in parts]).levels is None


def test_levels_are_uploaded_once_and_freed_with_their_part() -> None:
    rng = np.random.default_rng(0)
    rows = fallen(rng, made_up("plain", 3, 40, 5, DIM))
    parts = make_parts(rows, (20,), plan=plan_of(rows, rows[:2]))
    scan, device = open_scan("int8", DIM, AlignmentConfig())
    held = scan.gather([scan.hold(part) for part in parts])
    assert held.levels is not None
    stride = level_stride(stored_width(DIM))
    assert stride == 64
    for part, own in zip(parts, held.held, strict=True):
        stored = device.array(own.coded.address, np.int8)[: len(part.stored) * stride].reshape(-1, stride)
        width = part.coded.first.shape[1]
        np.testing.assert_array_equal(stored[:, :width], part.coded.first.astype(np.int16) - 128)
    before = device.copied_in
    again = scan.gather([scan.hold(part) for part in parts])
    assert device.copied_in - before < len(np.concatenate(rows)) * stride, "the rows' places alone"
    del held, again, own
    assert not device.memory
    scan.close()
    assert device.empty


def test_where_memory_does_not_suffice_levels_are_left_out() -> None:
    rng, alignment = np.random.default_rng(0), AlignmentConfig()
    rows = fallen(rng, made_up("plain", 3, 100, 5, DIM))
    parts = make_parts(rows, plan=plan_of(rows, rows[:2]))
    codes, axes = len(np.concatenate(rows)) * 192, 192 * CODE_AXES * 8
    scan, device = open_scan("int8", DIM, alignment, capacity=codes + axes + 100 * 48 + 4000)
    held = scan.gather([scan.hold(part) for part in parts])
    assert held.levels is None
    del held
    scan.close()
    assert device.empty


def test_levels_of_some_parts_give_their_room_back_where_those_of_others_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    rows = fallen(rng, made_up("plain", 3, 100, 5, DIM))
    parts = make_parts(rows, (50,), plan=plan_of(rows, rows[:2]))

    def kept(least: int, capacity: int) -> tuple[bool, int]:
        """Whether levels are read, and the memory that is held."""
        monkeypatch.setattr(held_module, "LEAST", least)
        scan, device = open_scan("int8", DIM, AlignmentConfig(), capacity=capacity)
        held = scan.gather([scan.hold(part) for part in parts])
        found = held.levels is not None, sum(map(len, device.memory.values()))
        del held
        scan.close()
        assert device.empty
        return found

    _, without = kept(1 << 40, 1 << 30)
    levels, most = kept(0, 1 << 30)
    assert levels
    for capacity in (without + 64 * int(parts[0].starts[-1]), most - 100 * 8, most - 1):
        assert kept(0, capacity) == (False, without)
    assert kept(0, most) == (True, most)


def test_a_level_wider_than_the_kernels_take_is_not_read() -> None:
    rng = np.random.default_rng(0)
    rows = fallen(rng, made_up("plain", 3, 40, 5, DIM))
    plan = plan_of(rows, rows[:2])
    assert plan.second is not None
    assert plan.second.width > 64
    parts = make_parts(rows, plan=SearchPlan(plan.axes, plan.second, plan.second, 2))
    scan, device = open_scan("int8", DIM, AlignmentConfig())
    held = scan.gather([scan.hold(part) for part in parts])
    assert held.levels is None
    del held
    scan.close()
    assert device.empty


@pytest.mark.skipif(SLOW, reason="many rows")
def test_most_codes_are_not_read() -> None:
    """Of 6,000 rows like those of scenes; a row that is not scanned has no score."""
    count, vectors, dim, k = 6_000, 6, 256, 10
    source = Concepts(0, dim)
    words = source.captions(np.full(64, 12, np.int32)).vectors
    regions = source.images(count, vectors).vectors
    plan = plan_of(list(regions[:300]), list(words[2:]))
    parts = make_parts(list(regions), (3000,), precision="float16", plan=plan)
    scan, device = open_scan("int8", dim, AlignmentConfig(), capacity=4 << 30)
    held = scan.gather([scan.hold(part) for part in parts])
    none, everything = np.full(2, -np.inf), np.ones(count, bool)
    every: list[Decided] = []
    scan.decider(held)(list(words[:2]), k, everything, none, 2, every.append)
    (decided,) = every
    scores = device.array(scan._arena._rooms["scores"][0], np.float64)[: 2 * count].reshape(2, count)
    scanned = np.isfinite(scores).sum(axis=1)
    assert (scanned < count // 2).all()
    assert scan.left is not None
    assert (scan.left <= scanned).all(), "those that were picked first need not be among them"
    assert (scan.left > scanned - queue_module.FEW).all()
    assert (decided.found < 200).all()


def scenes(folder: Path, fine: str, alignment: AlignmentConfig) -> list[Embeddings]:
    """A gallery of 600 images like those of scenes, prepared; captions of one length each."""
    source = Concepts(0, 256)
    settings = GallerySettings("images", 256, alignment, model="m", fine=fine)
    with GalleryWriter.create(folder, settings) as writer:
        for first in range(0, 600, 200):
            writer.add([str(i) for i in range(first, first + 200)], source.images(200, 6))
        writer.prepare(source.captions(np.full(60, 12, np.int32)))
        writer.delete(["7", "399"])
    return [source.captions(np.full(2, length, np.int32)) for length in (12, 40)]


def check_answers(folder: Path, captions: list[Embeddings], device: str) -> None:
    """A gallery's answers on the GPU are the CPU's, and its first level was read."""
    with Gallery.open(folder) as cpu, Gallery.open(folder, device=device) as gpu:
        for asked in captions:
            for ours, expected in zip(gpu.search(asked, 10), cpu.search(asked, 10), strict=True):
                assert ours.certified
                assert [(hit.id, hit.score) for hit in ours.hits] == [(hit.id, hit.score) for hit in expected.hits]
                for hit, other in zip(ours.hits, expected.hits, strict=True):
                    assert hit.word_regions.tolist() == other.word_regions.tolist()
            scan = gpu._scanner.resident
            assert isinstance(scan, KernelScan)
            assert scan.left is not None


@pytest.mark.skipif(SLOW, reason="many rows")
@pytest.mark.parametrize("fine", ["float32", "float16", "fixed16"])
def test_a_prepared_gallery_answers_as_on_the_cpu(tmp_path: Path, fine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: Path, settings: GallerySettings, precision: str, index: int) -> KernelScan:
        return open_scan(precision, settings.dim, settings.alignment)[0]

    monkeypatch.setattr(scanner_module, "open_resident", opened)
    check_answers(tmp_path / "g", scenes(tmp_path / "g", fine, AlignmentConfig()), "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not examine_gpu().gpus, reason="no NVIDIA GPU")
@pytest.mark.parametrize("fine", ["float32", "float16", "fixed16"])
@pytest.mark.parametrize("pooling", ["LSE", "Mean", "Sum"])
def test_on_a_gpu_a_prepared_gallery_answers_as_on_the_cpu(tmp_path: Path, fine: str, pooling: str) -> None:
    pytest.importorskip("triton", reason="compiling the kernels needs triton")
    from chan_rt.bench.gpu_kernels import give_kernels

    captions = scenes(tmp_path / "g", fine, AlignmentConfig(pooling=pooling))
    give_kernels(tmp_path / "g", 256, pooling, "int8", examine_gpu().gpus[0].capability)
    check_answers(tmp_path / "g", captions, "cuda")
