"""What a proof of exactness rests on: how far a score from codes can be from the fine copy's.

A search bounds scores three times, each time more narrowly and from more bytes, and drops the rows that cannot be among
the best: by the first coordinates (3), by more of them (3 again), and by the int8 codes of all (1). What is left is
scored from the fine copy. core/ computes the bounds where the core was built; this module and intervals.py compute (1)
elsewhere. Every inequality here holds for every pair of vectors, with no assumption about the data: the
axes, means and steps below may be any numbers at all. Bad ones cost width, never truth.

**Int8 codes.** Write a gallery vector x = x_hat + dx and a query vector q = q_hat + dq, where the hats are what the
codes stand for. Exactly, q.x - q_hat.x_hat = q.dx + dq.x_hat, so by Cauchy-Schwarz

    |q.x - q_hat.x_hat| <= ||q|| ||dx|| + ||dq|| ||x_hat||.                                                 (1)

Each norm on the right is stored or computed in float64 and rounded up (quantize.py). The left's q_hat.x_hat is a
product of two scales and an exact integer.

**By direction.** Rounding noise points everywhere alike, while queries share few directions: of demo captions' words
95 % of the energy lies in 16 of 256. So split the inner product along axes B = [B_1 ... B_J]. With q_rest = q - B B'q,
q = sum_j B_j (B_j'q) + q_rest exactly, and

    |q.dx| <= sum_j ||B_j'q|| ||B_j'dx|| + ||q_rest|| ||dx||.                                               (1')

A query that is coded coarsely loses as much as the gallery does. Gallery vectors share directions, too, and in the same
way

    |dq.x_hat| <= sum_j ||B_j'dq|| ||B_j'x_hat|| + ||dq|| ||x_hat - B B'x_hat||.                            (1'')

The smaller of (1) and (1'), or (1''), holds for each of the two products.

All of this is about any q_hat. Where a query's integers have two digits, the core first takes the high ones alone,
whose dq is larger, and adds the products with the low ones only for rows that the bound from these leaves open.

**The first coordinates.** Let y = B'q and c = B'(x - m) for a mean m, and let d be no less than the norm of B'B - 1,
which is 0 for orthonormal axes and some 10^-7 for these in float32. With f = max(0, 1 - d), 1 - f BB' has no negative
eigenvalue, so Cauchy-Schwarz holds for the product that it defines, with R(v)^2 = ||v||^2 - f ||B'v||^2:

    q.(x - m) - f y.c = q'(1 - f BB')(x - m) <= R(q) R(x - m).                                              (3')

Keep the first P coordinates of c as steps times integer codes, and what that leaves of the first K of them as finer
steps times codes once more: code n_i with the step s_i is of the coordinate a(i). Let c_hat be what all codes stand
for, with zeros behind the first P coordinates. Then y.c = y.c_hat + y.(c - c_hat), and the last product splits along
blocks of axes:

    q.x <= q.m + f sum_(i <= P + K) y_a(i) s_i n_i + sum_j ||y_j|| ||c_j - c_hat_j|| + R(q) R(x - m).       (3)

The norms of c - c_hat in each block, R(x - m) and one more are the row's: measured when it is coded, rounded up to a
byte each (prefix.py). The factors before them are the query's. So the right side is one inner product of bytes with
numbers of the query, plus a constant: an upper bound of every similarity, for each word and each region, by the same
integer kernels. With x in place of x - m, (3') also gives (1') with R(q) in place of ||q_rest||, as R(dx) <= ||dx||.

The query's numbers become integers as well: t k_i in place of w_i = f y_a(i) s_i. What that changes is at most
||w - t k|| ||n||, and ||n|| is the row's last norm. Factors of norms are rounded up. The integers have one digit of 7
bits or two; a step t is chosen so that no sum of products leaves int32, and so that the query's own rounding adds
little, and is then made as fine as the digits allow (core/query.cpp). A factor of ||n|| that does not fit two digits is
cut off: ||w - t k|| ||n|| is at most t sqrt(N) / 2 * 127 sqrt(N) for N codes, which is less than t times their largest
integer for N <= 256.

y is computed in float32. If every coordinate is within e of B'q, then the sum in (3) is within e sum_i s_i |n_i| <=
127 e sum_i s_i, and each block norm within e sqrt(axes of the block); all of that is added.

**Scores.** If every similarity of a row is within e of its estimate, so is every maximum of similarities, and the score
is within `pooling.score_change(e)` of the score pooled from the estimates. Max, Mean, Sum and LSE grow with each
similarity, so upper bounds pooled are an upper bound of the score, word by word, which is narrower. Softmax pooling is
a weighted mean of the similarities: (3) bounds it by the largest of them.

**The arithmetic's own rounding.** Let u = 2^-53, S a bound on |similarity| (||q|| times the row's largest norm), n the
number of pooled values, T the temperature. In any order of summation, a float64 inner product of D terms is off by at
most g(D) ||q|| ||x||, g(D) = D u / (1 - D u) (Higham, Accuracy and Stability of Numerical Algorithms, 3.1;
the products of two float32 or float16 numbers are exact in float64, which only helps). Pooling adds at most a
few roundings a value: a quotient, an exponential and a logarithm good to 4 units in the last place (numpy's SIMD loops
promise that, libm more), n additions. Everything together stays below

    16 u (D + n + 16) (S + T) for one similarity's worth,                                                   (2)

which `score_change` turns into score units like any other change. Products that the kernels of kernels/ scan are
rounded to float32 at most four times, 4 x 2^-24 S; that is added. So are the roundings of (3): its integers are exact,
its sums of a few float64 numbers are covered by factors of 1 + 10^-9, and pooling upper bounds in float32 has an
allowance of its own (core/pool_lanes.h). (2) is some 10^-12: it is there so that the theorem is about the program and
not only about real numbers.

**Vectors of a row.** Where a maximum runs over a row's vectors, (3) bounds each of them, so not all of them need the
more exact arithmetic of (1). Let L be a word's largest lower bound by (1) over some of the vectors, which may be others
for each word, and U the largest upper bound. A vector whose bound by (3) is at most U cannot raise the word's upper
bound, and one whose bound is below L cannot hold its maximum. core/pairs.cpp multiplies int8 codes with a word, and
core/fine.cpp the fine copy, of no others. Nor can a vector hold it whose upper bound by (1) is below L where L comes
from the high digits alone: the low ones are multiplied with the others.

**Between limits.** Whether a score reaches a limit needs no codes between (3) and the fine copy (core/above.cpp). Of
some of a row's vectors, let s be a word's largest similarity in float32, which is within e of the float64 one, and U
the word's largest bound by (3) over the other vectors. Its maximum then lies between s - e and max(s + e, U). Once the
limit lies outside of what these pool to, the other vectors do not matter.

**Certificate.** Let t be at most the k-th largest true score. A row whose upper bound is below t is strictly worse than
k rows: it cannot be among the best k, nor tie with one. All other rows are scored again from the fine copy, in float32
with a proven distance, and those that float32 leaves undecided in float64. So the result is that of scoring every row
there, ties too. t begins as the k-th best lower bound of some rows that look good, and rises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...contract import AlignmentConfig
from ..kernels.blas import product
from ..kernels.layout import PLANE
from .pooling import Float64Array, score_change
from .quantize import LEVELS

_UNIT64 = 2.0**-53
_UNIT32 = 2.0**-24
_TINY32 = 2.0**-126  # what one float32 product can lose to underflow, even where denormals are flushed to zero
_WEIGHTS = {1: (1,), 2: (PLANE, 1)}  # of a query's planes
_EDGES = (0, 1, 4, 16, 64)  # where blocks of axes begin: a spectrum that falls is flat enough within each
MOST_BLOCKS = len(_EDGES)  # J is no larger
MAX_VALUE = 1e15  # of any embedding's element: then no float32 inner product of up to 32,768 terms overflows


@dataclass(frozen=True)
class QuantizedQuery:
    """A query's vectors in one or two int8 planes, with the numbers that (1) needs.

    Attributes:
        planes: int8 [1 or 2, Q, D]: q_hat = scale * high, or scale * (254 high + low).
        scale: float64 [Q].
        vectors: float64 [Q, D], the vectors before they were quantized.
        lost: float64 [Q, D], dq.
        norm: no less than any ||q||.
        error: no less than any ||dq||.
    """

    planes: NDArray[np.int8]
    scale: Float64Array
    vectors: Float64Array
    lost: Float64Array
    norm: float
    error: float

    @property
    def count(self) -> int:
        """Number of vectors (Q)."""
        return int(self.planes.shape[1])

    @property
    def dim(self) -> int:
        """Width of the vectors (D)."""
        return int(self.planes.shape[2])


def quantize_query(vectors: NDArray[np.float32], *, per_vector: bool, planes: int = 2) -> QuantizedQuery:
    """Quantize one query's vectors [Q, D]; see `quantize_queries`."""
    return quantize_queries([vectors], per_vector=per_vector, planes=planes)[0]


