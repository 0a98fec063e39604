"""Queries on a GPU, on a device made of host memory: their codes are the CPU's, and their bounds no less.

Here numpy stands for the kernels. With CHAN_TEST_KERNELS=sm_90 the same tests run the real ones, compiled for that
architecture, on the machine of tests/ptx, and with CHAN_TEST_KERNELS=cuda on this machine's GPU; tests of
tests/export/test_kernels.py do that.
"""

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.gallery.cuda.kernels import POOLINGS
from chan_rt.runtime.gallery.kernels.layout import stored_width
from chan_rt.runtime.gallery.proof.bounds import MOST_BLOCKS, Reach, int8_radius, quantize_query, rounding
from chan_rt.runtime.gallery.proof.pooling import score_change
from chan_rt.runtime.gallery.proof.prefix import SearchPlan, fit_axes

from .test_resident import made_up, make_parts, open_scan

LENGTHS = (1, 16, 40, 3)


def made_queries(case: str, dim: int) -> list[np.ndarray]:
    """Vectors that share a few directions: plain, some of them zero, of many sizes, all in the axes' span."""
    rng = np.random.default_rng(dim)
    common = rng.standard_normal((3, dim))
    noise = 0.0 if case == "span" else 0.3
    made = [rng.standard_normal((n, 3)) @ common + noise * rng.standard_normal((n, dim)) for n in LENGTHS]
    if case == "zero":
        made = [query * (np.arange(len(query)) % 2)[:, None] for query in made]
    if case == "huge":
        made = [query * 10.0 ** rng.integers(-12, 12, (len(query), 1)) for query in made]
    return [query.astype(np.float32) for query in made]


@pytest.mark.parametrize("case", ["plain", "zero", "huge"])
@pytest.mark.parametrize("precision", ["int8", "float16"])
@pytest.mark.parametrize("slot", [None, 64])
def test_codes_are_those_of_the_cpu(slot: int | None, precision: str, case: str) -> None:
    """One after another, or each query in places of its own; zeros in the places that are left."""
    dim = 70
    width, queries = stored_width(dim), made_queries(case, dim)
    scan, device = open_scan(precision, dim, AlignmentConfig())
    sent = scan._sender.send(queries, slot)
    words, query, scale = sum(LENGTHS), sent.query, sent.word_scale
    word_of = np.full(sent.query_places, -1)
    begins = np.cumsum([0, *LENGTHS])[:-1] if slot is None else np.arange(len(LENGTHS)) * slot
    places = np.concatenate([begin + np.arange(length) for begin, length in zip(begins, LENGTHS, strict=True)])
    word_of[places] = np.arange(words)
    vectors = np.concatenate(queries)
    scan._arena.wait()
    scales = device.array(scale, np.float64)[: len(word_of)]
    if precision == "float16":
        coded = device.array(query, np.float16)[: len(word_of) * width].reshape(-1, width)
        peak = np.abs(vectors.astype(np.float64)).max(axis=1)
        expected = np.where(peak > 0, peak, 1.0)
        halves = (vectors / expected[:, None]).astype(np.float16)
        np.testing.assert_allclose(coded[places, :dim], halves, rtol=2**-10, atol=2**-24)  # rounded once, or twice
    else:
        coded = device.array(query, np.int8)[: 2 * len(word_of) * width].reshape(2, -1, width)
        quantized = quantize_query(vectors, per_vector=True)
        expected = quantized.scale
        np.testing.assert_array_equal(coded[:, places, :dim], quantized.planes)
        norms, errors = (device.array(at, np.float64)[:words] for at in (sent.norms, sent.errors))
        np.testing.assert_allclose(norms, np.square(quantized.vectors).sum(axis=1), rtol=1e-14)
        np.testing.assert_allclose(errors, np.square(quantized.lost).sum(axis=1), rtol=1e-14)
        coded = coded[0]
    assert scales[places].tolist() == expected.tolist()
    assert not scales[word_of < 0].any()
    assert not coded[word_of < 0].any()
    assert not coded[:, dim:].any()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("case", ["plain", "zero", "huge", "span"])
def test_bounds_are_no_less_than_those_of_the_cpu(case: str, pooling: str) -> None:
    """And hardly more, but where axes hold all of a query. Rows of two plans and of none; a query of several turns."""
    dim, alignment = 70, AlignmentConfig(pooling=pooling)
    queries = made_queries(case, dim)
    vectors = made_up("plain", 3, 40, 4, dim)
    plans = [
        SearchPlan(fit_axes(np.concatenate(vectors), None), None, None, 2),
        None,
        SearchPlan(fit_axes(queries[1][:, :dim], None), None, None, 2),
    ]
    parts = [part for plan in plans for part in make_parts(vectors, plan=plan)]
    scan, device = open_scan("int8", dim, alignment)
    rows = scan.gather([scan.hold(part) for part in parts])
    sent = scan._sender.send(queries, None)
    at = scan._sender.terms(sent, rows.coded, rows.largest)
    scan._arena.wait()
    assert len(rows.coded.columns) == 3
    found = device.array(at, np.float64)[: 4 * 3 * (6 + MOST_BLOCKS)].reshape(4, 3, -1)
    margins = device.array(sent.margins, np.float64)[:4]
    for i, query in enumerate(queries):
        quantized = quantize_query(query, per_vector=True)
        change = 2 * rounding(np.array(quantized.norm * rows.largest), dim, len(query), alignment)
        margin = score_change(change, len(query), 0.0, alignment)
        assert margin <= margins[i] <= margin * (1 + 1e-8)
        for j, part in enumerate(parts):
            axes = np.zeros((dim, 0)) if plans[j] is None else plans[j].axes.leading
            reach = Reach([quantized], axes, axes[:, :0])
            change = reach.change(part.error, part.norm, part.blocks, np.zeros((len(part.error), 0)))[0]
            radius = int8_radius(change, part.error, part.norm, quantized, len(query), 0.0, alignment)
            own, blocks = found[i, j], np.zeros((len(part.error), MOST_BLOCKS))
            blocks[:, : part.blocks.shape[1]] = part.blocks
            error, norm = part.error.astype(np.float64), part.norm.astype(np.float64)
            narrow = np.minimum(own[4] * error, own[5] * error + blocks @ own[6:])
            mine = own[0] + own[1] * narrow + own[2] * norm + own[3] * error
            assert (mine >= radius).all()
            np.testing.assert_allclose(mine, radius, rtol=0.05 if j == 2 else 1e-5)
