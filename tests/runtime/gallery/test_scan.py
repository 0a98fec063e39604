"""All scan kernels give the products that numpy's int64 gives, rounded to float32."""

import sys
import time
from threading import Barrier, get_ident

import numpy as np
import onnx
import pytest

from chan_rt.runtime.errors import BackendError, InputError
from chan_rt.runtime.gallery.kernels import pool as pool_module
from chan_rt.runtime.gallery.kernels.base import Kernel
from chan_rt.runtime.gallery.kernels.blas import product
from chan_rt.runtime.gallery.kernels.choose import open_kernel
from chan_rt.runtime.gallery.kernels.layout import PLANE, store_codes
from chan_rt.runtime.gallery.kernels.matmul_model import scan_model
from chan_rt.runtime.gallery.kernels.pool import Pool
from chan_rt.runtime.gallery.proof.bounds import float32_similarity_error


def starts_of(lengths: list[int]) -> np.ndarray:
    return np.cumsum([0, *lengths]).astype(np.int64)


def products_of(gallery: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """high, or 254 high + low, rounded as the kernels may: each plane to float32, their product and sum."""
    high, *low = (gallery.astype(np.int64) @ plane.astype(np.int64).T for plane in planes)
    return high.astype(np.float32) * np.float32(PLANE) + low[0].astype(np.float32) if low else high.astype(np.float32)


@pytest.mark.parametrize("dim", [1, 5, 64, 100, 1024])
@pytest.mark.parametrize("lengths", [[3, 1, 100, 7], [36] * 5, [1]])
@pytest.mark.parametrize("words", [[12], [1, 60, 17], [32, 31]])
@pytest.mark.parametrize("depth", [1, 2])
def test_kernels_agree_to_the_bit(kernel: Kernel, dim: int, lengths: list[int], words: list[int], depth: int) -> None:
    rng = np.random.default_rng(dim)
    rows, queries = starts_of(lengths), starts_of(words)
    gallery = rng.integers(-127, 128, (rows[-1], dim), dtype=np.int8)
    planes = rng.integers(-127, 128, (depth, queries[-1], dim), dtype=np.int8)
    products = products_of(gallery, planes)
    over_row = kernel.maxima(store_codes(gallery), rows, kernel.pack(planes, queries, "row"))
    over_query = kernel.maxima(store_codes(gallery), rows, kernel.pack(planes, queries, "query"))
    np.testing.assert_array_equal(over_row, np.maximum.reduceat(products, rows[:-1], axis=0))
    np.testing.assert_array_equal(over_query, np.maximum.reduceat(products, queries[:-1], axis=1))


@pytest.mark.parametrize(("gallery", "word"), [(127, 127), (-127, 127), (127, -127), (-127, -127)])
def test_the_largest_sums_do_not_saturate(kernel: Kernel, gallery: int, word: int) -> None:
    codes, planes = np.full((2, 1024), gallery, np.int8), np.full((2, 1, 1024), word, np.int8)
    found = kernel.maxima(store_codes(codes), starts_of([2]), kernel.pack(planes, starts_of([1]), "row"))
    assert found[0, 0] == pytest.approx(gallery * word * 1024 * 255, rel=1e-6)


@pytest.mark.parametrize("dim", [1024, 4096, 32768])
def test_sums_past_what_float32_holds_are_exact_integers_until_they_are_rounded_once(kernel: Kernel, dim: int) -> None:
    rng = np.random.default_rng(dim)
    gallery = rng.integers(100, 128, (3, dim), dtype=np.int8)
    planes = rng.integers(100, 128, (2, 2, dim), dtype=np.int8)
    found = kernel.maxima(store_codes(gallery), starts_of([1, 1, 1]), kernel.pack(planes, starts_of([2]), "row"))
    np.testing.assert_array_equal(found, products_of(gallery, planes))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("dim", "words"), [(1, 1), (5, 12), (64, 6), (100, 13), (1024, 60)])
def test_fine_products_are_within_their_bound_of_float64s(kernel: Kernel, dtype: type, dim: int, words: int) -> None:
    rng = np.random.default_rng(dim)
    rows = [rng.standard_normal((length, dim)).astype(dtype) for length in (36, 1, 4, 7)]
    query = rng.standard_normal((words, dim)).astype(np.float32)
    exact = np.concatenate(rows).astype(np.float64) @ query.T.astype(np.float64)
    norms = np.linalg.norm(np.concatenate(rows).astype(np.float64), axis=1)
    bound = float32_similarity_error(dim, kernel.roundings(dim), float(np.linalg.norm(query, axis=1).max()), norms)
    found = kernel.products(rows, query)
    assert found.dtype == np.float32
    assert (np.abs(found - exact) <= bound[:, None]).all()


