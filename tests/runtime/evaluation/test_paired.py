"""Differences of recalls and their intervals: against loops over resamples, and by how often they hold the truth."""

import numpy as np
import pytest

from chan_rt.runtime.errors import InputError
from chan_rt.runtime.evaluation import metrics
from chan_rt.runtime.evaluation.paired import CUTS, FIGURES, RSUM, PairedRanks, paired_differences, rsum_if_alike


def _block(rng: np.random.Generator, images: int, harder: float = 1.0) -> PairedRanks:
    """Ranks of an image and its one to seven captions share how hard the image is."""
    owner = np.repeat(np.arange(images), rng.integers(1, 8, images))
    hard = rng.exponential(2.0, images)
    i2t = np.stack([rng.poisson(hard * factor) for factor in (1.0, harder)])
    t2i = np.stack([rng.poisson(hard[owner] * factor) for factor in (1.0, harder)])
    return PairedRanks(i2t, t2i, owner)


def _recalls(block: PairedRanks, model: int, drawn: np.ndarray) -> list[float]:
    """The recalls of one model over images drawn, one after the other, with their captions."""
    captions = np.concatenate([np.flatnonzero(block.owner == image) for image in drawn])
    both = (metrics.recalls(block.i2t[model][drawn]), metrics.recalls(block.t2i[model][captions]))
    return [getattr(found, f"r{cut}") for found in both for cut in CUTS]


@pytest.mark.parametrize("sizes", [(1,), (13,), (9, 9), (4, 4, 4)])
def test_every_resample_counts_whole_images(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(len(sizes))
    blocks = [_block(rng, size, 1.3) for size in sizes]
    found = paired_differences(blocks, 200, seed=5)
    draws = np.random.default_rng(5)
    moves, base, other = np.zeros((200, 6)), np.zeros(6), np.zeros(6)
    for block, size in zip(blocks, sizes, strict=True):
        for row, drawn in enumerate(draws.integers(size, size=(200, size))):
            moves[row] += np.subtract(_recalls(block, 1, drawn), _recalls(block, 0, drawn)) / len(sizes)
        gained, lost = draws.poisson(0.5, (2, 200, 1))
        moves += 100 / size * (gained - lost) / len(sizes)
        base += np.divide(_recalls(block, 0, np.arange(size)), len(sizes))
        other += np.divide(_recalls(block, 1, np.arange(size)), len(sizes))
    for place, name in enumerate(FIGURES):
        each = found[name]
        low, high = np.percentile(moves[:, place], [2.5, 97.5]).clip(-100, 100)
        assert (each.base, each.other) == pytest.approx((base[place], other[place]))
        assert (each.low, each.high) == pytest.approx((low, high), abs=1e-9)
    total = found[RSUM]
    assert (total.base, total.difference) == pytest.approx((base.sum(), (other - base).sum()))
    low, high = np.percentile(moves.sum(axis=1), [2.5, 97.5]).clip(-600, 600)
    assert (total.low, total.high) == pytest.approx((low, high), abs=1e-9)


def test_many_images_are_drawn_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    block = _block(np.random.default_rng(0), 30, 1.5)
    whole = paired_differences([block], 100, seed=1)
    monkeypatch.setattr("chan_rt.runtime.evaluation.paired._DRAWS", 64)
    assert paired_differences([block], 100, seed=1) == whole


def test_queries_that_one_model_alone_answers_are_counted() -> None:
    i2t, t2i = np.array([[0, 0, 6], [0, 7, 0]]), np.array([[0, 5, 3, 11], [10, 0, 4, 11]])
    found = paired_differences([PairedRanks(i2t, t2i, np.array([0, 1, 1, 2]))], 100)
    alone = {name: (each.only_base, each.only_other) for name, each in found.items()}
    assert alone == {
        "i2t R@1": (1, 1), "i2t R@5": (1, 1), "i2t R@10": (0, 0),
        "t2i R@1": (1, 1), "t2i R@5": (1, 1), "t2i R@10": (1, 0), "rsum": (None, None),
    }  # fmt: skip


def test_what_no_image_shows_is_not_excluded() -> None:
    block = _block(np.random.default_rng(3), 100)
    same = PairedRanks(block.i2t[[0, 0]], block.t2i[[0, 0]], block.owner)
    found = paired_differences([same])
    assert found[RSUM].low == -12
    assert found[RSUM].high == 12
    for name in FIGURES:
        assert (found[name].low, found[name].difference, found[name].high) == (-2, 0, 2)


def test_no_interval_reaches_beyond_what_can_be() -> None:
    """Where one model answers all of 16 images and the other none, made-up images cannot make the difference larger."""
    right, wrong = np.zeros(16, np.int64), np.full(16, 15)
    ranks = np.stack([right, wrong])
    found = paired_differences([PairedRanks(ranks, ranks, np.arange(16))])
    for name, each in found.items():
        assert (each.low, each.difference) == ((-600, -600) if name == RSUM else (-100, -100))
        assert each.high > each.low


@pytest.mark.parametrize(("images", "folds"), [(80, 1), (400, 5), (1000, 1)])
def test_the_interval_of_models_that_answer_alike_is_known(images: int, folds: int) -> None:
    size = images // folds
    block = PairedRanks(np.zeros((2, size), np.int64), np.zeros((2, size), np.int64), np.arange(size))
    found = paired_differences([block] * folds)[RSUM]
    assert rsum_if_alike(images, folds) == pytest.approx(found.high, abs=300 / images)
    assert rsum_if_alike(images, folds) == pytest.approx(-found.low, abs=300 / images)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """300 samples of 200 images; the truth is the difference over 200,000. What is rare is held more often."""
    rng = np.random.default_rng(11)
    truth = paired_differences([_block(rng, 200_000, 1.2)], 1)
    held = dict.fromkeys(truth, 0)
    for seed in range(300):
        for name, each in paired_differences([_block(rng, 200, 1.2)], 500, seed).items():
            held[name] += each.low <= truth[name].difference <= each.high
    assert {name for name, times in held.items() if times < 0.92 * 300} == set()
    assert held[RSUM] < 0.98 * 300


def test_nothing_to_compare_is_refused() -> None:
    with pytest.raises(InputError, match="a block and a resample, got 0 and 100"):
        paired_differences([], 100)
    with pytest.raises(InputError, match="got 1 and 0"):
        paired_differences([_block(np.random.default_rng(0), 3)], 0)
