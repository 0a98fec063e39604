"""Region features of pictures, computed by a backbone and written as `ims.npy` or `ims.npz` of the precomp layout."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
import torch

from ..runtime.counts import counted
from ..runtime.data.flat import FlatWriter
from ..runtime.data.npy import new_npy
from ..runtime.errors import InputError
from ..runtime.files import atomic_file, is_utf8, naming, publish, write_file
from ..runtime.locks import only_one
from ..runtime.pictures.load import Picture, fit_picture, load_pixels
from ..runtime.regions import Regions
from ..runtime.skipped import Skipped, SkippedItem
from .backbone import load_backbone
from .backbones.base import Backbone
from .backbones.names import LITES
from .backbones.onnx_files import OnnxModule

if TYPE_CHECKING:
    from PIL.Image import Image

# Activations of more than two pictures pass 32 MB, which glibc maps and unmaps anew each time: a picture took 140 ms of
# CPU in batches of 16, and takes 63 in batches of 2.
_BATCH = 2
_HEADER = 128  # bytes of an npy header for any number of rows
FEATURES = ("ims.npy", "ims.npz")
_Item = TypeVar("_Item")


class Encoder:
    """Encodes pictures as regions, in batches.

    Args:
        backbone: None for efficientnet-lite0, which is loaded.

    Raises:
        MissingExtra: the packages that carry efficientnet-lite0 are not installed.
    """

    def __init__(self, backbone: Backbone | None = None) -> None:
        self.backbone = Backbone(*load_backbone(), LITES[0]) if backbone is None else backbone
        self.preprocess = self.backbone.preprocess
        self._layout = torch.contiguous_format
        if not isinstance(self.backbone.module, OnnxModule):
            # Depthwise convolutions run about twice as fast in this layout on a CPU.
            self._layout = torch.channels_last
            self.backbone.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, pictures: Sequence[Picture], names: Sequence[Path] = ()) -> Regions:
        """Compute the regions of B pictures.

        Args:
            pictures: to encode.
            names: the files that they are from, for errors, where `pictures` are not files.

        Raises:
            InputError: a picture cannot be read, or the backbone fails; the message names the file or files.
        """
        pixels = torch.from_numpy(load_pixels(pictures, self.preprocess))
        try:
            return self.backbone.regions(pixels.contiguous(memory_format=self._layout).numpy())
        except InputError as error:
            files = ", ".join(str(name) for name in names or pictures if isinstance(name, str | Path))
            raise InputError(f"{files}: {error}" if files else str(error)) from error

    @property
    def boxed(self) -> bool:
        """Whether regions have boxes; otherwise they are a grid."""
        return self.preprocess.grid is None

    def record(self) -> np.dtype[Any]:
        """What is kept of a picture: `features` [R, F], and where these have boxes `boxes` [R, 4] and `length`.

        Of a detector also `class_scores` [R, C].

        Raises:
            InputError: the backbone fails for a gray picture.
        """
        size = self.preprocess.size
        found = self.backbone.regions(np.zeros((1, 3, size, size), np.float32))
        regions, width = found.features.shape[1:]
        kept: list[tuple[Any, ...]] = [("features", "<f4", (regions, width))]
        if found.boxes is not None:
            kept += [("boxes", "<f4", (regions, 4)), ("length", "<i4")]
            if found.class_scores is not None:
                kept.append(("class_scores", "<f4", (regions, found.class_scores.shape[2])))
        return np.dtype(kept)

    def encode_to(self, path: Path, pictures: Iterable[Picture], count: int) -> Iterator[int]:
        """Write the regions of `count` pictures to a file, batch by batch.

        Args:
            path: .npy for the regions of a grid, an array [count, R, F] float32; .npz for regions with boxes, as
                `write_features` writes them.
            pictures: to encode.
            count: number of them.

        Yields:
            Number of pictures of each batch, after it is written. The file gets its name after the last batch.

        Raises:
            InputError: a picture cannot be read, or there are more or fewer than `count`.
        """
        regions, width = self.record()["features"].shape
        done = 0
        with ExitStack() as stack:
            if self.boxed:
                flat = stack.enter_context(FlatWriter(path, np.full(count, regions), width))
            else:
                beside = stack.enter_context(atomic_file(path))
                rows = new_npy(beside, (count, regions, width))
            for batch in batches(pictures, _BATCH):
                if done + len(batch) > count:
                    raise InputError(f"pictures must be {count}, got more")
                found = self.encode(batch)
                if found.boxes is None:
                    rows[done : done + len(batch)] = found.features
                else:
                    for row, length in enumerate(found.lengths):
                        scores = None if found.class_scores is None else found.class_scores[row, :length]
                        flat.add(found.features[row, :length], found.boxes[row, :length], scores)
                done += len(batch)
                yield len(batch)
            if done != count:
                raise InputError(f"pictures must be {count}, got {done}")
            if not self.boxed:
                rows.flush()
                del rows


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield consecutive lists of `size` items; the last list may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def write_features(
    files: Sequence[Path],
    out: Path,
    force: bool = False,
    skipped: Skipped | None = None,
    backbone: Backbone | None = None,
    weights: str = "",
) -> Iterator[int]:
    """Encode picture files into OUT/ims.npy or OUT/ims.npz, with their paths by row in OUT/names.txt.

    Regions of a grid are `ims.npy`, an array [N, R, F]. Regions with boxes are `ims.npz`: `features` [T, F] of all
    pictures one after the other, `pos_boxes` [N, 2], the first row of each picture and the row behind its last,
    `boxes` [T, 4], left, top, width and height as fractions of the picture, and of a detector `class_scores` [T, C].

    Rows are kept in hidden files in OUT as they are finished. After an interruption the same call continues from there,
    as long as the pictures are still those that were encoded, and the backbone is of the same name and weights.

    Args:
        files: picture files; each that can be read becomes one row.
        out: the folder to write to; created if needed.
        force: replace features that OUT already holds.
        skipped: collects the files that cannot be read; None for a limit of 1,000.
        backbone: None for efficientnet-lite0.
        weights: where its weights are from, as `open_backbone` was given it.

    Yields:
        Number of files finished since the last time, the skipped ones included.

    Raises:
        InputError: OUT holds features and `force` is False, another process writes there, no file can be read, more
            than the limit cannot, or the backbone fails.
    """
    busy = f"another process writes features to {out}: wait for it to end, or choose another folder"
    with only_one(out / ".ims.lock", busy), naming(out):
        yield from _write_alone(files, out, force, Skipped() if skipped is None else skipped, backbone, weights)


def _write_alone(
    files: Sequence[Path], out: Path, force: bool, skipped: Skipped, backbone: Backbone | None, weights: str
) -> Iterator[int]:
    for held in FEATURES:
        if (out / held).exists() and not force:
            raise InputError(f"{out / held} already exists: choose another folder, or replace it with --force")
    encoder = Encoder(backbone)
    record = encoder.record()
    made_by = {"backbone": encoder.backbone.name, "weights": weights, "record": str(record)}
    with _Unfinished(out, record, made_by) as unfinished:
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
            sound = [file for file in batch if file not in reasons]
            unfinished.add(batch, encoder.encode(pictures, sound) if pictures else None, reasons)
            for file, reason in reasons.items():
                skipped.add(SkippedItem(str(file), reason))
            yield len(batch)
        if not unfinished.names:
            first = skipped.items[0]
            raise InputError(
                f"none of {counted(len(files), 'picture')} could be read; the first: {first.item}: {first.reason}"
            )
        unfinished.finish()


def _check_name(file: Path) -> None:
    """InputError for a path that a line of names.txt cannot hold."""
    if "\n" in str(file):
        raise InputError(f"{file} has a line break in its path: rename it")
    if not is_utf8(file):
        raise InputError(f"{file} has a name that is not valid UTF-8: rename it")


class _Unfinished:
    """Features on their way: a record for each picture, and a journal with a line of JSON for each file.

    The journal's first line says what made the records, and of which sizes. It follows the records, so a line that is
    there has its record, unless the machine lost power; then records that are missing are encoded again.
    """

    def __init__(self, out: Path, record: np.dtype[Any], made_by: Mapping[str, str]) -> None:
        self._out = out
        self._record = record
        self._made_by = json.dumps(made_by) + "\n"
        self._rows = out / ".ims.npy.unfinished"
        self._journal = out / ".ims.jsonl.unfinished"
        self.names: list[str] = []

    def __enter__(self) -> Self:
        self._row_file = self._rows.open("r+b" if self._rows.exists() else "w+b")
        self._journal_file = self._journal.open("a+", encoding="utf-8")
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # what could not be written is no part of what is kept
            self._row_file.close()
        with suppress(OSError):
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
        same = self._journal_file.readline() == self._made_by
        for file, line in zip(files, self._journal_file if same else (), strict=False):
            try:
                entry = json.loads(line)
            except ValueError:
                break  # cut off
            rows = len(self.names) + ("skipped" not in entry)
            if entry != {**entry, **_identity(file)} or _HEADER + rows * self._record.itemsize > size:
                break
            if "skipped" in entry:
                skipped.add(SkippedItem(str(file), entry["skipped"]))
            else:
                self.names.append(str(file))
            kept.append(line)
        self._row_file.truncate(_HEADER + len(self.names) * self._record.itemsize)
        self._row_file.seek(0, os.SEEK_END)
        self._journal_file.seek(0)
        self._journal_file.truncate()
        self._journal_file.writelines([self._made_by, *kept])
        return len(kept)

    def add(self, files: Sequence[Path], regions: Regions | None, reasons: Mapping[Path, str]) -> None:
        """Keep the regions of some files, and the reasons of the others, which cannot be read.

        Raises:
            InputError: the regions are of other sizes than those before.
        """
        if regions is not None:
            if regions.features.shape[1:] != self._record["features"].shape:
                raise InputError(
                    f"the backbone must return {list(self._record['features'].shape)} features for every picture (pad "
                    f"them, and return region_lengths), got {list(regions.features.shape[1:])}"
                )
            rows = np.zeros(len(regions.features), self._record)
            rows["features"] = regions.features
            if regions.boxes is not None:
                rows["boxes"], rows["length"] = regions.boxes, regions.lengths
            if "class_scores" in (self._record.names or ()):
                rows["class_scores"] = regions.class_scores
            self._row_file.write(rows.tobytes())
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
        for held in FEATURES:
            (self._out / held).unlink(missing_ok=True)
        text = "".join(f"{name}\n" for name in self.names)
        if "boxes" in (self._record.names or ()):
            self._row_file.flush()
            write_file(self._out / "names.txt", text)
            self._write_flat()
            self._rows.unlink()
        else:
            header = io.BytesIO()
            shape = (len(self.names), *self._record["features"].shape)
            np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
            assert header.tell() == _HEADER
            self._row_file.seek(0)
            self._row_file.write(header.getvalue())
            self._row_file.flush()
            write_file(self._out / "names.txt", text)
            publish(self._rows, self._out / "ims.npy")
        self._journal.unlink()

    def _write_flat(self) -> None:
        rows = np.memmap(self._rows, self._record, "r", _HEADER, (len(self.names),))
        with FlatWriter(self._out / "ims.npz", np.array(rows["length"]), self._record["features"].shape[1]) as writer:
            scored = "class_scores" in (self._record.names or ())
            for row in rows:
                length = row["length"]
                scores = row["class_scores"][:length] if scored else None
                writer.add(row["features"][:length], row["boxes"][:length], scores)


def _identity(file: Path) -> dict[str, Any]:
    """What a file must still be for its row to be its own."""
    try:
        status = file.stat()
    except (OSError, ValueError):
        return {"path": str(file), "size": None, "mtime_ns": None}
    return {"path": str(file), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
