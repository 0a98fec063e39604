"""Captions of every kind, for the tests that compare tokenizers."""
# ruff: noqa: RUF001 - look-alike characters are what is tested

import random
import unicodedata

import pytest

_WORDS = """
a man wearing the red hat cannot gonna wanna gimme gotta lemme more'n d'ye 'tis 'twas don't it's they're i'll we've
o'clock dogs' 's x y b i j o rj zimmer ludcke smith letters administrators b-week aaa-vs 3 3. 4.5 -2, 1,000 ½ 3-4
u.s. u.s a.m. p.m. mr. mrs. st. vs. etc. e.g. i.e. no. inc. l. b. é. 5th café naïve jalapeño 東京 图片
寿司を食べる 。 ！ 😀 👩‍🍳 🏳️‍🌈 ß ſ İ ǅ ª ² '½ '² 𝐀 𝐀. ⓐ Ⅷ _x [CLS] [MASK] <unk> <mask> ##ing strawberries unbelievable
"""
_PUNCTUATION = """
. .. ... ? ! ?! !!! , ; : - -- --- – — ' '' \'\'\' " ` `` “ ” ‘ ’ „ « » ( ) [ ] { } < > * & % $ # @ / \\ | ~ + =
"""
_ABBREVIATED = "mr mrs dr st u.s u.k a.m p.m vs inc co jan sept tues ph.d n.y e.g etc fig no"

WORDS = [*_WORDS.split(), "'e\u0301", "'s\u0301", "cafe\u0301's"]
PIECES = [
    *_PUNCTUATION.split(),
    *"\u200d\u200b\u200c\ufe0f\xa0\u3000\u2028\x85\x1c\x1f\t\n\r\x0b\x0c",
    *(". . .", " . . . ", " \n ", "\n\n", ". ,", ".\n", '." ', ".) ", "?' ", "!\u201d "),
]
ABBREVIATED = _ABBREVIATED.split()
PLAIN = ["a", "man", "in", "the", "red", "t-shirt", "and", "2", "dogs", "a1", "mr", "u", "s", "walk", "dinner-table"]
SENTENCES = (
    "A man in a blue shirt is standing on a ladder cleaning a window.",
    'Two dogs play in the snow; one barks "woof!" at the other.',
    "The girl doesn't see the boy's kite. He's running after it, isn't he?",
    "Mr. Smith of the U.S. team met Dr. Lee at 5 p.m. in St. Louis. They shook hands.",
    "A sign reads: 'No parking (Mon. - Fri.) 9 a.m. to 5 p.m.'.",
    "Three (3) people -- two men and a woman -- eat at Joe's Café… Yum!",
    "“Look out!” she cried. ‘Why?’ he asked… The ball hit him.",
)


def _caption(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.15:
        return " ".join(rng.choices(SENTENCES, k=rng.choice((1, 1, 2, 3))))
    if kind < 0.3:
        plain = rng.choices((*PLAIN, "cannot", "gonna", "wanna"), [10] * len(PLAIN) + [1, 1, 1], k=rng.randrange(1, 14))
        joints = (" ", " ", " ", "  ", ", ", " , ", "-", ",", " - ", "--", ". ")
        return "".join(word + rng.choice(joints) for word in plain) + rng.choice(("", ".", " .", ",", "-", ".. ", ". "))
    parts = []
    for _ in range(400 if kind > 0.998 else rng.choice((1, 2, 3, 5, 8, 13, 25))):
        part = rng.random()
        if part < 0.45:
            word = rng.choice(WORDS)
            parts.append(word.capitalize() if rng.random() < 0.1 else word)
        elif part < 0.75:
            parts.append(rng.choice(PIECES))
        elif part < 0.85:
            parts.append(rng.choice(ABBREVIATED) + ".")
        elif part < 0.9:
            parts.append(f"{rng.randrange(2000)}. {rng.choice(WORDS)}")
        else:
            blocks = ((0x20, 0x250), (0x300, 0xD7FF), (0x2000, 0x2100), (0x1F000, 0x1FB00))
            parts.append(chr(rng.randrange(*rng.choice(blocks))))
        if rng.random() < 0.55:
            parts.append(" ")
    return "".join(parts)


@pytest.fixture(scope="session")
def varied_captions() -> list[str]:
    """10,000 captions: quotes, accents, emoji, CJK, control characters, abbreviations, several sentences, very long.

    Characters that this Python's Unicode does not know are left out: the libraries compared bring tables of their own.
    """
    rng = random.Random(20260)
    captions = ["x" * 20_000, "a. " * 5_000, "don't " * 5_000, "é" * 300, "strawberry " * 2_000]
    while len(captions) < 10_000:
        caption = _caption(rng)
        known = not any(unicodedata.category(char) in ("Cn", "Cs", "Co") for char in caption)
        if known and any(char.isalnum() and char.isascii() for char in caption):
            captions.append(caption)
    return captions
