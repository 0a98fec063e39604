"""The folder of galleries that all sections of a run of the GPU benchmark share, and whether it has room for them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from ..runtime.errors import InputError
from .gpu_images import DONE, case_bytes


@dataclass(frozen=True, order=True)
class CaseShape:
    """Images and captions of a gallery that is measured on, regions of an image, words of a caption, and D."""

    images: int
    captions: int
    regions: int
    words: int
    dim: int

    @property
    def name(self) -> str:
        """Of its folder and in the record."""
        return "-".join(map(str, astuple(self)))

    @property
    def bytes(self) -> int:
        """What its files take."""
        return case_bytes(*astuple(self))


class Cases:
    """Folders of galleries, each made once and removed when it is dropped, or kept for other runs.

    Args:
        kept: the folder that keeps them; None for a temporary one.
    """

    def __init__(self, kept: Path | None) -> None:
        self._temporary = None if kept else TemporaryDirectory(prefix="chan-bench-gpu-")
        self._root = Path(self._temporary.name) if self._temporary else kept or Path()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._temporary:
            self._temporary.cleanup()

    def check_room(self, shapes: Iterable[CaseShape]) -> None:
        """InputError where the folder has no room for those that are not there yet."""
        self._root.mkdir(parents=True, exist_ok=True)
        needed = sum(shape.bytes for shape in set(shapes) if not self.has(shape))
        free = shutil.disk_usage(self._root).free
        if needed > free:
            raise InputError(
                f"the galleries take {needed / 1e9:.1f} GB, and {self._root} has room for {free / 1e9:.1f} GB: name a "
                "folder on a larger disk with --cases, or fewer --images"
            )

    def folder(self, shape: CaseShape) -> Path:
        """Where it is, or is to be made."""
        return self._root / shape.name

    def has(self, shape: CaseShape) -> bool:
        """Whether it was made to the end."""
        return (self.folder(shape) / DONE).exists()

    def drop(self, shape: CaseShape) -> None:
        """Remove it, unless it is kept for other runs."""
        if self._temporary:
            shutil.rmtree(self.folder(shape), ignore_errors=True)
