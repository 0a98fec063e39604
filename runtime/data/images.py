"""Some images with their captions: captions in memory, region features left on disk until they are asked for.

`CaptionedImages.open` reads a split of a data folder (`layout` names its files, `regions` the forms of the features).
The captions of one image stand together, five an image as published, or one. Where the features hold as many images as
there are captions, either every image is stored five times in a row (older copies) or each caption has an image of its
own; the stored features tell which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import Manifest
from ..errors import InputError, TensorError
from .layout import SplitFiles, find_split
from .regions import RegionStore, open_store

_DEV_CAPTIONS = 5000  # the published validation set: the first 5,000 captions of dev, whatever the file holds
_CAPTIONS_PER_IMAGE = 5


@dataclass(frozen=True, eq=False)
class CaptionedImages:
    """Images and all their captions: a split of a data folder, some images of one, or arrays.

    Attributes:
        captions: [C], those of one image together, in the order of the images.
        image_of_caption: int64 [C], ascending; the position of each caption's image, 0 to I - 1.
        image_rows: int64 [I], the row of each image in its split.
        caption_rows: int64 [C], the row of each caption in its split: its line of the file, counted from 0.
        image_ids: [I], or None where the data have none.
        region_dim: F.
        max_regions: R, the largest number of regions of an image of the split.
        source: file or folder of the region features, as errors name it.
        files: where the split was read from; None for arrays.
    """

    captions: list[str]
    image_of_caption: NDArray[np.int64]
    image_rows: NDArray[np.int64]
    caption_rows: NDArray[np.int64]
    image_ids: list[str] | None
    region_dim: int
    max_regions: int
    source: str
    files: SplitFiles | None
    _read: Callable[[NDArray[np.int64]], list[NDArray[Any]]] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.num_images or not self.captions:
            found = f"{self.num_images} and {len(self.captions)}"
            raise InputError(f"{self.source}: there must be at least one image and one caption, got {found}")

    @classmethod
    def open(cls, data_dir: str | Path, split: str) -> CaptionedImages:
        """Open a split of DATA/precomp (or of an older layout's folder).

        Raises:
            InputError: a file that is missing or does not fit the others, named with what was expected.
        """
        files = find_split(data_dir, split)
        captions = _read_captions(files.captions)
        lines = _read_lines(files.ids) if files.ids.is_file() else None
        store = open_store(files, lines)
        rows, owner = _pair(store, len(captions), files.captions)
        ids = _image_ids(lines, rows, owner, store.count, files.ids)
        if split == "dev" and len(captions) > _DEV_CAPTIONS:
            captions, owner = captions[:_DEV_CAPTIONS], owner[:_DEV_CAPTIONS]
            rows = rows[: int(owner.max()) + 1]
            ids = None if ids is None else ids[: len(rows)]
        return cls(
            captions=captions,
            image_of_caption=owner,
            image_rows=np.arange(len(rows)),
            caption_rows=np.arange(len(captions)),
            image_ids=ids,
            region_dim=store.region_dim,
            max_regions=store.max_regions,
            source=str(store.file),
            files=files,
            _read=lambda wanted: store.read(rows[wanted]),
        )

    @classmethod
    def from_arrays(
        cls,
        regions: NDArray[Any],
        captions: Sequence[str],
        image_of_caption: NDArray[Any],
        lengths: NDArray[Any] | None = None,
    ) -> CaptionedImages:
        """Images in memory.

        Args:
            regions: features [I, R, F].
            captions: [C], those of one image together.
            image_of_caption: [C], ascending.
            lengths: how many of the R regions each image has, [I]; None for all.

        Raises:
            InputError: there is no image or no caption, or image_of_caption is not ascending.
        """
        owner = np.asarray(image_of_caption, dtype=np.int64)
        if owner.shape != (len(captions),) or (np.diff(owner) < 0).any():
            raise InputError(f"image_of_caption must be ascending [C], C = {len(captions)}, got shape {owner.shape}")
        counts = np.full(len(regions), regions.shape[1]) if lengths is None else np.asarray(lengths)
        return cls(
            captions=list(captions),
            image_of_caption=owner,
            image_rows=np.arange(len(regions)),
            caption_rows=np.arange(len(captions)),
            image_ids=None,
            region_dim=int(regions.shape[2]),
            max_regions=int(counts.max(initial=0)),
            source="regions",
            files=None,
            _read=lambda wanted: [regions[row, : counts[row]] for row in wanted],
        )

    @property
    def num_images(self) -> int:
        """Number of images (I)."""
        return len(self.image_rows)

    @property
    def num_captions(self) -> int:
        """Number of captions (C)."""
        return len(self.captions)

    def take(self, positions: NDArray[np.int64]) -> CaptionedImages:
        """The images at these ascending positions, with all their captions."""
        chosen = np.flatnonzero(np.isin(self.image_of_caption, positions))
        return replace(
            self,
            captions=[self.captions[row] for row in chosen],
            image_of_caption=np.searchsorted(positions, self.image_of_caption[chosen]),
            image_rows=self.image_rows[positions],
            caption_rows=self.caption_rows[chosen],
            image_ids=None if self.image_ids is None else [self.image_ids[position] for position in positions],
            _read=lambda wanted: self._read(positions[wanted]),
        )

    def check_width(self, region_dim: int, model: str | Path) -> None:
        """InputError unless the features are as wide as a model, named by its path, reads them."""
        if self.region_dim != region_dim:
            raise InputError(
                f"{self.source} has features {self.region_dim} wide and {model} reads {region_dim}: give the features "
                "it was trained on, or another model"
            )

    def regions(self, rows: Sequence[int] | NDArray[Any] | slice) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Features of the images in `rows`: [n, R, F], zeros past each length, and lengths [n].

        R is the largest length among them, so that a batch carries no more padding than it needs.

        Raises:
            InputError: a row that does not exist.
            TensorError: NaN or infinite features, or an image without regions.
        """
        wanted = np.arange(self.num_images)[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        if wanted.ndim != 1 or (wanted.size and not 0 <= wanted.min() <= wanted.max() < self.num_images):
            raise InputError(f"rows must lie in 0 to {self.num_images - 1}, got {list(wanted.ravel()[:8])}")
        images = self._read(wanted)
        lengths = np.array([len(image) for image in images], dtype=np.int32)
        out = np.zeros((len(images), int(lengths.max(initial=0)), self.region_dim), dtype=np.float32)
        for row, image in enumerate(images):
            if not len(image):
                found = f"none for image {self.image_rows[wanted[row]]}"
                raise TensorError(self.source, "every image must have a region", found)
            out[row, : len(image)] = image
        # One pass that makes no temporary: a sum is finite exactly when no term is NaN or infinite (or it overflows).
        if not np.isfinite(out.sum(dtype=np.float64)):
            bad = int(self.image_rows[wanted[np.argmin(np.isfinite(out).all(axis=(1, 2)))]])
            raise TensorError(self.source, "features must be finite", f"NaN or infinity in image {bad}")
        return out, lengths

    def pictures(self) -> list[Path | None]:
        """The picture file of each image, as the data folder's id_mapping.json names it; None where there is none."""
        mapping = {} if self.files is None or self.image_ids is None else self.files.read_id_mapping()
        named = [mapping.get(image_id) for image_id in self.image_ids or [""] * self.num_images]
        return [file if file is not None and file.is_file() else None for file in named]


def open_sample(data: str | Path, split: str, samples: int, bundle: str | Path | None = None) -> CaptionedImages:
    """`samples` images spread evenly over a split of a data folder, with all their captions; all where there are fewer.

    Raises:
        InputError: the split cannot be read, samples below 1, or features that are not as wide as `bundle` reads them.
        BundleError: `bundle` is not a bundle.
    """
    whole = CaptionedImages.open(data, split)
    if bundle is not None:
        whole.check_width(Manifest.load(bundle).region_dim, bundle)
    return whole.take(spread(whole.num_images, samples))


def spread(count: int, samples: int) -> NDArray[np.int64]:
    """`samples` positions spread evenly over 0 to count - 1, ascending; all of them where there are fewer."""
    if samples < 1:
        raise InputError(f"samples must be positive, got {samples}")
    return np.unique(np.linspace(0, count - 1, min(samples, count)).astype(np.int64))


def _pair(store: RegionStore, num_captions: int, captions: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Store rows of the images [I] and the image of each caption [C]."""
    if store.count * _CAPTIONS_PER_IMAGE == num_captions:
        return np.arange(store.count), np.arange(num_captions) // _CAPTIONS_PER_IMAGE
    if store.count != num_captions:
        raise InputError(
            f"{store.file} has {store.count} images and {captions} {num_captions} captions: "
            f"expected {num_captions} / 5 = {num_captions / _CAPTIONS_PER_IMAGE:g} images, or {num_captions}"
        )
    if num_captions % _CAPTIONS_PER_IMAGE == 0 and _stored_five_times(store):
        return np.arange(0, store.count, _CAPTIONS_PER_IMAGE), np.arange(num_captions) // _CAPTIONS_PER_IMAGE
    return np.arange(store.count), np.arange(num_captions)


def _stored_five_times(store: RegionStore) -> bool:
    """Whether rows 5k to 5k + 4 are copies of one image: 64 groups spread over the file must agree about it."""
    num_groups = store.count // _CAPTIONS_PER_IMAGE
    verdicts = set()
    for group in np.unique(np.linspace(0, num_groups - 1, 64).astype(np.int64)):
        first, *others = store.read(np.arange(group * _CAPTIONS_PER_IMAGE, (group + 1) * _CAPTIONS_PER_IMAGE))
        verdicts.add(all(np.array_equal(first, other) for other in others))
    if len(verdicts) > 1:
        raise InputError(
            f"{store.file} has as many images as captions, but only some groups of five rows are one image stored five "
            "times: store each image once (captions / 5 rows)"
        )
    return verdicts.pop()


def _image_ids(
    lines: list[str] | None, rows: NDArray[np.int64], owner: NDArray[np.int64], stored: int, file: Path
) -> list[str] | None:
    """One id an image, from an ids file of one line an image, a stored row or a caption."""
    if lines is None or len(lines) == len(rows):
        return lines
    if len(lines) == stored:
        return [lines[row] for row in rows]
    if len(lines) == len(owner):
        return [lines[int(np.argmax(owner == image))] for image in range(len(rows))]
    raise InputError(
        f"{file} must name each of the {len(rows)} images (or {len(owner)} captions), got {len(lines)} lines"
    )


def _read_captions(file: Path) -> list[str]:
    captions = _read_lines(file)
    if not captions:
        raise InputError(f"{file} must hold one caption a line, got an empty file")
    return captions


def _read_lines(file: Path) -> list[str]:
    """Lines without surrounding blanks; only \\n ends one, because captions may hold other separators."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file} must be UTF-8 text: {error}") from error
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.strip() for line in lines]
