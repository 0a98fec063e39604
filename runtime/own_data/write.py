"""The files of a data folder, in the layout of `runtime/data/layout.py`, all but the region features."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..data.layout import SplitFiles, is_data_folder
from ..errors import InputError
from ..files import atomic_file, atomic_folder
from .gather import Gathered
from .report import DataReport
from .splits import SPLITS

REPORT = "data.json"


def check_place(out: Path, force: bool) -> None:
    """InputError unless a data folder may be written to OUT.

    It may where no captions are, and with `force` where an earlier one of this module is.
    """
    if not is_data_folder(out) and not (out / "precomp").exists():
        return
    if not (out / REPORT).is_file():
        raise InputError(f"{out} holds data that `chan data` did not write: choose another folder")
    if not force:
        raise InputError(f"{out} holds data already: --force replaces it with its features, or choose another folder")


def write_data(out: Path, gathered: Gathered, report: DataReport, force: bool) -> None:
    """Write captions and ids of each split, the picture of each id, and the report.

    Args:
        out: DATA. Its precomp folder appears when it is complete; an older one is replaced, with its features.
        gathered: what to write.
        report: of it.
        force: as for `check_place`.

    Raises:
        InputError: as `check_place`.
    """
    check_place(out, force)
    with atomic_folder(out / "precomp") as fresh:
        for split in SPLITS:
            pictures = gathered.of(split)
            files = SplitFiles(out, fresh, split)
            if pictures:
                _lines(files.captions, [caption for picture in pictures for caption in picture.captions])
                _lines(files.ids, [picture.image_id for picture in pictures for _ in picture.captions])
        root = Path(os.path.abspath(out))
        mapping = {picture.image_id: _below(picture.file, root) for picture in gathered.pictures}
        with atomic_file(out / "id_mapping.json") as pictures_of, atomic_file(out / REPORT) as told:
            _json(pictures_of, mapping, indent=0)
            _json(told, report.to_dict(), indent=2)


def _below(file: Path, root: Path) -> str:
    """A picture's path as id_mapping.json has it: below the data folder, or absolute."""
    return file.relative_to(root).as_posix() if root in file.parents else str(file)


def _json(file: Path, content: object, indent: int) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8", newline="\n")


def _lines(file: Path, lines: list[str]) -> None:
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
