"""A gallery on a GPU, on a device made of host memory: rankings are the CPU's, memory is kept and given back.

Here numpy stands for the kernels. With CHAN_TEST_KERNELS=sm_90 the same tests run the real ones, compiled for that
architecture, on the machine of tests/ptx, and with CHAN_TEST_KERNELS=cuda on this machine's GPU; tests of
tests/export/test_kernels.py do that.
"""

import gc
import itertools
import os
import threading
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.bench.search import Concepts
from chan_rt.runtime import forks
from chan_rt.runtime.backends.fake import FakeDevice
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import BackendError, GpuMemoryError, InputError, TensorError
from chan_rt.runtime.gallery import Gallery, GalleryWriter
from chan_rt.runtime.gallery import scanner as scanner_module
from chan_rt.runtime.gallery.compiled import CompiledSearch, CoreThreads, open_core
from chan_rt.runtime.gallery.cuda import GpuEstimator, ResidentSearch, SplitScan, check_settings, open_resident
from chan_rt.runtime.gallery.cuda import list_queue as queue_module
from chan_rt.runtime.gallery.cuda import pieces as pieces_module
from chan_rt.runtime.gallery.cuda.kernels import (
    FORMS,
    GROUPS,
    LISTED_BLOCKS,
    MOST_GROUPS,
    PAIR_ROWS,
    PICKS,
    POOLINGS,
    SCAN_ROWS,
    UNIT,
    WORD_TILES,
    WORDS_A_TILE,
    Function,
    KernelRecord,
    level_stride,
)
from chan_rt.runtime.gallery.cuda.memory import Arena
from chan_rt.runtime.gallery.cuda.scan import KernelScan
from chan_rt.runtime.gallery.estimate import CpuEstimator
from chan_rt.runtime.gallery.kernels.choose import open_kernel
from chan_rt.runtime.gallery.kernels.layout import stored_width
from chan_rt.runtime.gallery.kernels.pool import Pool
from chan_rt.runtime.gallery.proof.bounds import MOST_BLOCKS, Reach, int8_radius, no_axes, quantize_query
from chan_rt.runtime.gallery.proof.gallery_rows import GalleryRows
from chan_rt.runtime.gallery.proof.intervals import score_radius, similarity_changes
from chan_rt.runtime.gallery.proof.prefix import SearchPlan, fit_axes
from chan_rt.runtime.gallery.proof.rows import array_part
from chan_rt.runtime.gallery.rank import Ranker
from chan_rt.runtime.gpu import Gpu, GpuReport, device_indices, examine_gpu

from ...ptx.machine import ptx_kernels
from ...run_chan import chan
from .decide_model import decide
from .level_model import bound, pooled, project, reach, select, weigh
from .on_gpu import ObservedGpu, compiled_kernels
from .query_model import quantize, terms

KERNELS = os.environ.get("CHAN_TEST_KERNELS", "numpy")  # or cuda, or an architecture, sm_90
SLOW = KERNELS.startswith("sm_")
NAMES = ("scan_16", "scan_64", "pairs_16", "pairs_32", "pairs_64", "best_rows", "kth_best", "shortlist")
DECIDE = (*(f"decide_{form}" for form in FORMS), *(f"{name}_{most}" for name in ("reach", "select") for most in PICKS))
OF_QUERIES = ("quantize", "terms")
POOL = Pool(1)


