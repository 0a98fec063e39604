"""What `chan_search` does with the requests of a batch: encode all queries together, then search with what they want.

A request that fails does so alone: what was together is tried again one by one. Nothing here knows of Triton, whose
tensors are NumPy arrays of bytes, numbers and truth values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.checks import check_positive
from ...runtime.embeddings import Embeddings
from ...runtime.errors import InputError, TensorError
from ...runtime.gallery import Gallery
from ...runtime.gallery.result import Hit, SearchResult
from ...runtime.gallery.where import Filter
from ...runtime.matcher import Matcher
from ...runtime.pictures.received import decode_picture
from ...runtime.strict_json import parse_json
from ...runtime.tensor_checks import check_finite, check_lengths

PRIVATE = ("path", "source", "boxes")  # metadata that indexing keeps about files of the server; answers leave it out
QUERIES = ("caption", "picture", "embedding")  # inputs, of which a request has one
Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        k: hits for each query.
        characters: of one caption, and of a filter.
        pixels: of a picture, before it is decoded.
    """

    k: int = 1000
    characters: int = 10_000
    pixels: int = 50_000_000


@dataclass(eq=False)
class Request:
    """The queries of one request, one of the three, and what they are for.

    Attributes:
        captions, pictures: to encode.
        embeddings: of the queries: given, or what encoding returned.
        k, where: as in `Gallery.search`.
        results: one for each query, once they are found.
        error: why it failed, if it did.
    """

    captions: Sequence[str] = ()
    pictures: Sequence[Any] = ()
    embeddings: Embeddings | None = None
    k: int = 10
    where: Filter | None = None
    results: list[SearchResult] = field(default_factory=list)
    error: Exception | None = None


class Searcher:
    """Reads requests, answers them in batches, and writes answers.

    Args:
        gallery, matcher: open; the matcher encodes queries.
        limits: of one request.
    """

    def __init__(self, gallery: Gallery, matcher: Matcher, limits: Limits) -> None:
        self._gallery = gallery
        self._matcher = matcher
        self._limits = limits

    def read(self, tensors: Tensors, parameters: str) -> Request:
        """A request from its input tensors, each with a row for each query, and its parameters in JSON.

        Raises:
            InputError: none or several of the three inputs, or a value that breaks its rule.
            TensorError: embeddings that break a rule.
            MissingExtra: pictures, and Pillow is not installed.
        """
        given = [name for name in QUERIES if name in tensors]
        if len(given) != 1:
            raise InputError(f"a request must have one of {', '.join(QUERIES)}, got {' and '.join(given) or 'none'}")
        if "length" in tensors and given != ["embedding"]:
            raise InputError(f"length is the number of vectors of an embedding, got it with {given[0]}")
        wanted = self._wanted(parameters)
        if given == ["caption"]:
            return Request(captions=self._captions(tensors["caption"]), **wanted)
        if given == ["picture"]:
            return Request(pictures=self._pictures(tensors["picture"]), **wanted)
        return Request(embeddings=_embeddings(tensors["embedding"], tensors.get("length")), **wanted)

    def run(self, requests: Sequence[Request]) -> None:
        """Encode and search for requests; one that cannot be done gets its `error`."""
        for group in (
            [one for one in requests if one.captions],
            [one for one in requests if one.pictures],
        ):
            _attempt(group, self._encode)
        searching = [one for one in requests if one.error is None]
        for group in _grouped(searching, lambda one: (one.k, one.where)):
            _attempt(group, self._search)

    def write(self, request: Request, wanted: Iterable[str]) -> dict[str, NDArray[Any]]:
        """The output tensors of a request that is done.

        What queries have fewer of than the one with most is padded: ids, words and metadata with empty text, scores and
        similarities with 0, regions with -1.

        Args:
            request: done.
            wanted: names of the outputs.
        """
        results = request.results
        hits = max((len(result.hits) for result in results), default=0)
        words = max((len(hit.word_regions) for result in results for hit in result.hits), default=0)
        shape = (len(results), hits)
        make: Mapping[str, Callable[[], NDArray[Any]]] = {
            "ids": lambda: _texts(results, hits, lambda hit: hit.id),
            "scores": lambda: _padded(results, shape, np.float64, 0, lambda hit: hit.score),
            "hits": lambda: np.array([[len(result.hits)] for result in results], np.int32),
            "regions": lambda: _padded(results, (*shape, words), np.int32, -1, lambda hit: hit.word_regions),
            "similarities": lambda: _padded(results, (*shape, words), np.float32, 0, lambda hit: hit.word_scores),
            "words": lambda: self._words(request),
            "metadata": lambda: _texts(results, hits, _metadata),
            "certified": lambda: np.array([[result.certified] for result in results], np.bool_),
            "reason": lambda: _rows_of_text([[result.reason] for result in results]),
        }
        return {name: make[name]() for name in make if name in set(wanted)}

    # -- pieces

    def _wanted(self, parameters: str) -> dict[str, Any]:
        given = parse_json(parameters) if parameters else {}
        wanted: dict[str, Any] = {}
        unknown = sorted(given.keys() - {"k", "where"})
        if unknown:
            raise InputError(f"the parameters of a request must be among k and where, got {unknown[0]!r}")
        if "k" in given:
            wanted["k"] = check_positive("k", given["k"])
            if wanted["k"] > self._limits.k:
                raise InputError(f"k must be at most {self._limits.k}, got {wanted['k']}")
        if "where" in given:
            where = given["where"]
            if not isinstance(where, str) or len(where) > self._limits.characters:
                raise InputError(f"where must be a filter in JSON of at most {self._limits.characters} characters")
            try:
                parsed = parse_json(where)
            except InputError as error:
                raise InputError(f"where: {error}") from error
            wanted["where"] = Filter.parse(parsed, hidden=PRIVATE)
        return wanted

    def _captions(self, rows: NDArray[Any]) -> list[str]:
        captions = []
        for number, data in enumerate(rows[:, 0].tolist()):
            try:
                caption = bytes(data).decode()
            except UnicodeDecodeError as error:
                raise InputError(f"captions[{number}] must be UTF-8 text, got other bytes at {error.start}") from error
            if len(caption) > self._limits.characters:
                rule = f"must have at most {self._limits.characters} characters"
                raise InputError(f"captions[{number}] {rule}, got {len(caption)}")
            captions.append(caption)
        self._matcher.tokenizer.rows(captions)  # refuses one without words before others are encoded with it
        return captions

    def _pictures(self, rows: NDArray[Any]) -> list[Any]:
        preprocess = self._matcher.manifest.preprocess
        if preprocess is None:
            raise InputError("picture: the gallery's bundle has no backbone and takes no pictures; send an embedding")
        size, pixels = preprocess.size, self._limits.pixels
        files = enumerate(rows[:, 0].tolist())
        return [decode_picture(bytes(data), size, pixels, f"pictures[{number}]") for number, data in files]

    def _encode(self, requests: Sequence[Request]) -> None:
        captions = [caption for one in requests for caption in one.captions]
        pictures = [picture for one in requests for picture in one.pictures]
        encoded = self._matcher.encode_texts(captions) if captions else self._matcher.encode_pictures(pictures)
        row = 0
        for one in requests:
            count = len(one.captions) or len(one.pictures)
            one.embeddings = encoded[row : row + count].trimmed()
            row += count

    def _search(self, requests: Sequence[Request]) -> None:
        queries = [one.embeddings for one in requests if one.embeddings is not None]
        found = iter(
            self._gallery.search(
                Embeddings.concatenate(queries), requests[0].k, where=requests[0].where, same_kind=True
            )
        )
        for one, query in zip(requests, queries, strict=True):
            one.results = [next(found) for _ in range(len(query))]

    def _words(self, request: Request) -> NDArray[Any]:
        tokens = [self._matcher.tokenizer.tokens(caption) for caption in request.captions]
        return _rows_of_text(tokens or [[] for _ in request.results])


