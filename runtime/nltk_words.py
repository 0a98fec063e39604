"""Words of a caption, exactly as nltk's `word_tokenize(caption.lower())` finds them, without nltk or its data.

Adapted from NLTK (https://www.nltk.org, Apache-2.0): `NLTKWordTokenizer` and `PunktSentenceTokenizer` of version 3.10
with the English `punkt_tab` model (Kiss and Strunk, Computational Linguistics 32, 2006). On lowercased text nearly all
of that model falls silent: of its 20,366 orthographic contexts only four can change a decision, and none of its
sentence starters can. What is left is below, so the equality is with all of nltk's pipeline, sentences included.
`tests/runtime/test_nltk_words.py` checks it against nltk and the complete model.

nltk 3.9 and older agree on ordinary captions (on all 20,000 of the demo's), but leave an apostrophe on the word that it
opens (`'no parking'`) and part sentences and words differently at curly quotes and en dashes.

One known limit: nltk classifies characters by the Unicode version of the `regex` package, this module by Python's, so a
character that Python's does not know yet may be split differently next to an apostrophe.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator

_ABBREVIATIONS = """
a.a a.c a.d a.g a.h a.m a.m.e a.s a.t adm ala ariz aug ave b.f b.v bros c c.i.t c.o.m.b c.v calif chg cie
co col colo conn corp cos ct d d.c d.h d.w dec dr e e.f e.h e.l e.m f f.g f.j feb fla fri ft g g.d g.f g.k ga
gen h h.c h.f h.m i.m.s ill inc j.b j.c j.j j.k j.p j.r jan jr k kan ky l l.a l.f l.p lt ltd m m.b.a m.d.c m.j
maj messrs mg mich minn mr mrs ms n n.c n.d n.h n.j n.m n.v n.y nev nov oct ok okla ore p p.a.m p.m pa ph.d
prof r r.a r.h r.i r.j r.k r.t rep reps s s.a s.a.y s.c s.g s.p.a s.s sen sep sept sr st sw t t.j tenn tues
u.k u.n u.s u.s.a u.s.s.r v va vs vt w w.c w.r w.va w.w wash wed wis yr
"""
ABBREVIATIONS = frozenset(_ABBREVIATIONS.split()) | {". . "}
"""Words whose final period ends no sentence (`. . ` is the spaced ellipsis without its last period)."""

_COLLOCATIONS = {
    "##number##": "abreast aes business cbot colgate commodities cooper corrections credit dividend financing "
    "genentech henley insider international leisure letters notable pay-fone pegasus pepper review rj wedgestone who "
    "zimmer",
    "b": "edelman levine smith stewart wigton",
    "i": "magnin toussie",
    "j": "aron fialka walter",
    "o": "ludcke",
}
COLLOCATIONS = frozenset((first, second) for first, seconds in _COLLOCATIONS.items() for second in seconds.split())
"""Pairs of words that a period between them does not part."""

SENTENCE_STARTERS_AFTER_NUMBERS = frozenset({"administrators", "b-week", "r-revised", "z-holiday"})
"""The only lowercase words that may begin a sentence after `3.` or `a.`."""

# White space as nltk's regex engine sees it: Python's \s without the four separators U+001C..U+001F.
_SPACE = r"[^\S\x1c-\x1f]"
_NO_SPACE = r"[\S\x1c-\x1f]"
_NON_WORD = r"(?:[)\";}\]\*:@\'\({\[\u2018\u2019\u201c\u201d\xab\xbb?!])"
_MULTI = rf"(?:\-{{2,}}|\.{{2,}}|(?:\.{_SPACE}){{2,}}\.)"
_PUNKT_TOKEN = re.compile(
    rf"({_MULTI}|(?=[^\(\"\`{{\[:;&\#\*@\)}}\]\-,]){_NO_SPACE}+?"
    rf"(?={_SPACE}|$|{_NON_WORD}|{_MULTI}|,(?=$|{_SPACE}|{_NON_WORD}|{_MULTI}))|{_NO_SPACE})"
)
_SENTENCE_END = re.compile(rf"[.?!](?=(?P<after>{_NON_WORD}|{_SPACE}+(?P<next>{_NO_SPACE}+)))")
_REALIGNED = re.compile(rf"[\"')\]}}\u2018\u2019\u201c\u201d\xab\xbb]+?(?:{_SPACE}+|(?=--)|$)", re.MULTILINE)
_NUMERIC = re.compile(r"^-?[\.,]?\d[\d,\.-]*\.?$")
_ASCII_SPACE = " \t\n\r\x0b\x0c"

# The Penn Treebank rules in nltk's order; each is applied to the whole sentence before the next.
_OPENING: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile("([«“\u2018„]|[`]+)"), r" \1 "),
    (re.compile(r"^\""), r"``"),
    (re.compile(r"(``)"), r" \1 "),
    (re.compile(r"([ \(\[{<])(\"|\'{2})"), r"\1 `` "),
)
_PUNCTUATION: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf"([^\.])(\.)([\]\)}}>\"\'»”\u2019 ]*+){_SPACE}*$"), r"\1 \2 \3 "),
    (re.compile(r"([:,])([^\d])"), r" \1 \2"),
    (re.compile(r"([:,])$"), r" \1 "),
    (re.compile(r"\.{2,}"), r" \g<0> "),
    (re.compile(r"[;@#$%&]"), r" \g<0> "),
    (re.compile(r"[\u2012-\u2015]"), r" \g<0> "),
    (re.compile(rf"([^\.])(\.)([\]\)}}>\"\']*){_SPACE}*$"), r"\1 \2\3 "),
    (re.compile(r"[?!]"), r" \g<0> "),
    (re.compile(r"([^'])' "), r"\1 ' "),
    (re.compile(r"[*]"), r" \g<0> "),
    (re.compile(r"[\]\[\(\)\{\}\<\>]"), r" \g<0> "),
    (re.compile(r"--"), r" -- "),
)
_CLOSING: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile("([»”\u2019])"), r" \1 "),
    (re.compile(r"''"), " '' "),
    (re.compile(r'"'), " '' "),
    (re.compile(rf"{_SPACE}+"), " "),
    (re.compile(r"([^' ])('[sS]|'[mM]|'[dD]|') "), r"\1 \2 "),
    (re.compile(r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) "), r"\1 \2 "),
    *(
        (re.compile(rf"(?i)\b({first})({second})\b"), r" \1 \2 ")
        for first, second in (("can", "not"), ("d", "'ye"), ("gim", "me"), ("gon", "na"), ("got", "ta"), ("lem", "me"))
    ),
    (re.compile(r"(?i)\b(more)('n)\b"), r" \1 \2 "),
    (re.compile(r"(?i)\b(wan)(na)(?=\s)"), r" \1 \2 "),
    (re.compile(r"(?i) ('t)(is)\b"), r" \1 \2 "),
    (re.compile(r"(?i) ('t)(was)\b"), r" \1 \2 "),
)
# Symbols that Unicode nevertheless calls alphabetic: circled and squared Latin letters.
_CIRCLED_LETTERS = (
    ("\u24b6", "\u24e9"),
    ("\U0001f130", "\U0001f149"),
    ("\U0001f150", "\U0001f169"),
    ("\U0001f170", "\U0001f189"),
)
_CLITIC = re.compile(r"(?i:re|ve|ll|[mtsdn])")


# Most captions: of all rules below only those for a comma and the last period can apply (measured: 3 us, not 127).
_PLAIN = re.compile(r"(?:[a-z0-9 ]|, |-(?!-))*\.?")
_CONTRACTED = re.compile("cannot|gimme|gonna|gotta|lemme|wanna")


def split_words(caption: str) -> list[str]:
    """The caption's words in lower case: nltk's `word_tokenize(caption.lower())`; empty where there is none."""
    plain = caption.lower().rstrip()
    if _PLAIN.fullmatch(plain) and not _CONTRACTED.search(plain):
        return plain.replace(",", " ,").replace(".", " .").split()
    return [word for sentence in split_sentences(caption.lower()) for word in _treebank(sentence)]


def split_sentences(text: str) -> list[str]:
    """Sentences of lowercased text: nltk's `sent_tokenize`."""
    sentences = []
    start = 0  # the current sentence's first character, past what was realigned to the one before
    for cut, following in _cuts(text):
        realigned = _REALIGNED.match(text[following.start : following.stop])
        end = following.start + len(realigned[0].rstrip()) if realigned else cut
        if realigned or text[start:end]:
            sentences.append(text[start:end])
        start = following.start + (realigned.end() if realigned else 0)
    last = text[start : len(text.rstrip())]
    return [*sentences, last] if last else sentences


