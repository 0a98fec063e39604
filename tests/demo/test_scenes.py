"""Scenes: the boxes hold what they say, the captions are true, and the same seed draws the same scene."""

import itertools
from collections import Counter

import numpy as np
import pytest

from chan_rt.demo import scenes
from chan_rt.demo.captions import LARGE_ABOVE, SMALL_BELOW, Box, Caption, write_captions
from chan_rt.demo.scenes import CANVAS, CAPTIONS_PER_SCENE, MAX_OVERLAP, NAMES, SPLITS, Scene, draw_scene, overlap
from chan_rt.runtime.errors import InputError
from chan_rt.runtime.text import ScanTokenizer, build_scan_vocabulary


@pytest.fixture(scope="module")
def drawn() -> list[Scene]:
    return [draw_scene(0, "train", index) for index in range(80)]


def test_every_scene_has_its_share(drawn: list[Scene]) -> None:
    assert {len(scene.boxes) for scene in drawn} == {2, 3, 4}
    for scene in drawn:
        assert scene.picture.size == (CANVAS, CANVAS)
        assert scene.picture.mode == "RGB"
        assert len({box.name for box in scene.boxes}) == len(scene.boxes)
        assert len({caption.text for caption in scene.captions}) == CAPTIONS_PER_SCENE


def test_pictures_hardly_overlap_and_lie_on_the_canvas(drawn: list[Scene]) -> None:
    for scene in drawn:
        for box in scene.boxes:
            x0, y0, x1, y1 = box.box
            assert 0 <= x0 < x1 <= CANVAS
            assert 0 <= y0 < y1 <= CANVAS
        for a, b in itertools.combinations(scene.boxes, 2):
            assert overlap(a.box, b.box) <= MAX_OVERLAP


def test_boxes_hold_all_drawn_pixels_and_fit_tightly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "TEXTURES", ("plain",))
    for index in range(8):
        scene = draw_scene(2, "train", index)
        pixels = np.asarray(scene.picture)
        colors, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
        background = colors[counts.argmax()]
        visible = (pixels != background).any(2)
        outside = visible.copy()
        for box in scene.boxes:
            x0, y0, x1, y1 = box.box
            outside[y0:y1, x0:x1] = False
            inner = visible[y0:y1, x0:x1]
            # The outermost row of a picture may be too faint to change the background's bytes.
            for edge in (inner[:2], inner[-2:], inner[:, :2], inner[:, -2:]):
                assert edge.any()
        assert not outside.any()


def test_names_belong_to_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("frog", "tomato", "lemon", "bear")
    monkeypatch.setattr(scenes, "NAMES", names)
    monkeypatch.setattr(scenes, "SATURATIONS", (1.0, 1.0))
    own = {name: _middle(np.asarray(scenes._glyph(name).convert("RGB"), np.float32)) for name in names}
    for index in range(8):
        scene = draw_scene(1, "test", index)
        pixels = np.asarray(scene.picture, np.float32)
        for box in scene.boxes:
            x0, y0, x1, y1 = box.box
            found = _middle(pixels[y0:y1, x0:x1])
            assert min(names, key=lambda name: np.abs(own[name] - found).sum()) == box.name


def _middle(pixels: np.ndarray) -> np.ndarray:
    """Mean color of the middle ninth of a picture."""
    height, width = pixels.shape[0] // 3, pixels.shape[1] // 3
    return pixels[height:-height, width:-width].mean((0, 1))


def test_mentions_are_the_names_of_their_boxes(drawn: list[Scene]) -> None:
    for scene in drawn:
        for caption in scene.captions:
            assert 1 <= len(caption.mentions) <= 3
            words = caption.text.split()
            for mention in caption.mentions:
                assert "_".join(words[mention.start : mention.stop]) == scene.boxes[mention.box].name


def test_words_are_those_of_the_tokenizer(drawn: list[Scene]) -> None:
    captions = [caption.text for scene in drawn for caption in scene.captions]
    tokenizer = ScanTokenizer(build_scan_vocabulary(captions, min_count=1)["word2idx"])
    for caption in captions:
        assert tokenizer.tokens(caption)[1:-1] == caption.split()


