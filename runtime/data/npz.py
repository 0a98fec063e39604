"""Arrays in .npy and .npz files: mapped where they are stored as they are, read whole where they are compressed."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, reason_of
from .boxes import BOX_NAMES, SIZE_NAMES, Boxes, boxes_of
from .store import NEEDED, OF_ONE_IMAGE, check_image, feature_name, unread

# Arrays that are compressed are read whole; larger ones must be stored as they are, so that they can be mapped.
MAX_COMPRESSED = 4 << 30
_MAX_MEMBERS = 1000
_MAX_ARRAYS = 10**7  # where each row may have one


@dataclass(frozen=True)
class _Header:
    """The header of an array: what it claims, and how many bytes the header itself takes."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["F", "C"]
    size: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array's values."""
        return prod(self.shape) * self.dtype.itemsize


class StoredImage(NamedTuple):
    """The features [r, F] of one image, the names of all its arrays, and those of arrays that are not read."""

    features: NDArray[Any]
    names: Collection[str] = ()
    left_out: Set[str] = frozenset()


class _Opened(NamedTuple):
    """An archive that is open: its name, its reader, and its bytes as a file and mapped, once for all its arrays."""

    file: Path
    archive: zipfile.ZipFile
    raw: IO[bytes]
    whole: NDArray[np.uint8]


def map_npy(file: Path) -> NDArray[Any]:
    """The array of an .npy file, mapped; InputError if it cannot be read, or is not all that the file holds."""
    try:
        array = np.lib.format.open_memmap(file, "r")  # np.load takes what it does not know for a pickle
        rest = file.stat().st_size - array.offset - array.nbytes
    except Exception as error:  # numpy has no common base for what damage makes it raise
        raise InputError(f"{file} cannot be read as a numpy array of numbers: {reason_of(error)}") from error
    if rest > 0:
        raise InputError(
            f"{file} holds {rest:,} bytes behind its array {list(array.shape)}, such as those of a second numpy.save "
            "to the same open file: write each array to a file of its own"
        )
    return array


def map_npz(file: Path) -> dict[str, NDArray[Any]]:
    """The features of an .npz file and what is needed beside them, where it is there, by name.

    Raises:
        InputError: it is no archive, is damaged, holds Python objects, or a compressed array is larger than 4 GiB.
    """
    with _open(file) as opened:
        members = _members(opened, _MAX_MEMBERS)
        wanted = (feature_name(file, members), *NEEDED)
        return {name: _member(opened, *members[name]) for name in wanted if name in members}


def npz_names(file: Path) -> list[str]:
    """The names of the arrays in an .npz file; InputError if it is no archive."""
    with _open(file) as opened:
        return list(_members(opened, _MAX_MEMBERS))


def map_npz_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz file by name, in the order in which they were written.

    Raises:
        InputError: as `map_npz`.
    """
    with _open(file) as opened:
        members = _members(opened, _MAX_ARRAYS)
        compressed = sum(info.file_size for info, _ in members.values() if info.compress_type != zipfile.ZIP_STORED)
        if compressed > MAX_COMPRESSED:
            raise InputError(f"{file} is compressed and takes {compressed:,} bytes: write it with numpy.savez")
        return {name: _member(opened, *place) for name, place in members.items()}


def read_image(file: Path) -> StoredImage:
    """One image, from its own .npy file or .npz archive (compressed or not)."""
    if file.suffix == ".npy":
        image = StoredImage(map_npy(file))
    elif not zipfile.is_zipfile(file):
        raise InputError(f"{file} is not an .npz archive, or was cut off: write it again with numpy.savez")
    else:
        with _open(file) as opened:
            members = _members(opened, _MAX_MEMBERS)
            array = _member(opened, *members[feature_name(file, members)])
        image = StoredImage(array, list(members), unread(file, members, OF_ONE_IMAGE))
    check_image(file, image.features)
    return image


def image_boxes(file: Path, regions: int) -> Boxes | None:
    """The boxes [r, 4] of one image, where its .npz archive has them and the picture's size."""
    if file.suffix == ".npy":
        return None
    with _open(file) as opened:
        members = _members(opened, _MAX_MEMBERS)
        wanted = [name for name in (*BOX_NAMES, *SIZE_NAMES) if name in members]
        held = {name: _member(opened, *members[name]) for name in wanted}
    return boxes_of(str(file), held, regions)


