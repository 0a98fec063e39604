"""The bodies of requests and answers. docs/serve.md describes every field; /openapi.json is made from these types.

Bytes (pictures, vectors) are base64 in JSON. Fields of an answer that have their default are left out where the class
says `omit_defaults`.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct, field

from ..runtime.embeddings import Kind

PAGE, MAX_PAGE = 100, 1000  # rows of one page, as a listing of rows has them

Count = Annotated[int, Meta(ge=1)]
Index = Annotated[int, Meta(ge=0)]
Picture = Annotated[bytes, Meta(description="A picture file, in base64.")]
Box = Annotated[
    tuple[float, float, float, float],
    Meta(description="Left, top, width and height of a region, as fractions of the picture's width and height."),
]


class Request(Struct, forbid_unknown_fields=True):
    """What every request may have: the gallery it is about, which may be left out where only one is served."""

    gallery: str | None = None


class PackedEmbeddings(Struct, forbid_unknown_fields=True):
    """Embeddings of images or captions, without padding.

    `vectors` holds float32 in little-endian order: `lengths[0]` vectors of the first row, then those of the second.
    """

    dim: Count
    lengths: Annotated[list[Count], Meta(min_length=1)]
    vectors: bytes
    kind: Kind | None = None


class SearchRequest(Request):
    """Queries, exactly one kind of them, and what to search for."""

    captions: list[str] | None = None
    pictures: list[Picture] | None = None
    embeddings: PackedEmbeddings | None = None
    like: Annotated[str | None, Meta(description="Id of a row to search with; it is not among the hits.")] = None
    k: Count = 10
    where: dict[str, Any] | None = None
    ids: list[str] | None = None
    off: Annotated[list[Index], Meta(description="Words of the one caption to leave out, by their index.")] = field(
        default_factory=list
    )


class Word(Struct, omit_defaults=True):
    """One word of a caption."""

    word: str
    known: Annotated[bool, Meta(description="Whether the model's vocabulary has the word.")] = True
    mark: Annotated[bool, Meta(description="Whether it is the mark of a caption's start or end.")] = False
    on: Annotated[bool, Meta(description="False for a word that the request switched off.")] = True


class WordMatch(Struct, omit_defaults=True):
    """One word of a caption and the region that it chose."""

    word: str
    region: int
    box: Box | None
    similarity: float
    share: Annotated[float | None, Meta(description="The word's part of the score; null where it is not known.")]
    known: bool = True
    mark: bool = False


class Hit(Struct):
    """One row found. `picture` is the path of its picture on this server, or null."""

    id: str
    score: float
    metadata: dict[str, Any]
    picture: str | None
    words: list[WordMatch]


class Result(Struct):
    """The answer to one query. `words` are the query's; empty for a picture."""

    certified: bool
    reason: str
    rows: int
    rescored: int
    rescored_share: float
    words: list[Word]
    unknown_words: list[str]
    hits: list[Hit]


class SearchResponse(Struct):
    """One result for each query, in order."""

    gallery: str
    kind: Kind
    results: list[Result]


class ScoreRequest(Request):
    """Images and captions to score with each other; `ids` are rows of the gallery and stand for its side."""

    captions: list[str] | None = None
    pictures: list[Picture] | None = None
    ids: list[str] | None = None


class ScoreResponse(Struct):
    """Scores [I][C]: a list for each image, with one score for each caption."""

    gallery: str
    scores: list[list[float]]


class EncodeRequest(Request):
    """Captions or pictures to encode, exactly one of them."""

    captions: list[str] | None = None
    pictures: list[Picture] | None = None


class EncodeResponse(Struct):
    """Embeddings, one row for each caption or picture."""

    gallery: str
    embeddings: PackedEmbeddings


class ExplainRequest(Request):
    """A caption and a picture; `id` names a row of the gallery in place of one of them."""

    caption: str | None = None
    picture: Picture | None = None
    id: str | None = None


class ExplainResponse(Struct):
    """Why an image and a caption have their score. With `id`, `picture` is the path of the row's picture."""

    gallery: str
    score: float
    grid: int | None
    picture: str | None
    words: list[WordMatch]
    unknown_words: list[str]


class PutRows(Struct, forbid_unknown_fields=True):
    """Rows to add: their ids, exactly one kind of content, and metadata for each."""

    ids: Annotated[list[str], Meta(min_length=1)]
    captions: list[str] | None = None
    pictures: list[Picture] | None = None
    embeddings: PackedEmbeddings | None = None
    metadata: list[dict[str, Any]] | None = None
    overwrite: bool = False


class PutPicture(Struct, forbid_unknown_fields=True):
    """One row to add from a picture file."""

    id: str
    picture: Picture
    metadata: dict[str, Any] | None = None
    overwrite: bool = False


class DeleteRows(Struct, forbid_unknown_fields=True):
    """Rows to delete."""

    ids: Annotated[list[str], Meta(min_length=1)]


class NewMetadata(Struct, forbid_unknown_fields=True):
    """A row's id, and the metadata that it becomes."""

    id: str
    metadata: dict[str, Any]


class PatchRows(Struct, forbid_unknown_fields=True):
    """Rows whose metadata are replaced."""

    rows: Annotated[list[NewMetadata], Meta(min_length=1)]


class PatchResponse(Struct):
    """How many rows have new metadata, and how many rows the gallery has."""

    gallery: str
    changed: int
    rows: int


class RowsResponse(Struct):
    """What a change did, and how many rows the gallery has now."""

    gallery: str
    added: int
    deleted: int
    rows: int


class ListRows(Struct, forbid_unknown_fields=True):
    """What the query of a listing of rows may have: a page, or rows by their ids."""

    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = PAGE
    after: str | None = None
    where: dict[str, Any] | None = None
    id: list[str] | None = None


class ListedRow(Struct):
    """One row of a gallery. `picture` is the path of its picture on this server, or null."""

    id: str
    metadata: dict[str, Any]
    vectors: int
    picture: str | None


class ListResponse(Struct):
    """Some rows in order of addition, or those asked for in the order of their ids."""

    gallery: str
    rows: list[ListedRow]
    total: Annotated[int, Meta(description="Rows that pass the filter, on all pages together.")]
    next: Annotated[str | None, Meta(description="`after` of the next page; null where no row follows.")]


class GalleryInfo(Struct):
    """One gallery that is served."""

    name: str
    kind: Kind
    rows: int
    dim: int
    coding: str
    pooling: str
    fine: str
    precision: str | None
    model: str
    scan: str
    grid: int | None
    takes_captions: bool
    takes_pictures: bool
    max_words: int
    writable: bool
    prepared: str | None
    problem: Annotated[str | None, Meta(description="The error that keeps it from being read now; rows are 0 then.")]


class GalleriesResponse(Struct):
    """Every gallery that is served, and the limits of requests."""

    galleries: list[GalleryInfo]
    limits: dict[str, int]


class Problem(Struct, omit_defaults=True):
    """An error, as `application/problem+json` (RFC 9457), with the fields of the library's error.

    `tensor`, `rule` and `value` are those of a TensorError, `module` and `extra` those of a MissingExtra.
    """

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    error: str | None = None
    tensor: str | None = None
    rule: str | None = None
    value: str | None = None
    module: str | None = None
    extra: str | None = None
