"""Features as they are distributed, converted with their boxes; and damaged ones."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from chan_rt.runtime.data.convert import convert_features
from chan_rt.runtime.data.flat import FlatWriter
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.data.regions import open_features
from chan_rt.runtime.errors import ChanError, InputError

from ...run_chan import chan, ok

WIDTH, HEIGHT, DIM = 100, 200, 8
Item = tuple[str, np.ndarray, np.ndarray]


def _items() -> list[Item]:
    """Ids, features and corners in pixels of three images of 3, 5 and 2 regions."""
    rng = np.random.default_rng(0)
    items = []
    for number, count in enumerate((3, 5, 2)):
        start = rng.uniform(0, 50, (count, 2))
        corners = np.concatenate([start, start + rng.uniform(1, 40, (count, 2))], axis=1).astype(np.float32)
        items.append((f"im{number}", rng.normal(size=(count, DIM)).astype(np.float32), corners))
    return items


def encoded(array: np.ndarray) -> bytes:
    return base64.b64encode(array.tobytes())


def tsv_line(name: str, features: np.ndarray, corners: np.ndarray, /, **changes: bytes) -> bytes:
    columns = {"id": name.encode(), "w": b"%d" % WIDTH, "h": b"%d" % HEIGHT, "n": b"%d" % len(features),
               "boxes": encoded(corners), "features": encoded(features)}  # fmt: skip
    return b"\t".join({**columns, **changes}.values()) + b"\n"


def record(name: str, features: np.ndarray, corners: np.ndarray, /, **changes: Any) -> bytes:
    plain = {"image_id": name, "image_w": WIDTH, "image_h": HEIGHT, "num_boxes": len(features),
             "boxes": encoded(corners), "features": encoded(features)}  # fmt: skip
    return pickle.dumps({**plain, **changes})


def npz_record(name: str, features: np.ndarray, corners: np.ndarray, /, **more: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, features=features, bbox=corners, image_w=WIDTH, image_h=HEIGHT, **more)
    return content.getvalue()


def write_lmdb(path: Path, records: dict[bytes, bytes]) -> Path:
    lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")
    with lmdb.open(str(path), map_size=1 << 22) as opened, opened.begin(write=True) as transaction:
        for key, value in records.items():
            transaction.put(key, value)
    return path


def write_tsv(folder: Path, items: list[Item]) -> Path:
    (folder / "x.tsv").write_bytes(b"".join(tsv_line(*item) for item in items))
    return folder / "x.tsv"


def write_folder(folder: Path, items: list[Item]) -> Path:
    (folder / "x").mkdir()
    for name, features, corners in items:
        (folder / "x" / f"{name}.npz").write_bytes(npz_record(name, features, corners))
    return folder / "x"


def write_groups(folder: Path, items: list[Item]) -> Path:
    with h5py.File(folder / "x.h5", "w") as file:
        for name, features, corners in items:
            group = file.create_group(name)
            group["features"], group["boxes"], group["image_h"] = features, corners, HEIGHT
            group.attrs["image_w"] = WIDTH
    return folder / "x.h5"


def write_spatial(folder: Path, items: list[Item]) -> Path:
    """As BUTD's HDF5 files: features [T, F], corners in pixels and as fractions."""
    ends = np.cumsum([len(features) for _, features, _ in items])
    starts = np.concatenate([[0], ends[:-1]])
    corners = np.concatenate([corners for _, _, corners in items])
    fractions = corners / np.array([WIDTH, HEIGHT] * 2, np.float32)
    with h5py.File(folder / "x.hdf5", "w") as file:
        file["image_features"] = np.concatenate([features for _, features, _ in items])
        file["pos_boxes"], file["image_bb"] = np.stack([starts, ends], axis=1), corners
        file["spatial_features"] = np.concatenate([fractions, fractions[:, :2]], axis=1)
    return folder / "x.hdf5"


def write_pickles(folder: Path, items: list[Item]) -> Path:
    records = {name.encode(): record(name, *rest) for name, *rest in items}
    return write_lmdb(folder / "x.lmdb", {**records, b"keys": pickle.dumps([name for name, *_ in items])})


