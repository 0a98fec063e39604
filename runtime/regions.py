"""What a backbone makes of pictures: regions, how many there are, and where each one is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .contract import Preprocess
from .embeddings import Embeddings
from .errors import TensorError
from .tensor_checks import as_lengths, check_finite, check_lengths

Box = tuple[float, float, float, float]

# A box may reach past the picture by this fraction, because a backbone's arithmetic rounds; it is cut off there.
_SLACK = 1e-2


@dataclass(frozen=True, eq=False)
class Regions:
    """Regions of B pictures.

    Attributes:
        features: [B, R, F] float32, finite up to each length.
        lengths: [B] int32, 1 <= length <= R.
        boxes: [B, R, 4] float32: left, top, width and height as fractions of the picture, zeros past each length. None
            where the regions are a grid.
        class_scores: [B, R, C] float32, the probability of each of a detector's classes. None for other backbones.
    """

    features: NDArray[np.float32]
    lengths: NDArray[np.int32]
    boxes: NDArray[np.float32] | None
    class_scores: NDArray[np.float32] | None = None

    @classmethod
    def of_outputs(cls, outputs: Mapping[str, NDArray[Any]], preprocess: Preprocess, count: int) -> Regions:
        """The outputs of a backbone for `count` pictures, checked.

        Args:
            outputs: `regions` [B, R, F]; without a grid `boxes` [B, R, 4]; `region_lengths` [B] where the number of
                regions varies; perhaps `class_scores` [B, R, C].
            preprocess: of the backbone.
            count: number of pictures that were encoded (B).

        Raises:
            TensorError: an output is missing, has another rank, type or size, a length outside 1 to R, a number that
                is not finite, a box outside the picture, a class score outside 0 to 1, or a number of regions that is
                not grid * grid.
        """
        features = _output(outputs, "regions", (count, None, None))
        regions = features.shape[1]
        if "region_lengths" in outputs:
            lengths = as_lengths("region_lengths", outputs["region_lengths"])
        else:
            lengths = np.full(count, regions, np.int32)
        check_lengths("region_lengths", lengths, (count, regions))
        check_finite("regions", features, lengths)
        scores = _class_scores(outputs, lengths, regions)
        if preprocess.grid is None:
            boxes = _checked_boxes(_output(outputs, "boxes", (count, regions, 4)), lengths)
            return cls(features, lengths, boxes, scores)
        if "boxes" in outputs:
            raise TensorError("boxes", "must not be returned by a backbone whose regions are a grid", "some")
        wrong = np.flatnonzero(lengths != preprocess.grid**2)
        if regions != preprocess.grid**2 or wrong.size:
            got = regions if not wrong.size else int(lengths[wrong[0]])
            raise TensorError("regions", f"must be {preprocess.grid**2}, grid x grid, for each picture", got)
        return cls(features, lengths, None, scores)


class PictureBackbone(Protocol):
    """A network from pictures to regions, which a bundle does not have."""

    @property
    def preprocess(self) -> Preprocess:
        """How a picture becomes pixels."""

    def regions(self, pixels: NDArray[np.float32]) -> Regions:
        """The regions of pixels [B, 3, S, S]."""


def with_grid_boxes(regions: Regions, grid: int) -> Regions:
    """The regions of a grid with the boxes of its cells."""
    boxes = np.array([grid_box(region, grid) for region in range(grid * grid)], np.float32)
    return replace(regions, boxes=np.broadcast_to(boxes, (len(regions.features), *boxes.shape)))


def grid_box(region: int, grid: int) -> Box:
    """Left, top, width and height of a cell of a grid, as fractions of the picture."""
    row, column = divmod(region, grid)
    return column / grid, row / grid, 1 / grid, 1 / grid


def region_box(region: int, grid: int | None, boxes: object = None) -> Box | None:
    """Where a region is; None where that is not known.

    Args:
        region: its index.
        grid: the regions are a grid x grid raster of the picture; None where they are not.
        boxes: of the image's regions, [left, top, width, height] as fractions of the picture, as an array or as the
            metadata of a gallery's row have them. They come before the grid; what is no such list is ignored.
    """
    if isinstance(boxes, np.ndarray):
        boxes = boxes.tolist()
    box = _as_box(boxes[region]) if isinstance(boxes, list | tuple) and 0 <= region < len(boxes) else None
    if box is None and grid is not None and 0 <= region < grid * grid:
        return grid_box(region, grid)
    return box


def boxes_as_metadata(embeddings: Embeddings) -> list[dict[str, Any]]:
    """What the metadata of a gallery's rows keep of their boxes: {} where these are not known."""
    if embeddings.boxes is None:
        return [{}] * len(embeddings)
    return [box_metadata(row[:length]) for row, length in zip(embeddings.boxes, embeddings.lengths, strict=True)]


