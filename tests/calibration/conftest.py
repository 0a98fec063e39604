"""A tiny bundle of float32 graphs with made-up samples that a random model can still tell apart."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from chan_rt.calibration.feeds import Samples
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.graphs import build_graphs
from chan_rt.runtime.contract import GraphSpec, Manifest, TokenizerSpec, sha256_file, write_manifest
from chan_rt.runtime.text import TokenBatch

CONFIG = ModelConfig(region_dim=48, embed_dim=64, vocab_size=40, word_dim=24)
IMAGES, REGIONS, CAPTIONS, WORDS = 40, 9, 60, 8


@pytest.fixture(scope="session")
def float_graphs() -> dict[str, onnx.ModelProto]:
    torch.manual_seed(0)
    return dict(build_graphs(ChanModel(CONFIG).eval()))


@pytest.fixture
def bundle(tmp_path: Path, float_graphs: dict[str, onnx.ModelProto]) -> Path:
    folder = tmp_path / "bundle"
    (folder / "graphs/fp32").mkdir(parents=True)
    specs = {}
    for name, model in float_graphs.items():
        file = f"graphs/fp32/{name}.onnx"
        onnx.save(model, folder / file)
        specs[name] = {"fp32": GraphSpec(file, sha256_file(folder / file), 20, (), (), {})}
    manifest = Manifest(CONFIG.to_dict(), CONFIG.alignment, specs, TokenizerSpec("scan", {}))
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="session")
def samples() -> Samples:
    rng = np.random.default_rng(0)
    regions = rng.gamma(0.7, 1.0, (IMAGES, REGIONS, CONFIG.region_dim)).astype(np.float32)
    lengths = np.full(IMAGES, REGIONS, np.int32)
    word_lengths = rng.integers(2, WORDS + 1, CAPTIONS).astype(np.int32)
    ids = np.where(np.arange(WORDS) < word_lengths[:, None], rng.integers(1, 40, (CAPTIONS, WORDS)), 0)
    return Samples(lambda part: (regions[part], lengths[part]), IMAGES, TokenBatch(ids.astype(np.int32), word_lengths))
