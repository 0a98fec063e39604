"""Region features and captions on disk in the SCAN / VSE-infinity `precomp` layout, read without loading them whole.

    DATASET/precomp/SPLIT_caps.txt    one caption a line; the captions of one image stand together
    DATASET/precomp/SPLIT_ims.npy     float32 or float16 [N, R, F], where N is captions / 5 or captions
    DATASET/precomp/SPLIT_ids.txt     optional: one image id a line

SPLIT is train, dev, test or testall; DATASET may also be the folder of these files itself, and older copies call it
`f30k_precomp` or `coco_precomp`. Where N equals the number of captions, either every image is stored five times in a
row (older copies) or each caption has an image of its own; the stored features tell which.

Images whose number of regions varies stand in other forms: `region_store` says how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..runtime.checks import check_choice
from ..runtime.errors import InputError, TensorError
from .region_store import RegionStore, open_store

Split = Literal["train", "dev", "test", "testall"]

_DEV_CAPTIONS = 5000  # the published validation set: the first 5,000 captions of dev, whatever the file holds
_CAPTIONS_PER_IMAGE = 5


@dataclass(frozen=True, eq=False)
class PrecompSplit:
    """One split: captions in memory, region features left on disk.

    Attributes:
        split: its name.
        folder: where its files lie.
        captions: [C] as written, without the line end.
        image_of_caption: int64 [C], the image row of each caption.
        image_ids: [I], or None where there is no ids file.
        num_images: I.
        file: of the region features.
        region_dim: F.
        max_regions: R, the largest number of regions of an image.
    """

    split: Split
    folder: Path
    file: Path
    captions: list[str]
    image_of_caption: NDArray[np.int64]
    image_ids: list[str] | None
    num_images: int
    region_dim: int
    max_regions: int
    _read: Callable[[NDArray[np.int64]], list[NDArray[Any]]] = field(repr=False)

    @classmethod
    def open(cls, data_dir: str | Path, split: Split) -> PrecompSplit:
        """Open DATA/precomp (or an older layout's folder).

        Raises:
            InputError: a file that is missing or does not fit the others, named with what was expected.
        """
        check_choice("split", split, get_args(Split))
        folder = find_folder(data_dir, split)
        captions = _read_captions(folder / f"{split}_caps.txt")
        lines = _read_lines(folder / f"{split}_ids.txt") if (folder / f"{split}_ids.txt").is_file() else None
        store = open_store(folder, split, lines)
        rows, owner = _pair(store, len(captions), folder, split)
        ids = _image_ids(lines, rows, owner, store.count, folder / f"{split}_ids.txt")
        if split == "dev" and len(captions) > _DEV_CAPTIONS:
            captions, owner = captions[:_DEV_CAPTIONS], owner[:_DEV_CAPTIONS]
            rows = rows[: int(owner.max()) + 1]
            ids = None if ids is None else ids[: len(rows)]
        return cls(
            split=split,
            folder=folder,
            file=store.file,
            captions=captions,
            image_of_caption=owner,
            image_ids=ids,
            num_images=len(rows),
            region_dim=store.region_dim,
            max_regions=store.max_regions,
            _read=lambda wanted: store.read(rows[wanted]),
        )

    @property
    def num_captions(self) -> int:
        """C."""
        return len(self.captions)

    def check_width(self, region_dim: int, model: str | Path) -> None:
        """InputError unless the features are as wide as a model, named by its path, reads them."""
        if self.region_dim != region_dim:
            raise InputError(
                f"{self.file} has features {self.region_dim} wide and {model} reads {region_dim}: give the features it "
                "was trained on, or another model"
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
                raise TensorError(str(self.file), "every image must have a region", f"none for image {wanted[row]}")
            out[row, : len(image)] = image
        # One pass that makes no temporary: a sum is finite exactly when no term is NaN or infinite (or it overflows).
        if not np.isfinite(out.sum(dtype=np.float64)):
            bad = int(wanted[np.argmin(np.isfinite(out).all(axis=(1, 2)))])
            raise TensorError(str(self.file), "features must be finite", f"NaN or infinity in image {bad}")
        return out, lengths


def find_folder(data_dir: str | Path, split: str) -> Path:
    """The folder that holds SPLIT_caps.txt: DATA/precomp, DATA itself, or an older DATA/*_precomp."""
    root = Path(data_dir)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give the data set's folder, with precomp/{split}_caps.txt in it")
    candidates = [root / "precomp", root, root / "f30k_precomp", root / "coco_precomp"]
    found = [folder for folder in candidates if (folder / f"{split}_caps.txt").is_file()]
    if len(found) > 1:
        raise InputError(f"{root} holds several data sets ({', '.join(map(str, found))}): give one of these folders")
    if not found:
        have = sorted({path.name.removesuffix("_caps.txt") for c in candidates for path in c.glob("*_caps.txt")})
        hint = f"the splits there are: {', '.join(have)}" if have else "no split is there"
        raise InputError(f"{root}/precomp/{split}_caps.txt is missing (one caption a line); {hint}")
    return found[0]


def has_split(data_dir: str | Path, split: Split) -> bool:
    """Whether DATA has captions of that split."""
    root = Path(data_dir)
    names = ("precomp", ".", "f30k_precomp", "coco_precomp")
    return any((root / name / f"{split}_caps.txt").is_file() for name in names)


def _pair(
    store: RegionStore, num_captions: int, folder: Path, split: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Store rows of the images [I] and the image of each caption [C]."""
    if store.count * _CAPTIONS_PER_IMAGE == num_captions:
        return np.arange(store.count), np.arange(num_captions) // _CAPTIONS_PER_IMAGE
    if store.count != num_captions:
        raise InputError(
            f"{store.file} has {store.count} images and {folder / f'{split}_caps.txt'} {num_captions} captions: "
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