def box_metadata(boxes: NDArray[np.float32] | None) -> dict[str, Any]:
    """What the metadata of one row keep of its boxes [r, 4]: {} for None.

    Four decimals are a tenth of a pixel in a picture 1000 pixels wide.
    """
    return {} if boxes is None else {"boxes": boxes.astype(np.float64).round(4).tolist()}


def with_boxes(row: Embeddings, metadata: Mapping[str, Any]) -> Embeddings:
    """One row of a gallery with the boxes that its metadata keep; without, where these do not fit its regions."""
    boxes = metadata.get("boxes")
    found = [region_box(region, None, boxes) for region in range(row.vectors.shape[1])]
    if None in found:
        return row
    return replace(row, boxes=np.array([found], np.float32))


def _as_box(value: object) -> Box | None:
    """A box from metadata, which anybody may have written."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    if not all(isinstance(part, int | float) and 0 <= part <= 1 for part in value):
        return None
    left, top, width, height = map(float, value)
    return left, top, min(width, 1 - left), min(height, 1 - top)


def _output(outputs: Mapping[str, NDArray[Any]], name: str, shape: tuple[int | None, ...]) -> NDArray[np.float32]:
    if name not in outputs:
        raise TensorError(name, "must be returned by the backbone", "nothing")
    array = np.asarray(outputs[name])
    wanted = [symbol if size is None else size for size, symbol in zip(shape, ("B", "R", "F"), strict=True)]
    if array.dtype.kind != "f":
        raise TensorError(name, "dtype must be float32", array.dtype)
    if array.ndim != len(shape) or any(a not in (None, b) for a, b in zip(shape, array.shape, strict=True)):
        raise TensorError(name, f"shape must be {wanted}", list(array.shape))
    if 0 in array.shape:
        raise TensorError(name, f"shape must be {wanted}, none of them 0", list(array.shape))
    return array.astype(np.float32, copy=False)


def _class_scores(
    outputs: Mapping[str, NDArray[Any]], lengths: NDArray[np.int32], regions: int
) -> NDArray[np.float32] | None:
    if "class_scores" not in outputs:
        return None
    scores = _output(outputs, "class_scores", (len(lengths), regions, None))
    check_finite("class_scores", scores, lengths)
    real = np.arange(regions) < lengths[:, None]
    wrong = real & ((scores < 0) | (scores > 1)).any(2)
    if wrong.any():
        row, region = (int(index) for index in np.argwhere(wrong)[0])
        found = scores[row, region]
        raise TensorError(
            f"class_scores[{row}, {region}]", "must be from 0 to 1", [float(found.min()), float(found.max())]
        )
    return scores


def _checked_boxes(boxes: NDArray[np.float32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
    """Boxes cut at the picture's edges, zeros past each length."""
    check_finite("boxes", boxes, lengths)
    real = np.arange(boxes.shape[1]) < lengths[:, None]
    ends = boxes[:, :, :2] + boxes[:, :, 2:]
    wrong = real & ((boxes < -_SLACK).any(2) | (ends > 1 + _SLACK).any(2))
    if wrong.any():
        row, region = (int(index) for index in np.argwhere(wrong)[0])
        rule = "must be left, top, width and height as fractions of the picture, inside it"
        raise TensorError(f"boxes[{row}, {region}]", rule, [round(float(part), 4) for part in boxes[row, region]])
    start = boxes[:, :, :2].clip(0, 1)
    inside = np.concatenate([start, ends.clip(start, 1) - start], axis=2).astype(np.float32)
    inside[~real] = 0
    return inside
