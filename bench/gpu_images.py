"""The galleries of the GPU benchmark: images like demo scenes, on disk as memory-mapped arrays and read as segments."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..runtime.contract import AlignmentConfig
from ..runtime.cpus import usable_cpus
from ..runtime.gallery.estimate import CpuEstimator
from ..runtime.gallery.folder_writer import SEGMENT_BYTES
from ..runtime.gallery.kernels.choose import open_kernel
from ..runtime.gallery.kernels.layout import stored_width
from ..runtime.gallery.kernels.pool import Pool
from ..runtime.gallery.proof.bounds import MOST_BLOCKS
from ..runtime.gallery.proof.gallery_rows import GalleryRows
from ..runtime.gallery.proof.prefix import (
    AXES,
    Axes,
    PrefixLevel,
    SearchPlan,
    deviation_of,
    fit_axes,
    fit_level,
    largest_coordinates,
    level_widths,
    rotate,
)
from ..runtime.gallery.proof.rows import ArrayPart, PrefixCodes, array_part
from ..runtime.gallery.rank import Ranker
from .search import Concepts

Floats = NDArray[np.float32]
K = 10
AGREE = 20  # captions by which candidates are held against the certified ranking
DONE = "done"  # a file that `make_case` writes last
_PIECE = 250  # images that a thread makes at a time, in 165 MB at 36 regions of 1024-d
_THREADS = 16  # at most, so that making a gallery takes about 3 GB, however many cores there are
_MEASURES = ("scale", "error", "norm")
_LEVELS = ("first", "second")
_OF_LEVEL = ("edges", "step", "norm_step", "norm_typical", "finer")


@dataclass(frozen=True)
class ResidentImages:
    """A gallery with a float16 copy: its segments, and the number of regions that every image has."""

    parts: tuple[ArrayPart, ...]
    regions: int

    @property
    def count(self) -> int:
        """N."""
        return sum(len(part.starts) - 1 for part in self.parts)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.fine(self.parts[0]).shape[1])

    @property
    def rows(self) -> GalleryRows:
        """As a search reads them."""
        return GalleryRows(self.parts, "images", AlignmentConfig())

    def size(self, precision: str) -> int:
        """Bytes of all vectors at int8, as stored, or float16."""
        vectors = self.count * self.regions
        return vectors * stored_width(self.dim) if precision == "int8" else 2 * vectors * self.dim

    @staticmethod
    def fine(part: ArrayPart) -> NDArray[np.floating]:
        """The fine copy of a part, [V, D]."""
        if part.exact is None:
            raise LookupError("these images were made without a fine copy")
        return part.exact


@dataclass(frozen=True)
class Case:
    """What is measured on: images, captions as words [W, D] each, and the certified best rows of the first captions."""

    images: ResidentImages
    captions: list[Floats]
    truth: list[NDArray[np.int64]]

    @classmethod
    def load(cls, folder: Path, *, one_part: bool = False) -> Self:
        """Map what `make_case` wrote.

        Args:
            folder: where it is.
            one_part: read all images as one segment.
        """
        arrays = {path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")}
        count, regions = (int(value) for value in arrays["shape"])
        axes = Axes(np.array(arrays["mean"]), np.array(arrays["basis"]), deviation_of(np.array(arrays["basis"])))
        levels = {name: _level(arrays, name) for name in _LEVELS} if "first" in arrays else dict.fromkeys(_LEVELS)
        plan = SearchPlan(axes, levels["first"], levels["second"], 2)
        parts = []
        rows = count if one_part else segment_rows(regions, arrays["exact"].shape[1])
        for first in range(0, count, rows):
            last = min(count, first + rows)
            vectors = slice(first * regions, last * regions)
            starts = np.arange(last - first + 1, dtype=np.int64) * regions
            scale, error, norm = (arrays[name][first:last] for name in _MEASURES)
            stored, exact = arrays["stored"][vectors], arrays["exact"][vectors]
            blocks, norms = arrays["blocks"][first:last], arrays["norms"][first:last]
            coded = None
            if "first" in arrays:
                coded = PrefixCodes(arrays["first"][vectors], arrays["second"][vectors], arrays["loose"][first:last])
            parts.append(ArrayPart(starts, scale, error, norm, stored, exact, blocks, norms, plan, coded))
        return cls(ResidentImages(tuple(parts), regions), list(arrays["captions"]), list(arrays["truth"]))


def segment_rows(regions: int, dim: int) -> int:
    """Images of a full segment, as `GalleryWriter` cuts them: 3,640 at 36 regions of 1024-d."""
    return max(1, SEGMENT_BYTES // (4 * dim) // regions)


def make_case(folder: Path, count: int, captions: int, regions: int, words: int, dim: int) -> None:
    """Write images, captions and the certified rows of the first captions, in pieces and on up to _THREADS threads."""
    source = Concepts(0, dim)
    vectors = source.captions(np.full(captions, words, np.int32)).vectors
    asked = Concepts(0, dim).captions(np.full(200, words, np.int32)).vectors
    sample = _own(source, 0).images(min(count, 500), regions).vectors.reshape(-1, dim)
    axes = fit_axes(sample, asked.reshape(-1, dim))
    fitted = _fitted(axes, sample)
    plan = SearchPlan(axes, fitted.get("first"), fitted.get("second"), 2)
    create = partial(_Rows, folder)
    stored, exact = (
        create("stored", (count, regions, stored_width(dim)), np.uint8),
        create("exact", (count, regions, dim), np.float16),
    )
    measures = {name: create(name, (count,), np.float32) for name in _MEASURES}
    blocks, norms = (create(name, (count, width), np.float32) for name, width in _widths(plan).items())
    coded = {name: create(name, (count, regions, level.width), np.uint8) for name, level in fitted.items()}
    loose = create("loose", (count,), np.uint8) if fitted else None

    def piece(number: int) -> None:
        first = number * _PIECE
        rows = min(_PIECE, count - first)
        own = _own(source, number).images(rows, regions).vectors.reshape(-1, dim)
        part = array_part(own, np.arange(rows + 1, dtype=np.int64) * regions, "float16", plan=plan)
        pairs = [(stored, part.stored), (exact, ResidentImages.fine(part)), (blocks, part.blocks), (norms, part.norms)]
        pairs += [(file, getattr(part, name)) for name, file in measures.items()]
        if part.coded is not None and loose is not None:
            pairs += [(loose, part.coded.loose)]
            pairs += [(file, getattr(part.coded, name)) for name, file in coded.items()]
        for file, values in pairs:
            file.write(first, values)

    with ThreadPoolExecutor(min(_THREADS, usable_cpus())) as pool:
        list(pool.map(piece, range(-(-count // _PIECE))))
    small = {"mean": axes.mean, "basis": axes.basis, "captions": vectors, "shape": np.array([count, regions])}
    for name, level in fitted.items():
        small |= {f"{name}_{key}": getattr(level, key) for key in _OF_LEVEL}
    for name, array in small.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "truth.npy", np.zeros((0, K), np.int64))
    found = certified(Case.load(folder).images, list(vectors[:AGREE]))
    np.save(folder / "truth.npy", np.stack(found))
    (folder / DONE).touch()


def certified(images: ResidentImages, captions: Sequence[Floats]) -> list[NDArray[np.int64]]:
    """The CPU's certified rows."""
    pool = Pool()
    try:
        kernel, rows = open_kernel(), images.rows
        ranker = Ranker(rows, CpuEstimator(rows, kernel, pool), kernel, pool)
        return [ranking.rows for ranking in ranker.exact(captions, K, np.ones(images.count, bool))]
    finally:
        pool.close()


