"""The measurement of backbones: figures of each, and boxes where the regions are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from chan_rt.bench import backbones

BOX = (0.25, 0.5, 0.5, 0.25)
MODULE = f"""
import torch
from chan_rt.chan_ref.backbones.base import Backbone, frozen
from chan_rt.runtime.contract import Preprocess

class One(torch.nn.Module):
    def __init__(self, boxed):
        super().__init__()
        torch.manual_seed(0)
        self.cells = torch.nn.Conv2d(3, 8, 16, stride=16)
        self.boxed = boxed

    def forward(self, pixels):
        regions = self.cells(pixels).flatten(2).transpose(1, 2)
        return (regions, torch.tensor([[{BOX}]]).expand(pixels.shape[0], -1, -1)) if self.boxed else regions

def boxed():
    return Backbone(frozen(One(True)), Preprocess(16, (0.5,) * 3, (0.5,) * 3, None))

def grid():
    return Backbone(frozen(One(False)), Preprocess(32, (0.5,) * 3, (0.5,) * 3, 2))
"""


def test_backbones_are_measured_and_their_boxes_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_backbones.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    files = [tmp_path / f"{color}.png" for color in ("black", "red", "olive", "gray")]
    for file in files:
        Image.new("RGB", (60, 30), file.stem).save(file)
    named = [f"--backbone={name}" for name in ("own_backbones:boxed", "own_backbones:grid", "timm:none_such")]
    result = CliRunner().invoke(backbones.main, [*map(str, files), "-o", str(tmp_path / "out"), *named])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out/backbones.json").read_text())["backbones"]
    boxed, grid = found["own_backbones:boxed"], found["own_backbones:grid"]
    assert (boxed["size"], boxed["regions"], boxed["width"]) == (16, 1, 8)
    assert (grid["size"], grid["regions"], grid["width"]) == (32, 4, 8)
    for one in (boxed, grid):
        assert one["fp32"]["largest_error"] < 1e-5
        assert one["fp32"]["regions_found"] == one["fp16"]["regions_found"] == 100
        assert 0.999 < one["fp16"]["least_cosine"] <= one["fp16"]["mean_cosine"] < 1
        assert 0 < one["features_gb"] <= one["export_gb"]
    assert "int8_x86" not in boxed
    assert 0.9 < grid["int8_x86"]["least_cosine"] < 0.99999
    assert grid["int8_x86"]["mb"] < grid["fp32"]["mb"]
    assert "timm" in found["timm:none_such"]["error"]
    lines = [line.split(" | ") for line in result.stdout.splitlines() if line.startswith("| `")]
    assert [line[0] for line in lines] == ["| `own_backbones:boxed`", "| `own_backbones:grid`", "| `timm:none_such`"]
    assert {len(line) for line in lines} == {len(backbones.HEAD)}
    assert lines[1][1:3] == ["32", "4 x 8"]
    drawing = tmp_path / "out" / "own-backbones-boxed.png"
    pixels = np.asarray(Image.open(drawing))
    assert pixels.shape == (300, 600, 3)
    rows, columns = np.nonzero(pixels[:, :, 0])
    assert (columns.min() / 600, rows.min() / 300) == pytest.approx(BOX[:2], abs=0.01)
    assert (columns.max() / 600, rows.max() / 300) == pytest.approx((0.75, 0.75), abs=0.01)
    assert not pixels[160:220, 160:440].any(), "only the edge is drawn"
