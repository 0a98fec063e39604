"""Which captions are of which image: ids, five in a row, shuffled, Karpathy's JSON; and captions as files have them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chan_rt.runtime.data.captions import is_blank, pair
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.data.layout import has_split, is_data_folder
from chan_rt.runtime.data.store import RegionStore
from chan_rt.runtime.errors import InputError
from chan_rt.runtime.evaluation import metrics

NUM_IMAGES, REGIONS, WIDTH = 20, 3, 4
FEATURES = np.random.default_rng(0).standard_normal((NUM_IMAGES, REGIONS, WIDTH)).astype(np.float32)
FEATURES[:, 0, 0] = np.arange(NUM_IMAGES)  # tells which image was read


def write(
    folder: Path, owners: Sequence[int], ids: Sequence[object] | None, features: np.ndarray = FEATURES
) -> CaptionedImages:
    """Captions that name their image, ids and features; opened."""
    (folder / "precomp").mkdir(parents=True)
    captions = "".join(f"picture {owner} caption {line}\n" for line, owner in enumerate(owners))
    (folder / "precomp/test_caps.txt").write_text(captions)
    if ids is not None:
        (folder / "precomp/test_ids.txt").write_text("".join(f"{name}\n" for name in ids))
    np.save(folder / "precomp/test_ims.npy", features)
    return CaptionedImages.open(folder, "test")


def assert_right(images: CaptionedImages, owners: Sequence[int]) -> None:
    """Every caption is there once, beside the features of the image that it names, and a perfect model is perfect."""
    assert sorted(images.caption_rows.tolist()) == list(range(len(owners)))
    shown = images.regions(slice(None))[0][:, 0, 0].astype(int)
    for caption, image, row in zip(images.captions, images.image_of_caption, images.caption_rows, strict=True):
        assert caption == f"picture {owners[row]} caption {row}"
        assert shown[image] == owners[row]
    named = np.array([int(caption.split()[1]) for caption in images.captions])
    perfect = (shown[:, None] == named[None, :]).astype(np.float32)
    assert metrics.evaluate(perfect, images.image_of_caption, "pessimistic").rsum == 600


FIVE = [image for image in range(NUM_IMAGES) for _ in range(5)]
VARIED = [image for image in range(NUM_IMAGES) for _ in range(4 + 2 * (image % 2))]
SHUFFLED = np.random.default_rng(1).permutation(FIVE).tolist()


@pytest.mark.parametrize(
    ("owners", "ids"),
    [
        (FIVE, None),
        (list(range(NUM_IMAGES)), None),
        ([image for image in range(NUM_IMAGES) for _ in range(2)], None),
        (FIVE, [f"id{image}" for image in range(NUM_IMAGES)]),
        (FIVE, [f"id{image}" for image in FIVE]),
        (VARIED, [1000 + image for image in VARIED]),
        (VARIED, [f"id{image}" for image in VARIED]),
        (SHUFFLED, [1000 + image for image in SHUFFLED]),
        (SHUFFLED, SHUFFLED),
    ],
)
def test_each_caption_has_its_own_image(tmp_path: Path, owners: list[int], ids: list[object] | None) -> None:
    assert_right(write(tmp_path, owners, ids), owners)


@pytest.mark.parametrize("owners", [FIVE, VARIED, SHUFFLED])
def test_features_for_each_caption_are_one_image_for_each_id(tmp_path: Path, owners: list[int]) -> None:
    images = write(tmp_path, owners, [f"id{image}" for image in owners], FEATURES[owners])
    assert images.num_images == NUM_IMAGES
    assert_right(images, owners)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=40), st.booleans())
def test_any_ids_of_captions_give_each_its_image_or_are_refused(numbers: list[int], grouped: bool) -> None:
    """Ids are the only thing known of the images: a caption's row holds the image of its id, whatever the order."""
    numbers = sorted(numbers) if grouped else numbers
    distinct = sorted(set(numbers))
    store = RegionStore(Path("ims"), len(distinct), 1, 1, lambda rows: [np.full((1, 1), row) for row in rows])
    consecutive = distinct == list(range(distinct[0], distinct[0] + len(distinct)))
    first = list(dict.fromkeys(numbers))
    together = [number for number in first for _ in range(numbers.count(number))] == numbers
    if len(distinct) == len(numbers):
        return  # an id for each image: their order is that of the features
    try:
        found = pair([str(number) for number in numbers], len(numbers), store, Path("ids"))
    except InputError:
        assert (together and consecutive and first != distinct) or not (together or consecutive)
        return
    by_row = distinct if consecutive else first
    assert [by_row[row] for row in found.store_rows[found.owner]] == numbers
    assert found.image_ids is not None
    assert [found.image_ids[image] for image in found.owner] == [str(number) for number in numbers]


