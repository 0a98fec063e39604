"""What a gallery can be filled from: pictures, and lines of text. `chan_rt.runtime.index` encodes such sources."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..blocks import pieces
from ..checks import check_paths
from ..contract import Range, sha256_file
from ..embeddings import Embeddings, Kind
from ..errors import BackendError, ChanError, InputError
from ..files import is_utf8
from ..matcher import Matcher
from ..pictures.load import Picture, fit_picture, list_pictures
from ..regions import box_metadata, boxes_as_metadata
from ..skipped import SkippedItem
from .identity import Origin, Scope


@dataclass(frozen=True)
class Encoded:
    """What became of some rows of a source.

    Attributes:
        rows: the rows that were encoded, in the order of `embeddings`.
        embeddings: theirs; None where no row could be encoded.
        problems: the other rows, with the reasons why they could not be encoded.
        boxes: where the regions of each encoded row are, [r, 4] or None, where the source knows it and `embeddings`
            do not.
    """

    rows: Sequence[int]
    embeddings: Embeddings | None
    problems: Sequence[SkippedItem]
    boxes: Sequence[NDArray[np.float32] | None] | None = None

    def places(self) -> list[dict[str, Any]]:
        """What the metadata of each encoded row keep of its boxes."""
        if self.boxes is not None:
            return [box_metadata(boxes) for boxes in self.boxes]
        return [] if self.embeddings is None else boxes_as_metadata(self.embeddings)


# Of captions and region features. 2,481 captions took 5.15 to 5.79 s of one core in pieces of 64, and 5.18 to 5.77 in
# pieces of 256 (1024-d, two shared cores), with the same bits.
ROWS_AT_ONCE = 64

Encode: TypeAlias = "Callable[[Matcher, Sequence[int]], Encoded]"


@dataclass(frozen=True)
class Source:
    """Rows that can be encoded.

    Attributes:
        kind: `images` or `captions`.
        ids: of the rows, unique.
        metadata: of each row.
        encode: a matcher and row numbers -> their embeddings, and the rows that could not be encoded.
        encode_only: row numbers -> an `encode` of these rows alone, numbered from 0, which cloudpickle can send to
            another process.
        queries: captions that belong to image rows, to measure fast search with; empty where there are none.
        origins: where each row comes from, so that changed, moved and missing items are known; empty for rows whose id
            is all there is to them.
        whole: what the source lists completely.
        skipped: what was found and can be no row.
        passed_over: how many files the folders hold that are not read, by suffix.
        notes: what the source holds and its rows will lack, in whole sentences that say what to do.
        at_once: of a matcher, how many rows its graphs take together, so that encoding them in such pieces costs
            nothing; None for ROWS_AT_ONCE.
    """

    kind: Kind
    ids: Sequence[str]
    metadata: Sequence[Mapping[str, Any]]
    encode: Encode
    encode_only: Callable[[Sequence[int]], Encode]
    queries: Sequence[str] = ()
    origins: Sequence[Origin] = ()
    whole: Sequence[Scope] = ()
    skipped: Sequence[SkippedItem] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)
    at_once: Callable[[Matcher], int] | None = None
    notes: Sequence[str] = ()

    def pieces(self, matcher: Matcher, items: Sequence[int]) -> list[Sequence[int]]:
        """Items in the pieces that they are encoded in, so that progress is seen between them."""
        most = ROWS_AT_ONCE if self.at_once is None else self.at_once(matcher)
        return [items[piece] for piece in pieces(len(items), Range(1, 1, most))]

    def only(self, rows: Sequence[int]) -> Source:
        """A source of some of the rows, which cloudpickle can send to another process."""
        return Source(
            self.kind,
            ids=[self.ids[row] for row in rows],
            metadata=[self.metadata[row] for row in rows],
            encode=self.encode_only(rows),
            encode_only=_no_part_of_a_part,
            origins=[self.origins[row] for row in rows] if self.origins else (),
            at_once=self.at_once,
        )


def _no_part_of_a_part(rows: Sequence[int]) -> Encode:
    raise NotImplementedError("a part of a source has no parts")


def picture_source(paths: Sequence[str | Path]) -> Source:
    """Picture files, and folders of them; the id of a row is the folder's name and the picture's path below it.

    The folder of a picture that is given by itself is the one it lies in.

    Raises:
        InputError: a path that does not exist, or no picture at all.
    """
    found = list_pictures(paths)
    whole = list(dict.fromkeys(Path(path).resolve() for path in paths if Path(path).is_dir()))
    skipped = [SkippedItem(str(folder), reason) for folder, reason in found.unreadable.items()]
    files: dict[Path, Path] = {}
    origins: list[Origin] = []
    for file in found.files:
        path = Path(os.path.realpath(file))  # Path.resolve refuses a circle of links with an error of its own
        if path in files:
            continue
        if not is_utf8(path):
            skipped.append(SkippedItem(str(path), "its name is not valid UTF-8: rename it"))
            continue
        try:
            origins.append(_picture_origin(file, path, whole))
        except OSError as error:
            skipped.append(SkippedItem(str(file), error.strerror or str(error)))
        else:
            files[path] = file
    paths_by_row = list(files.values())
    return Source(
        "images",
        ids=[f"{origin.root.name}/{origin.name}" for origin in origins],
        metadata=[{"path": str(path)} for path in files],
        encode=picture_encoder(paths_by_row),
        encode_only=lambda rows: picture_encoder([paths_by_row[row].absolute() for row in rows]),
        origins=origins,
        whole=[Scope(root) for root in whole],
        skipped=skipped,
        passed_over=found.passed_over,
        at_once=pictures_at_once,
    )


def pictures_at_once(matcher: Matcher) -> int:
    """`at_once` of a source of pictures."""
    return matcher.pictures_at_once


def picture_encoder(files: Sequence[Path]) -> Encode:
    """The `encode` of a source whose rows are picture files."""

    def encode(matcher: Matcher, rows: Sequence[int]) -> Encoded:
        preprocess = matcher.preprocess
        pictures, problems = {}, []
        for row in rows:  # resized at once: a picture as it was taken is a thousand times larger
            try:
                pictures[row] = fit_picture(files[row], preprocess.size)
            except InputError as error:
                name = str(files[row])
                problems.append(SkippedItem(name, str(error).removeprefix(f"{name} ")))
        return Encoded(list(pictures), encode_named(matcher, pictures, files), problems)

    return encode


def encode_named(matcher: Matcher, pictures: Mapping[int, Picture], names: Sequence[object]) -> Embeddings | None:
    """Encode pictures together; where this fails for some of them only, the error names the first of these.

    Args:
        matcher: a backbone.
        pictures: by the number of their row.
        names: of all rows.

    Returns:
        None without a picture.

    Raises:
        InputError, BackendError: as `Matcher.encode_pictures`; of a picture, with its name.
    """
    if not pictures:
        return None
    try:
        return matcher.encode_pictures(list(pictures.values()))
    except (InputError, BackendError) as error:
        failed = _failure_of_one(matcher, pictures)
        if failed is None:
            raise
        kind = InputError if isinstance(error, InputError) else BackendError
        row, reason = failed
        raise kind(f"{names[row]}: {reason}") from error


def _failure_of_one(matcher: Matcher, pictures: Mapping[int, Picture]) -> tuple[int, ChanError] | None:
    """The first row whose picture cannot be encoded by itself, and why; None if none can, as without a backend."""
    failed, others = None, len(pictures) == 1
    for row, picture in pictures.items():
        try:
            matcher.encode_pictures([picture])
            others = True
        except (InputError, BackendError) as error:
            failed = failed or (row, error)
        if failed and others:
            return failed
    return None


def _picture_origin(file: Path, path: Path, whole: Sequence[Path]) -> Origin:
    """Where a picture lies: below the innermost of the folders that are listed, or in a folder that is not."""
    absolute = Path(os.path.abspath(file))
    above = [root for root in whole if absolute.is_relative_to(root)] or [
        root for root in whole if path.is_relative_to(root)
    ]
    root = max(above, key=lambda folder: len(folder.parts), default=path.parent)
    within = absolute if absolute.is_relative_to(root) else path
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{file} is not a regular file")
    return Origin(
        root, within.relative_to(root).as_posix(), path, status.st_size, status.st_mtime_ns, partial(sha256_file, path)
    )


def text_source(paths: Sequence[str | Path]) -> Source:
    """The lines of text files, each different line once; the id of a row is its text.

    Raises:
        InputError: one path in place of a list, a file that is not UTF-8 text, or without a line that holds something.
    """
    check_paths("paths", paths)
    lines = list(dict.fromkeys(line for path in paths for line in read_lines(path)))
    return Source("captions", lines, [{"caption": line} for line in lines], *caption_encoders(lines, lines))


def caption_encoders(ids: Sequence[str], captions: Sequence[str]) -> tuple[Encode, Callable[[Sequence[int]], Encode]]:
    """The `encode` and the `encode_only` of a source whose rows are captions."""

    def only(rows: Sequence[int]) -> Encode:
        return _caption_encoder([ids[row] for row in rows], [captions[row] for row in rows])

    return _caption_encoder(ids, captions), only


def _caption_encoder(ids: Sequence[str], captions: Sequence[str]) -> Encode:
    return each_row(ids, lambda matcher, rows: matcher.encode_texts([captions[row] for row in rows]))


def each_row(ids: Sequence[str], encode: Callable[[Matcher, Sequence[int]], Embeddings]) -> Encode:
    """The `encode` of a source from a function that fails as a whole where one row cannot be encoded.

    Where it fails, halves of the rows are tried again, so that one bad row among n costs log2(n) further calls.
    """

    def encode_each(matcher: Matcher, rows: Sequence[int]) -> Encoded:
        try:
            return Encoded(rows, encode(matcher, rows), [])
        except InputError as error:
            if len(rows) == 1:
                return Encoded([], None, [SkippedItem(ids[rows[0]], str(error))])
        middle = len(rows) // 2
        halves = [encode_each(matcher, rows[:middle]), encode_each(matcher, rows[middle:])]
        parts = [half.embeddings for half in halves if half.embeddings is not None]
        return Encoded(
            [*halves[0].rows, *halves[1].rows],
            Embeddings.concatenate(parts) if parts else None,
            [*halves[0].problems, *halves[1].problems],
        )

    return encode_each


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file that hold something, without surrounding blanks.

    Raises:
        InputError: the file cannot be read, is not UTF-8, or holds no such line.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} must be a text file in UTF-8: {error}") from error
    if not any(lines):
        raise InputError(f"{path} must hold at least one caption, got none")
    return [line for line in lines if line]
