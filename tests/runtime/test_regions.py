from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from chan_rt.runtime.contract import Preprocess
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import TensorError
from chan_rt.runtime.regions import Regions, boxes_as_metadata, region_box, with_boxes, with_grid_boxes

ONES = np.ones((2, 4, 3), np.float32)
BOXES = np.full((2, 4, 4), 0.25, np.float32)
BOXED = Preprocess(16, (0.5,) * 3, (0.5,) * 3, None)
GRID = Preprocess(16, (0.5,) * 3, (0.5,) * 3, 2)


def outputs(boxed: bool = True, **changes: Any) -> dict[str, np.ndarray]:
    """What a right backbone returns for two pictures, with changes; None takes an output away."""
    found: dict[str, Any] = {"regions": ONES}
    if boxed:
        found["boxes"] = BOXES
    return {name: value for name, value in {**found, **changes}.items() if value is not None}


def changed(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    copy = array.copy()
    copy[index] = value
    return copy


def test_a_right_backbone_is_taken() -> None:
    found = Regions.of_outputs(outputs(region_lengths=np.array([4, 2], np.int64)), BOXED, 2)
    assert found.features.shape == (2, 4, 3)
    assert found.lengths.dtype == np.int32
    assert found.boxes is not None
    assert (found.boxes[1, 2:] == 0).all()
    assert Regions.of_outputs(outputs(boxed=False), GRID, 2).boxes is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regions": None}, "regions must be returned by the backbone"),
        ({"regions": ONES[0]}, r"regions: shape must be \[2, 'R', 'F'\], got \[4, 3\]"),
        ({"regions": ONES[:1]}, r"regions: shape must be \[2, 'R', 'F'\], got \[1, 4, 3\]"),
        ({"regions": ONES[:, :0]}, "none of them 0"),
        ({"regions": ONES.astype(np.int32)}, "regions: dtype must be float32, got int32"),
        ({"regions": changed(ONES, (1, 2, 0), np.nan)}, r"regions\[1, 2, 0\] must be finite"),
        ({"regions": changed(ONES, (0, 0, 0), -np.inf)}, r"regions\[0, 0, 0\] must be finite"),
        ({"boxes": None}, "boxes must be returned by the backbone"),
        ({"boxes": BOXES[:, :3]}, r"boxes: shape must be \[2, 4, 4\], got \[2, 3, 4\]"),
        ({"boxes": changed(BOXES, (1, 3, 2), np.nan)}, r"boxes\[1, 3, 2\] must be finite"),
        ({"boxes": changed(BOXES, (1, 3, 2), 0.9)}, r"boxes\[1, 3\] must be left, top, width and height as fractions"),
        ({"boxes": changed(BOXES, (0, 1, 0), -0.2)}, r"boxes\[0, 1\] must be left"),
        ({"boxes": changed(BOXES, (0, 1, 3), -0.2)}, r"boxes\[0, 1\] must be left"),
        ({"boxes": 100 * BOXES}, r"got \[25.0, 25.0, 25.0, 25.0\]"),
        ({"class_scores": ONES[:, :3]}, r"class_scores: shape must be \[2, 4, 'F'\], got \[2, 3, 3\]"),
        ({"class_scores": changed(ONES, (1, 0, 2), np.nan)}, r"class_scores\[1, 0, 2\] must be finite"),
        ({"class_scores": changed(ONES, (1, 0, 2), 1.5)}, r"class_scores\[1, 0\] must be from 0 to 1, got \[1.0, 1.5"),
        ({"region_lengths": np.array([4, 5])}, r"region_lengths\[1\] must be between 1 and 4, got 5"),
        ({"region_lengths": np.array([0, 4])}, r"region_lengths\[0\] must be between 1 and 4, got 0"),
        ({"region_lengths": np.array([2**40, 4])}, r"region_lengths\[0\] must be between 1 and 4"),
        ({"region_lengths": np.array([4.0, 4.0])}, "region_lengths: dtype must be an integer one"),
        ({"region_lengths": np.array([4])}, r"region_lengths: shape must be \[2\]"),
    ],
)
def test_a_hostile_backbone_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TensorError, match=message.replace(": ", ".*").replace(" must", ".* must")):
        Regions.of_outputs(outputs(**changes), BOXED, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"regions": np.ones((2, 5, 3), np.float32)}, "must be 4, grid x grid"),
        ({"region_lengths": np.array([4, 3])}, "must be 4, grid x grid"),
        ({"boxes": BOXES}, "boxes must not be returned by a backbone whose regions are a grid"),
    ],
)
def test_a_grid_has_as_many_regions_as_cells(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TensorError, match=message.replace(" must", ": must")):
        Regions.of_outputs(outputs(boxed=False, **changes), GRID, 2)


