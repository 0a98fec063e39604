"""What a proof of exactness rests on: how far a score from int8 codes can be from the fine copy's.

**Similarities.** Write a gallery vector x = x_hat + dx and a query vector q = q_hat + dq, where the hats are what the
codes stand for. Exactly, q.x - q_hat.x_hat = q.dx + dq.x_hat, so by Cauchy-Schwarz

    |q.x - q_hat.x_hat| <= ||q|| ||dx|| + ||dq|| ||x_hat||.                                                 (1)

Each norm on the right is stored or computed in float64 and rounded up (quantize.py). The left's q_hat.x_hat is a
product of two scales and an exact integer. So (1) holds for every pair, with no assumption about the data.

**By direction.** Rounding noise points everywhere alike, while queries share few directions: of demo captions' words
95 % of the energy lies in 16 of 256. So split the inner product along axes B = [B_1 ... B_J] fitted to queries. For any
matrix B at all, put q_rest = q - B B^T q; then q = sum_j B_j (B_j^T q) + q_rest exactly, and

    |q.dx| <= sum_j ||B_j^T q|| ||B_j^T dx|| + ||q_rest|| ||dx||.                                            (1')

Nothing is assumed of B, not even orthonormal columns: a bad B costs width, never truth. The smaller of (1) and (1')
holds.

**Scores.** If every similarity of a row is within e of its estimate, so is every maximum of similarities, and the score
is within `pooling.score_change(e)` of the score pooled from the estimates.

**The arithmetic's own rounding.** Let u = 2^-53, S a bound on |similarity| (||q|| times the row's largest norm), n the
number of pooled values, T the temperature. In any order of summation, a float64 inner product of D terms is off by at
most g(D) ||q|| ||x||, g(D) = D u / (1 - D u) (Higham, Accuracy and Stability of Numerical Algorithms, 3.1;
the products of two float32 or float16 numbers are exact in float64, which only helps). Pooling adds at most a
few roundings a value: a quotient, an exponential and a logarithm good to 4 units in the last place (numpy's SIMD loops
promise that), n additions. Everything together stays below

    16 u (D + n + 16) (S + T) for one similarity's worth,                                                   (2)

which `score_change` turns into score units like any other change. The scan's products are rounded to float32 three
times, 3 x 2^-24 S at most; that is added. (2) is some 10^-12: it is there so that the theorem
is about the program and not only about real numbers.

**Certificate.** Each row's true score lies in [score - radius, score + radius]. Let t be at most the k-th largest true
score. A row with score + radius < t is strictly worse than k rows: it cannot be among the best k, nor tie with one. All
other rows are scored again from the fine copy in float64. So the result is that of scoring every row there, ties too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..contract import AlignmentConfig
from .pooling import Array, pools_query, score_change
from .quantize import LEVELS
from .scan import PLANE

_UNIT64 = 2.0**-53
_UNIT32 = 2.0**-24
_TINY32 = 2.0**-126  # what one float32 product can lose to underflow, even where denormals are flushed to zero
AXIS_BLOCKS = (1, 4, 16, 64)  # ends of the blocks of axes: a spectrum that falls is flat enough within each
MAX_VALUE = 1e15  # of any embedding's element: then no float32 inner product of up to 32,768 terms overflows


@dataclass(frozen=True)
class QuantizedQuery:
    """A query's vectors in two int8 planes, with what (1) needs of them.

    Attributes:
        planes: int8 [2, Q, D], high and low: q_hat = scale * (254 high + low).
        scale: float64 [Q].
        vectors: float64 [Q, D], as they were.
        norm: no less than any ||q||.
        error: no less than any ||q - q_hat||.
    """

    planes: NDArray[np.int8]
    scale: Array
    vectors: Array
    norm: float
    error: float

    @property
    def count(self) -> int:
        """Q."""
        return int(self.planes.shape[1])

    @property
    def dim(self) -> int:
        """D."""
        return int(self.planes.shape[2])


def quantize_query(vectors: NDArray[np.float32], *, per_vector: bool) -> QuantizedQuery:
    """Quantize one query's vectors [Q, D].

    per_vector: one scale for each vector. The maximum over a query's vectors is taken on integers, so where the coding
        takes it (`pools_query` is False) they share one scale.
    """
    exact = vectors.astype(np.float64)
    peak = np.abs(exact).max(axis=1, keepdims=True)
    scale = (peak if per_vector else np.full_like(peak, peak.max())) / (LEVELS * PLANE)
    units = np.divide(exact, scale, out=np.zeros_like(exact), where=scale > 0)
    high = np.clip(np.rint(units / PLANE), -LEVELS, LEVELS)
    low = np.clip(np.rint(units - PLANE * high), -LEVELS, LEVELS)
    error = np.sqrt(np.square(exact - scale * (PLANE * high + low)).sum(axis=1).max(initial=0.0)) * (1 + 1e-12)
    planes = np.stack([high, low]).astype(np.int8)
    return QuantizedQuery(planes, scale[:, 0], exact, largest_norm(vectors), float(error))


def largest_norm(vectors: NDArray[np.floating]) -> float:
    """No less than the largest norm of vectors [V, D]: float64's rounding is allowed for."""
    exact = vectors.astype(np.float64)
    return float(np.sqrt(np.square(exact).sum(axis=1).max(initial=0.0))) * (1 + 1e-12)


