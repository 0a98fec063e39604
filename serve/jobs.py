"""Bodies of requests to jobs of the batchers: one kind of rows, not too many, pictures decoded, filters checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..runtime.counts import counted
from ..runtime.embeddings import Embeddings
from ..runtime.gallery.where import Filter
from . import bodies
from .answers import PRIVATE
from .galleries import OpenGallery
from .packing import unpack
from .problems import Refusal
from .state import State
from .uploads import decode_upload
from .work import Search, Work


async def make_job(
    state: State,
    opened: OpenGallery,
    captions: Sequence[str] | None = None,
    pictures: Sequence[bytes] | None = None,
    packed: bodies.PackedEmbeddings | None = None,
    search: Search | None = None,
    off: Sequence[int] = (),
) -> Work:
    """The job for rows that a request brings.

    Args:
        state: of the worker.
        opened: the gallery, which the caller holds until the job is done.
        captions, pictures, packed: exactly one of them, or a row that `search` names.
        search, off: as in `Work`.

    Raises:
        Refusal: none or several kinds of rows, too many of them, or a picture that is none.
        ChanError: as `decode_upload` and `unpack`.
    """
    like = None if search is None else search.like
    given = {"captions": captions, "pictures": pictures, "embeddings": packed, "like": like}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        *most, last = ["captions", "pictures", "embeddings"] if search is None else given
        got = " and ".join(names) or "none"
        raise Refusal(422, "body", f"exactly one of {', '.join(most)} and {last} must be given, got {got}")
    job = Work(opened=opened, search=search, off=off, words=1)
    if captions is not None:
        opened.need_matcher()
        check_count(state, "captions", captions)
        for i, caption in enumerate(captions):
            check_characters(state, f"captions[{i}]", caption)
        job.captions, job.words = captions, sum(3 + caption.count(" ") for caption in captions)
    elif pictures is not None:
        check_count(state, "pictures", pictures)
        pixels = state.settings.limits.pixels
        job.pictures = [  # one by one, so that others' pictures come between those of a request that has many
            await state.aside(decode_upload, opened, data, pixels, f"pictures[{i}]") for i, data in enumerate(pictures)
        ]
        job.words = len(pictures) * opened.regions
    elif packed is not None:
        check_count(state, "embeddings", packed.lengths)
        job.embeddings = unpack(packed, state.settings.limits.payload)
        job.words = sum(packed.lengths)
    return job


def check_characters(state: State, name: str, caption: str) -> None:
    """Refusal of a caption that is too long to be split into words; that it has few words can only be seen after."""
    limit = state.settings.limits.characters
    if len(caption) > limit:
        raise Refusal(422, "characters", f"{name} must have at most {limit} characters, got {len(caption)}")


def make_filter(state: State, where: Mapping[str, Any] | None) -> Filter | None:
    """The filter of a request, which does not see the metadata that is about files of this server.

    Raises:
        Refusal: it has too many values.
        InputError: as `Filter.parse`.
    """
    if where is None:
        return None
    values, inside = 0, [where]
    while inside and values <= state.settings.limits.conditions:
        one: Any = inside.pop()
        if isinstance(one, Mapping | list):
            inside += one.values() if isinstance(one, Mapping) else one
        else:
            values += 1
    if values > state.settings.limits.conditions:
        limit = state.settings.limits.conditions
        raise Refusal(422, "where", f"where must have at most {counted(limit, 'value')} to compare with, got more")
    return Filter.parse(where, hidden=PRIVATE)


async def do(state: State, job: Work) -> Embeddings:
    """Wait until a job is done, and return the embeddings of its rows.

    Raises:
        Refusal, ChanError: of the job.
    """
    await state.do(job)
    assert job.embeddings is not None
    return job.embeddings


def check_count(state: State, name: str, rows: Sequence[object]) -> None:
    """Refusal unless there is at least one row, and no more than a request may have."""
    most = state.settings.limits.texts
    if not 1 <= len(rows) <= most:
        raise Refusal(422, "texts", f"{name} must hold 1 to {counted(most, 'item')}, got {len(rows)}")
