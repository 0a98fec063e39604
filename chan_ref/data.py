"""Region features and captions on disk in the SCAN / VSE-infinity `precomp` layout, read without loading them whole.

    DATASET/precomp/SPLIT_caps.txt    one caption a line; the captions of one image stand together
    DATASET/precomp/SPLIT_ims.npy     float32 or float16 [N, R, F], where N is captions / 5 or captions
    DATASET/precomp/SPLIT_ids.txt     optional: one image id a line

SPLIT is train, dev, test or testall; DATASET may also be the folder of these files itself, and older copies call it
`f30k_precomp` or `coco_precomp`. Where N equals the number of captions, either every image is stored five times in a
row (older copies) or each caption has an image of its own; the stored features tell which.

Images whose number of regions varies, as bottom-up detectors give them, stand in place of `SPLIT_ims.npy` as
    SPLIT_ims.npz (uncompressed) or SPLIT_ims.h5 / .hdf5
        `features` (or `image_features`) [T, F] of all images one after the other with `pos_boxes` [N, 2], each image's
        first row and the row behind its last; or `features` [N, R, F] with `num_boxes` [N]. Boxes may stand beside.
    SPLIT_ims/ID.npz
        one file an image, named by SPLIT_ids.txt: `features` or `x` [r, F], and its boxes.

This module needs numpy only (h5py for HDF5).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import InputError, TensorError

Split = Literal["train", "dev", "test", "testall"]

_DEV_CAPTIONS = 5000  # the published validation set: the first 5,000 captions of dev, whatever the file holds
_CAPTIONS_PER_IMAGE = 5
_FEATURE_NAMES = ("features", "image_features", "x")


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
        region_dim: F.
        max_regions: R, the largest number of regions of an image.
    """

    split: Split
    folder: Path
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
        if split not in get_args(Split):
            raise InputError(f"split must be one of {', '.join(get_args(Split))}, got {split!r}")
        folder = find_folder(data_dir, split)
        captions = _read_captions(folder / f"{split}_caps.txt")
        lines = _read_lines(folder / f"{split}_ids.txt") if (folder / f"{split}_ids.txt").is_file() else None
        store = _open_store(folder, split, lines)
        rows, owner = _pair(store, len(captions), folder, split)
        ids = _image_ids(lines, rows, owner, store.count, folder / f"{split}_ids.txt")
        if split == "dev" and len(captions) > _DEV_CAPTIONS:
            captions, owner = captions[:_DEV_CAPTIONS], owner[:_DEV_CAPTIONS]
            rows = rows[: int(owner.max()) + 1]
            ids = None if ids is None else ids[: len(rows)]
        return cls(
            split=split,
            folder=folder,
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
                raise TensorError(
                    f"{self.split}_ims", "every image must have a region", f"none for image {wanted[row]}"
                )
            out[row, : len(image)] = image
        # One pass that makes no temporary: a sum is finite exactly when no term is NaN or infinite (or it overflows).
        if not np.isfinite(out.sum(dtype=np.float64)):
            bad = int(wanted[np.argmin(np.isfinite(out).all(axis=(1, 2)))])
            raise TensorError(f"{self.split}_ims", "features must be finite", f"NaN or infinity in image {bad}")
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


@dataclass(frozen=True)
class _Store:
    """Images on disk: how many, their widths, and a reader that gives [r, F] for each row asked for."""

    file: Path
    count: int
    max_regions: int
    region_dim: int
    read: Callable[[NDArray[np.int64]], list[NDArray[Any]]]


def _open_store(folder: Path, split: str, ids: list[str] | None) -> _Store:
    """The one form in which this split's features lie in the folder."""
    names = [f"{split}_ims{suffix}" for suffix in (".npy", ".npz", ".h5", ".hdf5", "")]
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        raise InputError(f"{folder / names[0]} is missing: expected float32 [N, regions, features], N = captions / 5")
    if len(found) > 1:
        raise InputError(f"{folder} holds {split}_ims in several forms ({', '.join(p.name for p in found)}): keep one")
    (file,) = found
    if file.is_dir():
        return _folder_store(file, ids)
    if file.suffix == ".npy":
        try:
            array = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"{file} cannot be read as a numpy array of numbers: {error}") from error
        return _padded_store(file, array, None)
    members = _map_npz(file) if file.suffix == ".npz" else _open_hdf5(file)
    name = next((name for name in _FEATURE_NAMES if name in members), None)
    if name is None:
        raise InputError(f"{file} has no `features`: expected [T, F] with pos_boxes [N, 2], found {sorted(members)}")
    if "pos_boxes" in members:
        return _flat_store(file, members[name], np.asarray(members["pos_boxes"]))
    counts = np.asarray(members["num_boxes"]).reshape(-1) if "num_boxes" in members else None
    return _padded_store(file, members[name], counts)


