"""`chan explain` from a picture file to a drawn one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from PIL import Image

from chan_rt.commands import explain
from chan_rt.runtime.gallery import Gallery
from chan_rt.runtime.matcher import Matcher

from ..run_chan import chan, ok

CAPTION = "two red Clouds"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def _explain(*args: object) -> Result:
    return chan("explain", *args)


def test_words_are_printed_and_drawn(bundle: Path, picture: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.png"
    result = _explain(bundle, picture, CAPTION, "-o", out, "--backend", "onnxruntime")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.output.splitlines()] == [
        *("score", "word", "<start>", "two", "red", "clouds", "<end>", "drawn"),
    ]
    with Image.open(out) as drawn:
        assert drawn.size[0] > 1000
    assert list(out.parent.iterdir()) == [out]


def test_a_long_word_is_cut_in_the_table_and_whole_in_the_json(bundle: Path, picture: Path) -> None:
    """The whole table was as wide as it, and the warning as long."""
    word = "red" + 3000 * "x" + "blue"
    result = _explain(bundle, picture, f"two {word}")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) < 100
    assert max(map(len, result.stderr.splitlines())) < 200
    assert "redxxx" in result.stdout
    assert "xxxblue" in result.stdout
    found = json.loads(_explain(bundle, picture, f"two {word}", "--json").stdout)
    assert found["words"][2]["word"] == word


def test_json_is_what_the_matcher_says(bundle: Path, picture: Path) -> None:
    result = _explain(bundle, picture, CAPTION, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    with Matcher.open(bundle, "onnxruntime") as matcher:
        images = matcher.encode_pictures([picture, picture])
        np.testing.assert_allclose(images.vectors[0], images.vectors[1], atol=1e-6)
        expected = matcher.explain(images[1], CAPTION)
    assert found["grid"] == 2
    assert [word["word"] for word in found["words"]] == ["<start>", "two", "red", "clouds", "<end>"]
    assert [word["region"] for word in found["words"]] == [match.region for match in expected.words]
    assert found["score"] == pytest.approx(expected.score, abs=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([" ", "--json"], "captions[0] must hold at least one word, got ' '"),
        ([CAPTION, "--precision", "fp16"], "not in this bundle at precision 'fp16'; it has fp32"),
    ],
)
def test_mistakes_are_one_line(bundle: Path, picture: Path, args: list[str], message: str) -> None:
    result = _explain(bundle, picture, *args)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert message in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-o", "out.txt"], "the file must end in .png or .jpg, got out.txt"),
        (["--backend", "torch"], "'torch' is not one of 'auto', 'tensorrt'"),
    ],
)
def test_mistakes_of_the_command_line_exit_with_2(bundle: Path, picture: Path, args: list[str], message: str) -> None:
    result = _explain(bundle, picture, CAPTION, *args)
    assert result.exit_code == 2
    assert message in result.output


def test_a_bundle_without_a_backbone(make_small_model: Callable, picture: Path) -> None:
    result = _explain(make_small_model().bundle, picture, CAPTION)
    assert result.exit_code == 1
    assert "it has no backbone" in result.output


def test_a_row_of_a_gallery_is_explained_as_its_picture(bundle: Path, picture: Path, tmp_path: Path) -> None:
    gallery, moved = tmp_path / "gallery", tmp_path / "moved"
    shutil.copytree(bundle, tmp_path / "bundle")
    ok("index", tmp_path / "bundle", picture, "-o", gallery)
    with Gallery.open(gallery) as opened:
        (row,) = opened.rows()
    whole, by_id = (
        json.loads(_explain(*args, CAPTION, "--json").output) for args in ((bundle, picture), (gallery, row.id))
    )
    assert [word["region"] for word in by_id["words"]] == [word["region"] for word in whole["words"]]
    assert by_id["score"] == pytest.approx(whole["score"], abs=1e-5)
    assert (by_id["image"], by_id["grid"]) == (row.id, 2)
    result = _explain(gallery, row.id, CAPTION, "-o", tmp_path / "why.png", "--html", tmp_path / "why.html")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "why.png").is_file()
    assert f"The region of {row.id} that each word chose" in (tmp_path / "why.html").read_text()
    (tmp_path / "bundle").rename(moved)
    assert _explain(gallery, row.id, CAPTION, "--bundle", moved).exit_code == 0
    for args, message in (
        ((gallery, "nobody", CAPTION), "not in the gallery: nobody"),
        ((gallery, row.id, CAPTION, "--precision", "fp32"), "--precision has no effect with a gallery"),
        ((bundle, picture, CAPTION, "--bundle", moved), "--bundle has no effect without a gallery"),
        ((bundle, "missing.png", CAPTION), "File 'missing.png' does not exist"),
    ):
        result = _explain(*args)
        assert result.exit_code in (1, 2)
        assert message in result.output


def test_a_row_without_a_picture_and_a_gallery_of_captions(make_small_model: Callable, tmp_path: Path) -> None:
    bundle, data = make_small_model().bundle, tmp_path / "data"
    (data / "precomp").mkdir(parents=True)
    np.save(data / "precomp/test_ims.npy", np.random.default_rng(0).random((2, 3, 12), np.float32))
    (data / "precomp/test_caps.txt").write_text("two red clouds\na table\n")
    for name, more in (("images", []), ("captions", ["--captions"])):
        words = ["index", str(bundle), str(data), "-o", str(tmp_path / name), *more]
        assert chan(*words).exit_code == 0
    page = tmp_path / "why.html"
    result = _explain(tmp_path / "images", "data/test/1", CAPTION, "--html", page)
    assert result.exit_code == 0, result.output
    assert '"picture":null' in page.read_text()
    result = _explain(tmp_path / "images", "data/test/1", CAPTION, "-o", tmp_path / "why.png")
    assert "--out: the row data/test/1 has no picture to draw on; --html needs none" in result.output
    result = _explain(tmp_path / "captions", "data/test/1", CAPTION)
    assert "has captions as its rows: give a gallery of images" in result.output
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5333, "53.3 %"), (1.0, "100.0 %"), (0.001, "0.1 %"), (9e-4, "< 0.1 %"), (-2e-4, "> -0.1 %"), (0.0, "0.0 %")],
)
def test_a_small_share_is_not_called_0(share: float, text: str) -> None:
    assert explain._percent(share) == text
