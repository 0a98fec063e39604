"""From pictures and captions on disk to a data folder: what goes in, what is left out, and that nothing is lost."""

import errno
import json
import os
import unicodedata
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.data.layout import SplitFiles
from chan_rt.runtime.own_data.alike import alike
from chan_rt.runtime.own_data.check import Checked
from chan_rt.runtime.own_data.splits import Shares

from ...run_chan import chan


def picture(file: Path, seed: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (9, 8, 3), dtype=np.uint8)).save(file)
    return file


def chan_data(*words: object) -> Result:
    return chan("data", *words)


def table(folder: Path, rows: list[str], header: str = "path,caption", name: str = "captions.csv") -> Path:
    file = folder / name
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return file


def content(data: Path, split: str) -> dict[str, list[str]]:
    """Captions by image id, as the files say."""
    files = SplitFiles.below(data, split)
    if not files.captions.exists():
        return {}
    found: dict[str, list[str]] = {}
    lines = zip(files.ids.read_text().splitlines(), files.captions.read_text().splitlines(), strict=True)
    for image_id, caption in lines:
        found.setdefault(image_id, []).append(caption)
    return found


def left_out(data: Path) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = json.loads((data / "data.json").read_text())["left_out"]
    return found


def add_features(data: Path) -> None:
    """One region each, whose feature is the place of the picture in its split."""
    for split in ("train", "dev", "test"):
        images = content(data, split)
        if images:
            rows = np.arange(len(images), dtype=np.float32).reshape(-1, 1, 1)
            np.save(SplitFiles.below(data, split).features(), rows)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty pictures, with one to three captions each, as a table."""
    folder = tmp_path / "photos"
    lines = []
    for number in range(40):
        picture(folder / f"{number:02}.png", number)
        lines += [f"{number:02}.png,thing {number} in view {view}" for view in range(1 + number % 3)]
    table(folder, lines)
    return folder


def test_every_caption_reaches_its_picture(photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    result = chan_data(photos / "captions.csv", "-o", data, "--dev-share", "0.3", "--test-share", "0.3", "--strict")
    assert result.exit_code == 0, result.output
    add_features(data)
    seen: dict[str, list[str]] = {}
    for split in ("train", "dev", "test"):
        images = CaptionedImages.open(data, split)
        assert images.num_images == len(content(data, split)) > 3
        assert images.image_ids is not None
        files = images.pictures()
        for caption, row in zip(images.captions, images.image_of_caption, strict=True):
            regions, _ = images.regions([row])
            image_id = images.image_ids[row]
            assert list(content(data, split))[int(regions.item())] == image_id
            assert files[row] == photos / image_id
            seen.setdefault(image_id, []).append(caption)
    expected = {
        f"{number:02}.png": [f"thing {number} in view {view}" for view in range(1 + number % 3)] for number in range(40)
    }
    assert seen == expected


def test_splits_are_those_of_the_content_alone(photos: Path, tmp_path: Path) -> None:
    chan_data(photos / "captions.csv", "-o", tmp_path / "one", "--dev-share", "0.3")
    renamed = tmp_path / "renamed"
    lines = []
    for number in reversed(range(40)):
        renamed.mkdir(exist_ok=True)
        (photos / f"{number:02}.png").rename(renamed / f"x{number:02}.png")
        lines.append(f"x{number:02}.png,a caption of {number}")
    lines.append("more.png,one more")
    picture(renamed / "more.png", 99)
    chan_data(table(renamed, lines), "-o", tmp_path / "two", "--dev-share", "0.3")
    for split in ("train", "dev", "test"):
        again = {name.removeprefix("x") for name in content(tmp_path / "two", split)} - {"more.png"}
        assert again == set(content(tmp_path / "one", split))
    chan_data(table(renamed, lines), "-o", tmp_path / "three", "--dev-share", "0.3", "--seed", "1")
    assert content(tmp_path / "three", "dev") != content(tmp_path / "two", "dev")


def test_shares_hold_on_average() -> None:
    shares = Shares(dev=0.2, test=0.05)
    found = [shares.split_of(f"{number:064x}") for number in range(4000)]
    assert found.count("dev") / 4000 == pytest.approx(0.2, abs=0.02)
    assert found.count("test") / 4000 == pytest.approx(0.05, abs=0.012)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_equal_pictures_are_one_and_in_one_split(tmp_path: Path, suffix: str) -> None:
    """Copies under other names and in another lossless format: no split shares a picture with another."""
    folder, lines = tmp_path / "photos", []
    for number in range(30):
        picture(folder / f"{number}.png", number)
        picture(folder / f"copies/{number}{suffix}", number)
        lines += [f"{number}.png,thing {number}", f"copies/{number}{suffix},the same {number}"]
        lines.append(f"{number}.png,the same {number}")
    data = tmp_path / "data"
    result = chan_data(table(folder, lines), "-o", data, "--dev-share", "0.3", "--test-share", "0.3")
    assert result.exit_code == 0, result.output
    found = {image: captions for split in ("train", "dev", "test") for image, captions in content(data, split).items()}
    assert {image: set(captions) for image, captions in found.items()} == {
        f"{number}.png": {f"thing {number}", f"the same {number}"} for number in range(30)
    }
    kinds = left_out(data)
    assert len(kinds["pictures that equal another one of their split, with which they are joined"]) == 30
    assert len(kinds["captions that repeat one of the same picture"]) == 30
    assert chan_data(table(folder, lines), "-o", data, "--force", "--strict").exit_code == 1


def test_a_picture_in_two_given_splits_is_evaluated_and_not_trained_on(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for name, seed in (("a", 1), ("b", 1), ("c", 1), ("d", 2), ("e", 3), ("f", 3)):
        picture(folder / f"{name}.png", seed)
    rows = ["a.png,one,train", "b.png,two,test", "c.png,three,dev", "d.png,four,train", "e.png,five,val"]
    file = table(folder, [*rows, "f.png,six,train"], "path,caption,split")
    result = chan_data(file, "-o", tmp_path / "data")
    assert result.exit_code == 0, result.output
    assert [content(tmp_path / "data", split) for split in ("train", "dev", "test")] == [
        {"d.png": ["four"]},
        {"e.png": ["five"]},
        {"b.png": ["two"]},
    ]
    leaks = left_out(tmp_path / "data")["pictures that equal one of another split, from which they are left out"]
    assert [leak["item"] for leak in leaks] == ["a.png", "c.png", "f.png"]
    assert "pictures that equal one of another split, from which they are left out: 3\n" in result.output


def test_what_cannot_be_used_is_listed_with_its_reason(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    picture(folder / "good.png", 1)
    picture(folder / "Capital.png", 2)
    picture(tmp_path / "outside.png", 3)
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:60])
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to("nowhere.png")
    (folder / "inside.png").symlink_to("good.png")
    expected = {
        "text.png": "it is in no format that Pillow knows, or damaged",
        "cut.png": "",
        "folder.png": "it is a folder, not a picture",
        "pipe.png": "it is not a regular file",
        "link.png": "it is a link to a file that does not exist",
        "missing.png": "there is no such file in",
        "capital.png": "'Capital.png' differs in capital letters",
        "../outside.png": "it lies outside of",
        str(tmp_path / "outside.png"): "it lies outside of",
        "sub/../../outside.png": "it lies outside of",
        "https://example.org/a.png": "it is an address: download the picture",
        "": "the path is empty",
    }
    rows = [f"{name},a caption" for name in expected]
    rows += ["good.png,...", "good.png, ", "good.png,a dog", "good.png,a dog", "inside.png,a hound"]
    rows += ["Capital.png,?!", "missing.png,again"]
    data = tmp_path / "data"
    result = chan_data(table(folder, rows), "-o", data, "--dev-share", "0", "--test-share", "0")
    assert result.exit_code == 0, result.output
    assert content(data, "train") == {"good.png": ["a dog", "a hound"]}
    kinds = left_out(data)
    lost = kinds["pictures that are missing"] + kinds["pictures that cannot be read"]
    for name, reason in expected.items():
        (found,) = [one for one in lost if one["item"].startswith((f"{name} (", str(folder / name) if name else " ("))]
        assert reason in found["reason"]
    assert len(lost) == len(expected)
    assert [note["reason"] for note in kinds["captions without a word"]] == ["it is '...'", "it is ''", "it is '?!'"]
    assert len(kinds["captions that repeat one of the same picture"]) == 1
    assert [note["item"] for note in kinds["pictures without a caption"]] == ["Capital.png"]
    assert [note["reason"] for note in kinds["captions without a picture"]] == ["its picture is missing"]
    total = sum(len(captions) for captions in content(data, "train").values())
    # every row is in the data, or in a list
    noted = sum(map(len, kinds.values())) - len(kinds["pictures without a caption"])
    noted -= len(kinds["pictures that equal another one of their split, with which they are joined"])
    assert total + noted == len(rows)


def test_too_many_that_cannot_be_used_stop_the_command(photos: Path, tmp_path: Path) -> None:
    file = table(photos, [f"no{number}.png,a caption" for number in range(8)] + ["00.png,a thing"])
    result = chan_data(file, "-o", tmp_path / "data", "--max-bad", "5")
    assert result.exit_code == 1
    assert "at most 5 items may be unreadable, and this is one more: no5.png" in result.output
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_in_another_normalization_are_found(tmp_path: Path, forms: tuple[str, str]) -> None:
    folder = tmp_path / "photos"
    on_disk, in_table = (unicodedata.normalize(form, "é/café.png") for form in forms)
    picture(folder / on_disk, 1)
    result = chan_data(
        table(folder, [f"{in_table},a cup"]), "-o", tmp_path / "data", "--dev-share", "0", "--test-share", "0"
    )
    assert result.exit_code == 0, result.output
    assert content(tmp_path / "data", "train") == {on_disk: ["a cup"]}
    add_features(tmp_path / "data")
    assert CaptionedImages.open(tmp_path / "data", "train").pictures() == [folder / on_disk]


def test_names_that_no_line_can_hold_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    names = [" a.png", "50%.png", "b\u2028.png", "b'x'.png", "\ufeffc.png", "d\\e.png"]
    lines = []
    for seed, name in enumerate(names):
        picture(folder / name, seed)
        lines.append(json.dumps({"path": name, "caption": f"thing {seed}"}))
    (folder / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    result = chan_data(folder / "t.jsonl", "-o", tmp_path / "data", "--dev-share", "0", "--test-share", "0")
    assert result.exit_code == 0, result.output
    add_features(tmp_path / "data")
    images = CaptionedImages.open(tmp_path / "data", "train")
    assert images.captions == [f"thing {seed}" for seed in range(len(names))]
    assert images.pictures() == [folder / name for name in names]


def test_backslashes_separate_folders_where_no_such_file_is(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    picture(folder / "sub/a.png", 1)
    result = chan_data(
        table(folder, ["sub\\a.png,a dog"]), "-o", tmp_path / "data", "--dev-share", "0", "--test-share", "0"
    )
    assert result.exit_code == 0, result.output
    assert content(tmp_path / "data", "train") == {"sub/a.png": ["a dog"]}


def test_captions_become_one_line_each(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    picture(folder / "a.png", 1)
    texts = ["one\nline", "\ufeffa\tb  c", "two\r\nlines\u2028more", "ünï", "one line"]
    (folder / "t.jsonl").write_text(json.dumps({"path": "a.png", "caption": texts}), encoding="utf-8")
    result = chan_data(folder / "t.jsonl", "-o", tmp_path / "data", "--dev-share", "0", "--test-share", "0")
    assert result.exit_code == 0, result.output
    assert content(tmp_path / "data", "train") == {"a.png": ["one line", "a b c", "two lines more", "ünï"]}


@pytest.mark.parametrize(
    ("rows", "header", "options", "message"),
    [
        (["a.png,x,train", "b.png,y,"], "path,caption,split", [], "line 3: every picture must have a split, or none"),
        (["a.png,x,train", "a.png,y,dev"], "path,caption,split", [], "line 3: a picture must have one split"),
        (["a.png,x", "b.png,y"], "path,caption", ["--dev-share", "0.9"], "must leave some for train"),
        (["a.png,x"], "path,caption", [], "got none of the 1 picture: name splits in the source"),
        (
            ["a.png,!"],
            "path,caption",
            [],
            "at least one picture with a caption, got none; captions without a word: 1, the first",
        ),
        ([], "path,caption", [], "at least one picture that is there, got none"),
        (["c.png,x"], "path,caption", [], "got none; pictures that are missing: 1, the first: c.png"),
        (["a.png,x,train"], "path,caption,split", ["--seed", "1"], "--seed has no effect where SOURCES name the split"),
    ],
)
def test_what_makes_no_data_is_an_error(
    tmp_path: Path, rows: list[str], header: str, options: list[str], message: str
) -> None:
    folder = tmp_path / "photos"
    picture(folder / "a.png", 1)
    picture(folder / "b.png", 2)
    result = chan_data(table(folder, rows, header), "-o", tmp_path / "data", *options)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert not (tmp_path / "data/precomp").exists()


def test_one_picture_can_be_trained_on(tmp_path: Path) -> None:
    picture(tmp_path / "photos/a.png", 1)
    file = table(tmp_path / "photos", ["a.png,x"])
    assert chan_data(file, "-o", tmp_path / "data", "--dev-share", "0", "--test-share", "0").exit_code == 0
    assert content(tmp_path / "data", "train") == {"a.png": ["x"]}


# -- JSON files and folders


def karpathy(**changes: Any) -> dict[str, Any]:
    image = {"filename": "a.png", "filepath": "sub", "split": "restval", "sentids": [0, 1], "cocoid": 9}
    image["sentences"] = [{"raw": "One.", "sentid": 0}, {"raw": "Two.", "sentid": 1}]
    return {"images": [{**image, **changes}]}


def coco(**changes: Any) -> dict[str, Any]:
    annotations = [{"image_id": 2, "caption": "B."}, {"image_id": 1, "caption": "A."}, {"image_id": 2, "caption": "C."}]
    images = [{"id": 2, "file_name": "b.png"}, {"id": 1, "file_name": "sub/a.png"}]
    return {"images": images, "annotations": annotations, **changes}


@pytest.fixture
def two(tmp_path: Path) -> Path:
    picture(tmp_path / "photos/sub/a.png", 1)
    picture(tmp_path / "photos/b.png", 2)
    return tmp_path / "photos"


def test_karpathys_splits(two: Path, tmp_path: Path) -> None:
    other = {"filename": "b.png", "split": "val", "sentences": [{"raw": f"{n}."} for n in range(7)], "cocoid": 3}
    file = tmp_path / "dataset_own.json"
    file.write_text(json.dumps({"images": [*karpathy()["images"], other]}))
    result = chan_data(file, "-o", tmp_path / "data", "--pictures", two)
    assert result.exit_code == 0, result.output
    assert content(tmp_path / "data", "train") == {"9": ["One.", "Two."]}
    assert content(tmp_path / "data", "dev") == {"3": [f"{n}." for n in range(7)]}


def test_cocos_captions(two: Path, tmp_path: Path) -> None:
    for name, image in (("train", "b.png"), ("val", "sub/a.png")):
        raw = coco()
        raw["images"] = [one for one in raw["images"] if one["file_name"] == image]
        (tmp_path / f"captions_{name}.json").write_text(json.dumps(raw))
    train, val = tmp_path / "captions_train.json", tmp_path / "captions_val.json"
    result = chan_data(f"train={train}", f"val={val}", "-o", tmp_path / "data", "--pictures", two)
    assert result.exit_code == 0, result.output
    assert content(tmp_path / "data", "train") == {"2": ["B.", "C."]}
    assert content(tmp_path / "data", "dev") == {"1": ["A."]}
    strays = left_out(tmp_path / "data")["captions without a picture"]
    assert [(stray["item"].rpartition(": ")[2], stray["reason"]) for stray in strays] == [
        ("annotations[1]", "its image_id 1 is none of the images"),
        ("annotations[0]", "its image_id 2 is none of the images"),
        ("annotations[2]", "its image_id 2 is none of the images"),
    ]


def test_ids_that_are_numbers_are_in_their_order(two: Path, tmp_path: Path) -> None:
    """Consecutive numbers in another order would be taken for rows of the features."""
    (tmp_path / "captions.json").write_text(json.dumps(coco()))
    chan_data(f"test={tmp_path / 'captions.json'}", "-o", tmp_path / "data", "--pictures", two)
    assert list(content(tmp_path / "data", "test")) == ["1", "2"]
    add_features(tmp_path / "data")
    images = CaptionedImages.open(tmp_path / "data", "test")
    assert images.pictures() == [two / "sub/a.png", two / "b.png"]
    assert images.captions == ["A.", "B.", "C."]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (karpathy(sentids=[0, 7]), r"images\[0\]: sentids must be those of its sentences, got \[0, 7\] and \[0, 1\]"),
        (karpathy(sentids=5), r"images\[0\]: sentids must be"),
        (karpathy(split="holdout"), r"images\[0\]: the split must be one of train"),
        (karpathy(sentences=[{"tokens": ["a"]}]), r"images\[0\]: sentences\[0\] must have its text as `raw`"),
        (karpathy(filename=None), r"images\[0\] must have .* sentences, .* got filename null, "),
        (karpathy(cocoid=True), r"images\[0\]: cocoid must be a number or text, got True"),
        (coco(images=[{"id": 1, "file_name": "b.png"}] * 2), r"images\[1\] must have an id of its own, got 1 again"),
        (coco(annotations=[{"image_id": 1, "bbox": []}]), r"annotations\[0\] must have a caption: .* not that of inst"),
        (coco(images=[{"id": 1}]), r"images\[0\] must have a file_name, got None"),
        ({"data": []}, r'must be a JSON object with a list "images"'),
        ([1], r'must be a JSON object with a list "images"'),
        ({"images": [1]}, r"images\[0\] must be an object, got int"),
    ],
)
def test_json_that_does_not_fit_is_named(two: Path, tmp_path: Path, raw: Any, message: str) -> None:
    import re

    (tmp_path / "x.json").write_text(json.dumps(raw))
    result = chan_data(tmp_path / "x.json", "-o", tmp_path / "data", "--pictures", two)
    assert result.exit_code == 1
    assert re.search(message, result.output), result.output


def test_text_files_beside_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for number, name in enumerate(["sub/a", "b", "c", "d"]):
        picture(folder / f"{name}.png", number)
    (folder / "sub/a.txt").write_bytes(b"\xef\xbb\xbfA dog.\r\n\r\nde=Ein Hund.\r\n")
    (folder / "b.txt").write_text("A cat.")
    (folder / "d.txt").write_bytes(b"caf\xe9")
    (folder / "alone.txt").write_text("Nothing.")
    options = ["-o", tmp_path / "data", "--dev-share", "0", "--test-share", "0"]
    assert chan_data(folder, *options).exit_code == 0
    assert content(tmp_path / "data", "train") == {"b.png": ["A cat."], "sub/a.png": ["A dog.", "de=Ein Hund."]}
    kinds = left_out(tmp_path / "data")
    assert [note["item"] for note in kinds["pictures without a caption"]] == ["c.png"]
    assert {Path(note["item"]).name for note in kinds["captions without a picture"]} == {"alone.txt", "d.txt"}
    assert chan_data(folder, *options, "--first-line", "--force").exit_code == 0
    assert content(tmp_path / "data", "train")["sub/a.png"] == ["A dog."]


def test_a_data_folder_may_hold_the_pictures_itself(photos: Path) -> None:
    """The names in id_mapping.json are then below it, so that it can be moved."""
    assert chan_data(photos / "captions.csv", "-o", photos, "--dev-share", "0.2").exit_code == 0
    moved = photos.rename(photos.parent / "moved")
    add_features(moved)
    images = CaptionedImages.open(moved, "train")
    assert None not in images.pictures()
    again = chan_data(moved / "captions.csv", "-o", moved, "--dev-share", "0.2")
    assert again.exit_code == 1
    assert "--force replaces it with its features" in again.output
    assert chan_data(moved / "captions.csv", "-o", moved, "--dev-share", "0.2", "--force").exit_code == 0
    assert not SplitFiles.below(moved, "train").features().exists()
    assert (moved / "00.png").exists()


def test_data_of_others_are_never_replaced(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs/precomp").mkdir(parents=True)
    (tmp_path / "theirs/precomp/train_caps.txt").write_text("a dog\n")
    result = chan_data(photos / "captions.csv", "-o", tmp_path / "theirs", "--force")
    assert result.exit_code == 1
    assert "holds data that `chan data` did not write" in result.output
    assert (tmp_path / "theirs/precomp/train_caps.txt").read_text() == "a dog\n"


@pytest.mark.parametrize("full_at", ["train_caps.txt", ".id_mapping.", ".data."])
def test_a_full_disk_leaves_nothing_or_what_was_there(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    whole = Path.write_text

    def write(self: Path, *rest: Any, **options: Any) -> int:
        if self.name.startswith(full_at):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(self, *rest, **options)

    chan_data(photos / "captions.csv", "-o", tmp_path / "old")
    before = {file: file.read_bytes() for file in (tmp_path / "old").rglob("*") if file.is_file()}
    monkeypatch.setattr(Path, "write_text", write)
    for out in (tmp_path / "new", tmp_path / "old"):
        result = chan_data(photos / "captions.csv", "-o", out, "--force", "--seed", "7")
        assert result.exit_code == 1
        assert f"Error: {out}/" in result.output
        assert "No space left on device" in result.output
    assert not (tmp_path / "new").exists()
    assert {file: file.read_bytes() for file in (tmp_path / "old").rglob("*") if file.is_file()} == before


def test_options_without_effect_are_refused(photos: Path, tmp_path: Path) -> None:
    cases = [
        (photos, ["--path-column", "file"], "--path-column has no effect where no source is a table"),
        (photos, ["--caption-column", "text"], "--caption-column has no effect where no source is a table"),
        (photos / "captions.csv", ["--first-line"], "--first-line has no effect where no source is a folder"),
    ]
    for source, options, message in cases:
        result = chan_data(source, "-o", tmp_path / "data", *options)
        assert result.exit_code == 2
        assert message in result.output


def test_huge_pictures_are_one_line_and_large_ones_none(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow warns above a limit, and refuses above twice the limit."""
    Image.new("RGB", (20, 50)).save(photos / "00.png")
    Image.new("RGB", (30, 50)).save(photos / "01.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = chan_data(photos / "captions.csv", "-o", tmp_path / "data", "--dev-share", "0", "--test-share", "0")
    assert result.exit_code == 0, result.output
    assert not caught
    reason = "cannot be read as a picture: it has 1500 pixels, and at most 1200 are read: make it smaller"
    assert left_out(tmp_path / "data") == {
        "pictures that cannot be read": [{"item": str(photos / "01.png"), "reason": reason}]
    }


def test_copies_of_other_size_and_format_are_reported(tmp_path: Path) -> None:
    """A smaller JPEG in test of a picture in train; what is only of the same size and colors is not reported."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        rng = np.random.default_rng(number)
        small = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    with Image.open(folder / "3.png") as opened:
        opened.resize((160, 120)).save(folder / "copy.jpg", quality=80)
        opened.rotate(90, expand=True).save(folder / "turned.png")
    rows = [f"{number}.png,thing {number},train" for number in range(5)]
    rows += ["5.png,thing 5,test", "copy.jpg,thing 3 again,test", "turned.png,thing 3 turned,dev"]
    file = table(folder, rows, "path,caption,split")
    result = chan_data(file, "-o", tmp_path / "data", "--strict")
    assert result.exit_code == 0, result.output  # it is reported, and kept
    assert "pictures of dev and test that look like one of train, so that recalls are easier: 1\n" in result.output
    found = json.loads((tmp_path / "data/data.json").read_text())["alike"]
    assert found == [{"item": "copy.jpg", "reason": "it is in test and looks like 3.png of train"}]
    assert set(content(tmp_path / "data", "test")) == {"5.png", "copy.jpg"}


@given(st.data())
def test_the_most_similar_of_all_is_found(data: st.DataObject) -> None:
    """Against a plain loop in integers, whatever the blocks."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    near = rng.integers(0, 256, 192)

    def some(count: int) -> list[Checked]:
        noise = rng.integers(0, 12, (count, 192))
        looks = np.where(rng.random((count, 1)) < 0.7, near + noise, rng.integers(0, 256, (count, 192))).clip(0, 255)
        return [Checked("", "", 100, int(rng.choice([100, 102, 110])), bytes(look.astype(np.uint8))) for look in looks]

    asked, others = some(data.draw(st.integers(0, 7))), some(data.draw(st.integers(0, 7)))
    with mock.patch("chan_rt.runtime.own_data.alike._BLOCK", data.draw(st.integers(1, 4))):
        found = dict(alike(asked, others))
    for row, one in enumerate(asked):
        far = [
            sum((a - b) ** 2 for a, b in zip(one.look, other.look, strict=True))
            if abs(np.log(one.width / one.height) - np.log(other.width / other.height)) <= 0.03
            else np.inf
            for other in others
        ]
        assert (row in found) == (min(far, default=np.inf) <= 36 * 192)
        assert row not in found or far[found[row]] == min(far)


def test_the_report_counts(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for number in range(5):
        picture(folder / f"{number}.png", number)
    rows = ["0.png,a red dog runs,train", "0.png,a dog,train", "1.png,a cat,train", "2.png,a cat,train"]
    rows += ["3.png,A cat.,test", "3.png,a red zebra,test", "4.png,zebra stripes,test"]
    rows += ["4.png,Zebra stripes.,test"]  # of the same picture
    file = table(folder, rows, "path,caption,split")
    result = chan_data(file, "-o", tmp_path / "data", "--min-count", "2", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found == json.loads((tmp_path / "data/data.json").read_text())
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert (train["pictures"], train["captions"], train["shared_captions"], train["in_train"]) == (3, 4, 2, 0)
    assert train["captions_of_picture"] == {"least": 1, "median": 1.0, "most": 2}
    assert train["words_of_caption"] == {"least": 2, "median": 2.0, "most": 4}
    assert test["shared_captions"] == 0
    # known: a, dog, cat. The test has: a cat . a red zebra zebra stripes zebra stripes .
    assert (found["vocabulary"], found["train_words"], found["examples"][0]) == (3, 5, "zebra")
    assert (test["words"], test["unknown_words"], test["unknown_captions"], test["in_train"]) == (11, 8, 2, 1)
    shown = chan_data(file, "-o", tmp_path / "data", "--min-count", "2", "--force").output
    for line in (
        "train has 5 different words, of which 3 occur at least 2 times",
        "captions of train that describe more than one of its pictures: 2",
        "captions of test that train has too, so that recalls on test are easier: 1",
        "captions of test without a known word (use a lower --min-count, or BERT): 2",
    ):
        assert line in shown