def quantize_queries(
    queries: Sequence[NDArray[np.float32]], *, per_vector: bool, planes: int = 2
) -> list[QuantizedQuery]:
    """Quantize the vectors [Q_i, D] of some queries.

    per_vector: one scale for each vector. The maximum over a query's vectors is taken on integers, so where the coding
        takes it (`pools_query` is False) they share one scale.
    planes: 1 or 2, of 8 bits each.
    """
    exact = np.concatenate(queries).astype(np.float64)
    ends = np.cumsum([len(query) for query in queries]).tolist()
    spans = [slice(end - len(query), end) for query, end in zip(queries, ends, strict=True)]
    peak = np.abs(exact).max(axis=1, keepdims=True)
    if not per_vector:
        for span in spans:
            peak[span] = peak[span].max()
    scale = peak / (LEVELS * _WEIGHTS[planes][0])
    rest = np.divide(exact, scale, out=np.zeros_like(exact), where=scale > 0)
    codes = []
    for weight in _WEIGHTS[planes]:
        codes.append(np.clip(np.rint(rest / weight), -LEVELS, LEVELS))
        rest = rest - weight * codes[-1]
    lost = exact - scale * sum(weight * plane for weight, plane in zip(_WEIGHTS[planes], codes, strict=True))
    stacked = np.stack(codes).astype(np.int8)
    norms, errors = _norms(exact), _norms(lost)
    return [
        QuantizedQuery(
            stacked[:, span],
            scale[span, 0],
            exact[span],
            lost[span],
            float(norms[span].max(initial=0.0)),
            float(errors[span].max(initial=0.0)),
        )
        for span in spans
    ]


