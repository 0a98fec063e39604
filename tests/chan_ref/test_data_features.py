"""Features of a data folder: every split, each row of its own picture, continued and never mixed."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chan_rt.chan_ref.data_features import pictures_of, write_data_features
from chan_rt.chan_ref.features import Encoder, _Unfinished, write_features
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.errors import InputError

from ..run_chan import chan, ok


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of one color each, two captions each, in two splits; their ids are not in the order of names."""
    folder = tmp_path_factory.mktemp("photos")
    lines = []
    for name, split, color in (("c", "train", "red"), ("a", "train", "green"), ("b", "test", "blue")):
        Image.new("RGB", (40, 30), color).save(folder / f"{name}.png")
        lines += [{"path": f"{name}.png", "caption": [f"{color} all over", f"nothing but {color}"], "split": split}]
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    ok("data", folder / "t.jsonl", "-o", folder)
    ok("features", folder, "-o", folder)
    return folder


def test_each_row_has_the_features_of_its_own_picture(data: Path) -> None:
    train = CaptionedImages.open(data, "train")
    assert train.captions == ["red all over", "nothing but red", "green all over", "nothing but green"]
    regions, lengths = train.regions([0, 1])
    assert lengths.tolist() == [36, 36]
    np.testing.assert_array_equal(regions, Encoder().encode([data / "c.png", data / "a.png"]).features)
    assert CaptionedImages.open(data, "test").pictures() == [data / "b.png"]


def test_what_is_there_is_kept_and_what_does_not_fit_is_refused(data: Path) -> None:
    file = data / "precomp/train_ims.npy"
    before = file.stat().st_mtime_ns
    assert list(write_data_features(pictures_of(data))) == [2, 1]
    assert file.stat().st_mtime_ns == before
    whole = np.load(file)
    np.save(file, whole[:1])
    with pytest.raises(InputError, match="has 1 row for 2 pictures: replace it with --force"):
        list(write_data_features(pictures_of(data)))
    assert list(write_data_features(pictures_of(data), force=True)) == [2, 1]
    np.testing.assert_array_equal(np.load(file), whole)
    np.savez(data / "precomp/test_ims.npz", features=whole[:1])
    (data / "precomp/test_ims.npy").unlink()
    with pytest.raises(InputError, match=r"test_ims\.npz is not test_ims\.npy"):
        list(write_data_features(pictures_of(data), force=True))
    (data / "precomp/test_ims.npz").unlink()


def test_features_go_into_the_data_folder(data: Path, tmp_path: Path) -> None:
    result = chan("features", data, "-o", tmp_path / "other")
    assert result.exit_code == 2
    assert "--out must be the data folder itself" in result.output


def test_an_id_without_a_picture_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "precomp").mkdir()
    with pytest.raises(InputError, match="has no split with captions and ids"):
        pictures_of(tmp_path)
    (tmp_path / "precomp/dev_caps.txt").write_text("a dog\n")
    (tmp_path / "precomp/dev_ids.txt").write_text("x.png\n")
    with pytest.raises(InputError, match=r"must name the picture of every id of dev, got none for 'x\.png'"):
        pictures_of(tmp_path)


def test_a_full_disk_is_an_error_and_leaves_nothing(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room that is reserved, writing to the map would end the process with SIGBUS."""

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = sorted((data / "precomp").iterdir())
    result = chan("features", data, "-o", data, "--force")
    assert (result.exit_code, result.output.splitlines()[-1]) == (
        1,
        f"Error: {data / 'precomp/train_ims.npy'}: No space left on device",
    )
    assert sorted((data / "precomp").iterdir()) == before


def test_two_processes_never_write_features_to_one_folder(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    writing = write_features([data / "a.png", data / "b.png", data / "c.png"], out)
    assert next(writing) == 2
    result = chan("features", data / "a.png", "-o", out)
    wanted = f"Error: another process writes features to {out}: wait for it to end, or choose another folder"
    assert (result.exit_code, result.output.splitlines()[-1]) == (1, wanted)
    assert list(writing) == [1]
    assert sorted(path.name for path in out.iterdir()) == ["ims.npy", "names.txt"]


def test_a_disk_that_fills_up_is_named_and_nothing_is_left(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's error has no name where an open file is written."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_Unfinished, "add", full)
    out = tmp_path / "made" / "out"
    result = chan("features", data / "a.png", "-o", out)
    assert (result.exit_code, result.output.splitlines()[-1]) == (1, f"Error: {out}: No space left on device")
    assert list(tmp_path.iterdir()) == []
