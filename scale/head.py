"""What object storage holds of a gallery: pieces named by their content, and one head that says what they make.

    URL/pieces/SHA256     a piece of a file, 64 MiB or less; never changed
    URL/gallery           the head: the files of one commit, and the pieces of each

The head is written last and replaced whole, so what is half uploaded is nothing. A push sends the pieces that are not
there yet, so one that was interrupted continues where it stopped, and a new commit sends only what is new. (The parts
of a multipart upload are known only to the process that began it: obstore has no way to continue one.)
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ..runtime.errors import GalleryCorrupt, GalleryError
from ..runtime.gallery.store.array_file import MAX_LENGTH, PAGE
from ..runtime.gallery.store.header import LINE, parse_line, text_of, with_line
from ..runtime.gallery.store.json_values import json_integer, json_list, json_object, plain_json

HEAD = "gallery"
PIECES = "pieces"
PIECE_BYTES = 256 * PAGE  # 64 MiB
AT_ONCE = 4  # pieces on their way: 256 MiB of memory at most
HEAD_SCHEMA = 1
_WORD = "chan-stored"  # that the head begins with
_MAX_FILES = 1 << 20
_PATH = re.compile(r"(shard-\d{6,18}/)?(catalogue|segments/[0-9a-f]{32}(-\d{1,18})?\.safetensors)|shards")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class StoredFile:
    """One file of a gallery.

    Attributes:
        path: below the gallery's folder.
        length: bytes.
        pieces: sha256 of each PIECE_BYTES of it, in order.
    """

    path: str
    length: int
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Head:
    """One commit of a gallery in object storage.

    Attributes:
        gallery, generation: of the commit.
        rows: of the gallery.
        files: all that it consists of.
    """

    gallery: str
    generation: int
    rows: int
    files: tuple[StoredFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.length for file in self.files)

    @property
    def pieces(self) -> dict[str, int]:
        """sha256 -> bytes of every piece."""
        return {
            piece: min(PIECE_BYTES, file.length - i * PIECE_BYTES)
            for file in self.files
            for i, piece in enumerate(file.pieces)
        }

    def to_bytes(self) -> bytes:
        """The head as it is stored."""
        files = [{"path": file.path, "length": file.length, "pieces": list(file.pieces)} for file in self.files]
        text = json.dumps({"rows": self.rows, "files": files}, separators=(",", ":")).encode()
        return with_line(_WORD, HEAD_SCHEMA, self.gallery, self.generation, text)[1]


def parse_head(data: bytes, url: str) -> Head:
    """Read what `Head.to_bytes` gave.

    Raises:
        GalleryError: this version does not know its schema.
        GalleryCorrupt: it is not what was stored, or breaks a rule of this module.
    """
    header = parse_line(_WORD, data[:LINE])
    if header is None:
        raise GalleryCorrupt(f"{url}: its first line cannot be understood")
    if header.schema != HEAD_SCHEMA:
        raise GalleryError(f"{url}: the schema is {header.schema}, this version reads {HEAD_SCHEMA}")
    try:
        body = json_object(plain_json(text_of(header, data)), "the head", "rows", "files")
        rows = json_integer(body["rows"], "rows", 0, MAX_LENGTH)
        files = tuple(_file(raw, f"files[{i}]") for i, raw in enumerate(json_list(body["files"], "files", _MAX_FILES)))
    except (ValueError, RecursionError) as error:
        raise GalleryCorrupt(f"{url} is not what was stored: {error}") from error
    return Head(header.gallery, header.generation, rows, files)


def _file(raw: object, place: str) -> StoredFile:
    body = json_object(raw, place, "path", "length", "pieces")
    if not isinstance(body["path"], str) or not _PATH.fullmatch(body["path"]):
        raise ValueError(f"{place}.path must be that of a gallery's file, got {str(body['path'])[:80]!r}")
    length = json_integer(body["length"], f"{place}.length", 1, MAX_LENGTH)
    pieces = json_list(body["pieces"], f"{place}.pieces", MAX_LENGTH // PIECE_BYTES)
    if len(pieces) != -(-length // PIECE_BYTES) or not all(
        isinstance(piece, str) and _SHA256.fullmatch(piece) for piece in pieces
    ):
        raise ValueError(f"{place}.pieces must be a sha256 for each {PIECE_BYTES} bytes")
    return StoredFile(body["path"], length, tuple(pieces))
