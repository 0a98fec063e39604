"""Encoded images or captions: `Matcher.encode_*` returns them, `Matcher.score` and a gallery take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .errors import TensorError

Kind = Literal["images", "captions"]


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Unit vectors of the regions of B images, or of the words of B captions.

    Attributes:
        vectors: [B, L, D] float32, zeros past each row's length.
        lengths: [B] int32, 1 <= length <= L.
        kind: `images` or `captions`, as the encoder sets it; None is accepted as either.

    Raises:
        TensorError: the two break these rules.
    """

    vectors: NDArray[np.float32]
    lengths: NDArray[np.int32]
    kind: Kind | None = None

    def __post_init__(self) -> None:
        if self.vectors.dtype != np.float32:
            raise TensorError("vectors", "dtype must be float32", self.vectors.dtype)
        if self.vectors.ndim != 3 or 0 in self.vectors.shape:
            raise TensorError("vectors", "shape must be [B, L, D], none of them 0", list(self.vectors.shape))
        check_lengths("lengths", self.lengths, self.vectors.shape[:2])

    def __len__(self) -> int:
        """Number of images or captions (B)."""
        return len(self.vectors)

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[np.integer]) -> Embeddings:
        """The rows as Embeddings of their own; one integer gives one row (B = 1), a slice copies nothing."""
        if isinstance(rows, int | np.integer):
            rows = [int(rows)]
        return Embeddings(self.vectors[rows], self.lengths[rows], self.kind)

    @property
    def dim(self) -> int:
        """Width of the embeddings (D)."""
        return int(self.vectors.shape[2])

    def trimmed(self) -> Embeddings:
        """Return a copy without the columns that are padding in every row."""
        return Embeddings(self.vectors[:, : self.lengths.max()], self.lengths, self.kind)

    @staticmethod
    def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
        """Join the rows of all parts, in order, padded to the longest."""
        if not parts:
            raise TensorError("parts", "must hold at least one Embeddings", "none")
        if len({part.dim for part in parts}) > 1:
            raise TensorError("parts", "must have one width D", sorted({part.dim for part in parts}))
        width = max(part.vectors.shape[1] for part in parts)
        vectors = np.zeros((sum(map(len, parts)), width, parts[0].dim), np.float32)
        row = 0
        for part in parts:
            vectors[row : row + len(part), : part.vectors.shape[1]] = part.vectors
            row += len(part)
        kinds = {part.kind for part in parts}
        return Embeddings(
            vectors, np.concatenate([part.lengths for part in parts]), kinds.pop() if len(kinds) == 1 else None
        )


def check_lengths(tensor: str, lengths: NDArray[np.int32], shape: tuple[int, ...]) -> None:
    """TensorError unless lengths are int32 [B] between 1 and L, for shape (B, L)."""
    batch, width = shape
    if lengths.dtype != np.int32:
        raise TensorError(tensor, "dtype must be int32", lengths.dtype)
    if lengths.shape != (batch,):
        raise TensorError(tensor, f"shape must be [{batch}]", list(lengths.shape))
    wrong = np.flatnonzero((lengths < 1) | (lengths > width))
    if wrong.size:
        raise TensorError(f"{tensor}[{wrong[0]}]", f"must be between 1 and {width}", lengths[wrong[0]])


def check_finite(tensor: str, vectors: NDArray[np.floating], lengths: NDArray[np.int32]) -> None:
    """TensorError that names the first NaN or infinity of vectors [B, L, D]; padding may hold anything."""
    # The sum of squares is finite only if every term is: one pass at the speed of memory where all is well.
    flat = vectors.reshape(-1)
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(np.dot(flat, flat)):
            return
    within = np.arange(vectors.shape[1]) < lengths[:, None]
    bad = ~np.isfinite(vectors) & within[:, :, None]
    if bad.any():
        row, place, feature = (int(index) for index in np.argwhere(bad)[0])
        raise TensorError(f"{tensor}[{row}, {place}, {feature}]", "must be finite", vectors[row, place, feature])
