"""CxC and ECCV Caption through eccv-caption: a perfect ranking, a random one, and images that are not COCO's."""

import numpy as np
import pytest

from chan_rt.runtime.errors import InputError
from chan_rt.runtime.evaluation.coco import extended_metrics, first

eccv_caption = pytest.importorskip("eccv_caption", reason="the extra coco is not installed")


@pytest.fixture(scope="module")
def judge() -> object:
    return eccv_caption.Metrics()


def _ids(judge: object) -> list[int]:
    images = [judge.coco_gts["t2i"][caption][0] for caption in judge.coco_ids.tolist()]  # type: ignore[attr-defined]
    return list(dict.fromkeys(images))


OWNER = np.repeat(np.arange(5000), 5)


def test_known_rankings(judge: object) -> None:
    """Scores that follow ECCV's own ground truth get 100 %, also when the images stand in another order."""
    images = _ids(judge)
    captions = judge.coco_ids.reshape(5000, 5)  # type: ignore[attr-defined]
    order = np.random.default_rng(0).permutation(5000)
    shuffled = [images[row] for row in order]
    columns = {int(name): place for place, name in enumerate(captions[order].ravel())}
    rows = {name: place for place, name in enumerate(shuffled)}
    noise = np.random.default_rng(1).random((5000, 25000), np.float32) / 2
    scores = noise.copy()
    for image, right in judge.eccv_gts["i2t"].items():  # type: ignore[attr-defined]
        scores[rows[image], [columns[name] for name in right if name in columns]] = 1
    for caption, right in judge.eccv_gts["t2i"].items():  # type: ignore[attr-defined]
        scores[[rows[name] for name in right], columns[caption]] = 1
    names = [str(name) for name in shuffled]
    found = extended_metrics(scores, names, OWNER)
    assert set(found) == {"cxc_r1", "cxc_r5", "cxc_r10", "eccv_r1", "eccv_rprecision", "eccv_map_at_r"}
    # Two captions of ECCV's ground truth are not in the 5K test, and its two directions are not each other's mirror.
    for name in ("eccv_r1", "eccv_rprecision", "eccv_map_at_r"):
        assert 99 < found[name].i2t <= 100
        assert 99 < found[name].t2i <= 100

    noise[OWNER, np.roll(np.arange(25000), 5)] = 1  # each image gets its neighbor's captions
    found = extended_metrics(noise, names, OWNER)
    assert found["cxc_r1"].i2t < 1
    assert found["eccv_r1"].t2i < 3


def test_an_imperfect_ranking_gets_what_eccv_caption_gives(judge: object) -> None:
    """Asked directly, of images in another order. A fifth of the captions are the best of their image."""
    images = np.random.default_rng(0).permutation(_ids(judge))
    captions = dict(zip(_ids(judge), judge.coco_ids.reshape(5000, 5), strict=True))  # type: ignore[attr-defined]
    columns = np.concatenate([captions[image] for image in images.tolist()])
    scores = np.random.default_rng(1).random((5000, 25000), np.float32)
    scores[OWNER, np.arange(25000)] += 0.2
    found = extended_metrics(scores, [str(image) for image in images], OWNER)
    expected = judge.compute_all_metrics(  # type: ignore[attr-defined]
        dict(zip(images.tolist(), columns[_best(scores)].tolist(), strict=True)),
        dict(zip(columns.tolist(), images[_best(np.ascontiguousarray(scores.T))].tolist(), strict=True)),
        target_metrics=("cxc_recalls", "eccv_r1", "eccv_rprecision", "eccv_map_at_r"),
        Ks=(1, 5, 10),
        verbose=False,
    )
    assert expected.keys() == found.keys()
    assert 20 < 100 * expected["cxc_r1"]["i2t"] < 80  # neither chance nor perfect, so a mixed-up order shows
    for name, both in expected.items():
        assert vars(found[name]) == pytest.approx({side: 100 * value for side, value in both.items()})


def _best(scores: np.ndarray) -> np.ndarray:
    """Columns of the 50 highest scores of each row, best first, ties by lower column."""
    found = []
    for row in scores:
        top = np.sort(np.argpartition(-row, 60)[:60])
        found.append(top[np.argsort(-row[top], kind="stable")][:50])
    return np.array(found)


def test_other_images_are_refused(judge: object) -> None:
    names = [str(name) for name in _ids(judge)]
    scores = np.broadcast_to(np.float32(0), (5000, 25000))
    with pytest.raises(InputError, match="2 ids too many or missing, such as"):
        extended_metrics(scores, ["0", *names[1:]], OWNER)
    with pytest.raises(InputError, match="need the 5000 images of the COCO 5K test, each once, got 10"):
        extended_metrics(scores[:10], names[:10], OWNER[:50])
    with pytest.raises(InputError, match="five captions of each image"):
        extended_metrics(scores, names, OWNER[::-1].copy())
    with pytest.raises(InputError, match="COCO's numbers"):
        extended_metrics(scores, ["COCO_1.jpg", *names[1:]], OWNER)


def test_first_ranks_ties_by_lower_index() -> None:
    scores = np.array([0.5, 1.0, 0.5, 0.5, 2.0, 0.0])
    np.testing.assert_array_equal(first(scores, 4), [4, 1, 0, 2])
    np.testing.assert_array_equal(first(scores, 99), [4, 1, 0, 2, 3, 5])


def test_first_is_the_head_of_a_stable_sort() -> None:
    rng = np.random.default_rng(2)
    for size in (1, 19, 80, 81, 400, 5000):
        for scores in (rng.standard_normal(size), rng.integers(0, 5, size).astype(np.float32), np.zeros(size)):
            for count in (1, 20, 50):
                expected = np.argsort(-scores, kind="stable")[:count]
                np.testing.assert_array_equal(first(scores, count), expected)
