"""A data folder as a source of rows: an id is the row in its split, whatever was left out."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chan_rt.runtime.errors import InputError
from chan_rt.runtime.gallery import Gallery
from chan_rt.runtime.indexing.data_sources import open_source

from ...run_chan import chan, ok


def test_ids_are_rows_of_the_split_also_where_captions_were_left_out(tmp_path: Path) -> None:
    (tmp_path / "precomp").mkdir()
    lines = ["a cat", " ", "a dog", "a hat", " ", " ", "a sun", "an ear"]
    (tmp_path / "precomp/test_caps.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "precomp/test_ids.txt").write_text("w\nx\ny\nz\n")
    features = np.random.default_rng(0).random((4, 2, 3), np.float32)
    np.save(tmp_path / "precomp/test_ims.npy", features)
    captions, images = open_source([tmp_path], captions=True), open_source([tmp_path])
    assert list(captions.ids) == ["test/0", "test/2", "test/3", "test/6", "test/7"]
    assert [row["row"] for row in captions.metadata] == [0, 1, 1, 3, 3]
    assert list(images.ids) == ["test/0", "test/1", "test/3"]
    assert [row["image_id"] for row in images.metadata] == ["w", "x", "z"]
    assert [row["captions"] for row in images.metadata] == [["a cat"], ["a dog", "a hat"], ["a sun", "an ear"]]
    assert list(images.queries) == ["a cat", "a dog", "a hat", "a sun", "an ear"]
    assert len(images.skipped) == len(captions.skipped) == 4  # three captions, and the image that has no other
    same = [images.origins[0].digest(), images.origins[2].digest()]
    (tmp_path / "precomp/test_caps.txt").write_text("\n".join(["a", *lines[1:]]) + "\n")
    again = open_source([tmp_path])
    assert [again.origins[0].digest(), again.origins[2].digest()] == same


@pytest.mark.skipif(sys.platform != "linux", reason="such names are Linux's")
def test_a_data_folder_of_a_path_that_is_no_text_is_refused(tmp_path: Path) -> None:
    boxed_data(tmp_path / "caf\udce9", [[0, 0, 100, 200]] * 2)
    for captions in (False, True):
        with pytest.raises(InputError, match="path of a data folder must be UTF-8 to be indexed: rename it"):
            open_source([tmp_path / "caf\udce9"], captions=captions)


def boxed_data(folder: Path, boxes: list[list[float]]) -> None:
    """Two pictures of two regions: the first has boxes in pixels of a picture of 100 x 200, the second has none."""
    files = folder / "precomp" / "test_ims"
    files.mkdir(parents=True, exist_ok=True)
    (folder / "precomp/test_caps.txt").write_text("a red apple\na blue table\n")
    (folder / "precomp/test_ids.txt").write_text("apple\ntable\n")
    Image.new("RGB", (100, 200), "red").save(folder / "apple.png")
    (folder / "id_mapping.json").write_text(json.dumps({"apple": "apple.png", "table": "table.png"}))
    rng = np.random.default_rng(0)
    features = rng.random((2, 2, 12), np.float32)
    np.savez(files / "apple.npz", features=features[0], bbox=np.float32(boxes), image_w=100, image_h=200)
    np.savez(files / "table.npz", features=features[1])


def test_boxes_that_do_not_come_into_the_gallery_are_named(make_small_model: Callable, tmp_path: Path) -> None:
    bundle, data = make_small_model().bundle, tmp_path / "data"
    boxed_data(data, [[10, 20, 60, 100], [0, 0, 100, 200]])
    assert json.loads(ok("index", bundle, data, "-o", tmp_path / "g0", "--json"))["notes"] == []
    features = np.random.default_rng(0).random((2, 2, 12), np.float32)
    np.savez(data / "precomp/test_ims/apple.npz", features=features[0], bbox=np.ones((2, 4), np.float32))
    for name in ("test_boxes.npy", "test_ims_bbx.npy", "dev_boxes.npy"):
        np.save(data / "precomp" / name, np.zeros((2, 2, 4)))
    result = chan("index", bundle, data, "-o", tmp_path / "g1", "--json")
    assert result.exit_code == 0
    left_out, unread = json.loads(result.stdout)["notes"]
    assert result.stderr == f"Warning: {left_out}\nWarning: {unread}\n"
    assert left_out.endswith("bbox in pixels need the sizes of the pictures beside them, image_w and image_h, "
                             "which those of 1 of 2 lack.")  # fmt: skip
    assert unread.startswith(f"{data}/precomp/test_boxes.npy, {data}/precomp/test_ims_bbx.npy: not read.")
    assert json.loads(ok("index", bundle, data, "-o", tmp_path / "g2", "--captions", "--json"))["notes"] == []


def test_boxes_of_a_data_folder_travel_with_the_gallery_and_are_drawn(make_small_model: Callable, tmp_path: Path):
    bundle, data, gallery = make_small_model().bundle, tmp_path / "data", tmp_path / "gallery"
    boxed_data(data, [[10, 20, 60, 100], [0, 0, 100, 200]])
    ok("index", bundle, data, "-o", gallery)
    with Gallery.open(gallery) as opened:
        apple, table = opened.rows()
    assert apple.metadata["boxes"] == [[0.1, 0.1, 0.5, 0.4], [0, 0, 1, 1]]
    assert "boxes" not in table.metadata
    ok("search", gallery, "a red apple", "--html", tmp_path / "page.html", "--where", "image_id=apple")
    drawn = re.findall(r'"box": ?(\[[^]]*\])', (tmp_path / "page.html").read_text())
    assert drawn
    assert all(json.loads(box) in apple.metadata["boxes"] for box in drawn)
    found = json.loads(ok("explain", gallery, "data/test/0", "a red apple", "--json"))
    assert all([round(part, 6) for part in word["box"]] in apple.metadata["boxes"] for word in found["words"])
    ok("explain", gallery, "data/test/0", "a red apple", "-o", tmp_path / "why.png")
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 100
    boxed_data(data, [[20, 20, 60, 100], [0, 0, 100, 200]])
    assert "1 encoded, 1 already there" in ok("index", bundle, data, "-o", gallery)
    with Gallery.open(gallery) as opened:
        by_image = {row.metadata["image_id"]: row.metadata for row in opened.rows()}
    assert by_image["apple"]["boxes"] == [[0.2, 0.1, 0.4, 0.4], [0, 0, 1, 1]]
