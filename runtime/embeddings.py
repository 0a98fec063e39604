"""Encoded images or captions: `Matcher.encode_*` returns them, `Matcher.score` and a gallery take them.

`Embeddings.from_rows` makes them from the vectors of any other model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .checks import check_choice
from .counts import counted
from .errors import InputError, TensorError
from .tensor_checks import check_lengths, check_unmasked

Kind = Literal["images", "captions"]


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Unit vectors of the regions of B images, or of the words of B captions.

    Attributes:
        vectors: [B, L, D] float32, zeros past each row's length.
        lengths: [B] int32, 1 <= length <= L.
        kind: `images` or `captions`, as the encoder sets it; None is accepted as either.
        boxes: [B, L, 4] float32, where each region is: left, top, width and height as fractions of the picture. None
            for captions, for the regions of a grid, and where it is not known.

    Raises:
        InputError: kind is another word.
        TensorError: the arrays break these rules.
    """

    vectors: NDArray[np.float32]
    lengths: NDArray[np.int32]
    kind: Kind | None = None
    boxes: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.kind is not None:  # a word that is neither would be taken for the other side
            check_choice("kind", self.kind, get_args(Kind))
        for name in ("vectors", "lengths", "boxes"):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) and not (name == "boxes" and array is None):
                raise TensorError(name, "must be a numpy array", type(array).__name__)
            check_unmasked(name, array)
        if self.vectors.dtype != np.float32:
            raise TensorError("vectors", "dtype must be float32", self.vectors.dtype)
        if self.vectors.ndim != 3 or 0 in self.vectors.shape:
            rule = "shape must be [B, L, D], none of them 0; Embeddings.from_rows takes rows [L, D] and vectors [D]"
            raise TensorError("vectors", rule, list(self.vectors.shape))
        check_lengths("lengths", self.lengths, self.vectors.shape[:2])
        if self.boxes is not None and self.boxes.shape != (*self.vectors.shape[:2], 4):
            wanted = [*self.vectors.shape[:2], 4]
            raise TensorError("boxes", f"shape must be {wanted}", list(self.boxes.shape))

    def __repr__(self) -> str:
        """The shapes, without the numbers."""
        boxes = "" if self.boxes is None else ", with boxes"
        return f"Embeddings({self.kind or 'rows'} {list(self.vectors.shape)}{boxes})"

    def __len__(self) -> int:
        """Number of images or captions (B)."""
        return len(self.vectors)

    def __getitem__(self, rows: int | slice | Sequence[int] | NDArray[np.integer]) -> Embeddings:
        """The rows as Embeddings of their own; one integer gives one row (B = 1), a slice copies nothing."""
        if isinstance(rows, int | np.integer):
            rows = [int(rows)]
        boxes = None if self.boxes is None else self.boxes[rows]
        return Embeddings(self.vectors[rows], self.lengths[rows], self.kind, boxes)

    @classmethod
    def from_rows(cls, rows: Iterable[Any], kind: Kind | None = None) -> Embeddings:
        """Embeddings of any model, as its encoder returns them: padded here, checked, and float32.

        Vectors are taken as they are: a score is made of inner products, so scale them to length 1 first where the
        model means cosines.

        Args:
            rows: for each row its vectors [L, D], or one vector [D]: a list of arrays or of torch tensors, an array
                [B, D] of one vector a row, or an array [B, L, D]. Floating-point numbers, JAX's bfloat16 too; float64
                and wider ones are rounded.
            kind: as the attribute.

        Raises:
            InputError: there is no row.
            TensorError: a row is no array of numbers, has no vector, has another D than the rows before, or holds a
                value that is not finite or a vector of zeros (padding, most likely: leave it out). It names the row.
        """
        checked = []
        for number, row in enumerate(rows):
            if isinstance(row, Real) or getattr(row, "shape", None) == ():  # of one vector, or of a list of numbers
                rule = "must be vectors [L, D] or one vector [D]; where the rows are one vector, pass [vector]"
                raise TensorError(f"rows[{number}]", rule, "one number")
            checked.append(checked_vectors(row, f"rows[{number}]"))
        if not checked:
            raise InputError("rows: must hold at least one row, got none")
        dim = checked[0].shape[1]
        for number, row in enumerate(checked):
            if row.shape[1] != dim:
                raise TensorError(f"rows[{number}]", f"D must be {dim}, as in the rows before", row.shape[1])
        return cls.padded(checked, kind)

    @classmethod
    def padded(cls, rows: Sequence[NDArray[np.float32]], kind: Kind | None = None) -> Embeddings:
        """Rows of vectors [L, D] float32 that are known to be valid, padded to the longest; `kind` says of what."""
        lengths = np.array([len(row) for row in rows], np.int32)
        vectors = np.zeros((len(rows), int(lengths.max()), rows[0].shape[1]), np.float32)
        for number, row in enumerate(rows):
            vectors[number, : len(row)] = row
        return cls(vectors, lengths, kind)

    def rows(self) -> list[NDArray[np.float32]]:
        """The vectors [L, D] of each row without padding; they share this object's memory."""
        return [row[:length] for row, length in zip(self.vectors, self.lengths, strict=True)]

    @property
    def dim(self) -> int:
        """Width of the embeddings (D)."""
        return int(self.vectors.shape[2])

    def trimmed(self) -> Embeddings:
        """Return a copy without the columns that are padding in every row."""
        longest = self.lengths.max()
        boxes = None if self.boxes is None else self.boxes[:, :longest]
        return Embeddings(self.vectors[:, :longest], self.lengths, self.kind, boxes)

    @staticmethod
    def concatenate(parts: Sequence[Embeddings]) -> Embeddings:
        """Join the rows of all parts, in order, padded to the longest; boxes are kept where every part has them.

        Raises:
            TensorError: there is no part, or parts have several widths, or some are of images and others of captions.
        """
        if not parts:
            raise TensorError("parts", "must hold at least one Embeddings", "none")
        if len({part.dim for part in parts}) > 1:
            raise TensorError("parts", "must have one width D", sorted({part.dim for part in parts}))
        width = max(part.vectors.shape[1] for part in parts)
        kinds = {part.kind for part in parts}
        if kinds >= {"images", "captions"}:
            raise TensorError("parts", "must be all of images or all of captions", "both")
        boxes = [part.boxes for part in parts if part.boxes is not None]
        return Embeddings(
            _stacked([part.vectors for part in parts], width),
            np.concatenate([part.lengths for part in parts]),
            kinds.pop() if len(kinds) == 1 else None,
            _stacked(boxes, width) if len(boxes) == len(parts) else None,
        )


