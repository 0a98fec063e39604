"""Captions for scenes of known content: which pictures each names, where they lie, and which words name them.

Punctuation stands as words of its own, as in Flickr30K's tokenized captions, so `text.split()` is the caption's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Names that take "some" instead of "a": plurals and stuff.
_PLURALS_AND_STUFF = """
    grapes cherries peanuts pancakes scissors glasses jeans socks gloves books maracas french_fries
    bacon popcorn sushi broccoli garlic soap fire
"""
_SOME = frozenset(_PLURALS_AND_STUFF.split())
_OPENINGS = (
    (),
    (),
    ("there", "is"),
    ("a", "picture", "of"),
    ("an", "image", "showing"),
    ("we", "can", "see"),
    ("a", "scene", "with"),
    ("this", "drawing", "contains"),
)
_SMALL = ("small", "little", "tiny")
_LARGE = ("large", "big", "huge")
_NEAR = (("next", "to"), ("beside",), ("near",), ("close", "to"), ("by",))
_ANYWHERE = (("and",), ("and",), ("with",), ("together", "with"))
# A picture whose long side is below or above these (pixels of a 384 canvas) may be called small or large.
SMALL_BELOW, LARGE_ABOVE = 72, 104
_NEAR_BELOW = 170


@dataclass(frozen=True)
class Box:
    """One picture of a scene: its name (words joined by `_`) and [x0, y0, x1, y1) in pixels."""

    name: str
    box: tuple[int, int, int, int]

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def long_side(self) -> int:
        """The larger of width and height in pixels."""
        x0, y0, x1, y1 = self.box
        return max(x1 - x0, y1 - y0)


@dataclass(frozen=True)
class Mention:
    """Words `start` to `stop` (exclusive) of `caption.split()` name the scene's picture number `box`."""

    start: int
    stop: int
    box: int


@dataclass(frozen=True)
class Caption:
    """A caption and, in the order of its words, which of them name a picture."""

    text: str
    mentions: tuple[Mention, ...]


def write_captions(
    boxes: Sequence[Box], background: Sequence[str], canvas: int, count: int, rng: np.random.Generator
) -> tuple[Caption, ...]:
    """`count` different captions, each true of the scene.

    Args:
        boxes: the scene's pictures, at least two.
        background: words for the background, as in ("green", "striped").
        canvas: side of the square scene in pixels.
        count: how many captions.
        rng: chooses pictures and wording; the only source of chance.
    """
    captions: dict[str, Caption] = {}
    while len(captions) < count:
        writer = _Writer(boxes, canvas, rng)
        writer.write(background)
        caption = Caption(" ".join(writer.words), tuple(writer.mentions))
        captions.setdefault(caption.text, caption)
    return tuple(captions.values())


class _Writer:
    """One caption being written, word by word."""

    def __init__(self, boxes: Sequence[Box], canvas: int, rng: np.random.Generator) -> None:
        self.boxes, self.canvas, self.rng = boxes, canvas, rng
        self.words: list[str] = []
        self.mentions: list[Mention] = []

    def write(self, background: Sequence[str]) -> None:
        """Name one to three pictures, with relations or places, and now and then the background."""
        # How many pictures a caption names sets how hard retrieval is: one leaves several scenes to choose from.
        named = 1 + int(self.rng.choice(3, p=(0.5, 0.4, 0.1)))
        order = [int(index) for index in self.rng.permutation(len(self.boxes))[:named]]
        self.words += self._pick(_OPENINGS)
        self._name(order[0])
        if len(order) == 1:
            self._place(order[0])
        elif len(order) == 2:
            self.words += self._relation(order[0], order[1])
            self._name(order[1])
        else:
            self.words.append(",")
            self._name(order[1])
            self.words.append("and")
            self._name(order[2])
        if self.rng.random() < (0.5 if len(order) == 1 else 0.15):
            self.words += ("on", _article(background[0]), *background, "background")

    def _name(self, index: int) -> None:
        box = self.boxes[index]
        nouns = box.name.split("_")
        adjective: list[str] = []
        if self.rng.random() < 0.3 and not SMALL_BELOW <= box.long_side <= LARGE_ABOVE:
            adjective = [str(self.rng.choice(_SMALL if box.long_side < SMALL_BELOW else _LARGE))]
        article = "some" if box.name in _SOME else _article((adjective or nouns)[0])
        self.words += [article, *adjective, *nouns]
        self.mentions.append(Mention(len(self.words) - len(nouns), len(self.words), index))

    def _place(self, index: int) -> None:
        if self.rng.random() < 0.3:
            return
        x, y = (coordinate / self.canvas for coordinate in self.boxes[index].center)
        across = "left" if x < 0.4 else "right" if x > 0.6 else ""
        down = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
        if across and down:
            corner = ("in", "the", down, across, "corner")
            self.words += self._pick((corner, ("on", "the", across), ("at", "the", down)))
        elif across:
            self.words += ("on", "the", across)
        elif down:
            self.words += ("at", "the", down)
        else:
            self.words += ("in", "the", "middle")

    def _relation(self, first: int, second: int) -> tuple[str, ...]:
        (x0, y0), (x1, y1) = self.boxes[first].center, self.boxes[second].center
        dx, dy = x0 - x1, y0 - y1
        chance = self.rng.random()
        if chance < 0.4:
            return self._pick(_ANYWHERE)
        if chance < 0.6 and np.hypot(dx, dy) < _NEAR_BELOW:
            return self._pick(_NEAR)
        if abs(dx) > abs(dy):
            side = "left" if dx < 0 else "right"
            return self._pick((("to", "the", side, "of"), (side, "of")))
        return self._pick((("above",), ("over",)) if dy < 0 else (("below",), ("under",), ("beneath",)))

    def _pick(self, choices: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
        return choices[int(self.rng.integers(len(choices)))]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" and word != "unicorn" else "a"
