"""A bundle that commit 77514cb exported (folder earlier_bundle) opens, and encodes as it did then."""

from pathlib import Path

import numpy as np
from PIL import Image

from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.matcher import Matcher

STORED = Path(__file__).with_name("earlier_bundle")
ANSWERS = dict(np.load(STORED / "answers.npz"))


def close(found: Embeddings, name: str) -> None:
    """The same operators on another CPU may round otherwise; the vectors have length 1."""
    np.testing.assert_allclose(found.vectors, ANSWERS[name], rtol=0, atol=1e-5)


def test_an_earlier_bundle_encodes_as_it_did() -> None:
    with Matcher.open(STORED / "bundle") as matcher:
        images = matcher.encode_images(ANSWERS["regions"], ANSWERS["lengths"])
        texts = matcher.encode_texts(ANSWERS["captions"].tolist())
        close(images, "image_vectors")
        close(texts, "text_vectors")
        assert texts.lengths.tolist() == ANSWERS["text_lengths"].tolist()
        np.testing.assert_allclose(matcher.score(images, texts), ANSWERS["scores"], rtol=0, atol=1e-5)


def test_an_earlier_bundle_encodes_pictures_as_it_did() -> None:
    with Matcher.open(STORED / "bundle") as matcher:
        close(matcher.encode_pictures([Image.fromarray(picture) for picture in ANSWERS["pictures"]]), "picture_vectors")