def _padded_store(file: Path, array: Any, counts: NDArray[Any] | None) -> _Store:
    """[N, R, F], of whose R regions the first counts[i] are real (all, where counts is None)."""
    if array.ndim != 3 or array.dtype.kind != "f" or 0 in array.shape:
        raise InputError(f"{file} must be float32 [N, regions, features], none of them 0, got {_found(array)}")
    num_images, max_regions, region_dim = (int(size) for size in array.shape)
    lengths = np.full(num_images, max_regions) if counts is None else counts.astype(np.int64)
    if lengths.shape != (num_images,) or lengths.min() < 1 or lengths.max() > max_regions:
        raise InputError(
            f"{file}: num_boxes must be one number from 1 to {max_regions} for each of {num_images} images"
        )

    def read(rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        return [array[int(row)][: lengths[row]] for row in rows]

    return _Store(file, num_images, int(lengths.max()), region_dim, read)


def _flat_store(file: Path, array: Any, spans: NDArray[Any]) -> _Store:
    """[T, F] with each image's rows spans[i, 0]:spans[i, 1]."""
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise InputError(f"{file}: features beside pos_boxes must be float32 [T, F], got {_found(array)}")
    if spans.ndim != 2 or spans.shape[1] != 2 or not len(spans) or spans.dtype.kind not in "iu":
        raise InputError(f"{file}: pos_boxes must be integers [N, 2], got {_found(spans)}")
    spans = spans.astype(np.int64)
    if spans.min() < 0 or spans.max() > array.shape[0] or (spans[:, 0] >= spans[:, 1]).any():
        raise InputError(f"{file}: pos_boxes must be row ranges first < last within the {array.shape[0]} feature rows")

    def read(rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        return [array[int(spans[row, 0]) : int(spans[row, 1])] for row in rows]

    return _Store(file, len(spans), int((spans[:, 1] - spans[:, 0]).max()), int(array.shape[1]), read)


def _folder_store(folder: Path, ids: list[str] | None) -> _Store:
    """One .npz an image; only the array headers are read now."""
    if not ids:
        raise InputError(
            f"{folder} is a folder of one .npz an image: {folder.name[:-4]}_ids.txt must name them in order"
        )
    files = [folder / f"{name}.npz" for name in ids]
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise InputError(f"{missing} is missing, though {folder.name[:-4]}_ids.txt names it")
    shapes = [_one_image(file).shape for file in files]
    widths = {shape[1] for shape in shapes}
    if len(widths) > 1:
        raise InputError(f"{folder}: all images must have features of one width, got {sorted(widths)}")

    def read(rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        return [_one_image(files[row]) for row in rows]

    return _Store(folder, len(files), max(shape[0] for shape in shapes), widths.pop(), read)


def _one_image(file: Path) -> NDArray[Any]:
    """`features` or `x` [r, F] of one image's .npz, compressed or not."""
    try:
        with np.load(file, allow_pickle=False) as members:
            name = next((name for name in _FEATURE_NAMES if name in members), None)
            if name is None:
                raise InputError(f"{file} has neither `features` nor `x` [r, F]; it has {sorted(members)}")
            array: NDArray[Any] = members[name]
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise InputError(f"{file}: features must be float32 [r, F], neither 0, got {_found(array)}")
    return array


def _map_npz(file: Path) -> dict[str, Any]:
    """The arrays of an uncompressed .npz, memory-mapped where they lie in the archive."""
    arrays: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(file) as archive, open(file, "rb") as raw:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise InputError(f"{file} is compressed and cannot be memory-mapped: write it with numpy.savez")
                # A member's data start behind its local header, whose name and extra field lengths are at byte 26.
                raw.seek(info.header_offset + 26)
                name_size, extra_size = np.frombuffer(raw.read(4), dtype="<u2")
                raw.seek(info.header_offset + 30 + int(name_size) + int(extra_size))
                version = np.lib.format.read_magic(raw)
                read_header = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read_header = np.lib.format.read_array_header_2_0
                shape, fortran, dtype = read_header(raw)
                if dtype.hasobject:
                    raise InputError(f"{file}: {info.filename} holds Python objects, which are never loaded")
                order: Literal["F", "C"] = "F" if fortran else "C"
                name = info.filename.removesuffix(".npy")
                arrays[name] = np.memmap(file, dtype, "r", offset=raw.tell(), shape=shape, order=order)
    except (ValueError, OSError, zipfile.BadZipFile, TypeError) as error:
        raise InputError(f"{file} cannot be read as an .npz archive: {error}") from error
    return arrays


def _open_hdf5(file: Path) -> dict[str, Any]:
    """The datasets at the root of an HDF5 file, read from disk as they are indexed."""
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(f"{file} needs h5py: pip install 'chan-rt[hdf5]'") from error
    try:
        opened = h5py.File(file, "r")
    except OSError as error:
        raise InputError(f"{file} cannot be read as HDF5: {error}") from error
    return {name: item for name, item in opened.items() if isinstance(item, h5py.Dataset)}


def _pair(store: _Store, num_captions: int, folder: Path, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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


def _stored_five_times(store: _Store) -> bool:
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


def _found(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}"