@contextmanager
def _open(file: Path) -> Iterator[_Opened]:
    try:
        with zipfile.ZipFile(file) as archive, open(file, "rb") as raw:
            yield _Opened(file, archive, raw, np.memmap(file, np.uint8, "r"))
    except InputError:
        raise
    except Exception as error:  # as in `map_npy`
        raise InputError(f"{file} cannot be read as an .npz archive: {reason_of(error)}") from error


def _members(opened: _Opened, most: int) -> dict[str, tuple[zipfile.ZipInfo, int]]:
    """The members of an archive by name, each with the place where the next one begins (or the archive's directory)."""
    archive = opened.archive
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    if len(infos) > most:
        raise InputError(f"{archive.filename} must hold at most {most:,} arrays, got {len(infos):,}")
    if not infos:
        return {}
    ends = [info.header_offset for info in infos[1:]] + [min(archive.start_dir, len(opened.whole))]
    names = [info.filename.removesuffix(".npy") for info in infos]
    ((name, count),) = Counter(names).most_common(1)
    if count > 1:  # only the last would be read
        raise InputError(f"{archive.filename} must hold one array of each name, got {count} named {name}")
    return dict(zip(names, zip(infos, ends, strict=True), strict=True))


def _member(opened: _Opened, info: zipfile.ZipInfo, end: int) -> NDArray[Any]:
    """One array. Its header must claim exactly the bytes that the member holds, and these must end before `end`."""
    file, archive, raw, whole = opened
    if info.flag_bits & 1:
        raise InputError(f"{file}: {info.filename} is encrypted: write it with numpy.savez")
    if info.compress_type != zipfile.ZIP_STORED:
        if info.file_size > MAX_COMPRESSED:
            raise InputError(
                f"{file} is compressed and {info.filename} takes {info.file_size:,} bytes, too many to read at once: "
                "write it with numpy.savez, so that it can be memory-mapped"
            )
        with archive.open(info) as stream:
            header = _read_header(file, stream, info)
            # One byte more than there should be, so that the archive compares its checksum.
            values = stream.read(header.nbytes + 1)
        if len(values) != header.nbytes:
            raise InputError(f"{file}: {info.filename} must hold {header.nbytes} bytes, got {len(values)}")
        return np.frombuffer(values, header.dtype).reshape(header.shape, order=header.order)
    # A member's data start behind its local header, whose name and extra field lengths are at byte 26.
    raw.seek(info.header_offset + 26)
    name_size, extra_size = np.frombuffer(raw.read(4), dtype="<u2")
    start = info.header_offset + 30 + int(name_size) + int(extra_size)
    if start + info.file_size > end:
        raise InputError(f"{file}: {info.filename} must not reach into the member behind it: the file is damaged")
    raw.seek(start)
    header = _read_header(file, raw, info)
    mapped: NDArray[Any] = whole[start + header.size : start + info.file_size].view(header.dtype)
    return mapped.reshape(header.shape, order=header.order)


def _read_header(file: Path, stream: IO[bytes], info: zipfile.ZipInfo) -> _Header:
    start = stream.tell()
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    header = _Header(shape, dtype, "F" if fortran else "C", stream.tell() - start)
    if dtype.hasobject:
        raise InputError(f"{file}: {info.filename} holds Python objects, which are never loaded: store text as str")
    if any(size < 0 for size in shape) or header.size + header.nbytes != info.file_size:
        raise InputError(
            f"{file}: {info.filename} claims {list(shape)} of {dtype}, {header.nbytes:,} bytes, and holds "
            f"{info.file_size - header.size:,}: the file is damaged"
        )
    return header
