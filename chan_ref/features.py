"""Compute region features of pictures, 36 grid regions each, and write them as `ims.npy` of the precomp layout."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.contract import Preprocess
from ..runtime.errors import InputError
from ..runtime.files import atomic_file, publish, write_file
from ..runtime.pictures.load import Picture, fit_picture, load_pixels
from ..runtime.skipped import Skipped, SkippedItem
from .backbone import GRID, REGION_DIM, GridBackbone, load_backbone

if TYPE_CHECKING:
    from PIL.Image import Image

# Activations of more than two pictures pass 32 MB, which glibc maps and unmaps anew each time: a picture took 140 ms of
# CPU in batches of 16, and takes 63 in batches of 2.
_BATCH = 2
_HEADER = 128  # bytes of an npy header for any number of rows
_ROW = 4 * GRID * GRID * REGION_DIM
_Item = TypeVar("_Item")


class Encoder:
    """Encodes pictures as regions, in batches. The backbone is loaded once."""

    def __init__(self) -> None:
        backbone, preprocess = load_backbone()
        self.preprocess: Preprocess = preprocess
        # Depthwise convolutions run about twice as fast in this layout on a CPU.
        self.backbone: GridBackbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Compute the regions [B, 36, 1280] float32 of B pictures.

        Raises:
            InputError: a picture cannot be read (the message names it).
        """
        pixels = torch.from_numpy(load_pixels(pictures, self.preprocess))
        with torch.inference_mode():
            regions: torch.Tensor = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        found: NDArray[np.float32] = regions.numpy()
        return found

    def encode_to(self, path: Path, pictures: Iterable[Picture], count: int) -> Iterator[int]:
        """Write regions [count, 36, 1280] float32 to an npy file, batch by batch.

        Yields:
            Number of pictures of each batch, after it is written. The file gets its name after the last batch.

        Raises:
            InputError: a picture cannot be read, or there are more or fewer than `count`.
        """
        done = 0
        with atomic_file(path) as beside:
            rows = np.lib.format.open_memmap(beside, "w+", np.float32, (count, GRID * GRID, REGION_DIM))
            for batch in batches(pictures, _BATCH):
                if done + len(batch) > count:
                    raise InputError(f"pictures must be {count}, got more")
                rows[done : done + len(batch)] = self.encode(batch)
                done += len(batch)
                yield len(batch)
            if done != count:
                raise InputError(f"pictures must be {count}, got {done}")
            rows.flush()
            del rows


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield consecutive lists of `size` items; the last list may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def write_features(
    files: Sequence[Path], out: Path, force: bool = False, skipped: Skipped | None = None
) -> Iterator[int]:
    """Encode picture files into OUT/ims.npy, with their paths by row in OUT/names.txt.

    Rows are kept in hidden files in OUT as they are finished. After an interruption the same call continues from there,
    as long as the pictures are still those that were encoded.

    Args:
        files: picture files; each that can be read becomes one row.
        out: the folder to write to; created if needed.
        force: replace features that OUT already holds.
        skipped: collects the files that cannot be read; None for a limit of 1,000.

    Yields:
        Number of files finished since the last time, the skipped ones included.

    Raises:
        InputError: OUT holds features and `force` is False, no file can be read, or more than the limit cannot.
    """
    if (out / "ims.npy").exists() and not force:
        raise InputError(f"{out / 'ims.npy'} already exists: choose another folder, or replace it with --force")
    skipped = skipped if skipped is not None else Skipped()
    encoder = Encoder()
    out.mkdir(parents=True, exist_ok=True)
    with _Unfinished(out) as unfinished:
        done = unfinished.resume(files, skipped)
        if done:
            yield done
        for batch in batches(files[done:], _BATCH):
            pictures: list[Image] = []
            reasons: dict[Path, str] = {}
            for file in batch:
                try:
                    _check_name(file)
                    pictures.append(fit_picture(file, encoder.preprocess.size))
                except InputError as error:
                    reasons[file] = str(error).removeprefix(f"{file} ")
            unfinished.add(batch, encoder.encode(pictures) if pictures else None, reasons)
            for file, reason in reasons.items():
                skipped.add(SkippedItem(str(file), reason))
            yield len(batch)
        if not unfinished.names:
            first = skipped.items[0]
            raise InputError(f"none of {len(files)} pictures could be read; the first: {first.item}: {first.reason}")
        unfinished.finish()


