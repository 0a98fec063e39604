"""Galleries of any shape through random lives: each answer against scores of all rows, computed with numpy alone.

Between searches rows are added, deleted, compacted and prepared. Shapes go from one number to 8,192 a vector and from
one vector to 300 a row.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import Gallery, GalleryWriter
from chan_rt.runtime.gallery.kernels.choose import open_kernel
from chan_rt.runtime.gallery.proof.rows import kept_vectors
from chan_rt.runtime.gallery.result import SearchResult

KINDS = ("images", "captions")
EACH = [*itertools.product(("VHA", "THA", "VSA"), ("Max", "Mean", "Sum", "LSE", "Softmax"))]
SCANS = ("auto", "auto", open_kernel().name, "numpy")  # onnxruntime, where this CPU is not refused it
NUMBERS = 2_000_000  # in a gallery, at most
EXACT = 1e-9  # more than rounding in float64 changes a score of unit vectors, less than float32 would

Floats = NDArray[np.floating]


def vectors_of(rng: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    """Unit vectors: of all directions, of few, in few clusters, or equal."""
    x = rng.standard_normal((count, dim))
    match rng.integers(5):
        case 0 | 1:
            x = x / np.arange(1, dim + 1) + 0.3 * rng.integers(2)
        case 2:
            x = x[rng.integers(0, max(1, count // 5), count)] + 0.01 * x
        case 3:
            x = x[rng.integers(0, max(1, count // 5), count)]
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def log_uniform(rng: np.random.Generator, most: int) -> int:
    """From 1 to `most`, each order of magnitude alike."""
    return int(np.exp(rng.uniform(0, np.log(most + 1))))


def packed(rows: list[NDArray[np.float32]], kind: str) -> Embeddings:
    lengths = np.array([len(row) for row in rows], np.int32)
    vectors = np.zeros((len(rows), lengths.max(), rows[0].shape[1]), np.float32)
    for row, place in zip(rows, vectors, strict=True):
        place[: len(row)] = row
    return Embeddings(vectors, lengths, kind)


def pooled(values: Floats, alignment: AlignmentConfig) -> float:
    t = alignment.pooling_temperature
    match alignment.pooling:
        case "Max":
            return float(values.max())
        case "Mean":
            return float(values.mean())
        case "Sum":
            return float(values.sum())
        case "LSE":
            return float(values.max() / t + np.log(np.exp((values - values.max()) / t).sum()))
    weights = np.exp((values - values.max()) / t)
    return float(weights @ values / weights.sum())


def score(images: Floats, words: Floats, alignment: AlignmentConfig) -> float:
    """Score of one image [R, D] and one caption [W, D], as docs/published-model.md defines it."""
    images, words = images.astype(np.float64), words.astype(np.float64)
    similarities = images @ words.T
    if alignment.coding == "VHA":
        return pooled(similarities.max(axis=0), alignment)
    if alignment.coding == "THA":
        return pooled(similarities.max(axis=1), alignment)
    weights = np.exp((similarities - 1) / alignment.attention_temperature)
    attended = weights / weights.sum(axis=1, keepdims=True) @ words
    coding = (images * attended).sum(axis=1) / (np.linalg.norm(attended, axis=1) + 1e-8)
    return pooled(coding, alignment)


def check(found: SearchResult, true: dict[str, float], k: int) -> None:
    """The hits are the best of all rows: their scores are right, no row left out has more, equal scores keep order."""
    assert found.certified
    assert found.rows == len(true)
    assert len(found.hits) == min(k, len(true))
    scores = [hit.score for hit in found.hits]
    np.testing.assert_allclose(scores, [true[hit.id] for hit in found.hits], rtol=0, atol=EXACT)
    places = list(true)
    order = [(-hit.score, places.index(hit.id)) for hit in found.hits]
    assert order == sorted(set(order))
    left = true.keys() - {hit.id for hit in found.hits}
    assert all(true[name] <= scores[-1] + EXACT for name in left)


def live(rng: np.random.Generator, path: Path, coding: str, pooling: str) -> int:
    """Live one gallery's life; returns how many queries were compared."""
    dim, longest = log_uniform(rng, 8192), log_uniform(rng, 300)
    count = max(3, min(log_uniform(rng, 400), NUMBERS // (dim * longest)))
    kind, fine = str(rng.choice(KINDS)), str(rng.choice(["float32", "fixed16", "float16"]))
    other = KINDS[kind == "images"]
    alignment = AlignmentConfig(coding, pooling, float(rng.choice([0.05, 0.1])), float(rng.choice([0.02, 0.1, 1.0])))
    lengths = np.full(count, longest) if rng.integers(2) else rng.integers(1, longest + 1, count)
    rows = np.split(vectors_of(rng, int(lengths.sum()), dim), np.cumsum(lengths)[:-1])
    sizes = rng.integers(1, 17, 4)
    asked = [*np.split(vectors_of(rng, int(sizes.sum()), dim), np.cumsum(sizes)[:-1]), rows[0][:20]]
    queries = packed(asked, other)
    alive: dict[str, NDArray[np.float32]] = {}
    compared = 0

    def compare() -> None:
        nonlocal compared
        chosen = None
        if rng.integers(3) == 0:
            chosen = [name for name in alive if rng.integers(2)] or list(alive)[:1]
        k = int(rng.choice([1, 3, 10, len(alive), len(alive) + 5]))
        with Gallery.open(path, scan=str(rng.choice(SCANS)), threads=1) as gallery:
            found = gallery.search(queries, k, ids=chosen)
        for query, result in zip(asked, found, strict=True):
            among = alive if chosen is None else {name: row for name, row in alive.items() if name in set(chosen)}
            sides = ((row, query) if kind == "images" else (query, row) for row in among.values())
            true = {name: score(*side, alignment) for name, side in zip(among, sides, strict=True)}
            check(result, true, k)
            compared += 1

    with GalleryWriter.create(path, dim=dim, alignment=alignment, kind=kind, fine=fine) as writer:
        added = 0
        while added < count or rng.integers(2):
            match rng.integers(4) if alive else 0:
                case 0:
                    new = {f"{n}": rows[n] for n in range(added, min(count, added + 1 + int(rng.integers(count))))}
                    if not new:
                        continue
                    writer.add(list(new), packed(list(new.values()), kind))
                    added += len(new)
                    alive |= {name: kept_vectors(row, np.array([0, len(row)]), fine) for name, row in new.items()}
                case 1 if len(alive) > 1:
                    gone = [name for name in list(alive)[1:] if rng.integers(4) == 0]
                    writer.delete(gone)
                    alive = {name: row for name, row in alive.items() if name not in set(gone)}
                case 2:
                    writer.compact()
                case 3:
                    writer.prepare(queries if rng.integers(3) else None)
            compare()
    return compared


@pytest.mark.parametrize(
    ("seed", "least"), [((7,), 60), *(pytest.param((70, n), 134, marks=pytest.mark.nightly) for n in range(10))]
)
@pytest.mark.parametrize(("coding", "pooling"), EACH)
def test_answers_through_random_lives(
    tmp_path: Path, coding: str, pooling: str, seed: tuple[int, ...], least: int
) -> None:
    """20,000 answers at night."""
    rng, compared = np.random.default_rng([*seed, EACH.index((coding, pooling))]), 0
    for turn in itertools.count():
        if compared >= least:
            break
        compared += live(rng, tmp_path / str(turn), coding, pooling)