def _fitted(axes: Axes, sample: Floats) -> dict[str, PrefixLevel]:
    """The levels of a plan by name, for vectors like a sample's [V, D]; none where they would save too little."""
    widths = level_widths(sample.shape[1])
    if widths is None:
        return {}
    rotated, largest = rotate(sample, axes), largest_coordinates(sample, axes)
    return {name: fit_level(rotated, largest, width) for name, width in zip(_LEVELS, widths, strict=True)}


def _level(arrays: dict[str, NDArray[Any]], name: str) -> PrefixLevel:
    """A level that `make_case` wrote."""
    return PrefixLevel(**{key: np.array(arrays[f"{name}_{key}"]) for key in _OF_LEVEL})


class _Rows:
    """A file FOLDER/NAME.npy whose rows are written in any order; unlike a map it keeps no pages in this process.

    shape: rows first; what is behind the second axis is flat in the file where there are three axes: [N R, D].
    """

    def __init__(self, folder: Path, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        self._path, self._dtype = folder / f"{name}.npy", np.dtype(dtype)
        flat = (shape[0] * shape[1], shape[2]) if len(shape) == 3 else shape
        self._start = np.lib.format.open_memmap(self._path, "w+", dtype, flat).offset
        self._row = int(np.prod(shape[1:])) * self._dtype.itemsize

    def write(self, first: int, values: NDArray[Any]) -> None:
        """The rows from `first` on."""
        with self._path.open("r+b", buffering=0) as file:
            file.seek(self._start + first * self._row)
            data = np.ascontiguousarray(values, self._dtype).reshape(-1).view(np.uint8)
            while len(data):
                data = data[file.write(data.data) :]


def case_bytes(count: int, captions: int, regions: int, words: int, dim: int) -> int:
    """Bytes of the files that `make_case` writes, to a few hundred thousand."""
    levels = level_widths(dim) or ()
    image = regions * (stored_width(dim) + 2 * dim + sum(levels)) + 4 * (len(_MEASURES) + 2 * MOST_BLOCKS) + 1
    return count * image + captions * words * dim * 4 + 8 * dim * AXES


def _own(source: Concepts, number: int) -> Concepts:
    """The same concepts with random numbers of its own, so that pieces can be made in any order."""
    own = copy.copy(source)
    own._rng = np.random.default_rng([7, number])
    return own


def _widths(plan: SearchPlan) -> dict[str, int]:
    """How many blocks and norms each row has."""
    one = array_part(np.zeros((1, plan.axes.basis.shape[1]), np.float32), np.array([0, 1]), "float16", plan=plan)
    return {"blocks": one.blocks.shape[1], "norms": one.norms.shape[1]}
