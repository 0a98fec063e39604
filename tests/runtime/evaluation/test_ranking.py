"""Ranks without scores are those of every score in float64: codings, poolings, ties, ragged rows, folds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import TensorError
from chan_rt.runtime.evaluation import metrics, ranking, streaming
from chan_rt.runtime.gallery.proof.true_score import true_row

GOLDEN = Path(__file__).parents[2] / "golden"
CODINGS = ["VHA", "THA"]
POOLINGS = ["Max", "Mean", "Sum", "LSE", "Softmax"]
TIES: list[metrics.Ties] = ["lower", "published", "optimistic", "pessimistic"]

pytestmark = pytest.mark.skipif(not ranking.can_rank(AlignmentConfig()), reason="the compiled core was not built")


class Table:
    """An encoder of captions that are numbers of rows, and of regions that are embeddings already."""

    def __init__(self, texts: Embeddings, alignment: AlignmentConfig) -> None:
        self.texts, self.alignment = texts, alignment

    def encode_images(self, regions: np.ndarray, lengths: np.ndarray) -> Embeddings:
        return Embeddings(regions, lengths)

    def encode_texts(self, captions: Sequence[str]) -> Embeddings:
        return self.texts[[int(caption) for caption in captions]].trimmed()

    def score(self, images: Embeddings, texts: Embeddings) -> np.ndarray:
        raise AssertionError("no scores are needed")


def _unit(vectors: np.ndarray, lengths: np.ndarray) -> Embeddings:
    vectors = (vectors / np.linalg.norm(vectors, axis=2, keepdims=True)).astype(np.float32)
    vectors[np.arange(vectors.shape[1]) >= lengths[:, None]] = 0
    return Embeddings(vectors, lengths.astype(np.int32))


def _split(seed: int, owner: np.ndarray, dim: int, own: float, ragged: bool = True) -> tuple[Embeddings, Embeddings]:
    """Images and captions; each word is `own` times a region of its image, and noise."""
    rng = np.random.default_rng(seed)
    count, captions = int(owner.max()) + 1, len(owner)
    lengths = [rng.integers(1, most + 1, n) if ragged else np.full(n, most) for n, most in ((count, 7), (captions, 6))]
    common = rng.standard_normal(dim)
    images = _unit(2 * common + rng.standard_normal((count, 7, dim)), lengths[0])
    shown = images.vectors[owner[:, None], rng.integers(0, lengths[0][owner][:, None], (captions, 6))]
    return images, _unit(own * shown + common / 8 + rng.standard_normal((captions, 6, dim)) / 8, lengths[1])


def _images(images: Embeddings, owner: np.ndarray) -> CaptionedImages:
    captions = [str(number) for number in range(len(owner))]
    return CaptionedImages.from_arrays(images.vectors, captions, owner, images.lengths)


def _standings(
    images: Embeddings, texts: Embeddings, owner: np.ndarray, alignment: AlignmentConfig
) -> ranking.Standings:
    everything = [(slice(0, len(images)), slice(0, len(texts)))]
    (found,) = ranking.rank_blocks(Table(texts, alignment), _images(images, owner), everything)
    return found


def _scores(images: Embeddings, texts: Embeddings, alignment: AlignmentConfig) -> np.ndarray:
    """Every score in float64, one pair at a time."""
    rows = [image[:length] for image, length in zip(images.vectors, images.lengths, strict=True)]
    queries = [text[:length] for text, length in zip(texts.vectors, texts.lengths, strict=True)]
    return np.array([[true_row(row, query, "images", alignment).score for query in queries] for row in rows])


def _check(images: Embeddings, texts: Embeddings, owner: np.ndarray, alignment: AlignmentConfig) -> None:
    found, scores = _standings(images, texts, owner, alignment), _scores(images, texts, alignment)
    for ties in TIES:
        for mine, expected in zip(found.ranks(ties), metrics.ranks(scores, owner, ties), strict=True):
            np.testing.assert_array_equal(mine, expected, err_msg=ties)


@pytest.fixture(autouse=True)
def small_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts, encoded groups and turns."""
    monkeypatch.setattr(ranking, "IMAGES", 17)
    monkeypatch.setattr(ranking, "_PAIRS", 1)
    monkeypatch.setattr(streaming, "_CAPTIONS", 29)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("own", [0.0, 1.0])  # as chance has it, where most pairs survive; and as a good model has it