def write_archives(folder: Path, items: list[Item]) -> Path:
    return write_lmdb(folder / "db", {f"{item[0]}.npz".encode(): npz_record(*item) for item in items})


WRITERS = [write_tsv, write_folder, write_groups, write_spatial, write_pickles, write_archives]


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_gives_the_same_features_and_boxes(
    write: Callable[[Path, list[Item]], Path], tmp_path: Path
) -> None:
    items = _items()
    source = write(tmp_path, items)
    done = convert_features(source, tmp_path / "out")
    assert (done.images, done.regions, done.boxed) == (3, 10, True)
    names = ["0", "1", "2"] if write is write_spatial else ["im0", "im1", "im2"]
    assert (tmp_path / "out" / "ids.txt").read_text().split() == names
    store = open_features(done.file)
    assert store.boxes is not None
    rows = np.arange(3)
    for (_, features, corners), found, boxes in zip(items, store.read(rows), store.boxes(rows), strict=True):
        np.testing.assert_array_equal(found, features)
        assert boxes is not None
        ends = (boxes[:, :2] + boxes[:, 2:]) * [WIDTH, HEIGHT]
        np.testing.assert_allclose(boxes[:, :2] * [WIDTH, HEIGHT], corners[:, :2], atol=1e-3)
        np.testing.assert_allclose(ends, corners[:, 2:], atol=1e-3)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["boxes", "bbox"])
def test_boxes_in_pixels_beside_all_images_have_a_size_for_each(
    name: str, flat: bool, suffix: str, tmp_path: Path
) -> None:
    """Of pictures of different sizes; without the sizes, or with those of other images, the boxes are unknown."""
    widths, heights = np.array([100, 200, 50]), np.array([[80.0], [40.0], [20.0]])
    fractions = np.array([[0.1, 0.25, 0.5, 0.5], [0, 0, 1, 1]])  # left, top, width, height of each image
    corners = np.concatenate([fractions[:, :2], fractions[:, :2] + fractions[:, 2:]], axis=1)
    scale = np.concatenate([widths[:, None], heights, widths[:, None], heights], axis=1)
    pixels = corners * scale[:, None]  # [3, 2, 4]
    arrays = {"features": np.ones((3, 2, DIM), np.float32), name: pixels.round().astype(np.int32)}
    if flat:
        arrays = {key: array.reshape(6, -1) for key, array in arrays.items()}
        arrays["pos_boxes"] = np.array([[0, 2], [2, 4], [4, 6]])
    path = tmp_path / f"x{suffix}"

    def found(why: str = "", **sizes: np.ndarray) -> list[np.ndarray | None] | None:
        path.unlink(missing_ok=True)
        if suffix == ".npz":
            np.savez(path, **arrays, **sizes)
        else:
            h5py = pytest.importorskip("h5py", reason="h5py is not installed")
            with h5py.File(path, "w") as file:
                for key, array in {**arrays, **sizes}.items():
                    file[key] = array
        store = open_features(path)
        assert store.unplaced.replace(", image_w and image_h", "") == why
        return None if store.boxes is None else store.boxes(np.array([2, 0]))

    boxes = found(image_w=widths, image_h=heights)
    assert boxes is not None
    for one in boxes:
        np.testing.assert_allclose(one, fractions, atol=1e-6)
    rule = f"{name} in pixels need the sizes of the pictures beside them, 3 numbers each, got"
    assert found(f"{rule} none") is None
    assert found(f"{rule} image_w [3]", image_w=widths) is None
    two = {"image_w": widths[:2], "image_h": heights[:2]}
    assert found(f"{rule} image_w [2] and image_h [2, 1]", **two) is None
    with pytest.raises(InputError, match=f"{name} of image 2: a box must be inside the picture"):
        found(image_w=widths, image_h=heights / 2)


def sizeless_folder(folder: Path, items: list[Item]) -> Path:
    (folder / "x").mkdir()
    for number, (name, features, corners) in enumerate(items):
        sizes = {"image_w": WIDTH, "image_h": HEIGHT} if number == 1 else {}
        np.savez(folder / "x" / f"{name}.npz", features=features, bbox=corners, **sizes)
    return folder / "x"


