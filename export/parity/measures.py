"""How far a candidate's arrays are from the reference's: plain numpy, block by block, in bounded memory.

Every measure has a name, a meaning and a direction in `MEASURES`; `tolerances.json` bounds them by those names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from ...runtime.errors import ParityError
from ...runtime.evaluation.metrics import Metrics, evaluate

TOP = 10
KENDALL_TOP = 50
TIE = 1e-4  # scores of the reference closer than this may change places in a list of fp32
MARGIN = 1e-3  # a word whose best two regions are closer than this in the reference may choose either

# Histogram of |error|: 50 bins a decade, so a percentile read from it is at most 4.7 % too high.
_DECADES = (-12, 6)
_EDGES = np.logspace(*_DECADES, 50 * (_DECADES[1] - _DECADES[0]) + 1)


@dataclass(frozen=True)
class Measure:
    """One figure: its label, and whether a good value is low (bounded from above) or high (bounded from below)."""

    label: str
    good: Literal["low", "high"]


MEASURES: dict[str, Measure] = {
    "different_ids": Measure("captions whose token ids differ", "low"),
    "nonfinite": Measure("NaN and Inf", "low"),
    "padding": Measure("values past a length that are not zero", "low"),
    "max_abs": Measure("largest |error|", "low"),
    "p999_abs": Measure("99.9 % of |error| lie below", "low"),
    "cosine_min": Measure("smallest cosine", "high"),
    "cosine_mean": Measure("mean cosine", "high"),
    "regions_found": Measure("regions of the reference that the candidate finds, %", "high"),
    "top1_i2t": Measure("same best caption, % of images", "high"),
    "top1_t2i": Measure("same best image, % of captions", "high"),
    "overlap10_i2t": Measure(f"captions shared by both top {TOP}, %", "high"),
    "overlap10_t2i": Measure(f"images shared by both top {TOP}, %", "high"),
    "moved10": Measure(f"top-{TOP} lists that differ by more than scores closer than {TIE:g}", "low"),
    "kendall_i2t": Measure(f"Kendall tau over the top {KENDALL_TOP} captions", "high"),
    "kendall_t2i": Measure(f"Kendall tau over the top {KENDALL_TOP} images", "high"),
    "same_region": Measure("words that choose the same region, %", "high"),
    "same_region_clear": Measure(f"the same, where the choice is clear by {MARGIN:g}, %", "high"),
    "regions_beyond": Measure("regions chosen past a caption's length", "low"),
    "uncertified": Measure("answers of the exact search without its proof", "low"),
    "recall_change": Measure("largest change of a recall, points", "low"),
    "rsum_change": Measure("change of rsum, points", "low"),
}


def misses(measured: Mapping[str, float], tolerances: Mapping[str, float]) -> list[str]:
    """What breaks its tolerance, in words; a figure that was not measured or is NaN breaks it too."""
    found = []
    for name, bound in tolerances.items():
        value = measured.get(name)
        if value is None:
            found.append(f"{name} could not be measured")
        elif MEASURES[name].good == "low" and not value <= bound:
            found.append(f"{name} is {value:.6g}, more than {bound:g}")
        elif MEASURES[name].good == "high" and not value >= bound:
            found.append(f"{name} is {value:.6g}, less than {bound:g}")
    return found


@dataclass
class ErrorMeter:
    """|candidate - reference| over as many blocks as are added; `tensor` names them in errors.

    Cosines are of the last axis' vectors: one for each row where a block is [n, D].
    """

    tensor: str
    counts: np.ndarray = field(default_factory=lambda: np.zeros(len(_EDGES) + 1, dtype=np.int64))
    max_abs: float = 0.0
    nonfinite: int = 0
    padding: int = 0
    rows: int = 0
    _cosine_min: float = np.inf
    _cosine_sum: float = 0.0

    def add(self, reference: np.ndarray, candidate: np.ndarray) -> None:
        """Compare two blocks [n, D]; elements that are not finite in the candidate are counted and left out.

        Raises:
            ParityError: shapes differ, or the reference itself holds NaN or Inf.
        """
        if reference.shape != candidate.shape:
            raise ParityError(f"{self.tensor}: shape must be {list(reference.shape)}, got {list(candidate.shape)}")
        if not np.isfinite(reference).all():
            raise ParityError(f"{self.tensor}: the reference itself holds NaN or Inf, so nothing can be compared")
        if not reference.size:
            return
        finite = np.isfinite(candidate)
        self.nonfinite += int(candidate.size - np.count_nonzero(finite))
        a, b = reference.astype(np.float64), np.where(finite, candidate, 0.0).astype(np.float64)
        error = np.abs(a - b)[finite]
        if error.size:
            self.max_abs = max(self.max_abs, float(error.max()))
            self.counts += np.bincount(np.searchsorted(_EDGES, error.ravel()), minlength=len(self.counts))
        length = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        same = (a == b).all(-1)  # two zero vectors point the same way, a zero and another do not
        cosine = np.where(same, 1.0, (a * b).sum(-1) / np.where(length == 0, 1.0, length))
        self.rows += cosine.size
        self._cosine_min = min(self._cosine_min, float(cosine.min()))
        self._cosine_sum += float(cosine.sum())

    def add_padded(self, reference: np.ndarray, candidate: np.ndarray, lengths: np.ndarray) -> None:
        """Compare the real rows of [B, L, D] and count what is not zero in the candidate's padding."""
        if reference.shape != candidate.shape:
            raise ParityError(f"{self.tensor}: shape must be {list(reference.shape)}, got {list(candidate.shape)}")
        real = np.arange(reference.shape[1]) < np.asarray(lengths)[:, None]
        self.padding += int(np.count_nonzero(candidate[~real]))
        self.add(reference[real], candidate[real])

    def measures(self) -> dict[str, float]:
        """nonfinite, padding, max_abs, p999_abs and both cosines.

        Raises:
            ParityError: nothing was added.
        """
        if not self.rows:
            raise ParityError(f"{self.tensor}: there was nothing to compare")
        return {
            "nonfinite": self.nonfinite,
            "padding": self.padding,
            "max_abs": self.max_abs,
            "p999_abs": self.percentile(0.999),
            "cosine_min": self._cosine_min,
            "cosine_mean": self._cosine_sum / self.rows,
        }

    def percentile(self, share: float) -> float:
        """The |error| below which `share` of all lie, rounded up to the histogram's next edge."""
        total = int(self.counts.sum())
        if not total:
            return float("nan")
        index = int(np.searchsorted(np.cumsum(self.counts), share * total))
        if index == 0:
            return min(float(_EDGES[0]), self.max_abs)
        return min(float(_EDGES[index]), self.max_abs) if index < len(_EDGES) else self.max_abs

    def histogram(self) -> list[tuple[float, float]]:
        """(upper edge, share of elements) for plots, five bins a decade; what lies below 1e-12 is in the first."""
        total = max(1, int(self.counts.sum()))
        inner = self.counts[1:-1].reshape(-1, 10).sum(1)
        shares = [int(self.counts[0]), *inner.tolist()]
        return [(float(edge), count / total) for edge, count in zip(_EDGES[::10], shares, strict=True)]