def _embeddings(vectors: NDArray[Any], lengths: NDArray[Any] | None) -> Embeddings:
    if 0 in vectors.shape:
        raise TensorError("embedding", "shape must be [queries, vectors, D], none of them 0", list(vectors.shape))
    sizes = np.full(len(vectors), vectors.shape[1], np.int32) if lengths is None else lengths[:, 0]
    check_lengths("length", sizes, vectors.shape[:2])
    check_finite("embedding", vectors, sizes)
    kept = np.arange(vectors.shape[1]) < sizes[:, None]
    return Embeddings(np.where(kept[..., None], vectors, np.float32(0)), sizes)


def _metadata(hit: Hit) -> str:
    return json.dumps({key: value for key, value in hit.metadata.items() if key not in PRIVATE})


def _padded(
    results: Sequence[SearchResult],
    shape: tuple[int, ...],
    dtype: type[np.generic],
    padding: float,
    of: Callable[[Hit], Any],
) -> NDArray[Any]:
    found = np.full(shape, padding, dtype)
    for row, result in enumerate(results):
        for column, hit in enumerate(result.hits):
            value = np.asarray(of(hit))
            place = found[row, column : column + 1] if value.ndim == 0 else found[row, column, : len(value)]
            place[...] = value
    return found


def _texts(results: Sequence[SearchResult], hits: int, of: Callable[[Hit], str]) -> NDArray[Any]:
    return _rows_of_text([[of(hit) for hit in result.hits] for result in results], hits)


def _rows_of_text(rows: Sequence[Sequence[str]], width: int = 0) -> NDArray[Any]:
    """Rows of text as UTF-8, padded with empty text to the longest, or to `width`."""
    width = max([width, *map(len, rows)])
    found = np.full((len(rows), width), b"", object)
    for row, texts in enumerate(rows):
        found[row, : len(texts)] = [text.encode() for text in texts]
    return found


def _attempt(requests: Sequence[Request], do: Callable[[Sequence[Request]], None]) -> None:
    """Do something for all requests, or where that fails, for whatever reason, for each alone."""
    if not requests:
        return
    try:
        do(requests)
    except Exception as error:
        if len(requests) == 1:
            requests[0].error = error
            return
        for one in requests:
            _attempt([one], do)


def _grouped(requests: Iterable[Request], key: Callable[[Request], Hashable]) -> list[list[Request]]:
    groups: dict[Hashable, list[Request]] = {}
    for one in requests:
        groups.setdefault(key(one), []).append(one)
    return list(groups.values())
