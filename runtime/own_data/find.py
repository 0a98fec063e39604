"""The file that a name in a source stands for."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from ..errors import InputError


class PictureFolders:
    """Folders in which the pictures of a source are looked for, the first one first.

    A name is meant as it is written. Where no file has it, the file with the same letters in another Unicode
    normalization is meant, as archives of another system write them, and `\\` separates folders, too.

    Args:
        folders: existing folders.

    Raises:
        InputError: one is not a folder.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            if not folder.is_dir():
                raise InputError(f"{folder} is not a folder of pictures")
        self._folders = [Path(os.path.abspath(folder)) for folder in folders]

    def find(self, names: Sequence[str]) -> tuple[Path, str]:
        """The file that the first possible name stands for, and its path below its folder.

        Raises:
            InputError: there is none; the message is the reason alone, for a list.
        """
        reasons = []
        for name in names:
            for folder in self._folders:
                try:
                    return self._find(folder, name)
                except InputError as error:
                    reasons.append(str(error))
        raise InputError(reasons[0])

    def _find(self, folder: Path, name: str) -> tuple[Path, str]:
        if not name:
            raise InputError("the path is empty")
        if "\0" in name or "\n" in name or "\r" in name:
            raise InputError("its path holds a line break or a NUL")
        if "://" in name:
            raise InputError("it is an address: download the picture, and name its file")
        for written in dict.fromkeys((name, name.replace("\\", "/"))):
            path = Path(os.path.normpath(folder / written))
            if folder not in path.parents:
                raise InputError(f"it lies outside of {folder}: give a folder above it with --pictures")
            if path.is_file():
                return path, path.relative_to(folder).as_posix()
        if path.is_dir():
            raise InputError("it is a folder, not a picture")
        if path.exists():
            raise InputError("it is not a regular file")
        below = os.path.relpath(path, folder)
        others = [other for other in self._by_letters.get((folder, _letters(below)), []) if other != below]
        if len(others) == 1:
            return folder / others[0], others[0]
        if others:
            raise InputError(f"no file has exactly this name, and {len(others)} differ from it in normalization only")
        if os.path.islink(path):
            raise InputError("it is a link to a file that does not exist")
        case = self._by_case.get((folder, _letters(below).casefold()))
        hint = f"; {case!r} differs in capital letters" if case else ""
        raise InputError(f"there is no such file in {folder}{hint or '; --pictures names another folder'}")

    @cached_property
    def _by_letters(self) -> dict[tuple[Path, str], list[str]]:
        """Files by folder and normalized path; made when the first name is not found."""
        found: dict[tuple[Path, str], list[str]] = {}
        for folder in self._folders:
            for parent, _, names in os.walk(folder):
                for name in names:
                    below = os.path.relpath(os.path.join(parent, name), folder)
                    found.setdefault((folder, _letters(below)), []).append(below)
        return found

    @cached_property
    def _by_case(self) -> dict[tuple[Path, str], str]:
        return {(folder, letters.casefold()): names[0] for (folder, letters), names in self._by_letters.items()}


def _letters(name: str) -> str:
    return unicodedata.normalize("NFC", name)