def _cuts(text: str) -> Iterator[tuple[int, slice]]:
    """(end of a sentence, span of the sentence after it) for each sentence but the last."""
    breaks = []  # (where a sentence ends, where the next begins)
    for match, context in _contexts(text):
        if _breaks_sentence(context):
            breaks.append((match.end(), match.start("next") if match["next"] else match.end()))
    stops = [end for end, _ in breaks[1:]] + [len(text.rstrip())]
    for (end, begin), stop in zip(breaks, stops, strict=bool(breaks)):
        yield end, slice(begin, stop)


def _contexts(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """Each possible sentence end with the word before it and the token after it."""
    word = slice(0, 0)
    candidate: re.Match[str] | None = None
    for match in _SENTENCE_END.finditer(text):
        before = text[word.stop : match.start()]
        last_space = max(before.rfind(space) for space in _ASCII_SPACE)
        # nltk reads index 0 as "no space found", so a leading space counts as none.
        begin = word.stop + last_space + 1 if last_space > 0 else word.start
        if candidate and word.stop <= begin:
            yield candidate, text[word] + candidate[0] + candidate["after"]
        candidate, word = match, slice(begin, match.start())
    if candidate:
        yield candidate, text[word] + candidate[0] + candidate["after"]


def _breaks_sentence(context: str) -> bool:
    """Whether a token of the context other than its last ends a sentence."""
    tokens = [token for line in context.split("\n") if line.strip() for token in _PUNKT_TOKEN.findall(line)]
    return any(_ends_sentence(token, after) for token, after in itertools.pairwise(tokens))


def _ends_sentence(token: str, after: str) -> bool:
    if not token.endswith("."):
        return token in "?!"
    if (_type(token, strip=True), _type(after, strip=_ends_alone(after))) in COLLOCATIONS:
        return False
    initial = len(token) == 2 and _is_word(token[0]) and not token[0].isdecimal()
    if initial or _type(token, strip=True) == "##number##":
        if after in ";:,.!?":
            return False
        kind = _type(after, strip=_ends_alone(after))
        if after[0].islower() and kind not in SENTENCE_STARTERS_AFTER_NUMBERS:
            return False
        # Capitals without a lowercase form (mathematical letters) survive lower().
        if initial and after[0].isupper():
            return False
    return _ends_alone(token)


def _ends_alone(token: str) -> bool:
    """Punkt's first pass: whether the token ends a sentence as far as it alone can tell."""
    if token in ("?", "!", "."):
        return True
    if not token.endswith(".") or token.endswith(".."):
        return False
    stem = token[:-1]
    return stem not in ABBREVIATIONS and stem.split("-")[-1] not in ABBREVIATIONS


def _type(token: str, strip: bool) -> str:
    """Punkt's word type: `##number##` for numbers; without its final period where `strip`."""
    kind = _NUMERIC.sub("##number##", token)
    return kind[:-1] if strip and len(kind) > 1 and kind.endswith(".") else kind


def _treebank(sentence: str) -> list[str]:
    """nltk's `NLTKWordTokenizer().tokenize` of one sentence."""
    for pattern, replacement in _OPENING:
        sentence = pattern.sub(replacement, sentence)
    sentence = re.sub("'", _part_opening_apostrophe, sentence)
    for pattern, replacement in _PUNCTUATION:
        sentence = pattern.sub(replacement, sentence)
    sentence = f" {sentence} "
    for pattern, replacement in _CLOSING:
        sentence = pattern.sub(replacement, sentence)
    return sentence.split()


def _part_opening_apostrophe(match: re.Match[str]) -> str:
    """A space after an apostrophe that opens a word, unless what follows it is a clitic such as `'s`."""
    text, at, behind = match.string, match.start(), match.end()
    opens = not (at and _is_word(text[at - 1])) and behind < len(text) and _is_word(text[behind])
    clitic = _CLITIC.match(text, behind)
    is_clitic = clitic and not (clitic.end() < len(text) and _is_word(text[clitic.end()]))
    return "' " if opens and not is_clitic else "'"


def _is_word(char: str) -> bool:
    r"""Whether \w of nltk's regex engine (UTS #18) matches: letters, marks, decimal digits, connectors and joiners.

    Python's own \w lacks the marks and joiners and has `²` and `½` besides.
    """
    if char.isascii():
        return char.isalnum() or char == "_"
    category = unicodedata.category(char)
    if category == "So":
        return any(first <= char <= last for first, last in _CIRCLED_LETTERS)
    return category[0] in "LM" or category in ("Nd", "Nl", "Pc") or char in "\u200c\u200d"
