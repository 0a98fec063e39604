"""The gallery and the captions that `bench/serve.py` searches, made up with the spectrum of trained embeddings.

What a search reads depends on that spectrum, so images are those of `bench/search.py`. The text encoder is a GRU with
weights that turn each word into the embedding of its concept; 3 % of the energy is the word's own, and 3 % depends on
the words around it. With that, a search of 10,000 images reads 8.5 % of the rows at the second level, 4.4 % at int8 and
0.36 % in full. A search of 4,000 demo scenes with a trained model of 1024-d reads 13.5 %, 7.5 % and 1.18 %.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ..runtime.gallery import GalleryWriter
from ..runtime.matcher import Matcher
from ..runtime.session import gallery_settings
from ..runtime.text import build_scan_vocabulary
from .search import WORDS, Concepts, Floats

_CONCEPTS = 81  # rows of a table of concepts; words name all but the first, which is the background of images
_SYNONYMS = 25  # words for each concept
_OWN = 0.03  # energy that is a word's own, and again that depends on its context


def make_captions(count: int, seed: int) -> list[str]:
    """Captions that become WORDS word embeddings each, those of their two marks included."""
    named = Concepts(seed, 64).words(count, WORDS - 2)
    chosen = np.random.default_rng(seed).integers(0, _SYNONYMS, named.shape)
    return [" ".join(map(_word, *row)) for row in np.stack([named, chosen], axis=1).tolist()]


def _word(concept: int, synonym: int) -> str:
    return f"w{concept}x{synonym}"


def make_gallery(folder: Path, images: int, dim: int) -> Path:
    """A bundle with embeddings of width `dim`, and a gallery of images that is prepared with other captions."""
    concepts = Concepts(1, dim)
    make_bundle(folder, concepts.table)
    with (
        Matcher.open(folder / "bundle", "onnxruntime") as matcher,
        GalleryWriter.create(folder / "gallery", gallery_settings(folder / "bundle")) as writer,
    ):
        for first in range(0, images, 1000):
            rows = concepts.images(min(1000, images - first))
            numbers = range(first, first + len(rows))
            writer.add([str(number) for number in numbers], rows, [{"n": number} for number in numbers])
        writer.prepare(matcher.encode_texts(make_captions(200, 2)))
    return folder / "gallery"


def make_bundle(folder: Path, table: Floats) -> None:
    """A bundle whose text encoder turns a word for concept N into about `table[N]` [81, D]."""
    import torch

    from ..chan_ref import checkpoint
    from ..chan_ref.config import ModelConfig
    from ..chan_ref.encoders import BiGRUTextEncoder
    from ..chan_ref.model import ChanModel
    from ..export.bundle import export_bundle

    words = {_word(concept, synonym): concept for concept in range(1, _CONCEPTS) for synonym in range(_SYNONYMS)}
    vocabulary = build_scan_vocabulary([" ".join(words)], min_count=1)
    ids = vocabulary["word2idx"]
    dim = table.shape[1]
    torch.manual_seed(0)
    model = ChanModel(ModelConfig(region_dim=64, embed_dim=dim, vocab_size=len(ids) + 1)).eval()
    encoder = model.text_encoder
    assert isinstance(encoder, BiGRUTextEncoder)
    own = encoder.embedding.weight[:, _CONCEPTS:]  # of each word; the rest of its embedding is its concept, as one 1
    concept = torch.full((len(own),), _CONCEPTS - 1)  # of each id; the marks get the last one
    concept[[ids[word] for word in words]] = torch.tensor(list(words.values()))
    with torch.no_grad():
        encoder.embedding.weight[:, :_CONCEPTS] = torch.eye(_CONCEPTS)[concept]
        own.normal_(std=own.shape[1] ** -0.5)
        for name, weight in encoder.gru.named_parameters():
            reset, update, new = weight.chunk(3)  # the gates' parts, as torch orders them
            reset.zero_()  # sigmoid(0) = 1/2 of the state before takes part in the new one
            update.fill_(-10 if name.startswith("bias_ih") else 0)  # sigmoid(-10): nearly nothing of it stays as it is
            new.zero_()
            if name.startswith("weight_ih"):
                new[:, :_CONCEPTS] = torch.from_numpy(np.arctanh(table).T)
                new[:, _CONCEPTS:].normal_(std=float(np.sqrt(2 * _OWN / dim)))  # the mean of two directions halves it
            elif name.startswith("weight_hh"):
                new.normal_(std=2 * float(np.sqrt(2 * _OWN / dim)))
    checkpoint.save(folder / "checkpoint", model, {"vocab.json": json.dumps(vocabulary).encode()}, {})
    export_bundle(folder / "checkpoint", folder / "bundle", ("fp32",))
