"""`chan explain` from a picture file to a drawn one."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from chan_rt import cli
from chan_rt.commands import explain
from chan_rt.runtime.matcher import Matcher

CAPTION = "two red Clouds"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def _explain(*args: object) -> Result:
    return CliRunner().invoke(cli.main, ["explain", *map(str, args)])


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


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5333, "53.3 %"), (1.0, "100.0 %"), (0.001, "0.1 %"), (9e-4, "< 0.1 %"), (-2e-4, "> -0.1 %"), (0.0, "0.0 %")],
)
def test_a_small_share_is_not_called_0(share: float, text: str) -> None:
    assert explain._percent(share) == text