@dataclass
class ChoiceMeter:
    """How often a word chooses the same region as in the reference."""

    words: int = 0
    same: int = 0
    clear: int = 0
    clear_same: int = 0
    beyond: int = 0

    def add(self, reference: np.ndarray, candidate: np.ndarray, margin: np.ndarray) -> None:
        """Compare choices [I, C, W], -1 past a caption's length, with the reference's margin of best over second.

        Raises:
            ParityError: shapes differ.
        """
        if reference.shape != candidate.shape:
            raise ParityError(
                f"word_regions: shape must be {list(reference.shape)} as the reference's, got {list(candidate.shape)}"
            )
        real = reference >= 0
        same = (reference == candidate)[real]
        clear = (margin > MARGIN)[real]
        self.words += same.size
        self.same += int(same.sum())
        self.clear += int(clear.sum())
        self.clear_same += int((same & clear).sum())
        self.beyond += int(np.count_nonzero(candidate[~real] != -1))

    def measures(self) -> dict[str, float]:
        """same_region, same_region_clear where any choice was clear, and regions_beyond."""
        if not self.words:
            raise ParityError("word_regions: there was nothing to compare")
        found = {"same_region": 100 * self.same / self.words, "regions_beyond": self.beyond}
        if self.clear:
            found["same_region_clear"] = 100 * self.clear_same / self.clear
        return found


def compare_ranks(reference: np.ndarray, candidate: np.ndarray) -> dict[str, float]:
    """Agreement of two finite score matrices [I, C] as rankings, both ways; ties go to the lower index.

    `top1`, `overlap10` and `kendall` (tau-b over the reference's first 50) are means over the queries. `moved10` counts
    lists with a place where the candidate puts an entry whose score in the reference differs by more than 1e-4 from
    that of the reference's entry at that place.
    """
    found: dict[str, float] = {"moved10": 0}
    for direction, a, b in (("i2t", reference, candidate), ("t2i", reference.T, candidate.T)):
        sums = np.zeros(4)
        for start in range(0, len(a), _QUERIES):
            sums += _compare_lists(a[start : start + _QUERIES], b[start : start + _QUERIES])
        found[f"top1_{direction}"] = 100 * sums[0] / len(a)
        found[f"overlap10_{direction}"] = 100 * sums[1] / len(a)
        found[f"kendall_{direction}"] = sums[2] / len(a)
        found["moved10"] += int(sums[3])
    return found


