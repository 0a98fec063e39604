"""The comparison of precisions runs, on models small enough for a test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from chan_rt.bench import int8
from chan_rt.chan_ref.config import BertConfig
from chan_rt.runtime.contract import Manifest
from chan_rt.runtime.text import load_tokenizer

SMALL = {
    "gru": replace(int8.MODELS["gru"], region_dim=12, embed_dim=16, vocab_size=30, word_dim=8),
    "bert": replace(
        int8.MODELS["bert"],
        region_dim=12,
        embed_dim=16,
        bert=BertConfig(40, hidden=24, layers=1, heads=4, intermediate=40, positions=20),
    ),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "MODELS", SMALL)
    monkeypatch.setattr(int8, "CALIBRATION_IMAGES", 16)


@pytest.mark.parametrize("name", list(SMALL))
def test_every_precision_beside_torch(name: str, tmp_path: Path) -> None:
    if name == "bert":
        pytest.importorskip("tokenizers")
    arguments = ["--model", name, "--seconds", "0.01", "--threads", str(torch.get_num_threads())]
    result = CliRunner().invoke(int8.main, [*arguments, "--json", str(tmp_path / "record.json")])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "record.json").read_text())["models"][name]
    precisions = {"torch fp32", "fp32", "fp16", "int8_x86"}
    assert set(record["text_encoder"]) == precisions | ({"int8"} if name == "bert" else set())
    assert set(record["region_encoder"]) == precisions | {"int8"}
    assert 0.99 < record["text_encoder"]["int8_x86"]["least_cosine"] <= 1.00001
    assert set(record["scores"]) == {"fp16", "int8", "int8_x86"}


def test_one_encoder_alone(tmp_path: Path) -> None:
    arguments = ["--model", "gru", "--graph", "text_encoder", "--seconds", "0.01"]
    result = CliRunner().invoke(int8.main, [*arguments, "--json", str(tmp_path / "record.json")])
    assert result.exit_code == 0, result.output
    assert list(json.loads((tmp_path / "record.json").read_text())["models"]["gru"]) == ["text_encoder"]


@pytest.mark.parametrize("name", list(SMALL))
def test_the_tokenizer_has_an_id_for_every_row(name: str, tmp_path: Path) -> None:
    if name == "bert":
        pytest.importorskip("tokenizers")
    bundle = int8.make_bundle(SMALL[name], tmp_path, np.random.default_rng(0))[1]
    tokenizer = load_tokenizer(bundle, Manifest.load(bundle).tokenizer)
    rows = SMALL[name].vocab_size if name == "gru" else SMALL[name].bert.vocab_size
    assert tokenizer.vocab_size == rows
    assert tokenizer.known("a") == [True] * len(tokenizer.tokens("a"))