def rounding(similarity: Array, dim: int, count: Array | int, alignment: AlignmentConfig) -> Array:
    """Bound (2), where |similarity| bounds every similarity and `count` are pooled."""
    return np.asarray(16 * _UNIT64 * (dim + count + 16) * (similarity + alignment.pooling_temperature))


def no_axes(dim: int) -> NDArray[np.float32]:
    """The empty B of (1'), [dim, 0]: where no queries are known."""
    return np.zeros((dim, 0), np.float32)


def fit_axes(queries: NDArray[np.floating]) -> NDArray[np.float32]:
    """The axes B of (1') for queries like these vectors [V, D]: the first of their principal ones, [D, m]."""
    moment = queries.T.astype(np.float64) @ queries.astype(np.float64)
    axes = np.linalg.eigh(moment)[1][:, ::-1][:, : AXIS_BLOCKS[-1]]
    return np.ascontiguousarray(axes, np.float32)


def block_norms(vectors: Array, axes: NDArray[np.float32]) -> Array:
    """||B_j^T x|| of vectors x [V, D] for each block of axes: [V, J], rounded up."""
    coordinates = np.square(vectors @ axes.astype(np.float64))
    edges = [edge for edge in (0, *AXIS_BLOCKS) if edge < axes.shape[1]]
    if not edges:
        return np.zeros((len(vectors), 0))
    # A coordinate is off by at most g(D) ||b|| ||x||, and the axes' columns are no longer than 1 + 10^-6.
    slack = 2 * vectors.shape[1] * _UNIT64 * np.sqrt(np.square(vectors).sum(axis=1) * AXIS_BLOCKS[-1])
    norms: Array = np.sqrt(np.add.reduceat(coordinates, edges, axis=1)) * (1 + 1e-12) + slack[:, None]
    return norms


def inner_error(
    row_error: NDArray[np.float32],
    row_blocks: NDArray[np.float32],
    axes: NDArray[np.float32],
    query: QuantizedQuery,
) -> Array:
    """No less than any |q.dx| of each row: the smaller of (1) and (1'), [N].

    Args:
        row_error: float32 [N], the largest ||dx|| of each row's vectors.
        row_blocks: float32 [N, J], the largest ||B_j^T dx||.
        axes: float32 [D, m], B.
        query: the quantized query.
    """
    whole: Array = query.norm * row_error.astype(np.float64)
    if axes.shape[1] == 0:
        return whole
    basis = axes.astype(np.float64)
    rest = query.vectors - (query.vectors @ basis) @ basis.T
    rest_norm = np.sqrt(np.square(rest).sum(axis=1).max()) * (1 + 1e-12)
    rest_norm += 4 * query.dim * _UNIT64 * AXIS_BLOCKS[-1] * query.norm  # the two products' rounding
    blocks = block_norms(query.vectors, axes).max(axis=0)
    return np.asarray(np.minimum(whole, row_blocks.astype(np.float64) @ blocks + rest_norm * row_error))


def int8_radius(
    inner: Array,
    row_error: NDArray[np.float32],
    row_norm: NDArray[np.float32],
    query: QuantizedQuery,
    count: Array | int,
    spread: Array | float,
    alignment: AlignmentConfig,
) -> Array:
    """How far rows' scores from codes can be from their float64 scores on the fine copy: [N].

    Args:
        inner: of each row, what `inner_error` gives.
        row_error, row_norm: float32 [N], for each row the largest ||x - x_hat|| and ||x_hat|| of its vectors.
        query: the quantized query.
        count: pooled similarities: of each row [N], or of the query.
        spread: of each row's pooled similarities [N] (Softmax only).
    """
    norm = row_norm.astype(np.float64)
    similarity = query.norm * (norm + row_error)
    change = (inner + query.error * norm) * (1 + 1e-12)
    change += rounding(similarity, query.dim, count, alignment) + 4 * _UNIT32 * similarity
    return score_change(change, count, spread, alignment)


def float32_similarity_error(dim: int, query_norm: float, row_norm: Array) -> Array:
    """How far a float32 inner product, summed in any order, can be from the float64 one.

    Higham's g(D) in float32, plus what products that underflow can lose, plus float64's own rounding.
    """
    relative = dim * _UNIT32 / (1 - dim * _UNIT32)
    underflow = dim * _TINY32 * (1 + query_norm + row_norm)
    return np.asarray(relative * (1 + 1e-6) * query_norm * row_norm + underflow)


def kth_largest(values: Array, k: int) -> float:
    """The k-th largest value, or -inf where there are fewer than k."""
    if k > len(values):
        return -np.inf
    return float(np.partition(values, len(values) - k)[len(values) - k])


__all__ = [
    "AXIS_BLOCKS",
    "MAX_VALUE",
    "QuantizedQuery",
    "block_norms",
    "fit_axes",
    "float32_similarity_error",
    "inner_error",
    "int8_radius",
    "kth_largest",
    "largest_norm",
    "no_axes",
    "pools_query",
    "quantize_query",
    "rounding",
]