def largest_norm(vectors: NDArray[np.floating]) -> float:
    """No less than the largest norm of vectors [V, D]: float64's rounding is allowed for."""
    return float(_norms(vectors.astype(np.float64)).max(initial=0.0))


def _norms(vectors: Float64Array) -> Float64Array:
    """No less than the norms of vectors [V, D]: [V]."""
    return np.asarray(np.sqrt(np.square(vectors).sum(axis=1)) * (1 + 1e-12))


def rounding(similarity: Float64Array, dim: int, count: Float64Array | int, alignment: AlignmentConfig) -> Float64Array:
    """Bound (2), where |similarity| bounds every similarity and `count` are pooled."""
    return np.asarray(16 * _UNIT64 * (dim + count + 16) * (similarity + alignment.pooling_temperature))


def no_axes(dim: int) -> NDArray[np.float32]:
    """The empty B of (1'), [dim, 0]: where no queries are known."""
    return np.zeros((dim, 0), np.float32)


def block_edges(axes: int) -> list[int]:
    """Where blocks of that many axes begin, and their number at the end."""
    return [edge for edge in _EDGES if edge < axes] + [axes]


def block_norms(
    vectors: Float64Array, axes: NDArray[np.floating], multiply: Callable[..., Any] = np.matmul
) -> Float64Array:
    """||B_j^T x|| of vectors x [V, D] for each block of axes: [V, J], rounded up."""
    edges = block_edges(axes.shape[1])[:-1]
    if not edges:
        return np.zeros((len(vectors), 0))
    coordinates = np.square(multiply(vectors, axes.astype(np.float64, copy=False)))
    norms: Float64Array = np.sqrt(np.add.reduceat(coordinates, edges, axis=1)) * (1 + 1e-12) + _slack(vectors, axes)
    return norms


def gallery_norms(restored: Float64Array, axes: NDArray[np.floating]) -> Float64Array:
    """What (1'') needs of x_hat [V, D]: the norms along each block of axes and of what they leave, [V, J + 1]."""
    if axes.shape[1] == 0:
        return np.zeros((len(restored), 0))
    exact = axes.astype(np.float64, copy=False)
    held = restored @ exact @ exact.T
    rest = _norms(restored - held)[:, None]
    return np.concatenate([block_norms(restored, axes), rest + _slack(restored, axes) * np.sqrt(axes.shape[1])], axis=1)


def _slack(vectors: Float64Array, axes: NDArray[np.floating]) -> Float64Array:
    """What float64 can lose of vectors' coordinates [V, m] together: [V, 1].

    A coordinate is off by at most g(D) ||b|| ||x||, and the axes' columns are no longer than 1 + 10^-6.
    """
    norms: Float64Array = np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    return np.asarray(2 * (vectors.shape[1] + axes.shape[1]) * _UNIT64 * np.sqrt(axes.shape[1]) * norms)