def compare_lists(reference: np.ndarray, found: np.ndarray) -> dict[str, float]:
    """Lists of images [C, k], best first, against the reference's scores of all images [C, I]: as `compare_ranks`."""
    sums = np.zeros(3)
    for start in range(0, len(reference), _QUERIES):
        scores, second = reference[start : start + _QUERIES], found[start : start + _QUERIES]
        top = np.argsort(-scores, axis=1, kind="stable")[:, : found.shape[1]]
        sums += _agreement(scores, top, second)
    return {
        "top1_t2i": 100 * sums[0] / len(reference),
        "overlap10_t2i": 100 * sums[1] / len(reference),
        "moved10": int(sums[2]),
    }


_QUERIES = 256  # queries compared at once: 256 x 50 x 50 pairs and 256 x 25,000 indices stay under 60 MB


def _compare_lists(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sums over the queries (rows): same first, share of the top 10, Kendall, lists moved by more than a tie."""
    first = np.argsort(-a, axis=1, kind="stable")[:, :KENDALL_TOP]
    second = np.argsort(-b, axis=1, kind="stable")[:, :TOP]
    tau = kendall(np.take_along_axis(a, first, 1), np.take_along_axis(b, first, 1))
    same, shared, moved = _agreement(a, first[:, :TOP], second)
    return np.array([same, shared, tau.sum(), moved])


def _agreement(scores: np.ndarray, top: np.ndarray, second: np.ndarray) -> tuple[float, float, int]:
    """Sums over the queries of two lists each: same first, share of entries in both, moved by more than a tie."""
    shared = (top[:, :, None] == second[:, None, :]).any(2).mean(1)
    apart = np.abs(np.take_along_axis(scores, top, 1) - np.take_along_axis(scores, second, 1)) > TIE
    return float((top[:, 0] == second[:, 0]).sum()), float(shared.sum()), int(apart.any(1).sum())


def kendall(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of each row's pairs: [Q, N], [Q, N] -> [Q]; 1 where neither orders, 0 where one does not."""
    rows, columns = np.triu_indices(a.shape[1], 1)
    order_a, order_b = np.sign(a[:, rows] - a[:, columns]), np.sign(b[:, rows] - b[:, columns])
    pairs_a, pairs_b = np.abs(order_a).sum(1), np.abs(order_b).sum(1)
    size = np.sqrt(pairs_a * pairs_b)
    tau = (order_a * order_b).sum(1) / np.where(size == 0, 1, size)
    found: np.ndarray = np.where(size == 0, (pairs_a == pairs_b).astype(float), tau)
    return found


def compare_recalls(reference: Metrics, candidate: Metrics) -> dict[str, float]:
    """The largest change of one of the six recalls and the change of rsum, both as absolute points.

    Recalls are counts over a number of rows, so what their sums and differences lose in float64 is rounded away: a
    change of just 1 point is not more than 1.
    """
    change = np.subtract(list(named_recalls(candidate).values()), list(named_recalls(reference).values()))
    return {
        "recall_change": round(float(np.abs(change).max()), 9),
        "rsum_change": round(abs(candidate.rsum - reference.rsum), 9),
    }


def named_recalls(metrics: Metrics) -> dict[str, float]:
    """The six recalls by name, `i2t R@1` first."""
    return {
        f"{way} R@{k}": getattr(side, f"r{k}")
        for way, side in (("i2t", metrics.i2t), ("t2i", metrics.t2i))
        for k in (1, 5, 10)
    }


def compare_scores(
    reference: np.ndarray, candidate: np.ndarray, image_of_caption: np.ndarray
) -> tuple[dict[str, float], ErrorMeter, Metrics | None]:
    """All measures of two score matrices [I, C], with the meter (for its histogram) and the candidate's recalls.

    A candidate with NaN or Inf has no ranking: only its errors are measured, and there are no recalls.
    """
    meter = ErrorMeter("scores")
    for start in range(0, len(reference), _QUERIES):
        meter.add(reference[start : start + _QUERIES], candidate[start : start + _QUERIES])
    found = meter.measures()
    del found["padding"]
    if meter.nonfinite:
        return found, meter, None
    recalls = evaluate(candidate, image_of_caption)
    found |= compare_ranks(reference, candidate)
    found |= compare_recalls(evaluate(reference, image_of_caption), recalls)
    return found, meter, recalls