class Model:
    """The kernels in numpy: what each must leave in memory, written out plainly."""

    def __init__(self, precision: str, width: int, pooling: str) -> None:
        self.precision, self.width, self.pooling = precision, width, pooling
        self._kind = np.int8 if precision == "int8" else np.float16

    def scan(self, device, blocks, vectors, row_places, lengths, scale, allowed, query, word_starts, word_scale, scores,
             rows, words, queries, temperature) -> None:  # fmt: skip
        assert blocks == -(-rows // SCAN_ROWS) * queries
        word_starts = device.array(word_starts, np.int32)[: queries + 1]
        places = [np.arange(*ends) for ends in itertools.pairwise(word_starts)]
        stored, starts = self._stored(device, vectors, row_places, lengths, rows)
        self._pool(device, stored, starts, scale, allowed, query, words, places, word_scale, scores, rows, temperature)

    def pairs(self, device, blocks, vectors, row_places, lengths, scale, allowed, query, counts, word_scale, scores,
              rows, queries, tiles, temperature, slot=0) -> None:  # fmt: skip
        assert blocks == -(-rows // PAIR_ROWS) * tiles
        assert tiles == -(-queries * slot // WORDS_A_TILE)
        words = tiles * WORDS_A_TILE
        counts = device.array(counts, np.int32)[: words // slot]
        assert not counts[queries:].any()
        places = [i * slot + np.arange(count) for i, count in enumerate(counts[:queries])]
        stored, starts = self._stored(device, vectors, row_places, lengths, rows)
        self._pool(device, stored, starts, scale, allowed, query, words, places, word_scale, scores, rows, temperature)

    def _stored(self, device, vectors, places, lengths, rows) -> tuple[np.ndarray, np.ndarray]:
        kind, lengths = self._kind, device.array(lengths, np.int32)[:rows]
        stored = [
            device.array(int(vectors) + int(place) * UNIT, kind)[: length * self.width].reshape(-1, self.width)
            for place, length in zip(device.array(places, np.int64)[:rows], lengths, strict=True)
        ]
        return np.concatenate(stored), np.cumsum([0, *lengths])[:-1]

    def scan_listed(self, device, blocks, vectors, row_places, lengths, scale, found, listed, query, word_starts,
                    word_scale, scores, rows, words, queries, capacity, temperature) -> None:  # fmt: skip
        assert blocks == min(-(-capacity // SCAN_ROWS), LISTED_BLOCKS // queries) * queries
        word_starts = device.array(word_starts, np.int32)[: queries + 1]
        places = [np.arange(*ends) for ends in itertools.pairwise(word_starts)]
        stored = self._stored(device, vectors, row_places, lengths, rows)
        every = self._pooled(device, *stored, scale, query, words, places, word_scale, rows, temperature)
        for which, score in enumerate(every):
            count = min(device.array(found, np.int32)[which], capacity)
            chosen = device.array(listed, np.int32)[which * capacity :][:count]
            self._score(device, scores, which, rows)[chosen] = score[chosen]

    def _pool(self, device, stored, starts, scale, allowed, query, words, places, word_scale, scores, rows,
              temperature) -> None:  # fmt: skip
        mask = device.array(allowed, np.uint8)[:rows] != 0
        every = self._pooled(device, stored, starts, scale, query, words, places, word_scale, rows, temperature)
        for which, score in enumerate(every):
            self._score(device, scores, which, rows)[...] = np.where(mask, score, -np.inf)

    def _pooled(self, device, stored, starts, scale, query, words, places, word_scale, rows, temperature):
        planes = 2 if self.precision == "int8" else 1
        both = device.array(query, self._kind)[: planes * words * self.width].reshape(planes, words, self.width)
        wide = np.int64 if planes == 2 else np.float32
        products = [(stored.astype(wide) @ plane.astype(wide).T).astype(np.float32) for plane in both]
        product = products[0] * np.float32(254) + products[1] if planes == 2 else products[0]
        best = np.maximum.reduceat(product, starts, axis=0).astype(np.float64)  # [rows, words]
        best *= device.array(word_scale, np.float64)[:words]
        best *= device.array(scale, np.float32)[:rows, None].astype(np.float64)
        return [pooled(best[:, own], self.pooling, temperature) for own in places]

    def best_rows(self, device, blocks, scores, error, norm, around, plans, terms, maxima, owners, rows, size, groups,
                  queries, num_plans) -> None:  # fmt: skip
        assert groups == -(-rows // size) <= MOST_GROUPS
        assert blocks == -(-groups // GROUPS) * queries
        for which in range(queries):
            radius = self._radius(device, error, norm, around, plans, terms, which, rows, num_plans)
            lower = self._score(device, scores, which, rows) - radius
            lower[lower == np.inf] = -np.inf
            best = [i + int(lower[i : i + size].argmax()) for i in range(0, rows, size)]
            device.array(owners, np.int32)[which * groups :][:groups] = best
            device.array(maxima, np.float64)[which * groups :][:groups] = lower[best]

    def kth_best(self, device, blocks, maxima, owners, thresholds, found, picked, groups, k, picks,
                 queries) -> None:  # fmt: skip
        assert blocks == -(-groups // GROUPS) * queries
        for which in range(queries):
            own = device.array(maxima, np.float64)[which * groups :][:groups]
            order = np.argsort(-own, kind="stable")
            if 0 < k <= groups:
                reached = device.array(thresholds, np.float64)
                reached[which] = max(reached[which], own[order[k - 1]])
            best = device.array(owners, np.int32)[which * groups :][:groups][order[own[order] > -np.inf]][:picks]
            device.array(found, np.int32)[which] += len(best)
            device.array(picked, np.int32)[which * picks :][: len(best)] = best

    def shortlist(self, device, blocks, scores, error, norm, around, plans, terms, thresholds, found, listed_rows,
                  listed_scores, listed_radii, rows, capacity, queries, num_plans) -> None:  # fmt: skip
        for which in range(queries):
            score = self._score(device, scores, which, rows)
            radius = self._radius(device, error, norm, around, plans, terms, which, rows, num_plans)
            upper = score + radius
            keep = np.flatnonzero((upper >= device.array(thresholds, np.float64)[which]) & (score > -np.inf))[::-1]
            count = device.array(found, np.int32)
            place = count[which]
            count[which] += len(keep)
            keep = keep[: max(0, capacity - place)]
            at = which * capacity + place
            device.array(listed_rows, np.int32)[at : at + len(keep)] = keep
            device.array(listed_scores, np.float64)[at : at + len(keep)] = score[keep]
            device.array(listed_radii, np.float64)[at : at + len(keep)] = radius[keep]

    @staticmethod
    def _score(device, scores, which, rows) -> np.ndarray:
        return device.array(scores, np.float64)[which * rows : (which + 1) * rows]

    @staticmethod
    def _radius(device, error, norm, around, plans, terms, which, rows, num_plans) -> np.ndarray:
        size = 6 + MOST_BLOCKS
        own = device.array(terms, np.float64)[which * num_plans * size : (which + 1) * num_plans * size]
        of_row = own.reshape(num_plans, size)[device.array(plans, np.int32)[:rows]].T
        error, norm = (device.array(address, np.float32)[:rows].astype(np.float64) for address in (error, norm))
        blocks = device.array(around, np.float32)[: MOST_BLOCKS * rows].reshape(MOST_BLOCKS, rows).astype(np.float64)
        change = np.minimum(of_row[4] * error, of_row[5] * error + (of_row[6:] * blocks).sum(0))
        return of_row[0] + of_row[1] * change + of_row[2] * norm + of_row[3] * error


def kernels(precision: str, width: int, pooling: str) -> dict[str, Any]:
    """What a device runs under each kernel's name: the model, or Triton's PTX for an architecture."""
    if KERNELS != "numpy":
        return ptx_kernels(precision, width, pooling, KERNELS)
    model = Model(precision, width, pooling)
    scans = {name: model.scan for name in NAMES if name.startswith("scan_")}
    pairs = {name: partial(model.pairs, slot=int(name[6:])) for name in NAMES if name.startswith("pairs_")}
    decides = {
        name: partial(decide, name.removeprefix("decide_"), width) for name in DECIDE if name.startswith("decide_")
    }
    if (stride := level_stride(width)) is not None and precision == "int8":
        for words in WORD_TILES:
            scans[f"scan_listed_{words}"] = model.scan_listed
            scans[f"bound_{words}"] = partial(bound, words, stride, pooling)
        scans |= {"project": partial(project, width), "weigh": partial(weigh, width, stride)}
    reaches = {
        f"{name}_{most}": partial(kernel, most, pooling)
        for name, kernel in (("reach", reach), ("select", select))
        for most in PICKS
    }
    of_queries = {"quantize": partial(quantize, precision, width), "terms": partial(terms, pooling, width)}
    others = {name: getattr(model, name) for name in NAMES[5:]}
    return {**scans, **pairs, **decides, **reaches, **of_queries, **others}


def open_scan(precision: str, dim: int, alignment: AlignmentConfig, capacity: int = 1 << 30):
    """A scan on a device made of host memory, or on a GPU, and the device."""
    if KERNELS == "cuda":
        record, code = compiled_kernels(precision, dim, alignment.pooling)
        gpu = ObservedGpu(capacity)
        return KernelScan(record, code, gpu, dim, alignment), gpu
    known = kernels(precision, stored_width(dim), alignment.pooling)
    functions = {name: Function("", "", name, 128, 0, 0) for name in known}
    record = KernelRecord(precision, stored_width(dim), alignment.pooling, "sm_90", "none", "", functions)
    device = FakeDevice(known, capacity)
    return KernelScan(record, dict.fromkeys(functions, b""), device, dim, alignment), device


def make_parts(rows: list[np.ndarray], cuts=(), **options):
    """Parts that end at the cuts."""
    parts = []
    for first, last in itertools.pairwise([0, *sorted(cuts), len(rows)]):
        starts = np.cumsum([0] + [len(row) for row in rows[first:last]]).astype(np.int64)
        parts.append(array_part(np.concatenate([*rows[first:last], rows[0][:0]]), starts, **options))
    return parts


def rankers(parts: list, kind: str, alignment: AlignmentConfig, scan: Any) -> tuple[Ranker, Ranker]:
    """The ranker of a scan, and the CPU's."""
    rows, kernel = GalleryRows(parts, kind, alignment), open_kernel("numpy")
    gpu = GpuEstimator(rows, scan)
    return tuple(Ranker(rows, made, kernel, POOL) for made in (gpu, CpuEstimator(rows, kernel, POOL)))


def compiled_ranker(parts: list, kind: str, alignment: AlignmentConfig, scan: Any) -> Ranker:
    """The ranker of a scan whose lists the compiled search ranks."""
    rows, kernel = GalleryRows(parts, kind, alignment), open_kernel("numpy")
    search = ResidentSearch(rows, scan, CompiledSearch(rows, parts[0].plan, CoreThreads(2)))
    return Ranker(rows, CpuEstimator(rows, kernel, POOL), kernel, POOL, search)


def listing(scan: KernelScan, parts: list, queries: list, k: int) -> list:
    """What a scan lists of all rows of parts."""
    rows = scan.gather([scan.hold(part) for part in parts])
    return scan.shortlist(rows, queries, k, np.ones(rows.count, bool), np.full(len(queries), -np.inf))


def made_up(case: str, seed: int, count: int, longest: int, dim: int) -> list[np.ndarray]:
    """Rows of random length: plain, tied, nearly equal, zero, huge."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, count)
    rows = [rng.standard_normal((length, dim)).astype(np.float32) for length in lengths]
    match case:
        case "ties":
            rows = [np.sign(rows[i % 3][:1]).repeat(length, axis=0) for i, length in enumerate(lengths)]
        case "near":
            rows = [rows[0] + np.float32(1e-5) * rng.standard_normal(rows[0].shape).astype(np.float32) for _ in rows]
        case "zero":
            rows = [row * (i % 2) for i, row in enumerate(rows)]
        case "huge":
            rows = [row * np.float32(10.0 ** rng.integers(-6, 6)) for row in rows]
    return rows


@pytest.mark.parametrize("case", ["plain", "ties", "near", "zero", "huge"])
@pytest.mark.parametrize(
    ("kind", "coding", "pooling", "longest", "words"),
    [
        ("images", "VHA", "LSE", 7, (1, 12, 16)),
        ("images", "VHA", "LSE", 40, (1, 12, 16, 3, 3, 3, 3, 3, 20, 20, 30, 31, 60, 64, 70)),
        ("images", "VHA", "LSE", 100, (60, 3)),
        ("images", "VHA", "LSE", 1, (70, 5)),
        ("images", "VHA", "Mean", 7, (5, 17)),
        ("images", "VHA", "Sum", 7, (5, 65)),
        ("captions", "THA", "Max", 7, (4, 1)),
    ],
)
def test_rankings_are_those_of_the_cpu(case, kind, coding, pooling, longest, words) -> None:
    dim, count = 70, 20 if SLOW else 120
    alignment = AlignmentConfig(coding, pooling)
    rows = made_up(case, 5, count, longest, dim)
    queries = [np.random.default_rng(i).standard_normal((n, dim)).astype(np.float32) for i, n in enumerate(words)]
    parts = make_parts(
        rows, (count // 3, count // 3, count // 2), plan=SearchPlan(fit_axes(queries[0], None), None, None, 2)
    )
    allowed = np.random.default_rng(1).random(count) < 0.8
    scan, device = open_scan("int8", dim, alignment)
    ours, cpu = rankers(parts, kind, alignment, scan)
    compiled = compiled_ranker(parts, kind, alignment, scan) if open_core() else ours
    for k, ranker in itertools.product((5,) if SLOW else (1, 5, count + 1), (ours, compiled)):
        expected = cpu.exact(queries, k, allowed)
        found = ranker.exact(queries, k, allowed)
        for one, other in zip(found, expected, strict=True):
            assert one.certified
            assert one.rows.tolist() == other.rows.tolist()
            assert one.scores.tolist() == other.scores.tolist()
            assert [d.winners.tolist() for d in one.details] == [d.winners.tolist() for d in other.details]
            assert one.candidates == other.candidates
    del ours, compiled, ranker
    scan.close()
    assert device.empty


def test_few_rows_are_listed_and_all_that_could_be_best() -> None:
    """The list holds every row of the true top k and leaves most out; its scores are within the bound of the truth."""
    rng = np.random.default_rng(0)
    dim, count, k = 64, 60 if SLOW else 2000, 3
    rows = [row / np.linalg.norm(row) for row in rng.standard_normal((count, 4, dim)).astype(np.float32)]
    query = rng.standard_normal((6, dim)).astype(np.float32)
    alignment = AlignmentConfig()
    scan, _ = open_scan("int8", dim, alignment)
    (part,) = make_parts(rows)
    gallery, quantized = GalleryRows([part], "images", alignment), quantize_query(query, per_vector=True)
    ((listed, scores, radii, _),) = listing(scan, [part], [query], k)
    best = (np.stack(rows).astype(np.float64) @ query.T.astype(np.float64)).max(axis=1) / 0.1
    truth = np.log(np.exp(best - best.max(1, keepdims=True)).sum(1)) + best.max(1)
    assert set(np.argsort(-truth)[:k]) <= set(listed.tolist())
    assert len(listed) < count / 4
    change = similarity_changes(gallery, [quantized], listed)[0]
    radius = score_radius(gallery, quantized, change, np.zeros(len(listed)), listed)
    assert (np.abs(scores - truth[listed]) <= radius).all()
    np.testing.assert_allclose(radii, radius, rtol=1e-6, atol=0)
    assert (radii >= radius).all(), "and the GPU's is no less"


@pytest.mark.skipif(KERNELS == "numpy", reason="compares real kernels with numpy's: CHAN_TEST_KERNELS")
@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ((1, 36, 64, 65), (1, 16)),
        ((100, 1, 7), (60, 17, 1)),
        ((1, 36, 64, 65), (1, 16, 5, 5, 7, 8, 9, 10, 11)),
        ((100, 1, 7), (60, 17, 1, 64, 32, 32, 30, 1, 1)),
    ],
)
def test_real_scores_are_numpys(precision, pooling, lengths, words, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score of every query, ties and zeros among them: int8 to float64's rounding, half to float32's."""
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal((length, 70)).astype(np.float32) for length in lengths]
    rows += [rows[0], np.zeros((3, 70), np.float32)]
    queries = [rng.standard_normal((count, 70)).astype(np.float32) for count in words]
    alignment = AlignmentConfig(pooling=pooling)
    every = []
    for each in (KERNELS, "numpy"):
        monkeypatch.setitem(globals(), "KERNELS", each)
        scan, _ = open_scan(precision, 70, alignment)
        listed = listing(scan, make_parts(rows, (2,)), queries, len(rows))
        assert all(found.tolist() == list(range(len(rows))) for found, *_ in listed)
        every.append(np.stack([each.scores for each in listed]))
    tolerance = 1e-13 if precision == "int8" else 1e-6
    np.testing.assert_allclose(every[0], every[1], rtol=tolerance, atol=tolerance * np.abs(every[1]).max())


@pytest.mark.skipif(KERNELS == "numpy", reason="compares real kernels with numpy's: CHAN_TEST_KERNELS")
def test_real_lists_are_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows so close that some intervals reach the best one's and some do not: the same are listed."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal((4, 70)).astype(np.float32)
    rows = [base * np.float32(1 + 1e-3 * i) for i in range(40)]
    listed = []
    for each in (KERNELS, "numpy"):
        monkeypatch.setitem(globals(), "KERNELS", each)
        scan, _ = open_scan("int8", 70, AlignmentConfig())
        ((found, *_),) = listing(scan, make_parts(rows, (9,)), [base], 1)
        listed.append(found.tolist())
    assert listed[0] == listed[1]
    assert 2 < len(listed[0]) < 38


@pytest.mark.skipif(SLOW, reason="many rows")
def test_of_100_000_rows_a_few_are_listed() -> None:
    """With embeddings like those of scenes: by the wide bound (1) alone, and no true scores, thousands would be."""
    count, vectors, dim, k = 100_000, 4, 64, 10
    source = Concepts(0, dim)
    words = source.captions(np.full(64, 12, np.int32)).vectors
    starts, parts = np.arange(10_001, dtype=np.int64) * vectors, []
    plan = None
    for _ in range(count // 10_000):
        regions = source.images(10_000, vectors).vectors.reshape(-1, dim)
        plan = plan or SearchPlan(fit_axes(regions[:4000], words[2:].reshape(-1, dim)), None, None, 2)
        parts.append(array_part(regions, starts, "float16", plan=plan))
    alignment = AlignmentConfig()
    scan, device = open_scan("int8", dim, alignment, capacity=4 << 30)
    listed = listing(scan, parts, list(words[:2]), k)
    queries = [quantize_query(caption, per_vector=True) for caption in words[:2]]
    assert device.launched == ["quantize", "scan_16", "terms", "best_rows", "kth_best", "shortlist"], (
        "once for all parts"
    )
    rows = GalleryRows(parts, "images", alignment)
    none, unmeasured = no_axes(dim), np.zeros((count, 0), np.float32)
    scores = device.array(scan._arena._rooms["scores"][0], np.float64)[: 2 * count].reshape(2, count)
    for query, (found, *_), score in zip(queries, listed, scores, strict=True):
        change = Reach([query], none, none).change(rows.error, rows.norm, unmeasured, unmeasured)[0]
        wide = int8_radius(change, rows.error, rows.norm, query, query.count, 0.0, alignment)
        lower = np.sort((score - wide).reshape(-1, 25).max(axis=1))
        assert np.count_nonzero(score + wide >= lower[-k]) > 1000
        assert k <= len(found) < 500 < queue_module.CAPACITY
    if open_core():  # true scores make the threshold, and all rows on the list are decided
        rankings = compiled_ranker(parts, "images", alignment, scan).exact(list(words[:2]), k, np.ones(count, bool))
        assert all(k <= ranking.rescored < 200 for ranking in rankings)


@pytest.mark.skipif(SLOW, reason="many rows")
def test_lists_that_overflow_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "CAPACITY", 8)
    alignment = AlignmentConfig()
    rows = made_up("near", 3, 200, 5, 24)
    parts = make_parts(rows, (50,))
    scan, _ = open_scan("int8", 24, alignment)
    ours, cpu = rankers(parts, "images", alignment, scan)
    queries = [np.random.default_rng(i).standard_normal((4, 24)).astype(np.float32) for i in range(3)]
    everything = np.ones(200, bool)
    found, expected = ours.exact(queries, 5, everything), cpu.exact(queries, 5, everything)
    assert [one.rows.tolist() for one in found] == [one.rows.tolist() for one in expected]


@pytest.mark.skipif(SLOW, reason="many rows")
def test_a_list_of_one_row_too_many_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig())
    parts = make_parts(made_up("plain", 3, 200, 5, 24), (50,))
    query = np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)
    (listed,) = listing(scan, parts, [query], 5)
    rows = listed.rows
    for capacity, launches in ((len(rows), 1), (len(rows) - 1, 2), (1, 2)):
        monkeypatch.setattr(queue_module, "CAPACITY", capacity)
        device.launched.clear()
        (again,) = listing(scan, parts, [query], 5)
        assert again.rows.tolist() == listed.rows.tolist()
        assert again.scores.tolist() == listed.scores.tolist()
        assert again.radii.tolist() == listed.radii.tolist()
        assert again.threshold == listed.threshold
        assert device.launched.count("shortlist") == launches


@pytest.mark.skipif(SLOW, reason="many rows")
@pytest.mark.parametrize(
    ("lengths", "launched"),
    [
        ((12,) * 3, ["scan_16"]),
        ((12,) * 4, ["pairs_16"]),
        ((12,) * 3 + (17,), ["scan_16", "scan_64"]),
        ((12, 30) * 4, ["pairs_16", "pairs_32"]),
        ((12,) * 4 + (60, 64, 65), ["pairs_16", "pairs_64", "scan_64"]),
    ],
)
def test_queries_that_fill_a_tile_are_scanned_together(lengths: tuple[int, ...], launched: list[str]) -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig())
    queries = [np.random.default_rng(i).standard_normal((n, 24)).astype(np.float32) for i, n in enumerate(lengths)]
    listing(scan, make_parts(made_up("plain", 3, 40, 5, 24)), queries, 3)
    assert [name for name in device.launched if name not in (*NAMES[5:], *OF_QUERIES)] == launched


@pytest.mark.skipif(SLOW, reason="many rows")
def test_many_queries_take_several_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces_module, "_QUERIES", 2)
    alignment = AlignmentConfig()
    scan, device = open_scan("int8", 24, alignment)
    ours, cpu = rankers(make_parts(made_up("plain", 3, 40, 5, 24)), "images", alignment, scan)
    queries = [np.random.default_rng(i).standard_normal((4, 24)).astype(np.float32) for i in range(5)]
    found = ours.exact(queries, 5, np.ones(40, bool))
    expected = cpu.exact(queries, 5, np.ones(40, bool))
    assert [one.rows.tolist() for one in found] == [one.rows.tolist() for one in expected]
    assert device.launched == ["quantize", "scan_16", "terms", "best_rows", "kth_best", "shortlist"] * 3


@pytest.mark.parametrize("large", [1.0, 1e9])
def test_float16_ranks_by_half_and_claims_nothing(large: float) -> None:
    alignment = AlignmentConfig()
    rows = made_up("plain", 3, 30, 5, 24)
    parts = make_parts(rows, (10,))
    scan, _ = open_scan("float16", 24, alignment)
    ours, cpu = rankers(parts, "images", alignment, scan)
    queries = [
        np.random.default_rng(i).standard_normal((4, 24)).astype(np.float32) * np.float32(large) for i in range(3)
    ]
    found = ours.exact(queries, 5, np.ones(30, bool))
    expected = cpu.exact(queries, 5, np.ones(30, bool))
    for one, other in zip(found, expected, strict=True):
        assert not one.certified
        assert one.rescored == 5
        assert one.rows.tolist() == other.rows.tolist()  # these scores lie further apart than half can err
        assert one.scores.tolist() == other.scores.tolist()


def test_what_does_not_fit_float16_is_refused() -> None:
    scan, device = open_scan("float16", 24, AlignmentConfig())
    (part,) = make_parts([np.full((1, 24), 1e6, np.float32)])
    with pytest.raises(TensorError, match="must fit float16 to be held so on a GPU, got 1000000"):
        scan.hold(part)
    gc.collect()
    scan.close()
    assert device.empty


def test_a_part_is_uploaded_once_and_freed_with_its_last_holder() -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig())
    part, other = make_parts(made_up("plain", 3, 30, 5, 24), (10,))
    held = scan.hold(part)
    copied, kept = device.copied_in, len(device.memory)
    assert scan.hold(part) is held
    assert device.copied_in == copied
    more = scan.hold(other)
    assert len(device.memory) > kept
    del more
    gc.collect()
    assert len(device.memory) == kept
    assert scan.hold(part) is held
    del held
    gc.collect()
    assert not device.memory
    scan.close()
    assert device.empty


def test_the_codes_are_the_parts_own_in_twos_complement() -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig())
    (part,) = make_parts(made_up("plain", 3, 30, 5, 24))
    held = scan.hold(part)
    stored = device.array(held.vectors, np.int8)[: part.stored.size].reshape(part.stored.shape)
    np.testing.assert_array_equal(stored, part.stored.astype(np.int16) - 128)


def test_a_warm_call_allocates_nothing() -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig())
    parts = make_parts(made_up("plain", 3, 30, 5, 24))
    ranker, _ = rankers(parts, "images", AlignmentConfig(), scan)
    queries = [np.random.default_rng(i).standard_normal((4, 24)).astype(np.float32) for i in range(3)]
    ranker.exact(queries, 5, np.ones(30, bool))
    allocations, hosts = scan.allocations, len(device.hosts)
    ranker.exact(queries, 5, np.ones(30, bool))
    ranker.exact(queries[:1], 2, np.ones(30, bool))
    assert (scan.allocations, len(device.hosts)) == (allocations, hosts)


def test_too_little_memory_says_how_much_is_needed_and_what_to_do() -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig(), capacity=4000)
    parts = make_parts(made_up("plain", 3, 300, 5, 24))
    with pytest.raises(BackendError, match=r"300 rows need 0\.00 GiB .*, 0\.00 GiB are free; .*cpu'"):
        rankers(parts, "images", AlignmentConfig(), scan)
    gc.collect()
    scan.close()
    assert device.empty, "what was allocated before it failed is given back"