@pytest.mark.parametrize(
    ("owners", "ids", "features", "message"),
    [
        (SHUFFLED, [f"id{image}" for image in SHUFFLED], FEATURES, "do not stand together by image"),
        (FIVE[::-1], FIVE[::-1], FEATURES, "are row numbers in another order than the captions"),
        (FIVE, [f"id{image // 2}" for image in FIVE], FEATURES, "names 10 for 100 captions: they must be equally many"),
        (FIVE, ["a", "a", *range(18)], FEATURES, "lines 1 and 2 name the same image 'a'"),
        (FIVE, range(7), FEATURES, "or the image of each of the 100 captions, got 7 lines"),
        (VARIED[:99], None, FEATURES, "otherwise test_ids.txt must name the image of each caption"),
        (FIVE, [f"id{image}" for image in FIVE], FEATURES[np.roll(FIVE, 1)], "lines 1 and 2 name one image|different"),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, owners: list[int], ids: Sequence[object] | None, features: np.ndarray, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        write(tmp_path, owners, ids, features)


def captions_of(folder: Path, content: bytes) -> list[str]:
    (folder / "precomp").mkdir()
    (folder / "precomp/test_caps.txt").write_bytes(content)
    lines = content.count(b"\n")
    np.save(folder / "precomp/test_ims.npy", FEATURES[:lines])
    return CaptionedImages.open(folder, "test").captions


def test_a_byte_order_mark_is_no_part_of_the_first_caption(tmp_path: Path) -> None:
    assert captions_of(tmp_path, b"\xef\xbb\xbfa dog\na cat\n") == ["a dog", "a cat"]


def test_bytes_literals_of_scan_under_python_3_are_decoded(tmp_path: Path) -> None:
    lines = [str("a café's dog".encode()), str(b'it says "no"'), str(b"plain")]
    assert captions_of(tmp_path, "\n".join([*lines, ""]).encode()) == ["a café's dog", 'it says "no"', "plain"]


def test_a_caption_that_only_looks_like_bytes_stays(tmp_path: Path) -> None:
    assert captions_of(tmp_path, b"b'a dog'\na cat\n") == ["b'a dog'", "a cat"]


@pytest.mark.parametrize("line", [rb"b'\xff'", b"b'a' + b'b'", b"b'a'.decode()'"])
def test_other_literals_are_refused_with_their_line(tmp_path: Path, line: bytes) -> None:
    with pytest.raises(InputError, match=r"test_caps\.txt: line 2 must be UTF-8 text, or b'\.\.\.'"):
        captions_of(tmp_path, b"b'a dog'\n" + line + b"\n")


def test_a_line_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be UTF-8 text, and line 2 is not"):
        captions_of(tmp_path, b"a dog\ncaf\xe9\n")


@pytest.mark.parametrize("blank", ["", "  ", "\u200b", "\x07", "\u00a0\u2003"])
def test_blank_captions_are_left_out_or_refused_with_their_line(tmp_path: Path, blank: str) -> None:
    assert is_blank(blank)
    captions = [f"caption {line}" for line in range(20)]
    captions[7] = captions[10] = captions[11] = captions[12] = captions[13] = captions[14] = blank
    (tmp_path / "precomp").mkdir()
    (tmp_path / "precomp/test_caps.txt").write_text("\n".join(captions) + "\n")
    (tmp_path / "precomp/test_ids.txt").write_text("a\nb\nc\nd\n")
    np.save(tmp_path / "precomp/test_ims.npy", FEATURES[:4])
    images = CaptionedImages.open(tmp_path, "test")
    assert images.image_of_caption.tolist() == [0] * 5 + [1] * 4 + [2] * 5
    assert images.caption_rows.tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 15, 16, 17, 18, 19]
    assert images.image_ids == ["a", "b", "d"]
    assert images.image_rows.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(images.regions([2])[0], FEATURES[[3]])
    assert [item.item.split(": ")[-1] for item in images.skipped] == [
        *(f"caption {line}" for line in (8, 11, 12, 13, 14, 15)),
        "image 2",
    ]
    with pytest.raises(InputError, match=r"test_caps\.txt: caption 8 must hold a word"):
        CaptionedImages.open(tmp_path, "test", strict=True)
    (tmp_path / "precomp/test_caps.txt").write_text(f"{blank}\n" * 20)
    with pytest.raises(InputError, match=r"test_caps\.txt must hold a caption with a word, got 20 blank captions$"):
        CaptionedImages.open(tmp_path, "test")


@pytest.mark.parametrize("ids", [None, FIVE, range(NUM_IMAGES)])
def test_blank_lines_at_the_end_are_no_captions_and_no_ids(tmp_path: Path, ids: Sequence[int] | None) -> None:
    write(tmp_path, FIVE, ids)
    for file in tmp_path.glob("precomp/*.txt"):
        file.write_text(file.read_text() + "\n \n")
    images = CaptionedImages.open(tmp_path, "test")
    assert_right(images, FIVE)
    assert images.skipped == ()


@pytest.mark.parametrize("caption", ["a", "?", "\u200ba", "中", "🐕"])
def test_captions_with_a_visible_character_are_not_blank(caption: str) -> None:
    assert not is_blank(caption)


def karpathy(ids: bool = True) -> dict[str, object]:
    """Two images of each part; the test ones have 5 and 7 captions."""
    images = []
    for number, part in enumerate(("test", "train", "val", "restval", "train", "test", "val", "restval")):
        sentences = [{"raw": f"picture {number} caption {k} "} for k in range(7 if number == 5 else 5)]
        images.append({"split": part, "filename": f"pic{number}.jpg", "sentences": sentences, "imgid": number})
        if ids:
            images[-1]["cocoid"] = 100 + number
    return {"dataset": "coco", "images": images}


@pytest.mark.parametrize("beside", ["", "precomp"])
def test_karpathy_s_json_names_splits_and_captions(tmp_path: Path, beside: str) -> None:
    (tmp_path / "precomp").mkdir()
    for split, count in (("test", 2), ("train", 4), ("dev", 2)):
        np.save(tmp_path / f"precomp/{split}_ims.npy", FEATURES[:count])
    assert not has_split(tmp_path, "test")
    assert not is_data_folder(tmp_path)
    (tmp_path / beside / "dataset_coco.json").write_text(json.dumps(karpathy()))
    assert has_split(tmp_path, "test")
    assert is_data_folder(tmp_path)
    assert not has_split(tmp_path, "testall")
    test = CaptionedImages.open(tmp_path, "test")
    assert test.image_ids == ["100", "105"]
    assert test.image_of_caption.tolist() == [0] * 5 + [1] * 7
    assert test.captions[5] == "picture 5 caption 0"
    assert CaptionedImages.open(tmp_path, "dev").image_ids == ["102", "106"]
    assert CaptionedImages.open(tmp_path, "train").image_ids == ["101", "103", "104", "107"]
    np.save(tmp_path / "precomp/train_ims.npy", FEATURES[:2])
    assert CaptionedImages.open(tmp_path, "train").image_ids == ["101", "104"]
    (tmp_path / "precomp/test_ids.txt").write_text("105\n100\n")  # the features are in another order
    test = CaptionedImages.open(tmp_path, "test")
    assert test.image_ids == ["105", "100"]
    assert test.captions[0] == "picture 5 caption 0"


def test_karpathy_s_json_names_files_by_image_without_coco_ids(tmp_path: Path) -> None:
    (tmp_path / "test_ims").mkdir()
    (tmp_path / "dataset_flickr30k.json").write_text(json.dumps(karpathy(ids=False)))
    for number in (0, 5):
        np.save(tmp_path / f"test_ims/pic{number}.npy", FEATURES[number, : 1 + number % 3])
    images = CaptionedImages.open(tmp_path, "test")
    assert images.image_ids == ["pic0", "pic5"]
    np.testing.assert_array_equal(images.regions([1])[0][0], FEATURES[5])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda raw: [], 'must be a JSON object with a list "images"'),
        (lambda raw: {"images": [1]}, r"images\[0\] must be an object, got int"),
        (lambda raw: {"images": [{"split": "test", "sentences": []}]}, "must have a cocoid or a filename"),
        (lambda raw: {"images": [{"cocoid": 1, "sentences": []}]}, "must have a split and a list of sentences"),
        (lambda raw: {"images": [{"cocoid": 1, "split": "test", "sentences": ["a"]}]}, r"sentences\[0\] must have"),
        (lambda raw: {"images": raw["images"][1:5]}, "has no captions of test, only images of"),
        (lambda raw: {"images": [raw["images"][0]] * 2}, "must have each image once, got '100' 2 times"),
        (lambda raw: {"images": raw["images"][:1]}, "has 1 image of this split, .* has 2"),
    ],
)
def test_json_that_does_not_fit_is_named(tmp_path: Path, edit: object, message: str) -> None:
    np.save(tmp_path / "test_ims.npy", FEATURES[:2])
    (tmp_path / "dataset_coco.json").write_text(json.dumps(edit(karpathy())))  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        CaptionedImages.open(tmp_path, "test")


@pytest.mark.parametrize("content", ["", "{", "[" * 100_000, "\xff", "NaN"])
def test_json_that_is_damaged_is_named(tmp_path: Path, content: str) -> None:
    np.save(tmp_path / "test_ims.npy", FEATURES[:2])
    (tmp_path / "dataset_coco.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=r"dataset_coco\.json must be"):
        CaptionedImages.open(tmp_path, "test")
