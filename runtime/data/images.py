"""Some images with their captions: captions in memory, region features left on disk until they are asked for.

`CaptionedImages.open` reads a split of a data folder. `layout` names its files, `captions` says which captions are of
which image, and `regions` lists the forms of the features. An image may have any number of captions; published data
have five. Where the features hold as many images as there are captions, either every image is stored five times in a
row (older copies) or each caption has an image of its own; ids or the stored features tell which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..contract import Manifest
from ..counts import counted
from ..errors import InputError, TensorError
from ..skipped import SkippedItem
from .boxes import Boxes
from .captions import Pairing, is_blank, pair, read_captions, read_ids
from .karpathy import pair_annotated, read_annotations
from .layout import SplitFiles, find_split
from .regions import open_store
from .store import RegionStore

_DEV_CAPTIONS = 5000  # the published validation set: the first 5,000 captions of dev, whatever the file holds


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
        skipped: captions of the split that were left out, and images that have no other, with the reasons.
        unplaced: why boxes that are stored with the regions say nothing of where these are; empty without such boxes.
        cut_rows: `caption_rows` of the captions that `fitting.fit_captions` cut.
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
    skipped: tuple[SkippedItem, ...]
    cut_rows: tuple[int, ...]
    _read: Callable[[NDArray[np.int64]], list[NDArray[Any]]] = field(repr=False)
    _read_boxes: Callable[[NDArray[np.int64]], list[Boxes | None]] | None = field(default=None, repr=False)
    unplaced: str = ""

    def __post_init__(self) -> None:
        if not self.num_images or not self.captions:
            found = f"{self.num_images} and {len(self.captions)}"
            raise InputError(f"{self.source}: there must be at least one image and one caption, got {found}")

    @classmethod
    def open(cls, data_dir: str | Path, split: str, *, strict: bool = False) -> CaptionedImages:
        """Open a split of DATA/precomp (or of an older layout's folder).

        Args:
            data_dir: the data folder.
            split: train, dev, test or testall; of dev the first 5,000 captions, as published.
            strict: refuse a blank caption; otherwise it is left out, and an image whose captions are all blank.

        Raises:
            InputError: a file that is missing or does not fit the others, named with what was expected.
        """
        files = find_split(data_dir, split)
        captions, pairing, store = _read(files)
        rows_of_images = np.unique(pairing.store_rows)  # images in the order of the features
        owner = np.searchsorted(rows_of_images, pairing.store_rows)[pairing.owner]
        lines = np.arange(len(captions))[: _DEV_CAPTIONS if split == "dev" else None]
        blank = [line for line in lines if is_blank(captions[line])]
        where = files.captions if files.annotations is None else files.annotations
        if blank and strict:
            raise InputError(f"{where}: caption {blank[0] + 1} must hold a word, got {captions[blank[0]]!r}")
        kept = np.setdiff1d(lines, blank)
        if not len(kept):
            raise InputError(f"{where} must hold a caption with a word, got {counted(len(blank), 'blank caption')}")
        kept = kept[np.argsort(owner[kept], kind="stable")]
        images = np.unique(owner[kept])
        silent = np.setdiff1d(owner[lines], images)
        names = None
        if pairing.image_ids is not None:
            by_row = dict(zip(pairing.store_rows.tolist(), pairing.image_ids, strict=True))
            names = [by_row[row] for row in rows_of_images[images].tolist()]
        places = store.boxes
        return cls(
            captions=[captions[line] for line in kept],
            image_of_caption=np.searchsorted(images, owner[kept]),
            image_rows=images,
            caption_rows=kept,
            image_ids=names,
            region_dim=store.region_dim,
            max_regions=store.max_regions,
            source=str(store.file),
            files=files,
            skipped=(
                *(SkippedItem(f"{where}: caption {line + 1}", "it has no word") for line in blank),
                *(SkippedItem(f"{store.file}: image {image}", "all its captions are blank") for image in silent),
            ),
            cut_rows=(),
            _read=lambda wanted: store.read(rows_of_images[images[wanted]]),
            _read_boxes=None if places is None else lambda wanted: places(rows_of_images[images[wanted]]),
            unplaced=store.unplaced,
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
            skipped=(),
            cut_rows=(),
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
        places = self._read_boxes
        return replace(
            self,
            captions=[self.captions[row] for row in chosen],
            image_of_caption=np.searchsorted(positions, self.image_of_caption[chosen]),
            image_rows=self.image_rows[positions],
            caption_rows=self.caption_rows[chosen],
            image_ids=None if self.image_ids is None else [self.image_ids[position] for position in positions],
            _read=lambda wanted: self._read(positions[wanted]),
            _read_boxes=None if places is None else lambda wanted: places(positions[wanted]),
        )

    def check_width(self, region_dim: int, model: str | Path) -> None:
        """InputError unless the features are as wide as a model, named by its path, reads them."""
        if self.region_dim != region_dim:
            raise InputError(
                f"{self.source} has features {self.region_dim} wide and {model} reads {region_dim}: give the features "
                "it was trained on, or another model"
            )

    def check_bundle(self, manifest: Manifest, bundle: str | Path) -> None:
        """InputError unless a bundle, named by its path, reads features of this width and as many regions an image."""
        self.check_width(manifest.region_dim, bundle)
        if manifest.max_regions is not None and self.max_regions > manifest.max_regions:
            raise InputError(
                f"{self.source} has images of {counted(self.max_regions, 'region')} and {bundle} takes "
                f"{manifest.max_regions}: "
                f"export it again with --max-regions {self.max_regions}"
            )

    def regions(self, rows: Sequence[int] | NDArray[Any] | slice) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Features of the images in `rows`: [n, R, F], zeros past each length, and lengths [n].

        R is the largest length among them, so that a batch carries no more padding than it needs.

        Raises:
            InputError: a row that does not exist.
            TensorError: NaN or infinite features, or an image without regions.
        """
        wanted = self._positions(rows)
        images = self._read(wanted)
        lengths = np.array([len(image) for image in images], dtype=np.int32)
        out = np.zeros((len(images), int(lengths.max(initial=0)), self.region_dim), dtype=np.float32)
        for row, image in enumerate(images):
            if not len(image):
                found = f"none for image {self.image_rows[wanted[row]]}"
                raise TensorError(self.source, "every image must have a region", found)
            out[row, : len(image)] = image
        # One pass that makes no temporary: a sum is finite exactly when no term is NaN or infinite (or it overflows).
        with np.errstate(invalid="ignore"):
            total = out.sum(dtype=np.float64)
        if not np.isfinite(total):
            bad = int(self.image_rows[wanted[np.argmin(np.isfinite(out).all(axis=(1, 2)))]])
            raise TensorError(self.source, "features must be finite", f"NaN or infinity in image {bad}")
        return out, lengths

    def boxes(self, rows: Sequence[int] | NDArray[Any] | slice) -> list[Boxes | None]:
        """Where the regions of the images in `rows` are: for each image [r, 4], or None where that is not known.

        A box is left, top, width and height as fractions of the picture.

        Raises:
            InputError: a row that does not exist, or boxes that are not inside the picture.
        """
        wanted = self._positions(rows)
        return [None] * len(wanted) if self._read_boxes is None else self._read_boxes(wanted)

    def _positions(self, rows: Sequence[int] | NDArray[Any] | slice) -> NDArray[np.int64]:
        wanted = np.arange(self.num_images)[rows] if isinstance(rows, slice) else np.asarray(rows, dtype=np.int64)
        if wanted.ndim != 1 or (wanted.size and not 0 <= wanted.min() <= wanted.max() < self.num_images):
            raise InputError(f"rows must lie in 0 to {self.num_images - 1}, got {list(wanted.ravel()[:8])}")
        return wanted

    def pictures(self) -> list[Path | None]:
        """The picture file of each image, as the data folder's id_mapping.json names it; None where there is none."""
        mapping = {} if self.files is None or self.image_ids is None else self.files.read_id_mapping()
        named = [mapping.get(image_id) for image_id in self.image_ids or [""] * self.num_images]
        return [file if file is not None and file.is_file() else None for file in named]


def open_sample(data: str | Path, split: str, samples: int, bundle: str | Path | None = None) -> CaptionedImages:
    """`samples` images spread evenly over a split of a data folder, with all their captions; all where there are fewer.

    Raises:
        InputError: the split cannot be read, samples below 1, or features that do not fit `bundle`.
        BundleError: `bundle` is not a bundle.
    """
    whole = CaptionedImages.open(data, split)
    if bundle is not None:
        whole.check_bundle(Manifest.load(bundle), bundle)
    return whole.take(spread(whole.num_images, samples))


def spread(count: int, samples: int) -> NDArray[np.int64]:
    """`samples` positions spread evenly over 0 to count - 1, ascending; all of them where there are fewer."""
    if samples < 1:
        raise InputError(f"samples must be positive, got {samples}")
    return np.unique(np.linspace(0, count - 1, min(samples, count)).astype(np.int64))


def _read(files: SplitFiles) -> tuple[list[str], Pairing, RegionStore]:
    """Every caption of a split in the order of its file, the stored image of each, and the features."""
    ids = read_ids(files.ids) if files.ids.is_file() else None
    distinct = None if ids is None else list(dict.fromkeys(ids))
    if files.annotations is None:
        captions = read_captions(files.captions)
        store = open_store(files, distinct)
        try:
            return captions, pair(ids, len(captions), store, files.ids), store
        except InputError:
            if not is_blank(captions[-1]):
                raise
        while captions and is_blank(captions[-1]):  # blank lines behind the last caption
            captions.pop()
        return captions, pair(ids, len(captions), store, files.ids), store
    images = read_annotations(files.annotations, files.split)
    store = open_store(files, distinct or [image.image_id for image in images])
    return *pair_annotated(images, ids, store, files.annotations), store
