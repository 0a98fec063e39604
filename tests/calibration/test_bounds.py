"""Known bounds replace statistics, and neither padding nor the order of the samples changes a range."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from chan_rt.calibration.bounds import known_bounds
from chan_rt.calibration.calibrate import RANGES_FILE, calibrate
from chan_rt.calibration.feeds import Samples
from chan_rt.calibration.plan import to_int8
from chan_rt.calibration.ranges import METHODS, Method
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.graphs import build_graphs
from chan_rt.runtime.contract import GraphSpec, Manifest, TokenizerSpec, sha256_file, verified, write_manifest
from chan_rt.runtime.onnx_session import open_session
from chan_rt.runtime.text import TokenBatch

CONFIG = ModelConfig(region_dim=48, embed_dim=64, vocab_size=40, word_dim=24)  # of the fixture `bundle`
IMAGES = 40


def _graph(bundle: Path, name: str) -> tuple[onnx.ModelProto, str]:
    spec = Manifest.load(bundle).graph(name, "fp32")
    return onnx.load(verified(bundle, spec.file, spec.sha256)), spec.sha256


def test_the_bounds_of_each_graph(bundle: Path) -> None:
    text, _ = _graph(bundle, "text_encoder")
    table = next(item for item in text.graph.initializer if item.name == "text_encoder/embedding/weight")
    values = onnx.numpy_helper.to_array(table)
    bounds = known_bounds(text)
    for tensor in ("text_encoder/time_major", "text_encoder/reverse"):
        assert bounds[tensor] == (values.min(), values.max())
    for tensor in ("text_encoder/forward/gru", "text_encoder/backward/gru"):
        assert bounds[tensor] == (-1, 1)
    regions, _ = _graph(bundle, "region_encoder")
    assert known_bounds(regions) == {"region_encoder/attention/softmax": (0, 1)}
    alignment, _ = _graph(bundle, "hard_alignment")
    assert "hard_alignment/region_rows" not in known_bounds(alignment)
    found = known_bounds(alignment, ["region_embeddings", "word_embeddings"])
    assert found["hard_alignment/region_rows"] == found["hard_alignment/word_rows"] == (-1, 1)


def test_a_gru_with_an_initial_state_or_other_activations_has_no_bound() -> None:
    def gru(inputs: list[str], **attributes: object) -> dict[str, tuple[float, float]]:
        node = helper.make_node("GRU", inputs, ["y"], hidden_size=2, **attributes)
        made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
        return known_bounds(helper.make_model(helper.make_graph([node], "g", [], made)))

    assert gru(["x", "w", "r", "b"]) == {"y": (-1, 1)}
    assert gru(["x", "w", "r", "b", "", "h"]) == {}
    assert gru(["x", "w", "r"], activations=["Sigmoid", "Relu"]) == {}


@pytest.mark.parametrize("method", METHODS)
def test_a_word_louder_than_the_samples_is_not_clipped(tmp_path: Path, method: Method) -> None:
    torch.manual_seed(0)
    model = ChanModel(CONFIG).eval()
    with torch.no_grad():
        model.text_encoder.embedding.weight[20:] *= 8  # rare words of a trained table can be louder
    (tmp_path / "graphs/fp32").mkdir(parents=True)
    specs = {}
    for name, graph in dict(build_graphs(model)).items():
        onnx.save(graph, tmp_path / f"graphs/fp32/{name}.onnx")
        digest = sha256_file(tmp_path / f"graphs/fp32/{name}.onnx")
        specs[name] = {"fp32": GraphSpec(f"graphs/fp32/{name}.onnx", digest, 20, (), (), {})}
    write_manifest(tmp_path, Manifest(CONFIG.to_dict(), CONFIG.alignment, specs, TokenizerSpec("scan", {})))
    rng = np.random.default_rng(0)
    regions = rng.gamma(0.7, 1.0, (IMAGES, 4, CONFIG.region_dim)).astype(np.float32)
    tokens = TokenBatch(rng.integers(1, 20, (60, 6), dtype=np.int32), np.full(60, 6, np.int32))
    samples = Samples(lambda rows: (regions[rows], np.full(len(regions[rows]), 4, np.int32)), IMAGES, tokens)
    text, digest = _graph(tmp_path, "text_encoder")
    ranges = calibrate(tmp_path, samples, method).ranges("text_encoder", digest)
    loud = {"token_ids": rng.integers(20, 40, (8, 6), dtype=np.int32), "token_lengths": np.full(8, 6, np.int32)}
    found, expected = (_run(graph, loud) for graph in (to_int8(text, ranges, "x86", ()), text))
    assert (found * expected).sum(-1).min() > 0.995
    seen = {name: replace(item, low=item.minimum, high=item.maximum) for name, item in ranges.items()}
    assert (_run(to_int8(text, seen, "x86", ()), loud) * expected).sum(-1).min() < 0.99


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = open_session(model.SerializeToString())
    return session.run(None, feeds)[0]


def _ragged(order: np.ndarray) -> Samples:
    """40 images of 3 or 30 regions and captions of 2 to 7 words, in the given order of each."""
    rng = np.random.default_rng(0)
    lengths = np.where(np.arange(IMAGES) % 8 == 0, 30, 3).astype(np.int32)[order]
    regions = rng.gamma(0.7, 1.0, (IMAGES, 30, CONFIG.region_dim)).astype(np.float32)[order]
    words = rng.integers(2, 8, IMAGES).astype(np.int32)[order]
    ids = rng.integers(1, 40, (IMAGES, 7), dtype=np.int32)[order]

    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        longest = int(lengths[rows].max())
        real = np.arange(longest) < lengths[rows][:, None]
        return np.where(real[..., None], regions[rows][:, :longest], 0.0).astype(np.float32), lengths[rows]

    return Samples(read, IMAGES, TokenBatch(np.where(np.arange(7) < words[:, None], ids, 0), words))


@pytest.mark.parametrize("method", METHODS)
def test_padding_and_order_change_nothing(bundle: Path, method: Method) -> None:
    files = []
    orders = [np.arange(IMAGES), np.arange(IMAGES)[::-1], np.random.default_rng(1).permutation(IMAGES)]
    for order in orders:
        samples = _ragged(order)
        found = calibrate(bundle, samples, method)
        files.append((bundle / RANGES_FILE).read_bytes())
        counted = int(samples.region_lengths.sum()) * CONFIG.region_dim
        assert found.graphs["region_encoder"][1]["regions"].count == counted
    assert files[0] == files[1] == files[2]


def test_other_samples_give_another_hash(bundle: Path) -> None:
    samples = _ragged(np.arange(IMAGES))
    assert _ragged(np.arange(IMAGES)[::-1]).sha256() == samples.sha256()
    assert replace(samples, num_images=IMAGES - 1).sha256() != samples.sha256()
    ids = samples.tokens.ids.copy()
    ids[3, 1] += 1
    assert replace(samples, tokens=TokenBatch(ids, samples.tokens.lengths)).sha256() != samples.sha256()