def test_captions_vary_and_are_true(drawn: list[Scene]) -> None:
    seen: Counter[str] = Counter()
    for scene in drawn:
        for caption in scene.captions:
            seen.update(_check(scene.boxes, caption))
    assert all(seen[claim] >= 3 for claim in ("left of", "right of", "over", "under", "left", "right", "top", "bottom"))
    assert seen["large"] + seen["big"] + seen["huge"] >= 5


def _check(boxes: tuple[Box, ...], caption: Caption) -> list[str]:
    """Assert what the caption claims of places and sizes; return the claims."""
    words, claims = caption.text.split(), []
    named_words = {word for mention in caption.mentions for word in range(mention.start, mention.stop)}
    # A top hat is not at the top.
    text = " ".join(["", *("#" if row in named_words else word for row, word in enumerate(words)), ""])
    named = [boxes[mention.box] for mention in caption.mentions]
    (x, y), *others = (box.center for box in named)
    if others:
        other_x, other_y = others[0]
        holds = {
            "left of": x < other_x,
            "right of": x > other_x,
            "above": y < other_y,
            "over": y < other_y,
            "below": y > other_y,
            "under": y > other_y,
            "beneath": y > other_y,
        }
    else:
        half = CANVAS / 2
        holds = {"left": x < half, "right": x > half, "top": y < half, "bottom": y > half}
    for claim, true in holds.items():
        if f" {claim} " in text:
            assert true, caption
            claims.append(claim)
    for mention in caption.mentions:
        size = boxes[mention.box].long_side
        adjective = words[mention.start - 1]
        if adjective in ("small", "little", "tiny"):
            assert size < SMALL_BELOW
        if adjective in ("large", "big", "huge"):
            assert size > LARGE_ABOVE
            claims.append(adjective)
    return claims


def test_articles_fit_their_words() -> None:
    boxes = [Box(name, (0, 0, 60, 60)) for name in ("owl", "unicorn", "scissors", "ambulance")]
    captions = write_captions(boxes, ("orange", "striped"), CANVAS, 60, np.random.default_rng(0))
    text = " . ".join(caption.text for caption in captions)
    assert " an owl" in text
    assert " a unicorn" in text
    assert " an ambulance" in text
    assert " an orange striped background" in text
    for wrong in (" a owl", " an unicorn", " a ambulance", " a scissors", " a orange"):
        assert wrong not in text


def test_same_seed_same_scene_whatever_was_drawn_before() -> None:
    draw_scene(3, "dev", 6)
    first, again = draw_scene(3, "dev", 7), draw_scene(3, "dev", 7)
    assert first.picture.tobytes() == again.picture.tobytes()
    assert (first.boxes, first.captions) == (again.boxes, again.captions)


def test_seed_split_and_index_all_matter() -> None:
    arguments = [(3, "dev", 7), (4, "dev", 7), (3, "test", 7), (3, "dev", 8)]
    assert len({draw_scene(seed, split, index).picture.tobytes() for seed, split, index in arguments}) == 4


def test_every_name_has_a_picture_of_its_own() -> None:
    assert len(NAMES) == len(set(NAMES))
    glyphs = {scenes._glyph(name).tobytes() for name in NAMES}
    assert len(glyphs) == len(NAMES)


def test_crowded_scenes_come_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "LONG_SIDES", (CANVAS - 1, CANVAS))
    scene = next(scene for scene in (draw_scene(0, "test", i) for i in range(20)) if len(scene.boxes) == 4)
    assert all(overlap(a.box, b.box) <= MAX_OVERLAP for a, b in itertools.combinations(scene.boxes, 2))


def test_unknown_names_splits_and_numbers_are_errors() -> None:
    with pytest.raises(InputError, match="no picture 'nothing'"):
        scenes._glyph("nothing")
    with pytest.raises(InputError, match=f"split must be one of {', '.join(SPLITS)}"):
        draw_scene(0, "testall", 0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="negative"):
        draw_scene(0, "test", -1)
