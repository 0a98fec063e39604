"""Pictures in object storage as a source of rows."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from ..runtime.errors import InputError
from ..runtime.indexing.identity import Origin, Scope
from ..runtime.indexing.index import COMMIT_ROWS
from ..runtime.indexing.sources import Encode, Encoded, Source, encode_named, pictures_at_once
from ..runtime.matcher import Matcher
from ..runtime.pictures.load import fit_encoded, picture_suffixes
from ..runtime.skipped import SkippedItem
from .remote import Remote

_summed: dict[str, bytes] = {}  # pictures that were read to be summed, until they are encoded


def bucket_source(url: str) -> Source:
    """The pictures below an address; the id of a row is the last part of the address and the picture's name below it.

    Which objects are pictures is known from the ends of their names. An object is read again only if its size, time
    or ETag is another.

    Args:
        url: as of `Remote`, which finds credentials in the environment, on each machine that encodes.

    Raises:
        InputError: no picture lies there, or the address is of no known kind.
        GalleryError: the storage refuses.
        MissingExtra: obstore is not installed.
    """
    remote = Remote(url)
    suffixes = picture_suffixes()
    found, passed_over = [], Counter[str]()
    for stored in remote.objects():
        suffix = Path(stored.name).suffix.lower()
        if suffix in suffixes:
            found.append(stored)
        else:
            passed_over[suffix] += 1
    if not found:
        raise InputError(f"no picture ({', '.join(suffixes)}) below {url}")
    names = [stored.name for stored in found]
    root, read = Path(remote.url), partial(_encoder, remote.url)
    return Source(
        "images",
        ids=[f"{root.name}/{name}" for name in names],
        metadata=[{"path": f"{remote.url}/{name}"} for name in names],
        encode=read(names),
        encode_only=lambda rows: read([names[row] for row in rows]),
        origins=[
            Origin(root, one.name, None, one.size, one.mtime_ns, partial(_digest, remote.url, one.name), one.etag)
            for one in found
        ],
        whole=[Scope(root)],
        passed_over=dict(passed_over),
        at_once=pictures_at_once,
    )


def _encoder(url: str, names: Sequence[str]) -> Encode:
    """The `encode` of a source whose rows are the pictures of these names below an address."""

    def encode(matcher: Matcher, rows: Sequence[int]) -> Encoded:
        size = matcher.preprocess.size
        pictures, problems = {}, []
        for row in rows:
            place = f"{url}/{names[row]}"
            try:
                data = _summed.pop(place, None)
                pictures[row] = fit_encoded(_read(url, names[row]) if data is None else data, place, size)
            except FileNotFoundError:
                problems.append(SkippedItem(place, "it is gone"))
            except InputError as error:
                problems.append(SkippedItem(place, str(error).removeprefix(f"{place} ")))
        places = [f"{url}/{name}" for name in names]
        return Encoded(list(pictures), encode_named(matcher, pictures, places), problems)

    return encode


def _digest(url: str, name: str) -> str:
    """SHA-256 of a picture's bytes; FileNotFoundError where it is gone."""
    data = _summed[f"{url}/{name}"] = _read(url, name)
    while len(_summed) > COMMIT_ROWS:
        del _summed[next(iter(_summed))]
    return hashlib.sha256(data).hexdigest()


def _read(url: str, name: str) -> bytes:
    data = _remote(url).get(name)
    if data is None:
        raise FileNotFoundError(2, "no such object", f"{url}/{name}")
    return data


@cache
def _remote(url: str) -> Remote:
    return Remote(url)