class Reach:
    """The queries' side of (1') and (1''), computed once for all rows that were measured along the same axes.

    Args:
        queries: the quantized queries.
        axes: [D, m], B.
        basis: [D, P], V.

    Attributes:
        norm: float64 [queries, 1], no less than any ||q||.
        along: float64 [queries, J], ||B_j^T q|| of (1').
        rest: float64 [queries, 1], ||q_rest||; `norm` where there are no axes.
    """

    def __init__(
        self, queries: Sequence[QuantizedQuery], axes: NDArray[np.floating], basis: NDArray[np.floating]
    ) -> None:
        starts = np.cumsum([0] + [query.count for query in queries])[:-1]
        vectors = np.concatenate([query.vectors for query in queries])
        self.norm = np.array([[query.norm] for query in queries])
        self._error = np.array([[query.error] for query in queries])
        self.along = np.maximum.reduceat(block_norms(vectors, axes, product), starts, axis=0)
        self._lost_along = np.zeros((len(queries), 0))
        if basis.shape[1]:
            lost = np.concatenate([query.lost for query in queries])
            self._lost_along = np.maximum.reduceat(block_norms(lost, basis, product), starts, axis=0)
        self.rest = self.norm
        if axes.shape[1]:
            exact = axes.astype(np.float64, copy=False)
            held = product(product(vectors, exact), exact.T)
            rest = np.maximum.reduceat(_norms(vectors - held), starts)[:, None]
            dim = vectors.shape[1]
            self.rest = rest + 4 * dim * _UNIT64 * axes.shape[1] * self.norm  # the two products' rounding

    def change(
        self,
        error: NDArray[np.floating],
        norm: NDArray[np.floating],
        blocks: NDArray[np.floating],
        norms: NDArray[np.floating],
    ) -> Float64Array:
        """No less than any |q.x - q_hat.x_hat| of each query and row, [queries, N].

        Args:
            error: float32 [N], the largest ||dx|| of each row's vectors.
            norm: float32 [N], the largest ||x_hat||.
            blocks: float32 [N, J], the largest ||B_j^T dx||; J = 0 where they were not measured.
            norms: float32 [N, J + 1], the largest of what `gallery_norms` gives; width 0 where they were not measured.
        """
        # in float64 from the start: a Python number times float32 would be float32
        error, norm, blocks, norms = (array.astype(np.float64) for array in (error, norm, blocks, norms))
        inner, outer = self.norm * error, self._error * norm
        if blocks.shape[1]:
            inner = np.minimum(inner, product(self.along, blocks.T) + self.rest * error)
        if norms.shape[1]:
            outer = np.minimum(outer, product(self._lost_along, norms[:, :-1].T) + self._error * norms[:, -1])
        return np.asarray((inner + outer) * (1 + 1e-12))


def int8_radius(
    change: Float64Array,
    row_error: NDArray[np.float32],
    row_norm: NDArray[np.float32],
    query: QuantizedQuery,
    count: Float64Array | int,
    spread: Float64Array | float,
    alignment: AlignmentConfig,
) -> Float64Array:
    """How far rows' scores from codes can be from their float64 scores on the fine copy: [N].

    Args:
        change: of each row, what `Reach.change` gives for the query.
        row_error, row_norm: float32 [N], for each row the largest ||x - x_hat|| and ||x_hat|| of its vectors.
        query: the quantized query.
        count: pooled similarities: of each row [N], or of the query.
        spread: of each row's pooled similarities [N] (Softmax only).
    """
    norm = row_norm.astype(np.float64)
    similarity = query.norm * (norm + row_error)
    change = change + rounding(similarity, query.dim, count, alignment) + 4 * _UNIT32 * similarity
    return score_change(change, count, spread, alignment)


def float32_similarity_error(dim: int, roundings: int, query_norm: float, row_norm: Float64Array) -> Float64Array:
    """How far a float32 inner product can be from the float64 one, where at most `roundings` touch any of its terms.

    Higham's g(roundings) in float32 (3.1; D of them whatever the order of summation), plus what products that underflow
    can lose, plus float64's own rounding.
    """
    relative = roundings * _UNIT32 / (1 - roundings * _UNIT32)
    underflow = dim * _TINY32 * (1 + query_norm + row_norm)
    return np.asarray((relative + 4 * dim * _UNIT64) * (1 + 1e-6) * query_norm * row_norm + underflow)


def kth_largest(values: Float64Array, k: int) -> float:
    """The k-th largest value, or -inf where there are fewer than k."""
    if k > len(values):
        return -np.inf
    return float(np.partition(values, len(values) - k)[len(values) - k])