@pytest.mark.parametrize(("axis", "shape"), [(None, "NLQ"), (1, "NQ"), (2, "NL")])
@pytest.mark.parametrize("weight", [None, PLANE])
def test_the_model_written_by_hand_is_valid_onnx(axis: int | None, shape: str, weight: float | None) -> None:
    model = onnx.load_from_string(scan_model(axis, weight))
    onnx.checker.check_model(model)
    expected = ["MatMulInteger", "Cast"] if weight is None else ["MatMulInteger", "Split", "Cast", "Cast", "Mul", "Add"]
    assert [node.op_type for node in model.graph.node] == expected + ["ReduceMax"] * (axis is not None)
    assert [dim.dim_param for dim in model.graph.output[0].type.tensor_type.shape.dim] == list(shape)
    weights = [tensor for tensor in model.graph.initializer if tensor.name == "weight"]
    assert [onnx.numpy_helper.to_array(tensor) for tensor in weights] == ([] if weight is None else [PLANE])
    assert model.SerializeToString() == scan_model(axis, weight), "the encoding is protobuf's own, byte for byte"


def test_a_saturating_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from chan_rt.runtime.gallery.kernels import matrix as scan

    def saturating(self: object, axis: int | None, vectors: np.ndarray, query: object) -> np.ndarray:
        return np.full((1, 1, 1), 32767, np.float32)

    monkeypatch.setattr(scan.OnnxruntimeKernel, "_run", saturating)
    with pytest.raises(BackendError, match="saturate"):
        scan.OnnxruntimeKernel()


def test_without_onnxruntime_numpy_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert open_kernel.__wrapped__().name == "numpy"
    with pytest.raises(BackendError, match=r"pip install 'chan-rt\[cpu\]'"):
        open_kernel.__wrapped__("onnxruntime")


def test_unknown_kernel_and_threads_are_refused() -> None:
    with pytest.raises(InputError, match="scan must be one of"):
        open_kernel("cuda")
    with pytest.raises(InputError, match="threads must be positive, got 0"):
        Pool(0)
    with pytest.raises(InputError, match="threads must be at most 1024, got 1000000"):
        Pool(1_000_000)


def test_pool_takes_the_cpus_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "usable_cpus", lambda: 3)
    assert Pool().threads == 3
    assert Pool(5).threads == 5


@pytest.mark.parametrize(("rows", "depth", "columns"), [(1, 7, 1), (1, 512, 900), (700, 512, 1), (3, 4096, 900)])
def test_products_in_pieces_are_products(rows: int, depth: int, columns: int) -> None:
    rng = np.random.default_rng(0)
    left, right = (rng.integers(-9, 9, shape).astype(np.float32) for shape in ((rows, depth), (depth, columns)))
    np.testing.assert_array_equal(product(left, right), left.astype(np.int64) @ right.astype(np.int64))


def test_pool_raises_the_error_of_a_task_once_none_is_running() -> None:
    ended: list[int] = []

    def task(i: int) -> None:
        if i == 1:
            raise ValueError("task 1")
        time.sleep(0.05)
        ended.append(i)

    pool = Pool(2)
    with pytest.raises(ValueError, match="task 1"):
        pool.run([lambda i=i: task(i) for i in range(40)])
    after = list(ended)
    time.sleep(0.1)
    assert ended == after
    assert len(ended) < 10, "what had not begun is dropped"
    pool.run([lambda i=i: task(i) for i in (50, 51)])
    assert set(ended) - set(after) == {50, 51}, "and it works on"
    pool.close()


def test_pool_spreads_work_but_not_that_of_a_piece() -> None:
    pool, threads = Pool(3), Barrier(3)
    outer: list[int] = []
    inner: list[tuple[int, int]] = []

    def piece() -> None:
        threads.wait(10)  # breaks unless three threads are at it
        mine = get_ident()
        outer.append(mine)
        pool.run([lambda: inner.append((mine, get_ident()))] * 4)

    pool.run([piece] * 3)
    pool.close()
    assert len(set(outer)) == 3
    assert get_ident() in outer
    assert len(inner) == 12
    assert all(a == b for a, b in inner)


def test_a_piece_keeps_its_own_work_though_other_threads_are_idle() -> None:
    pool, inner = Pool(3), []

    def piece() -> None:
        mine = get_ident()

        def work() -> None:
            time.sleep(0.01)
            inner.append(get_ident() == mine)

        pool.run([work] * 10)

    pool.run([piece] * 2)
    pool.close()
    assert inner == [True] * 20
