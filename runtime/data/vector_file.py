"""What every form of embeddings on disk becomes: a file whose rows are read one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class StoredRow:
    """One row as it is stored.

    Attributes:
        vectors: [L, D], or one vector [D]; not checked.
        metadata: what the file has of the row beside.
        problem: why the row cannot be read, in words; None where it can.
    """

    vectors: Any
    metadata: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class VectorFile:
    """Rows of embeddings in a file, or in a folder of one file for each row.

    Attributes:
        file: the file or folder.
        count: number of rows (N).
        dtype: how numbers are stored: names of `number_type`, or pyarrow's type.
        ids: the rows' ids, unchecked; None where the file has none.
        padded: whether vectors of zeros are padding, because nothing says how many vectors of a row are real.
        read: reads all rows in order; InputError where the file turns out to be damaged.
    """

    file: Path
    count: int
    dtype: str
    ids: Sequence[Any] | None
    padded: bool
    read: Callable[[], Iterator[StoredRow]]


def number_type(dtype: Any) -> str:
    """The name of a type of numbers whatever its byte order: float64 also where the array says `>f8`."""
    return dtype.newbyteorder("=").name if isinstance(dtype, np.dtype) else str(dtype)
