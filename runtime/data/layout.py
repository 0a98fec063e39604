"""Where the files of a data folder are: the names of the SCAN / VSE-infinity `precomp` layout, in one place.

    DATA/precomp/SPLIT_caps.txt    one caption a line
    DATA/precomp/SPLIT_ims.npy     region features; `regions` lists the other forms
    DATA/precomp/SPLIT_ids.txt     optional: one image id a line
    DATA/id_mapping.json           optional: image id -> picture file, relative to DATA, DATA/images or
                                   DATA/flickr30k-images, the last two as VSE-infinity has them
    DATA/dataset*.json             Karpathy's captions and splits, for splits that have features and no SPLIT_caps.txt

SPLIT is train, dev, test or testall. DATA may also be the folder of these files itself, and older copies call it
`f30k_precomp` or `coco_precomp`.
"""

from __future__ import annotations

import glob
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from ..checks import check_choice
from ..errors import InputError, reason_of
from ..strict_json import unique_keys

Split = Literal["train", "dev", "test", "testall"]
SPLITS: tuple[str, ...] = get_args(Split)

_PICTURES = (".", "images", "flickr30k-images")
_TRIED = 64  # names of a mapping, to find the folder of its pictures: some may be gone
_FOLDERS = ("precomp", "", "f30k_precomp", "coco_precomp")
_CAPTIONS = "_caps.txt"


@dataclass(frozen=True)
class SplitFiles:
    """The files of one split.

    Attributes:
        root: the data folder, as it was given.
        folder: the folder under it (or itself) that holds the files.
        split: name of the split.
        annotations: Karpathy's JSON file, where it takes the place of the captions.
    """

    root: Path
    folder: Path
    split: str
    annotations: Path | None = None

    @classmethod
    def below(cls, root: str | Path, split: str) -> SplitFiles:
        """The files of a split in the current layout, ROOT/precomp, whether they exist or not."""
        return cls(Path(root), Path(root) / "precomp", split)

    @property
    def captions(self) -> Path:
        """One caption a line."""
        return self.folder / f"{self.split}{_CAPTIONS}"

    @property
    def ids(self) -> Path:
        """One image id a line; optional."""
        return self.folder / f"{self.split}_ids.txt"

    def features(self, suffix: str = ".npy") -> Path:
        """Region features in the form of that suffix; with none, a folder of one file an image."""
        return self.folder / f"{self.split}_ims{suffix}"

    def box_files(self) -> list[Path]:
        """Files of boxes beside the features, such as SPLIT_boxes.npy, which nothing reads."""
        features = {self.features("").name}
        beside = (file for file in self.folder.glob(f"{glob.escape(self.split)}_*") if file.stem not in features)
        return sorted(file for file in beside if "box" in file.stem.lower() or "bbx" in file.stem.lower())

    @property
    def id_mapping(self) -> Path:
        """Image id -> picture file; optional. In the data folder, or beside the `precomp` folder that was given."""
        own = self.root / "id_mapping.json"
        beside = self.folder.resolve().parent / "id_mapping.json"
        return beside if not own.is_file() and beside.is_file() else own

    def read_id_mapping(self) -> dict[str, Path]:
        """Picture files by image id; empty where there is no mapping. The files need not exist.

        Raises:
            InputError: the mapping is not a JSON object of file names.
        """
        mapping = self.id_mapping
        if not mapping.is_file():
            return {}
        try:
            content = json.loads(mapping.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{mapping} must be JSON: {reason_of(error)}") from error
        if not isinstance(content, dict):
            raise InputError(f"{mapping} must map image ids to files, got {type(content).__name__}")
        for image_id, name in content.items():
            if not isinstance(name, str):
                raise InputError(f"{mapping} must map image ids to files, got {name!r} for the id {image_id!r}")
        tried = list(content.values())[:_TRIED]
        folders = [mapping.parent / folder for folder in _PICTURES]
        found = (folder for folder in folders if any((folder / name).is_file() for name in tried))
        folder = next(found, mapping.parent)
        return {image_id: folder / name for image_id, name in content.items()}


def find_split(data_dir: str | Path, split: str) -> SplitFiles:
    """The files of a split in DATA/precomp, in DATA itself, or in an older DATA/*_precomp.

    Raises:
        InputError: an unknown split, a folder that is missing, no captions of that split, or several data sets.
    """
    check_choice("split", split, SPLITS)
    root = Path(data_dir)
    if not root.is_dir():
        raise InputError(f"{root} is not a folder: give the data set's folder, with precomp/{split}_caps.txt in it")
    found = _found(root, split)
    if len(found) > 1:
        folders = ", ".join(str(files.folder) for files in found)
        raise InputError(f"{root} holds several data sets ({folders}): give one of these folders")
    if not found:
        folders_of = {path.name.removesuffix(_CAPTIONS) for path in _caption_files(root)}
        hint = f"the splits there are: {', '.join(sorted(folders_of))}" if folders_of else "no split is there"
        raise InputError(f"{root}/precomp/{split}_caps.txt is missing (one caption a line); {hint}")
    return found[0]


def has_split(data_dir: str | Path, split: str) -> bool:
    """Whether DATA has captions of that split."""
    return bool(_found(Path(data_dir), split))


def is_data_folder(path: str | Path) -> bool:
    """Whether a path is a folder with captions of any split."""
    return Path(path).is_dir() and (bool(_caption_files(Path(path))) or any(has_split(path, name) for name in SPLITS))


def _found(root: Path, split: str) -> list[SplitFiles]:
    """The folders that have captions of a split, or else features of it beside Karpathy's JSON file."""
    every = [SplitFiles(root, root / name, split) for name in _FOLDERS]
    found = [files for files in every if files.captions.is_file()]
    if found:
        return found
    beside = [(files, _annotations(files)) for files in every if any(files.folder.glob(f"{split}_ims*"))]
    return [replace(files, annotations=annotations) for files, annotations in beside if annotations is not None]


def _annotations(files: SplitFiles) -> Path | None:
    """Karpathy's JSON file in the folder or in the data folder; InputError for several."""
    every = sorted({*files.folder.glob("dataset*.json"), *files.root.glob("dataset*.json")})
    found = [file for file in every if file.is_file()]
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise InputError(f"{files.root} holds the captions of several data sets ({names}): keep one")
    return found[0] if found else None


def _caption_files(root: Path) -> list[Path]:
    return [path for name in _FOLDERS for path in (root / name).glob(f"*{_CAPTIONS}")]