def checked_vectors(row: Any, place: str, *, drop_zeros: bool = False) -> NDArray[np.float32]:
    """The vectors of one row that came from elsewhere, as float32 [L, D]; one vector [D] becomes [1, D].

    This is the one door for the vectors of other models. Values that float32 cannot hold exactly are rounded to the
    nearest that it can.

    Args:
        row: the array.
        place: what to call it in an error.
        drop_zeros: leave out vectors of zeros instead of refusing them, because they are known to be padding.

    Raises:
        TensorError: it is no array of floating-point numbers, has no vector (that is not zero), or holds a value that
            is not finite.
    """
    if hasattr(row, "is_floating_point") and row.is_floating_point():  # a torch tensor
        row = row.detach().cpu().resolve_neg()  # numpy lacks such views, and bfloat16 and float8
        row = row if "float64" in str(row.dtype) else row.float()
    check_unmasked(place, row)
    try:
        array = np.asarray(row)
    except (TypeError, ValueError) as error:
        raise TensorError(place, "must be an array of numbers", type(row).__name__) from error
    if array.dtype.kind == "V" and "float" in array.dtype.name:  # of ml_dtypes, as JAX returns them
        array = array.astype(np.float32)
    if array.dtype.kind != "f":
        rule = "must be floating-point numbers; multiply quantized ones by their scale"
        raise TensorError(place, rule, f"{array.dtype} {list(array.shape)}")
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or 0 in array.shape:
        raise TensorError(place, "must be vectors [L, D], neither 0, or one vector [D]", list(np.shape(row)))
    with np.errstate(over="ignore"):  # what overflows is infinite, and refused below
        vectors = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(vectors).all():
        vector, feature = (int(index) for index in np.argwhere(~np.isfinite(vectors))[0])
        value = array[vector, feature]
        rule = "must be at most 3.4e+38 in size, as float32 is" if np.isfinite(value) else "must be finite"
        raise TensorError(f"{place}[{vector}, {feature}]", rule, value)
    zero = ~vectors.any(axis=1)
    if not zero.any():
        return vectors
    if not drop_zeros:
        rule = "must not be a vector of zeros, which is like nothing; leave padding out"
        raise TensorError(f"{place}[{int(zero.argmax())}]", rule, "zeros")
    if zero.all():
        raise TensorError(place, "must have a vector that is not zero", f"{counted(len(vectors), 'vector')} of zeros")
    return vectors[~zero]


def _stacked(parts: Sequence[NDArray[np.float32]], width: int) -> NDArray[np.float32]:
    """Arrays [b, l, n] one below the other as [B, width, n], zeros past each l."""
    whole = np.zeros((sum(map(len, parts)), width, parts[0].shape[2]), np.float32)
    row = 0
    for part in parts:
        whole[row : row + len(part), : part.shape[1]] = part
        row += len(part)
    return whole


def check_embeddings(name: str, given: object) -> None:
    """TensorError unless the argument that the caller calls `name` is Embeddings."""
    if not isinstance(given, Embeddings):
        rule = "must be Embeddings, as the encoders return them; Embeddings.from_rows makes them of arrays"
        raise TensorError(name, rule, type(given).__name__)
