"""docs/python.md runs as it stands, from top to bottom, in a folder with a small bundle and two pictures."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chan_rt import runtime

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def desk(make_small_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the page takes for granted, as the working directory."""
    for name in ("bundle", "other"):
        (tmp_path / name).symlink_to(make_small_model(pictures=True).bundle)
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(3)
    for name in ("kitchen", "garden"):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    np.save(tmp_path / "regions.npy", rng.standard_normal((2, 4, 12)).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_block_runs(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    printed = []
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"{PAGE.name} block {number}", "exec"), names)
        printed.append(capsys.readouterr().out)
    assert names["scores"].shape == (2, 3)
    assert names["word_regions"].shape[:2] == (2, 1)
    assert [hit.id for hit in names["result"].hits] == ["kitchen"]
    assert names["result"].certified
    assert names["done"].encoded == 2
    assert "1 ['attic.png']\n" in printed
    with runtime.Gallery.open("gallery") as gallery:
        assert [(row.id, row.metadata["album"], row.metadata["year"]) for row in gallery.rows()] == [
            ("kitchen", "home", 2019)
        ]
    assert printed[-1] == "regions dtype must be float32 float64\n"
    assert "region" in printed[0]
    assert names["drawn"].width > 400
    assert (desk / "why.html").read_text().startswith("<!doctype html>")
    assert any(text == "100.0% of 10 words choose the same region\n" for text in printed)
    with runtime.Matcher.open("bundle") as matcher:
        images = matcher.encode_images(np.load("regions.npy"))
        expected = matcher.score(images, matcher.encode_texts(["a red apple"]))
    np.testing.assert_allclose(names["plain"], expected, atol=1e-5)


def test_the_page_names_what_there_is() -> None:
    """Errors of the table are the library's, and every name that is imported from `chan_rt.runtime` is public."""
    text = PAGE.read_text(encoding="utf-8")
    errors = set(re.findall(r"`(\w+(?:Error|Locked|Corrupt))`", text))
    assert errors
    assert errors <= set(runtime.__all__)
    for node in ast.walk(ast.parse("\n".join(BLOCKS))):
        if isinstance(node, ast.ImportFrom) and node.module == "chan_rt.runtime":
            assert {alias.name for alias in node.names} <= set(runtime.__all__)
