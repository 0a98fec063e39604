"""Writing `SPLIT_ims.npz`: features of all images one after the other, read without being loaded (`regions`)."""

from __future__ import annotations

import io
import zipfile
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..counts import counted
from ..errors import InputError
from ..files import atomic_file

FEATURES, SPANS, BOXES, CLASS_SCORES = "features", "pos_boxes", "boxes", "class_scores"
_FLOATS = np.dtype("<f4")


class FlatWriter:
    """Writes `features` [T, F], `pos_boxes` [N, 2] and, where there are some, `boxes` [T, 4] and `class_scores` [T, C].

    It is given one image after the other. Only boxes and class scores are held in memory. The file gets its name when
    the writer is left without an error.

    Args:
        path: of the .npz file.
        room: how many rows are kept for each image, [N]: its number of regions, or more where it is not known yet.
        width: of the features (F).
    """

    def __init__(self, path: Path, room: NDArray[np.integer], width: int) -> None:
        self._path = path
        self._room = np.asarray(room, np.int64)
        self._lengths: list[int] = []
        self._width = width
        self._boxes: list[NDArray[Any]] = []
        self._scores: list[NDArray[Any]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        beside = self._stack.enter_context(atomic_file(self._path))
        self._archive = zipfile.ZipFile(beside, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._stack.callback(self._archive.close)
        self._stream: IO[bytes] = self._archive.open(f"{FEATURES}.npy", "w", force_zip64=True)
        _header(self._stream, (int(self._room.sum()), self._width))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stream.close()
            if error is None:
                self._finish()
        except BaseException as failed:
            self._stack.__exit__(type(failed), failed, failed.__traceback__)
            raise
        self._stack.__exit__(kind, error, trace)

    @property
    def boxed(self) -> bool:
        """Whether images with boxes were written."""
        return bool(self._boxes)

    def add(
        self,
        features: NDArray[np.floating],
        boxes: NDArray[np.float32] | None = None,
        class_scores: NDArray[np.float32] | None = None,
    ) -> None:
        """Write the next image: features [r, F], perhaps boxes [r, 4], fractions of the picture, and scores [r, C].

        Raises:
            InputError: more regions than there is room for, another width, features that are not finite, or an image
                with boxes, or class scores, among others without.
        """
        image = len(self._lengths)
        if image >= len(self._room):
            raise InputError(f"{self._path} must have {counted(len(self._room), 'image')}, got more")
        room = int(self._room[image])
        if features.ndim != 2 or not 1 <= len(features) <= room or features.shape[1] != self._width:
            wanted = f"1 to {counted(room, 'region')} of {self._width} features"
            raise InputError(f"{self._path}: image {image} must have {wanted}, got {list(features.shape)}")
        if not np.isfinite(features).all():
            raise InputError(f"{self._path}: the features of image {image} must be finite, got NaN or infinity")
        for what, given, held in (("boxes", boxes, self._boxes), ("class scores", class_scores, self._scores)):
            if image and (given is not None) != bool(held):
                differs = "has none" if held else "is the first that has some"
                raise InputError(f"{self._path}: all images must have {what}, or none, and image {image} {differs}")
        self._stream.write(_filled(features, room).tobytes())
        if boxes is not None:
            self._boxes.append(_filled(boxes.reshape(len(features), 4), room))
        if class_scores is not None:
            self._scores.append(_filled(class_scores, room))
        self._lengths.append(len(features))

    def _finish(self) -> None:
        if len(self._lengths) != len(self._room):
            raise InputError(f"{self._path} must have {counted(len(self._room), 'image')}, got {len(self._lengths)}")
        starts = self._room.cumsum() - self._room
        arrays: dict[str, NDArray[np.generic]] = {SPANS: np.stack([starts, starts + self._lengths], axis=1)}
        if self._boxes:
            arrays[BOXES] = np.concatenate(self._boxes)
        if self._scores:
            arrays[CLASS_SCORES] = np.concatenate(self._scores)
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            self._archive.writestr(f"{name}.npy", content.getvalue())


def _filled(rows: NDArray[Any], room: int) -> NDArray[Any]:
    """Rows [r, n] with zeros below, [room, n]."""
    whole: NDArray[Any] = np.zeros((room, rows.shape[1]), _FLOATS)
    whole[: len(rows)] = rows
    return whole


def _header(stream: IO[bytes], shape: tuple[int, ...]) -> None:
    content = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(_FLOATS), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(content, described)
    stream.write(content.getvalue())
