"""The first line of a file that commits replace whole: it names the gallery, the commit, and the digest of the rest."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

LINE = 128  # bytes of the line
_LINE: Final = re.compile(rb"([a-z-]{1,32}) (\d{1,9}) ([0-9a-f]{32}) (\d{1,18}) ([0-9a-f]{32}) *\n")


@dataclass(frozen=True)
class Header:
    """What distinguishes one commit of one gallery from every other.

    Attributes:
        gallery: 32 hex digits that a gallery gets when it is made.
        generation: how many commits went before.
        digest: of the file's bytes.
        schema: of the file.
    """

    gallery: str
    generation: int
    digest: str
    schema: int


def with_line(word: str, schema: int, gallery: str, generation: int, text: bytes) -> tuple[Header, bytes]:
    """A file's header, and its bytes: the line, `text` and a line break.

    word: what the file is.
    """
    header = Header(gallery, generation, digest_of(schema, gallery, generation, text), schema)
    return header, line_of(word, header) + text + b"\n"


def line_of(word: str, header: Header) -> bytes:
    """The line of a file with this header, as it is written; word: what the file is."""
    line = f"{word} {header.schema} {header.gallery} {header.generation} {header.digest}"
    return f"{line:<{LINE - 1}}\n".encode()


def parse_line(word: str, line: bytes) -> Header | None:
    """What the line of a file says; None where it is not the line of such a file."""
    found = _LINE.fullmatch(line) if len(line) == LINE else None
    if found is None or found[1].decode() != word:
        return None
    return Header(found[3].decode(), int(found[4]), found[5].decode(), int(found[2]))


def text_of(header: Header, data: bytes) -> bytes:
    """The text below the line of a whole file; ValueError unless it has the digest of its header."""
    if not data.endswith(b"\n") or len(data) <= LINE:
        raise ValueError("the end is missing")
    text = data[LINE:-1]
    if digest_of(header.schema, header.gallery, header.generation, text) != header.digest:
        raise ValueError("its digest differs")
    return text


def digest_of(schema: int, gallery: str, generation: int, text: bytes) -> str:
    """32 hex digits of all that the file holds."""
    digest = hashlib.blake2b(f"{schema} {gallery} {generation}\n".encode(), digest_size=16)
    digest.update(text)
    return digest.hexdigest()
