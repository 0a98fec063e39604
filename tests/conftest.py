"""Small models with their bundles."""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.backbone import Backbone
from chan_rt.export.bundle import export_bundle
from chan_rt.runtime.contract import AlignmentConfig, Preprocess
from chan_rt.runtime.text import build_scan_vocabulary

SMALL_WORDS = "a red strawberry and the green apple lie on a blue table under two white clouds"


class SmallBackbone(torch.nn.Module):
    """One convolution: pixels [B, 3, 24, 24] -> regions [B, 4, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = torch.nn.Conv2d(3, 12, 12, stride=12)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.cells(pixels).flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class SmallModel:
    """A small model with random weights, and the bundle it was exported to."""

    model: ChanModel
    bundle: Path


@pytest.fixture(scope="session")
def make_small_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SmallModel]:
    """(coding, pooling, precisions, pictures) -> SmallModel with 12-d regions, 16-d embeddings, words of `SMALL_WORDS`.

    With `pictures` its bundle has a backbone: 24 x 24 pixels to a 2 x 2 grid.
    """

    @functools.cache
    def make(
        coding: str = "VHA", pooling: str = "LSE", precisions: tuple[str, ...] = ("fp32",), pictures: bool = False
    ) -> SmallModel:
        torch.manual_seed(7)
        vocabulary = build_scan_vocabulary([SMALL_WORDS], min_count=1)
        config = ModelConfig(
            region_dim=12,
            embed_dim=16,
            attention_heads=2,
            vocab_size=len(vocabulary["word2idx"]) + 1,
            word_dim=8,
            alignment=AlignmentConfig(coding, pooling, attention_temperature=0.2, pooling_temperature=0.1),
        )
        model = ChanModel(config).eval()
        folder = tmp_path_factory.mktemp("small")
        checkpoint.save(folder / "checkpoint", model, {"vocab.json": json.dumps(vocabulary).encode()}, {})
        backbone = Backbone(SmallBackbone().eval(), Preprocess(24, (0.5,) * 3, (0.25,) * 3, 2)) if pictures else None
        export_bundle(folder / "checkpoint", folder / "bundle", precisions, backbone)
        return SmallModel(model, folder / "bundle")

    return make