def test_ranks_are_those_of_every_score(coding: str, pooling: str, own: float) -> None:
    rng = np.random.default_rng(7)
    owner = np.repeat(np.arange(40), rng.integers(1, 4, 40))
    for dim, ragged in ((80, True), (24, False)):
        images, texts = _split(dim, owner, dim, own, ragged)
        _check(images, texts, owner, AlignmentConfig(coding, pooling, pooling_temperature=0.07))  # type: ignore[arg-type]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("own", [0.0, 1.0])  # levels exclude nothing, and most pairs
def test_levels_bound_rows_of_many_vectors(coding: str, pooling: str, own: float) -> None:
    """Images of up to 45 regions, much alike, so that some vectors of a row decide a pair and others are left out."""
    rng = np.random.default_rng(17)
    owner = np.repeat(np.arange(24), 3)
    spectrum = (1.0 if own == 0 else np.arange(1, 193) ** -0.7) * np.ones(192)
    lengths = rng.integers(1, 46, 24), rng.integers(1, 7, len(owner))
    middle = rng.standard_normal((24, 1, 192))
    images = _unit((middle + 0.7 * rng.standard_normal((24, 45, 192))) * spectrum, lengths[0])
    shown = images.vectors[owner[:, None], rng.integers(0, lengths[0][owner][:, None], (len(owner), 6))]
    noise = rng.standard_normal((len(owner), 6, 192)) * spectrum
    texts = _unit(own * shown + noise / 4 / np.linalg.norm(spectrum), lengths[1])
    _check(images, texts, owner, AlignmentConfig(coding, pooling, pooling_temperature=0.07))  # type: ignore[arg-type]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(("different", "dim"), [(1, 32), (5, 32), (5, 192)])  # the last with levels
def test_equal_rows_tie_in_every_order(coding: str, pooling: str, different: int, dim: int) -> None:
    """40 images are copies of `different` ones, and so are their captions, in any order."""
    rng = np.random.default_rng(different)
    images, texts = _split(3, np.arange(different), dim, 1.0)
    copies = rng.integers(0, different, 40)
    owner = np.sort(np.arange(100) % 40)
    said = np.where(rng.random(100) < 0.8, copies[owner], rng.integers(0, different, 100))
    _check(images[copies], texts[said], owner, AlignmentConfig(coding, pooling))  # type: ignore[arg-type]


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_images_and_captions_that_are_equal_by_the_hundred(coding: str, pooling: str) -> None:
    """More captions than are looked at together, all of two kinds, for images of two kinds."""
    rng = np.random.default_rng(11)
    images, texts = _split(13, np.arange(2), 70, 0.5)
    owner = np.sort(np.arange(300) % 120)
    _check_kinds(images, texts, owner, rng.integers(0, 2, 120), rng.integers(0, 2, 300), coding, pooling)


def _check_kinds(
    images: Embeddings, texts: Embeddings, owner: np.ndarray, shown: np.ndarray, said: np.ndarray, *alignment: str
) -> None:
    """Image i is a copy of the image shown[i], and caption c of the caption said[c]."""
    config = AlignmentConfig(*alignment)  # type: ignore[arg-type]
    found, scores = _standings(images[shown], texts[said], owner, config), _scores(images, texts, config)
    for ties in TIES:
        expected = metrics.ranks(scores[np.ix_(shown, said)], owner, ties)
        for mine, theirs in zip(found.ranks(ties), expected, strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=ties)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_of_any_kind(coding: str, pooling: str, seed: int) -> None:
    """Zeros, one huge coordinate, a coarse grid, near copies, denormal numbers and any sizes, each pair of kinds."""
    rng = np.random.default_rng(100 + seed)
    dim, owner = int(rng.choice([1, 3, 17, 70, 300])), np.sort(np.r_[np.arange(12), rng.integers(0, 12, 18)])
    images, texts = (_any_kind(rng, count, most, dim) for count, most in ((12, int(rng.integers(1, 8))), (30, 19)))
    _check(images, texts, owner, AlignmentConfig(coding, pooling))  # type: ignore[arg-type]


