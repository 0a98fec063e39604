"""docs/backbones.md: its module and its commands, run as they are written on a photograph."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from chan_rt.runtime.data.regions import open_features

from ...run_chan import chan

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_commands_run_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (code,) = blocks("python")
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "demo").symlink_to(ROOT / "demo")
    (tmp_path / "photos").mkdir()
    photo = Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg"))
    photo.save("photos/photo.jpg")
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(lines) == 7
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "chan"
        result = chan(*arguments)
        assert result.exit_code == 0, f"{line}: {result.output}"
    store = open_features(tmp_path / "features" / "ims.npz")
    assert (store.count, store.max_regions, store.region_dim) == (1, 4, 1280)
    assert store.boxes is not None
    (boxes,) = store.boxes(np.array([0]))
    assert boxes is not None
    assert boxes[3].tolist() == [0.5, 0.5, 0.5, 0.5]
    with Image.open("explained.png") as drawn:
        assert drawn.width > 700
    text = (tmp_path / "page.html").read_text()
    assert re.search(r'"box": ?\[0\.\d*, ?0\.\d*, ?0\.5, ?0\.5\]', text)


def test_features_of_ones_own_are_a_split_by_their_names(
    make_small_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with other numbers of captions, whose images `test_ids.txt` names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BUNDLE").symlink_to(make_small_model().bundle)
    np.save("regions.npy", np.random.default_rng(0).standard_normal((3, 4, 12)).astype(np.float32))
    Path("captions.txt").write_text("a red apple\ntwo clouds\n" * 3)
    (block,) = (block for block in blocks("") if "cp regions.npy" in block)
    for line in block.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        if program == "chan":
            result = chan(*arguments)
            assert result.exit_code == 0, f"{line}: {result.output}"
        else:
            subprocess.run([program, *arguments], check=True)
    assert [row["id"] for row in json.loads(chan("gallery", "list", "gallery", "--json").stdout)] == [
        f"DATA/test/{row}" for row in range(3)
    ]
    Path("DATA/precomp/test_ids.txt").write_text("x\nx\nx\ny\nz\nz\n")
    found = json.loads(chan("evaluate", "BUNDLE", "DATA", "--json").stdout)
    assert (found["images"], found["captions"]) == (3, 6)