def test_nothing_is_uploaded_where_all_parts_do_not_fit() -> None:
    """Of one segment's rows nobody could tell what the gallery needs."""
    parts = make_parts(made_up("plain", 3, 300, 5, 24), (50, 120, 200))
    for capacity in range(5_000, 70_000, 5_000):
        scan, device = open_scan("int8", 24, AlignmentConfig(), capacity=capacity)
        with pytest.raises(GpuMemoryError, match=r"^300 rows need .* are free; .*device='cpu'.*device='cuda:0,1'"):
            rankers(parts, "images", AlignmentConfig(), scan)
        assert device.copied_in == 0
        scan.close()
        assert device.empty


@pytest.mark.parametrize(("capacity", "what"), [(30_000, "100 rows"), (60_000, "the numbers beside 300 rows")])
def test_where_memory_ends_in_the_middle_the_error_says_so(
    capacity: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may take what was free when it was asked for."""
    parts = make_parts(made_up("plain", 3, 300, 5, 24), (100, 200))
    scan, device = open_scan("int8", 24, AlignmentConfig(), capacity=capacity)
    monkeypatch.setattr(device, "free_memory", lambda: 1 << 30)
    with pytest.raises(GpuMemoryError, match=rf"^{what} need 0\.00 GiB .*: .*out of memory .*device='cpu'"):
        rankers(parts, "images", AlignmentConfig(), scan)
    gc.collect()
    scan.close()
    assert device.empty


def test_scratch_that_could_not_grow_is_not_handed_out_again() -> None:
    device = FakeDevice({}, capacity=4096)
    arena = Arena(device)
    arena.scratch("x", 100)
    need = r"a search needs 0\.00 GiB of the GPU's memory for its x beside the gallery, 0\.00 GiB are free: "
    with pytest.raises(GpuMemoryError, match=f"{need}.*out of memory.* fewer queries"):
        arena.scratch("x", 10_000)
    assert arena.scratch("x", 100) in device.memory
    arena.close()
    assert device.empty


def test_close_makes_the_device_current_and_frees_the_rest_past_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig())
    held = scan.hold(make_parts(made_up("plain", 3, 30, 5, 24))[0])
    current: list[bool] = []

    def unload(kernel: Any) -> None:
        assert current, "no context is current in this thread"
        raise BackendError("CUDA: cuModuleUnload failed: an illegal memory access was encountered")

    monkeypatch.setattr(device, "activate", lambda: current.append(True))
    monkeypatch.setattr(device, "unload_kernel", unload)
    with pytest.raises(BackendError, match="illegal memory access"):
        scan.close()
    assert not device.memory
    assert not device.hosts
    del held


def test_close_frees_what_is_still_held_and_refuses_more() -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig())
    part, other = make_parts(made_up("plain", 3, 30, 5, 24), (10,))
    held = scan.hold(part)
    scan.close()
    scan.close()
    assert device.empty
    with pytest.raises(BackendError, match="was closed"):
        scan.hold(other)
    del held


# -- on several GPUs


@pytest.mark.parametrize("case", ["plain", "ties", "near", "zero"])
@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("gpus", [2, 3, 7])
def test_rankings_of_several_gpus_are_those_of_the_cpu(case: str, precision: str, gpus: int) -> None:
    """More GPUs than parts, too; GPUs none of whose rows are allowed; floors; as many rows as there are."""
    dim, count, alignment = 70, 60, AlignmentConfig()
    rows, rng = made_up(case, 5, count, 7, dim), np.random.default_rng(1)
    queries = [rng.standard_normal((n, dim)).astype(np.float32) for n in (1, 12, 16, 3, 20)]
    parts = make_parts(rows, (10, 25, 45), plan=SearchPlan(fit_axes(queries[0], None), None, None, 2))
    opened = [open_scan(precision, dim, alignment) for _ in range(gpus)]
    split = SplitScan([scan for scan, _ in opened])
    assert split.certified == (precision == "int8")
    assert split.name == f"triton {precision} on {gpus} GPUs"
    ours, cpu = rankers(parts, "images", alignment, split)
    compiled = compiled_ranker(parts, "images", alignment, split) if open_core() else ours
    for allowed in (np.ones(count, bool), rng.random(count) < 0.5, np.arange(count) < 10):
        for k, ranker in itertools.product((1, 5, count + 1), (ours, compiled)):
            expected = cpu.exact(queries, k, allowed)
            floors = np.array([ranking.scores[len(ranking.scores) // 2] for ranking in expected])
            for least in (None, floors):
                expected = cpu.exact(queries, k, allowed, least)
                for one, other in zip(ranker.exact(queries, k, allowed, least), expected, strict=True):
                    assert one.certified == split.certified
                    if split.certified or case == "plain":  # half cannot tell the others apart
                        assert one.rows.tolist() == other.rows.tolist()
                        assert one.scores.tolist() == other.scores.tolist()
    del ours, compiled, ranker
    split.close()
    assert all(device.empty for _, device in opened)


def test_parts_are_spread_by_their_vectors_and_stay_where_they_are() -> None:
    scans = [open_scan("int8", 24, AlignmentConfig())[0] for _ in range(2)]
    split = SplitScan(scans)
    parts = make_parts(made_up("plain", 3, 60, 5, 24), (30, 40, 50))
    first = [split.hold(part) for part in parts]
    assert [share.place for share in first] == [0, 1, 1, 1]
    assert [split.hold(part) for part in parts] == first
    again = first[1:]
    del first
    (more,) = make_parts(made_up("plain", 4, 20, 5, 24))
    assert split.hold(more).place == 0, "what was freed no longer counts"
    assert [split.hold(part) for part in parts[1:]] == again
    split.close()


def test_each_gpu_is_asked_for_the_room_of_its_own_parts_before_any_upload() -> None:
    opened = [open_scan("int8", 24, AlignmentConfig(), capacity=capacity) for capacity in (1 << 30, 20_000)]
    split = SplitScan([scan for scan, _ in opened])
    parts = make_parts(made_up("plain", 3, 300, 5, 24), (100, 200))
    with pytest.raises(GpuMemoryError, match=r"^200 rows need 0\.00 GiB at int8 .* are free;"):
        rankers(parts, "images", AlignmentConfig(), split)
    assert [device.copied_in for _, device in opened] == [0, 0]
    split.close()


def test_an_error_of_one_gpu_is_raised_and_all_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = [open_scan("int8", 24, AlignmentConfig()) for _ in range(2)]
    split = SplitScan([scan for scan, _ in opened])
    _, cpu = rankers(parts := make_parts(made_up("plain", 3, 60, 5, 24), (30,)), "images", AlignmentConfig(), split)
    ours, _ = rankers(parts, "images", AlignmentConfig(), split)
    query = np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)
    assert (
        ours.exact([query], 3, np.ones(60, bool))[0].rows.tolist()
        == cpu.exact([query], 3, np.ones(60, bool))[0].rows.tolist()
    )

    def fails(*arguments: Any) -> None:
        raise BackendError("CUDA: cuLaunchKernel failed: an illegal memory access was encountered")

    monkeypatch.setattr(opened[1][1], "launch_kernel", fails)
    with pytest.raises(BackendError, match="illegal memory access"):
        ours.exact([query], 3, np.ones(60, bool))
    monkeypatch.setattr(opened[1][1], "unload_kernel", fails)
    with pytest.raises(BackendError, match="illegal memory access"):
        split.close()
    assert not opened[0][1].memory
    assert not opened[1][1].memory


def test_memory_is_given_back_without_another_device_for_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that the collector runs on may be in the middle of another GPU's search."""
    scan, device = open_scan("int8", 24, AlignmentConfig())
    held = scan.hold(make_parts(made_up("plain", 3, 30, 5, 24))[0])
    monkeypatch.setattr(device, "activate", lambda: pytest.fail("the thread's device was changed"))
    before = len(device.memory)
    del held
    assert len(device.memory) < before
    monkeypatch.undo()
    scan.close()


def test_an_error_keeps_nothing_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a search that failed referred to is freed with it, before the collector looks for circles."""
    opened = [open_scan("int8", 24, AlignmentConfig()) for _ in range(2)]
    split = SplitScan([scan for scan, _ in opened])
    ours, _ = rankers(make_parts(made_up("plain", 3, 60, 5, 24), (30,)), "images", AlignmentConfig(), split)
    monkeypatch.setattr(opened[1][1], "launch_kernel", lambda *arguments: 1 / 0)
    query = np.random.default_rng(0).standard_normal((4, 24)).astype(np.float32)
    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ZeroDivisionError):
            ours.exact([query], 3, np.ones(60, bool))
        held = weakref.ref(ours._estimator)
        del ours
        assert held() is None
    finally:
        gc.enable()
    split.close()


def test_several_gpus_refuse_searches_once_they_are_closed() -> None:
    split = SplitScan([open_scan("int8", 24, AlignmentConfig())[0] for _ in range(2)])
    ours, _ = rankers(make_parts(made_up("plain", 3, 60, 5, 24), (30,)), "images", AlignmentConfig(), split)
    split.close()
    with pytest.raises(BackendError, match="the gallery was closed"):
        ours.exact([np.ones((4, 24), np.float32)], 3, np.ones(60, bool))


def test_a_fork_leaves_no_lock_of_a_scan_behind() -> None:
    scan = open_scan("int8", 24, AlignmentConfig())[0]
    split = SplitScan([scan, scan])
    split._turn.acquire()
    scan._turns.lock.acquire()
    forks._call_all()
    assert not split._turn.locked()
    assert not scan._turns.lock.locked()


# -- through a gallery on disk


@pytest.fixture
def on_fake(monkeypatch: pytest.MonkeyPatch) -> list[FakeDevice]:
    """Galleries opened with device='cuda' use a fake device; those made so far."""
    devices: list[FakeDevice] = []

    def fake(path: Path, settings: Any, precision: str, index: int) -> KernelScan:
        check_settings(settings)
        scan, device = open_scan(precision, settings.dim, settings.alignment)
        devices.append(device)
        return scan

    monkeypatch.setattr(scanner_module, "open_resident", fake)
    return devices


def test_a_gallery_is_spread_over_the_gpus_that_are_named(gallery_path: Path, make_embeddings, on_fake) -> None:
    queries = make_embeddings(99, 3)
    with Gallery.open(gallery_path) as cpu, Gallery.open(gallery_path, device="cuda:1,0") as gpu:
        assert gpu.scan == "triton int8 on 2 GPUs"
        assert answers(gpu, queries) == answers(cpu, queries)
        assert [len(device.launched) > 0 for device in on_fake] == [True, True]
    assert all(device.empty for device in on_fake)


def test_a_gpu_that_does_not_open_frees_those_that_did(gallery_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan, device = open_scan("int8", 24, AlignmentConfig())

    def opened(path: Path, settings: Any, precision: str, index: int) -> KernelScan:
        if index == 1:
            raise BackendError("no usable int8 kernels")
        return scan

    monkeypatch.setattr(scanner_module, "open_resident", opened)
    with pytest.raises(BackendError, match="no usable int8 kernels"):
        Gallery.open(gallery_path, device="cuda:0,1")
    assert device.empty
    with pytest.raises(BackendError, match="was closed"):
        scan.hold(make_parts(made_up("plain", 3, 3, 5, 24))[0])


def answers(gallery: Gallery, queries: Embeddings, **how: Any) -> list:
    return [
        [(hit.id, hit.score, hit.metadata, hit.word_regions.tolist()) for hit in result.hits]
        for result in gallery.search(queries, 4, **how)
    ]


def test_gallery_answers_as_on_the_cpu_through_changes(gallery_path: Path, make_embeddings, on_fake) -> None:
    queries = make_embeddings(99, 3)
    with Gallery.open(gallery_path) as cpu, Gallery.open(gallery_path, device="cuda") as gpu:
        (device,) = on_fake
        assert gpu.scan == gpu.info()["scan"] == "triton int8"
        assert answers(gpu, queries) == answers(cpu, queries)
        assert answers(gpu, queries, where={"even": True}) == answers(cpu, queries, where={"even": True})
        assert all(result.certified for result in gpu.search(queries, 4))
        before = device.copied_in
        with GalleryWriter.open(gallery_path) as writer:
            writer.add(["new"], make_embeddings(50, 1), [{"n": 30, "even": True}])
            writer.delete(["3"])
        assert answers(gpu, queries) == answers(cpu, queries)
        scanned = device.copied_in - before
        with GalleryWriter.open(gallery_path) as writer:
            writer.compact()
        assert answers(gpu, queries) == answers(cpu, queries)
        assert scanned < 10_000, "only the new segment is uploaded, not the gallery again"
    assert device.empty


def test_float16_gallery_says_that_nothing_is_proven(gallery_path: Path, make_embeddings, on_fake) -> None:
    with Gallery.open(gallery_path, device="cuda", resident="float16") as gallery:
        (result,) = gallery.search(make_embeddings(99, 1), 4)
    assert not result.certified
    assert result.reason == "triton float16 chose the rows, and nothing proves its choice"


@pytest.mark.skipif(SLOW, reason="threads gain nothing")
def test_threads_share_a_gallery(gallery_path: Path, make_embeddings, on_fake) -> None:
    queries = [make_embeddings(i, 2) for i in range(8)]
    with Gallery.open(gallery_path) as cpu, Gallery.open(gallery_path, device="cuda") as gpu:
        expected = [answers(cpu, query) for query in queries]
        found: dict[int, list] = {}
        threads = [
            threading.Thread(target=lambda i=i: found.__setitem__(i, answers(gpu, queries[i]))) for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [found[i] for i in range(8)] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alignment": AlignmentConfig("THA")}, "images are searched by VHA .* images scored by THA; .*device='cpu'"),
        ({"alignment": AlignmentConfig("VSA")}, "scored by VSA"),
        ({"kind": "captions"}, "captions by THA, this gallery holds captions scored by VHA"),
        ({"alignment": AlignmentConfig(pooling="Softmax")}, "pooling must be one of LSE, Max, Mean, Sum .* Softmax"),
        ({"fine": "none"}, "ranks by the fine copy, which this gallery does not keep"),
    ],
)
def test_galleries_without_a_gpu_scan_are_refused(make_settings, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_settings(make_settings(**changes))


def test_every_pooling_is_tested() -> None:
    assert set(POOLINGS) == {"LSE", "Mean", "Sum", "Max"}


def test_unknown_devices_and_precisions_are_refused(gallery_path: Path) -> None:
    with pytest.raises(InputError, match="device must be cpu, cuda, cuda:N or cuda:N,M, got 'tpu'"):
        Gallery.open(gallery_path, device="tpu")
    with pytest.raises(InputError, match="resident must be one of int8, float16, got 'fp8'"):
        Gallery.open(gallery_path, device="cuda", resident="fp8")


@pytest.mark.parametrize(
    ("device", "indices"),
    [("cpu", ()), ("cuda", (0,)), ("cuda:0", (0,)), ("cuda:1", (1,)), ("cuda:12", (12,)), ("cuda:2,0", (2, 0))],
)
def test_devices_are_named_as_torch_names_them(device: str, indices: tuple[int, ...]) -> None:
    assert device_indices(device) == indices


@pytest.mark.parametrize(
    "device", ["", "gpu", "cuda:", "cuda:-1", "cuda:1.5", "cuda:x", "CUDA", "cuda:9999", "cpu:0", "cuda:0,", "cuda:0,x"]
)
def test_other_names_of_devices_are_refused(device: str) -> None:
    with pytest.raises(InputError, match="device must be cpu, cuda, cuda:N or cuda:N,M, got "):
        device_indices(device)


def test_a_gpu_that_is_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="device must name each GPU once, got 'cuda:1,0,1'"):
        device_indices("cuda:1,0,1")


def test_a_gpu_that_cuda_does_not_show_is_refused_with_those_it_shows(
    gallery_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA_VISIBLE_DEVICES and MIG leave some out; the others are numbered from 0."""
    slices = GpuReport(tuple(Gpu(f"NVIDIA H100 MIG 1g.{size}gb", (9, 0), size << 30) for size in (10, 20)))
    monkeypatch.setattr("chan_rt.runtime.gpu.examine_gpu", lambda: slices)
    with pytest.raises(InputError, match=r"cuda:0 \(NVIDIA H100 MIG 1g\.10gb\), cuda:1 \(.*20gb\), got cuda:2"):
        Gallery.open(gallery_path, device="cuda:2")
    opened: list[int] = []
    record = KernelRecord("int8", 64, "LSE", "sm_90", "none", "", {})
    monkeypatch.setattr("chan_rt.runtime.gallery.cuda.find_kernels", lambda *arguments: (record, {}))
    monkeypatch.setattr("chan_rt.runtime.gallery.cuda.check_kernels", lambda *arguments: None)
    monkeypatch.setattr("chan_rt.runtime.gallery.cuda.CudaDevice", lambda index: opened.append(index) or FakeDevice({}))
    with Gallery.open(gallery_path) as gallery:
        open_resident(gallery_path, gallery.settings, "int8", 1).close()
    assert opened == [1]


@pytest.mark.skipif(bool(examine_gpu().gpus), reason="there is a GPU")
def test_without_a_gpu_the_error_says_so(gallery_path: Path) -> None:
    with pytest.raises(BackendError, match=r"device='cuda' cannot run here: no usable GPU: .*device='cpu'"):
        Gallery.open(gallery_path, device="cuda")


@pytest.mark.skipif(bool(examine_gpu().gpus), reason="there is a GPU")
def test_the_command_refuses_a_gpu_that_is_not_there(gallery_path: Path, tmp_path: Path) -> None:
    result = chan("search", gallery_path, "a caption", "--device", "cuda")
    assert result.exit_code == 1
    assert "device='cuda' cannot run here" in result.output
    result = chan("search", tmp_path, "photos", "a caption", "--device", "cuda")
    assert result.exit_code == 2
    assert "--device cuda needs a gallery" in result.output


@pytest.mark.gpu
@pytest.mark.skipif(not examine_gpu().gpus, reason="no NVIDIA GPU")
@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_on_a_gpu_the_ranking_is_the_cpus(tmp_path: Path, make_embeddings, make_settings, precision, pooling) -> None:
    pytest.importorskip("triton", reason="compiling the kernels needs triton")
    from chan_rt.bench.gpu_kernels import give_kernels

    coding = AlignmentConfig("THA" if pooling == "Max" else "VHA", pooling)
    kind, dim = "captions" if pooling == "Max" else "images", 200
    made = make_settings(kind=kind, dim=dim, alignment=coding)
    with GalleryWriter.create(tmp_path / "g", made) as writer:
        for part in range(3):
            writer.add([f"{part}-{i}" for i in range(400)], make_embeddings(part, 400, 40, dim=dim))
        writer.delete(["0-3", "2-399"])
    give_kernels(tmp_path / "g", dim, pooling, precision, examine_gpu().gpus[0].capability)
    queries = [make_embeddings(9, count, longest, dim=dim) for count in (5, 20) for longest in (1, 12, 60, 100)]
    with Gallery.open(tmp_path / "g") as cpu, Gallery.open(tmp_path / "g", device="cuda", resident=precision) as gpu:
        for query in queries:
            assert answers(gpu, query) == answers(cpu, query)
        scan = gpu._scanner.resident
        assert isinstance(scan, KernelScan)
        warm = scan.allocations
        for query in queries:
            gpu.search(query, 4)
        assert scan.allocations == warm


@pytest.mark.gpu
@pytest.mark.skipif(not examine_gpu().gpus, reason="no NVIDIA GPU")
def test_on_a_gpu_too_large_a_gallery_says_what_to_do(make_settings, tmp_path: Path) -> None:
    from chan_rt.runtime.backends.device import CudaDevice
    from chan_rt.runtime.gallery.cuda.memory import Arena

    arena = Arena(CudaDevice())
    with pytest.raises(BackendError, match="cudaMalloc failed: out of memory"):
        arena.room(arena, 1 << 50)
    arena.close()
    with pytest.raises(BackendError, match=r"no usable int8 kernels .* chan gallery kernel"):
        open_resident(tmp_path, make_settings(), "int8")
