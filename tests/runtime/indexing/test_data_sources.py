"""A data folder as a source of rows: an id is the row in its split, whatever was left out."""

from pathlib import Path

import numpy as np

from chan_rt.runtime.indexing.data_sources import open_source


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
