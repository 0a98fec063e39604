"""Embeddings of other models on disk, read row by row. The numbers may be float32, float16, float64 or bfloat16.

    .npy            [N, L, D], or [N, D] of one vector a row
    .npz, .safetensors
        `embeddings` [N, L, D], padded to L; `lengths` [N] or `mask` [N, L] says which vectors are real
        `embeddings` [T, D], the vectors of all rows one after the other, with `lengths` [N] or `offsets` [N + 1]
        `embeddings` [N, D], one vector a row
        an array [L, D] for each row, whose name is the row's id
    .parquet        a column of lists of vectors, or of vectors; the others are ids (`id`) and metadata (parquet.py)
    a folder        of .npy files [L, D], one a row, whose name is the row's id; or of files as above

`embedding` and `vectors` are read as `embeddings`, `doclens` as `lengths`, and `attention_mask` as `mask`. Beside
`embeddings` there may be `ids` [N], or `rows`: JSON lines with `id` and `metadata` as bytes. Where nothing says which
vectors of a padded row are real, those of zeros are padding. Files are memory-mapped or read in pieces, and nothing is
unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ..errors import InputError
from .npz import map_npy, map_npz_arrays
from .parquet import open_parquet_vectors
from .safetensors_file import map_safetensors
from .vector_arrays import rows_by_name, rows_of_array, rows_of_members
from .vector_file import VectorFile

SUFFIXES = (".npy", ".npz", ".safetensors", ".parquet")
Readers: TypeAlias = Mapping[str, Callable[[Path], VectorFile]]
"""What opens files of further suffixes, such as .pt, for which torch is needed."""
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".joblib")


def open_vectors(path: str | Path, readers: Readers | None = None) -> list[VectorFile]:
    """The files that a path is: one file, or those of a folder in the order of their names.

    Args:
        path: a file or folder.
        readers: what opens files of suffixes that are not in SUFFIXES.

    Raises:
        InputError: there is no such file, or it has another form. What is wrong with single rows is found when they
            are read.
        MissingExtra: reading Parquet needs a library that is not installed.
    """
    place, others = Path(path), readers or {}
    if not place.is_dir():
        return [_open_file(place, others)]
    inside = sorted(place.iterdir())
    if {"centroids.npy", "centroids.pt"} & {file.name for file in inside}:
        raise InputError(
            f"{place} is a PLAID index, which keeps compressed vectors only: write what the model's encode() returned"
        )
    suffixes = (*SUFFIXES, *others)
    files = [file for file in inside if file.suffix in suffixes and not file.name.startswith(".")]
    if not files:
        raise InputError(f"{place} must hold files that end in {', '.join(suffixes)}, got none")
    if all(file.suffix == ".npy" for file in files):
        arrays = {file.stem: _ArrayFile.open(file) for file in files}
        if all(len(array.shape) < 3 for array in arrays.values()):
            return [rows_by_name(place, arrays)]
    return [_open_file(file, others) for file in files]


@dataclass(frozen=True)
class _ArrayFile:
    """An .npy file that is opened when it is read: a mapped file holds a file descriptor, and there may be millions."""

    file: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @classmethod
    def open(cls, file: Path) -> _ArrayFile:
        array = map_npy(file)
        return cls(file, array.shape, array.dtype)

    def __getitem__(self, place: Any) -> Any:
        return map_npy(self.file)[place]


def _open_file(file: Path, others: Readers) -> VectorFile:
    if file.suffix in others and file.is_file():
        return others[file.suffix](file)
    if file.suffix in _PICKLES:
        raise InputError(
            f"{file} may be a pickle, which runs code when it is read: write its tensors with "
            "safetensors.torch.save_file, as docs/embeddings.md shows"
        )
    if file.suffix not in SUFFIXES:
        raise InputError(f"{file} must end in {', '.join((*SUFFIXES, *others))}, or be a folder of such files")
    if not file.is_file():
        raise InputError(f"{file} must be a file, got {'something else' if file.exists() else 'nothing there'}")
    if file.suffix == ".npy":
        return rows_of_array(file, map_npy(file), {})
    if file.suffix == ".parquet":
        return open_parquet_vectors(file)
    return rows_of_members(file, map_npz_arrays(file) if file.suffix == ".npz" else map_safetensors(file))