def test_padding_may_hold_anything() -> None:
    wild = changed(changed(BOXES, (0, 3), 7.0), (1, 3), np.nan)
    lengths = np.array([3, 3], np.int32)
    found = Regions.of_outputs(
        outputs(boxes=wild, regions=changed(ONES, (1, 3), np.nan), region_lengths=lengths), BOXED, 2
    )
    assert found.boxes is not None
    assert (found.boxes[:, 3] == 0).all()


def test_a_box_that_rounding_moved_past_the_edge_is_cut() -> None:
    boxes = np.full((2, 4, 4), 0.5, np.float32)
    boxes[0, 0] = -0.001, 0.5, 0.3, 0.5005
    found = Regions.of_outputs(outputs(boxes=boxes), BOXED, 2)
    assert found.boxes is not None
    np.testing.assert_allclose(found.boxes[0, 0], [0, 0.5, 0.299, 0.5], atol=1e-6)


@pytest.mark.parametrize(
    ("region", "grid", "boxes", "box"),
    [
        (3, 2, None, (0.5, 0.5, 0.5, 0.5)),
        (4, 2, None, None),
        (0, None, None, None),
        (1, 2, [[0.1, 0.1, 0.2, 0.2], [0.1, 0.2, 0.3, 0.4]], (0.1, 0.2, 0.3, 0.4)),
        (1, None, [[0.9, 0.9, 0.5, 0.5]] * 2, (0.9, 0.9, 0.1, 0.1)),
        (2, None, [[0.1, 0.2, 0.3, 0.4]], None),
        (-1, None, [[0.1, 0.2, 0.3, 0.4]], None),
        (0, None, [[float("nan"), 0, 1, 1]], None),
        (0, None, [["a", 0, 1, 1]], None),
        (0, None, [[10, 20, 30, 40]], None),
        (0, None, [[0.1, 0.2]], None),
        (0, None, "boxes", None),
        (0, None, {"0": [0, 0, 1, 1]}, None),
        (0, 2, [["a", 0, 1, 1]], (0.0, 0.0, 0.5, 0.5)),
    ],
)
def test_the_box_of_a_region(region: int, grid: int | None, boxes: object, box: tuple[float, ...] | None) -> None:
    found = region_box(region, grid, boxes)
    assert found == (None if box is None else pytest.approx(box))


def test_boxes_survive_metadata() -> None:
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0, 0.5, (2, 3, 4)).astype(np.float32)
    image = Embeddings(rng.normal(size=(2, 3, 5)).astype(np.float32), np.array([3, 2], np.int32), "images", boxes)
    metadata = boxes_as_metadata(image)
    assert [len(row["boxes"]) for row in metadata] == [3, 2]
    back = with_boxes(image[0], metadata[0])
    assert back.boxes is not None
    np.testing.assert_allclose(back.boxes[0], boxes[0], atol=6e-5)
    bare = Embeddings(image.vectors[:1], image.lengths[:1])
    assert with_boxes(bare, {}).boxes is None
    assert with_boxes(bare, {"boxes": [[0.1] * 4]}).boxes is None
    assert boxes_as_metadata(bare) == [{}]


def test_boxes_go_with_their_rows() -> None:
    boxes = np.linspace(0, 0.5, 24, dtype=np.float32).reshape(2, 3, 4)
    image = Embeddings(np.ones((2, 3, 5), np.float32), np.array([2, 2], np.int32), "images", boxes)
    assert image[1].boxes is not None
    np.testing.assert_array_equal(image[1].boxes[0], boxes[1])
    assert image.trimmed().boxes is not None
    joined = Embeddings.concatenate([image, image.trimmed()])
    assert joined.boxes is not None
    np.testing.assert_array_equal(joined.boxes[3, :2], boxes[1, :2])
    plain = Embeddings(image.vectors, image.lengths, "images")
    assert Embeddings.concatenate([image, plain]).boxes is None
    with pytest.raises(TensorError, match=r"boxes.*shape must be \[2, 3, 4\]"):
        Embeddings(image.vectors, image.lengths, "images", boxes[:, :2])


def test_a_grid_may_have_its_boxes_said() -> None:
    regions = Regions(np.ones((2, 4, 3), np.float32), np.array([4, 4], np.int32), None)
    boxes = with_grid_boxes(regions, 2).boxes
    assert boxes is not None
    assert boxes[1].tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 0.5, 0.5], [0, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]