def _any_kind(rng: np.random.Generator, count: int, longest: int, dim: int) -> Embeddings:
    vectors = rng.standard_normal((count, longest, dim))
    match rng.integers(6):
        case 0:
            vectors[rng.random((count, longest)) < 0.5] = 0
        case 1:
            vectors[..., 0] = 1e6
        case 2:
            vectors = np.rint(vectors)
        case 3:
            vectors = vectors[:1, :1] + 1e-7 * vectors
        case 4:
            vectors *= 1e-40
        case 5:
            vectors *= 10.0 ** rng.integers(-6, 6, (count, 1, 1))
    lengths = rng.integers(1, longest + 1, count).astype(np.int32)
    vectors[np.arange(longest) >= lengths[:, None]] = 0
    return Embeddings(vectors.astype(np.float32), lengths)


@pytest.mark.parametrize("name", ["bigru_basic_vha_mean", "bigru_selfattention_vha_lse", "bigru_selfattention_ragged"])
@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("pooling", [pooling for pooling in POOLINGS if pooling != "Softmax"])  # NaN, as published
def test_published_scores_have_the_same_ranks(name: str, coding: str, pooling: str) -> None:
    with np.load(GOLDEN / f"{name}.npz") as golden:
        images = Embeddings(golden["image_embeddings"], golden["image_lengths"].astype(np.int32))
        texts = Embeddings(golden["caption_embeddings"], golden["caption_lengths"].astype(np.int32))
        published = golden[f"scores/{coding}Coding/{pooling}Pooling"]
    owner = np.sort(np.arange(len(texts)) % len(images))
    found = _standings(images, texts, owner, AlignmentConfig(coding, pooling))  # type: ignore[arg-type]
    for mine, expected in zip(found.ranks("lower"), metrics.ranks(published, owner), strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_folds_are_ranked_apart_and_progress_is_reported() -> None:
    owner = np.arange(60) // 3
    images, texts = _split(5, owner, 48, 0.3)
    alignment = AlignmentConfig()
    blocks = metrics.fold_slices(owner, 20, 4)
    told: list[tuple[int, int]] = []
    found = list(
        ranking.rank_blocks(
            Table(texts, alignment), _images(images, owner), blocks, on_progress=lambda *step: told.append(step)
        )
    )
    scores = _scores(images, texts, alignment)
    for standings, (rows, columns) in zip(found, blocks, strict=True):
        expected = metrics.ranks(scores[rows, columns], owner[columns] - rows.start, "published")
        np.testing.assert_array_equal(standings.i2t.ranks("published"), expected[0])
        np.testing.assert_array_equal(standings.t2i.ranks("published"), expected[1])
    assert told[-1] == (3 * 4 * 5 * 15,) * 2
    assert [done for done, _ in told] == sorted({done for done, _ in told})


def test_an_interrupt_ends_it_and_what_is_not_finite_is_refused() -> None:
    owner = np.arange(60) // 3
    images, texts = _split(5, owner, 48, 0.3)
    everything = [(slice(0, 20), slice(0, 60))]

    def stop(done: int, total: int) -> None:
        if done > 0.7 * total:
            raise KeyboardInterrupt

    encoder = Table(texts, AlignmentConfig())
    with pytest.raises(KeyboardInterrupt):
        list(ranking.rank_blocks(encoder, _images(images, owner), everything, on_progress=stop))
    texts.vectors[17, 0, 3] = np.nan
    with pytest.raises(TensorError, match="word_embeddings"):
        list(ranking.rank_blocks(encoder, _images(images, owner), everything))


def test_only_hard_codings_are_ranked_so() -> None:
    assert ranking.can_rank(AlignmentConfig("THA", "Softmax"))
    assert not ranking.is_faster(AlignmentConfig("THA", "Softmax"))
    assert not ranking.can_rank(AlignmentConfig("VSA", "Mean"))
