"""Small random models whose sizes are all different, so that a swapped axis shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.backbones.base import Backbone
from chan_rt.chan_ref.config import BertConfig, ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.runtime.contract import AlignmentConfig, Preprocess
from chan_rt.runtime.text import BERT_SPECIALS, bert_tokenizer_json

WORDS = ["<pad>", "<start>", "<end>", "<unk>", *(f"w{i}" for i in range(25))]
VOCABULARY = {"word2idx": {w: i for i, w in enumerate(WORDS)}, "idx2word": dict(enumerate(WORDS)), "idx": len(WORDS)}


def make_model(
    text: str = "bigru",
    regions: str = "selfattention",
    alignment: AlignmentConfig | None = None,
    normalize: bool = True,
) -> ChanModel:
    """A model of random weights, in evaluation mode."""
    torch.manual_seed(0)
    config = ModelConfig(
        region_dim=13,
        embed_dim=16,
        region_encoder=regions,
        text_encoder=text,
        vocab_size=len(WORDS) + 1 if text == "bigru" else 0,
        word_dim=11,
        bert=BertConfig(31, hidden=24, layers=2, heads=4, intermediate=40, positions=20) if text == "bert" else None,
        normalize_regions=normalize,
        normalize_words=normalize,
        alignment=alignment or AlignmentConfig(),
    )
    model = ChanModel(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:  # fresh biases are 0 and norms 1, which would hide a forgotten one
            parameter.add_(0.3 * torch.randn_like(parameter))
        elif text == "bert" and "text_encoder" in name:  # BERT's fresh weights are so small that no word differs
            parameter.mul_(8)
    return model


def wordpieces(beside: Path) -> dict[str, bytes]:
    """The tokenizer of a tiny BERT: 31 pieces."""
    beside.parent.mkdir(parents=True, exist_ok=True)
    vocabulary = beside.with_name("vocab.txt")
    vocabulary.write_text("\n".join([*BERT_SPECIALS, *(f"w{i}" for i in range(26))]) + "\n")
    return {"tokenizer.json": bert_tokenizer_json(vocabulary).encode()}


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., ChanModel]:
    return make_model


@pytest.fixture(scope="session")
def save_model() -> Callable[..., None]:
    """Writes the checkpoint of a tiny model to a path."""

    def save(path: Path, **options: object) -> None:
        model = make_model(**options)
        scan = {"vocab.json": json.dumps(VOCABULARY).encode()}
        checkpoint.save(path, model, scan if model.config.bert is None else wordpieces(path), {})

    return save


@pytest.fixture
def save_tiny(tmp_path: Path, save_model: Callable[..., None]) -> Callable[..., Path]:
    """Writes a checkpoint into the test's folder; returns its directory."""

    def save(**options: object) -> Path:
        save_model(tmp_path / "checkpoint", **options)
        return tmp_path / "checkpoint"

    return save


@pytest.fixture(scope="session")
def tiny_backbone() -> Backbone:
    """16 x 16 pixels -> 2 x 2 regions of 13 features."""
    torch.manual_seed(1)

    class Grid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 13, 3, padding=1)
            self.pool = nn.AvgPool2d(8)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.pool(torch.nn.functional.relu6(self.convolution(pixels))).flatten(2).transpose(1, 2)

    preprocess = Preprocess(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, grid=2)
    return Backbone(Grid().eval().requires_grad_(False), preprocess)