def sizeless_groups(folder: Path, items: list[Item]) -> Path:
    with h5py.File(folder / "x.h5", "w") as file:
        for number, (name, features, corners) in enumerate(items):
            group = file.create_group(name)
            group["features"], group["bbox"] = features, corners
            group.attrs.update({"image_w": WIDTH, "image_h": HEIGHT} if number == 1 else {"image_w": WIDTH})
    return folder / "x.h5"


def sizeless_records(folder: Path, items: list[Item]) -> Path:
    plain = {"image_w": WIDTH, "image_h": HEIGHT}
    records = {}
    for number, (name, features, corners) in enumerate(items):
        sizes = plain if number == 1 else {}
        records[name.encode()] = pickle.dumps(
            {"num_boxes": len(features), "bbox": encoded(corners), "features": encoded(features), **sizes}
        )
    return write_lmdb(folder / "x.lmdb", records)


@pytest.mark.parametrize("write", [sizeless_folder, sizeless_groups, sizeless_records])
@pytest.mark.parametrize("every", [False, True])
def test_boxes_in_pixels_of_images_without_a_size_are_named(
    write: Callable[[Path, list[Item]], Path], every: bool, tmp_path: Path
) -> None:
    items = _items()[:1] if every else _items()
    store = open_features(write(tmp_path, items))
    which = "all images" if every else "2 of 3"
    rule = "bbox in pixels need the sizes of the pictures beside them, image_w and image_h"
    assert store.unplaced == f"{rule}, which those of {which} lack"
    assert store.boxes is not None
    assert [one is None for one in store.boxes(np.arange(store.count))] == ([True] if every else [True, False, True])


def test_boxes_that_need_no_size_are_not_called_left_out(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    boxes = np.array([[0, 0, 1, 1], [0.5, 0.5, 0.25, 0.25]], np.float32)
    np.savez(tmp_path / "x" / "a.npz", features=np.ones((2, DIM), np.float32), boxes=boxes)
    np.savez(tmp_path / "x" / "b.npz", features=np.ones((2, DIM), np.float32))
    assert open_features(tmp_path / "x").unplaced == ""


def test_boxes_of_another_shape_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=np.ones((3, 2, DIM), np.float32), boxes=np.zeros((3, 5, 4)), bbox=np.zeros(3))
    rule = "must be numbers [3, 2, 4], got float64"
    assert open_features(tmp_path / "x.npz").unplaced == f"boxes {rule} [3, 5, 4]; bbox {rule} [3]"
    result = chan("features", "--from", tmp_path / "x.npz", "-o", tmp_path / "out", "--json")
    assert result.stderr.startswith(f"Warning: boxes are left out: boxes {rule}")
    assert json.loads(result.stdout)["boxes_left_out"].startswith(f"boxes {rule}")
    assert not json.loads(result.stdout)["boxes"]


