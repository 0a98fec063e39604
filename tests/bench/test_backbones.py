"""The measurement of backbones: figures of each, and boxes where the regions are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from chan_rt.bench import backbones
from chan_rt.chan_ref.backbones.base import Backbone, frozen
from chan_rt.runtime.contract import Preprocess

BOX = (0.25, 0.5, 0.5, 0.25)


class One(torch.nn.Module):
    """One region, and where it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cells = torch.nn.Conv2d(3, 8, 16, stride=16)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.cells(pixels).flatten(2).transpose(1, 2), torch.tensor([[BOX]]).expand(pixels.shape[0], -1, -1)


def make() -> Backbone:
    """For `MODULE:FUNCTION`."""
    return Backbone(frozen(One()), Preprocess(16, (0.5,) * 3, (0.5,) * 3, None))


def test_a_backbone_is_measured_and_its_box_drawn(tmp_path: Path) -> None:
    Image.new("RGB", (60, 30), "black").save(tmp_path / "photo.png")
    names = ["--backbone", f"{__name__}:make", "--backbone", "timm:none_such"]
    arguments = [str(tmp_path / "photo.png"), "-o", str(tmp_path / "out"), *names]
    threads = torch.get_num_threads()
    try:
        result = CliRunner().invoke(backbones.main, arguments)
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out/backbones.json").read_text())["backbones"]
    one = found[f"{__name__}:make"]
    assert (one["size"], one["regions"], one["width"]) == (16, 1, 8)
    assert one["fp32"]["largest_error"] < 1e-5
    assert one["fp32"]["regions_found"] == one["fp16"]["regions_found"] == 100
    assert 0.999 < one["fp16"]["least_cosine"] < 1
    assert "timm" in found["timm:none_such"]["error"]
    (drawing,) = (tmp_path / "out").glob("*.png")
    pixels = np.asarray(Image.open(drawing))
    assert pixels.shape == (300, 600, 3)
    rows, columns = np.nonzero(pixels[:, :, 0])
    assert (columns.min() / 600, rows.min() / 300) == pytest.approx(BOX[:2], abs=0.01)
    assert (columns.max() / 600, rows.max() / 300) == pytest.approx((0.75, 0.75), abs=0.01)
    assert not pixels[160:220, 160:440].any(), "only the edge is drawn"