def _check_name(file: Path) -> None:
    """InputError for a path that a line of names.txt cannot hold."""
    name = str(file)
    if "\n" in name:
        raise InputError(f"{file} has a line break in its path: rename it")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"{file} has a name that is not valid UTF-8: rename it") from None


class _Unfinished:
    """Features on their way: the rows, and a journal with a line of JSON for each file.

    The journal follows the rows, so a line that is there has its row, unless the machine lost power; then rows that
    are missing are encoded again.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._rows = out / ".ims.npy.unfinished"
        self._journal = out / ".ims.jsonl.unfinished"
        self.names: list[str] = []

    def __enter__(self) -> Self:
        self._row_file = self._rows.open("r+b" if self._rows.exists() else "w+b")
        self._journal_file = self._journal.open("a+", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        self._row_file.close()
        self._journal_file.close()
        if not self.names:  # nothing worth keeping
            self._rows.unlink(missing_ok=True)
            self._journal.unlink(missing_ok=True)
            with suppress(OSError):
                self._out.rmdir()

    def resume(self, files: Sequence[Path], skipped: Skipped) -> int:
        """Take over what an earlier run finished of the same files: how many of them, from the first."""
        self._journal_file.seek(0)
        size = self._row_file.seek(0, os.SEEK_END)
        kept: list[str] = []
        for file, line in zip(files, self._journal_file, strict=False):
            try:
                entry = json.loads(line)
            except ValueError:
                break  # cut off
            rows = len(self.names) + ("skipped" not in entry)
            if entry != {**entry, **_identity(file)} or _HEADER + rows * _ROW > size:
                break
            if "skipped" in entry:
                skipped.add(SkippedItem(str(file), entry["skipped"]))
            else:
                self.names.append(str(file))
            kept.append(line)
        self._row_file.truncate(_HEADER + len(self.names) * _ROW)
        self._row_file.seek(0, os.SEEK_END)
        self._journal_file.seek(0)
        self._journal_file.truncate()
        self._journal_file.writelines(kept)
        return len(kept)

    def add(self, files: Sequence[Path], regions: NDArray[np.float32] | None, reasons: Mapping[Path, str]) -> None:
        """Keep the regions [n, 36, 1280] of some files, and the reasons of the others, which cannot be read."""
        if regions is not None:
            self._row_file.write(np.ascontiguousarray(regions).tobytes())
            self._row_file.flush()
        for file in files:
            if file in reasons:
                entry = {**_identity(file), "skipped": reasons[file]}
            else:
                entry = _identity(file)
                self.names.append(str(file))
            self._journal_file.write(json.dumps(entry) + "\n")
        self._journal_file.flush()

    def finish(self) -> None:
        """Give the files their names; the features come last, so that they never lie beside the names of others."""
        header = io.BytesIO()
        shape = (len(self.names), GRID * GRID, REGION_DIM)
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
        assert header.tell() == _HEADER
        self._row_file.seek(0)
        self._row_file.write(header.getvalue())
        self._row_file.flush()
        (self._out / "ims.npy").unlink(missing_ok=True)
        write_file(self._out / "names.txt", "".join(f"{name}\n" for name in self.names))
        publish(self._rows, self._out / "ims.npy")
        self._journal.unlink()


def _identity(file: Path) -> dict[str, Any]:
    """What a file must still be for its row to be its own."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return {"path": str(file), "size": None, "mtime_ns": None}
    return {"path": str(file), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