@pytest.mark.parametrize(("without", "found"), [(0, "image 1 is the first that has some"), (2, "image 2 has none")])
def test_boxes_of_some_images_are_never_lost_without_a_word(tmp_path: Path, without: int, found: str) -> None:
    items = _items()
    folder = write_folder(tmp_path, items)
    np.savez(folder / f"{items[without][0]}.npz", features=items[without][1])
    with pytest.raises(InputError, match=f"all images must have boxes, or none, and {found}"):
        convert_features(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _named(path: Path, **arrays: Any) -> Path:
    """Features [3, 2, DIM] of which image i has the number i everywhere, with arrays beside them."""
    features = np.ones((3, 2, DIM), np.float32) * np.arange(3, dtype=np.float32)[:, None, None]
    if path.suffix == ".npz":
        np.savez(path, features=features, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, array in {"features": features, **arrays}.items():
                file[name] = array
    return path


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
@pytest.mark.parametrize(
    ("name", "ids", "lines"),
    [
        ("ids", np.array(["c", "a", "é"]), ["c", "a", "é"]),
        ("image_ids", np.array([b"c", b"a", b"b"]), ["c", "a", "b"]),
        ("image_id", np.array([7, 391895, -1]), ["7", "391895", "-1"]),
    ],
)
def test_ids_in_the_file_name_the_images(
    tmp_path: Path, suffix: str, name: str, ids: np.ndarray, lines: list[str]
) -> None:
    if suffix == ".h5" and ids.dtype.kind == "U":
        ids = ids.astype(h5py.string_dtype())
    source = _named(tmp_path / f"x{suffix}", **{name: ids, "class_scores": np.ones(3), "other": np.ones(1)})
    done = convert_features(source, tmp_path / "out")
    assert (tmp_path / "out/ids.txt").read_text(encoding="utf-8").splitlines() == lines
    assert done.left_out == ("class_scores", "other")
    command = ["features", "--from", str(source), "-o", str(tmp_path / "out"), "--force"]
    assert "left out: class_scores, other, which are" in chan(*command).output


def _with_more(folder: Path, form: str) -> Path:
    """Two images in a form that keeps each by itself; each has an array beside that is not read."""
    one, two, _ = _items()
    more = (one, {"class_scores": np.ones(3), "image_id": np.array(1)}), (two, {"tags": np.ones((5, 2))})
    if form == "groups":
        source = write_groups(folder, [one, two])
        with h5py.File(source, "a") as file:
            for (name, *_), arrays in more:
                for array in arrays:
                    file[name][array] = arrays[array]
        return source
    if form == "pickles":
        records = {item[0].encode(): record(*item, **{name: [1.0] for name in arrays}) for item, arrays in more}
        return write_lmdb(folder / "x.lmdb", records)
    archives = {item[0]: npz_record(*item, **arrays) for item, arrays in more}
    if form == "archives":
        return write_lmdb(folder / "x.lmdb", {name.encode(): content for name, content in archives.items()})
    (folder / "x").mkdir()
    for name, content in archives.items():
        (folder / "x" / f"{name}.npz").write_bytes(content)
    return folder / "x"


@pytest.mark.parametrize("form", ["folder", "groups", "pickles", "archives"])
def test_arrays_of_single_images_that_are_not_read_are_named(tmp_path: Path, form: str) -> None:
    done = convert_features(_with_more(tmp_path, form), tmp_path / "out")
    assert (done.images, done.boxed, done.left_out) == (2, True, ("class_scores", "tags"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": np.array(["a", "b"])}, r"x\.npz: ids must be 3 texts or integers, got <U1 \[2\]"),
        ({"ids": np.ones(3)}, r"x\.npz: ids must be 3 texts or integers, got float64 \[3\]"),
        ({"ids": np.array(["a", "b", "a"])}, r"x\.npz: ids must name each image once, got 'a' 2 times"),
        ({"ids": np.array(["a", "b", "c"], object)}, r"x\.npz: ids\.npy holds Python objects"),
        ({"ids": np.arange(3), "image_id": np.arange(3)}, r"one array may hold the ids .*, got ids, image_id"),
    ],
)
def test_ids_that_do_not_name_the_images_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert_features(_named(tmp_path / "x.npz", **arrays), tmp_path / "out")


@pytest.mark.parametrize(
    ("dtype", "rounded"),
    [("<f2", None), (">f4", None), ("<f8", "float64"), (">f8", "float64"), (np.longdouble, np.longdouble().dtype.name)],
)
def test_numbers_that_are_rounded_are_said(tmp_path: Path, dtype: Any, rounded: str | None) -> None:
    np.save(tmp_path / "x.npy", np.linspace(0.25, 1, 12).astype(dtype).reshape(3, 2, 2))
    command = ["features", "--from", str(tmp_path / "x.npy"), "-o", str(tmp_path / "out"), "--force"]
    shown = chan(*command).output
    said = [line for line in shown.splitlines() if line.endswith(" values were rounded to float32")]
    assert said == ([] if rounded is None else [f"{rounded} values were rounded to float32"])
    found = json.loads(chan(*command, "--json").stdout)
    assert found["rounded"] == (rounded is not None)


def test_a_split_takes_the_images_that_it_names(tmp_path: Path) -> None:
    """They came in the order of the file, so every caption had the features of another image."""
    (tmp_path / "precomp").mkdir()
    _named(tmp_path / "precomp/test_ims.npz", ids=np.array(["c", "a", "b"]))
    (tmp_path / "precomp/test_caps.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "precomp/test_ids.txt").write_text("a\na\nc\n")
    found = CaptionedImages.open(tmp_path, "test")
    assert found.image_ids == ["a", "c"]
    assert found.image_of_caption.tolist() == [0, 0, 1]
    assert found.regions(slice(None))[0][:, 0, 0].tolist() == [1, 0]
    (tmp_path / "precomp/test_ids.txt").write_text("a\nb\nd\n")
    with pytest.raises(InputError, match=r"names its images itself, and none 'd', which test_ids\.txt names"):
        CaptionedImages.open(tmp_path, "test")
    (tmp_path / "precomp/test_ids.txt").unlink()
    assert CaptionedImages.open(tmp_path, "test").image_ids == ["c", "a", "b"]


def test_images_of_one_size_come_from_an_array(tmp_path: Path) -> None:
    regions = np.random.default_rng(1).normal(size=(3, 4, DIM)).astype(np.float16)
    np.save(tmp_path / "x.npy", regions)
    done = convert_features(tmp_path / "x.npy", tmp_path / "out")
    assert (done.regions, done.boxed) == (12, False)
    found = open_features(done.file).read(np.arange(3))
    np.testing.assert_array_equal(np.stack(found), regions.astype(np.float32))


def test_the_command(tmp_path: Path) -> None:
    source = write_tsv(tmp_path, _items())
    command = ["features", "--from", str(source), "-o", str(tmp_path / "out")]
    result = ok(*command, "--json")
    assert json.loads(result) == {
        "features": str(tmp_path / "out" / "ims.npz"), "rows": 3, "regions": 10, "boxes": True,
        "left_out": [], "rounded": False, "boxes_left_out": None,
    }  # fmt: skip
    again = chan(*command)
    assert again.exit_code == 1
    assert "already exists" in again.output
    assert "10 regions of 3 images, with their boxes" in chan(*command, "--force").output
    both = chan(*command, "picture.png")
    assert both.exit_code == 2
    assert "IMAGES or --from, not both" in both.output


ITEM = _items()[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": b"%%%"}, "boxes must be base64"),
        ({"boxes": encoded(np.zeros(11, np.float32))}, r"boxes must be float32 \[3, 4\], got 11 numbers"),
        ({"boxes": encoded(np.full((3, 4), np.nan, np.float32))}, "a box must be inside the picture"),
        ({"boxes": encoded(np.full((3, 4), 500, np.float32))}, "a box must be inside the picture"),
        ({"w": b"0"}, "the picture's size must be positive"),
        ({"w": b"wide"}, "image_w and image_h must be numbers"),
        ({"features": encoded(ITEM[1])[:-4] + b"%%%%"}, "features must be base64"),
        ({"features": encoded(ITEM[1])[:-8]}, "features must be float32"),
        ({"features": encoded(np.full((3, DIM), np.inf, np.float32))}, "must be finite"),
        ({"n": b"0"}, "every image must have a region"),
        ({"n": b"-1"}, "num_boxes must not be negative"),
        ({"n": b"4"}, r"boxes must be float32 \[4, 4\], got 12 numbers"),
        ({"id": b""}, "an image id must be one line of text"),
        ({"id": b"\xff"}, "image_id must be text"),
    ],
)
def test_a_damaged_line_is_named(changes: dict[str, bytes], message: str, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_bytes(tsv_line(*ITEM, **changes))
    with pytest.raises(InputError, match=message):
        convert_features(tmp_path / "x.tsv", tmp_path / "out")
    assert not (tmp_path / "out" / "ims.npz").exists()


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/chan-evil-record",)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (pickle.dumps(_Evil()), r"would import (posix|os)\.mkdir"),
        (pickle.dumps([1, 2]), "must be a dictionary"),
        (b"\x80\x05garbage", "damaged|neither"),
        (b"PK\x03\x04 no archive", "damaged"),
        (record(*ITEM)[:-40], "damaged|neither"),
        (record(*ITEM, num_boxes=0), r"features must be float32 \[num_boxes, F\]"),
        (record(*ITEM, num_boxes="3"), r"features must be float32 \[num_boxes, F\]"),
        (record(*ITEM, features=b"!!"), "must be base64"),
        (record(*ITEM, boxes=encoded(np.zeros(7, np.float32))), "boxes must be float32"),
        (record(*ITEM, features=[[1.0], [2.0, 3.0]]), "damaged|inhomogeneous|must"),
        (pickle.dumps({"boxes": b""}), "has no `features`"),
    ],
)
def test_a_damaged_record_is_named_and_never_run(value: bytes, message: str, tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "x.lmdb", {b"im0": value})
    with pytest.raises(InputError, match=message) as caught:
        convert_features(path, tmp_path / "out")
    assert str(caught.value).startswith(f"{path}: image 'im0'")
    assert not Path("/tmp/chan-evil-record").exists()


def test_what_is_no_lmdb_is_refused(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "empty.lmdb", {})
    with pytest.raises(InputError, match="must hold 1 to"):
        open_features(tmp_path / "empty.lmdb")
    (tmp_path / "x.lmdb").write_bytes(b"nothing" * 1000)
    with pytest.raises(InputError, match="cannot be read as an LMDB"):
        open_features(tmp_path / "x.lmdb")


@pytest.mark.parametrize("name", ["x.csv", "missing.tsv", "missing"])
def test_a_source_in_no_form_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("1,2\n")
    with pytest.raises(ChanError, match=r"must end in|must be a file|cannot be read|is missing"):
        open_features(tmp_path / name)


@pytest.mark.parametrize(
    ("features", "boxes", "message"),
    [
        (np.ones((3, 2), np.float32), None, "1 to 2 regions of 2 features"),
        (np.ones((0, 2), np.float32), None, "1 to 2 regions of 2 features"),
        (np.ones((2, 3), np.float32), None, "1 to 2 regions of 2 features"),
        (np.full((2, 2), np.nan, np.float32), None, "must be finite"),
    ],
)
def test_a_flat_file_has_what_was_announced(
    features: np.ndarray, boxes: np.ndarray | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message), FlatWriter(tmp_path / "x.npz", np.array([2, 2]), 2) as writer:
        writer.add(features, boxes)
    assert list(tmp_path.iterdir()) == []


def test_a_flat_file_has_every_image_and_every_box(tmp_path: Path) -> None:
    one, boxes = np.ones((2, 2), np.float32), np.full((2, 4), 0.5, np.float32)
    with (
        pytest.raises(InputError, match="must have 2 images, got 1"),
        FlatWriter(tmp_path / "x.npz", np.array([2, 2]), 2) as writer,
    ):
        writer.add(one)
    with FlatWriter(tmp_path / "y.npz", np.array([2, 2]), 2) as writer:
        writer.add(one, boxes)
        with pytest.raises(InputError, match="all images must have boxes, or none"):
            writer.add(one)
        writer.add(one, boxes)
    (tmp_path / "y.npz").unlink()
    assert list(tmp_path.iterdir()) == []


def test_an_error_names_the_source_and_the_image(tmp_path: Path) -> None:
    features = np.ones((3, 2, 4), np.float32)
    features[1, 0, 0] = np.nan
    np.save(tmp_path / "source.npy", features)
    with pytest.raises(InputError, match=r"source\.npy, image id 1: the features of image 1 must be finite, got NaN"):
        convert_features(tmp_path / "source.npy", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tsv_with_a_header_is_refused_in_plain_words(tmp_path: Path) -> None:
    names = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
    (tmp_path / "x.tsv").write_text("\t".join(names) + "\n")
    with pytest.raises(
        InputError, match=r"line 1: image_id must be text and num_boxes a number, got .* and 'num_boxes'$"
    ):
        convert_features(tmp_path / "x.tsv", tmp_path / "out")
