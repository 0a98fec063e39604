"""Each ONNX graph computes what the reference does, at sizes nobody exported it with, whatever lies in the padding."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import get_args

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from chan_rt.chan_ref import alignment as reference
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.alignment import alignment_map, hard_alignment
from chan_rt.export.builder import GraphBuilder
from chan_rt.export.graphs import build_graphs
from chan_rt.export.precision import to_half
from chan_rt.runtime.contract import AlignmentConfig, Coding, Pooling
from chan_rt.runtime.errors import InputError

PRECISIONS = ("fp32", "fp16")
WIDTH = 16
# Largest absolute error; rows are of unit length. Measured: fp32 7e-7; fp16 5e-4 in rows, 4e-3 in sums and log-sums.
ROWS = {"fp32": 2e-6, "fp16": 1e-3}
SCORES = {"fp32": 4e-6, "fp16": 8e-3}


def run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}
    fed = {item.name: feeds[item.name].astype(kinds[item.type]) for item in session.get_inputs()}
    return dict(zip([item.name for item in session.get_outputs()], session.run(None, fed), strict=True))


def at(precision: str, model: onnx.ModelProto) -> onnx.ModelProto:
    return model if precision == "fp32" else to_half(model)


def lengths_of(rng: np.random.Generator, batch: int, size: int) -> np.ndarray:
    """From 1 to full; one row is always full, another, where there is one, of length 1."""
    lengths = rng.integers(1, size + 1, batch).astype(np.int32)
    lengths[0] = 1
    lengths[-1] = size
    return lengths


def ragged(rng: np.random.Generator, batch: int, size: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [batch, size, width] with NaN past each length."""
    rows, lengths = rng.standard_normal((batch, size, width), dtype=np.float32), lengths_of(rng, batch, size)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    rows[np.arange(size) >= lengths[:, None]] = np.nan
    return rows, lengths


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["basic", "selfattention"])
def test_region_encoder(tiny_model: Callable[..., ChanModel], kind: str, normalize: bool, precision: str) -> None:
    model = tiny_model(regions=kind, normalize=normalize)
    graph = at(precision, build_graphs(model)["region_encoder"])
    rng = np.random.default_rng(0)
    for batch, size in [(1, 1), (1, 6), (5, 1), (5, 37)]:
        regions, lengths = ragged(rng, batch, size, 13)
        want = model.encode_regions(*tensors(regions, lengths)).numpy()
        got = run(graph, {"regions": regions, "region_lengths": lengths})["region_embeddings"]
        assert got.dtype == (np.float32 if precision == "fp32" else np.float16)
        np.testing.assert_allclose(got, want, rtol=0, atol=ROWS[precision] * max(1.0, np.abs(want).max()))
        assert not got[np.arange(size) >= lengths[:, None]].any()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", ["bigru", "bert"])
def test_text_encoder(tiny_model: Callable[..., ChanModel], kind: str, normalize: bool, precision: str) -> None:
    model = tiny_model(text=kind, normalize=normalize)
    graph = at(precision, build_graphs(model)["text_encoder"])
    rng = np.random.default_rng(1)
    for batch, size in [(1, 1), (1, 7), (5, 1), (5, 20)]:
        ids, lengths = rng.integers(0, 30, (batch, size)).astype(np.int32), lengths_of(rng, batch, size)
        ids[np.arange(size) >= lengths[:, None]] = 10**6
        want = model.encode_words(*tensors(ids, lengths)).numpy()
        got = run(graph, {"token_ids": ids, "token_lengths": lengths})["word_embeddings"]
        np.testing.assert_allclose(got, want, rtol=0, atol=ROWS[precision] * max(1.0, np.abs(want).max()))
        assert not got[np.arange(size) >= lengths[:, None]].any()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("coding", "pooling"), list(itertools.product(get_args(Coding), get_args(Pooling))))
def test_hard_alignment(coding: str, pooling: str, precision: str) -> None:
    config = AlignmentConfig(coding, pooling, attention_temperature=0.2, pooling_temperature=0.15)
    graph = at(precision, hard_alignment(config, WIDTH))
    rng = np.random.default_rng(2)
    for images, regions, captions, words in [(1, 1, 1, 1), (5, 1, 2, 9), (2, 11, 5, 1), (4, 7, 3, 13)]:
        feeds = alignment_feeds(rng, images, regions, captions, words)
        want = reference.score(*tensors(*feeds.values()), config).numpy()
        got = run(graph, feeds)["scores"]
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=SCORES[precision])


@pytest.mark.parametrize("coding", get_args(Coding))
def test_padding_never_beats_a_negative_similarity(coding: str) -> None:
    config = AlignmentConfig(coding, "Max")
    feeds = alignment_feeds(np.random.default_rng(3), 2, 5, 3, 4)
    feeds["region_embeddings"] = np.zeros((2, 5, WIDTH), np.float32)
    feeds["word_embeddings"] = np.zeros((3, 4, WIDTH), np.float32)
    feeds["region_embeddings"][:, :, 0] = np.arange(5) < feeds["region_lengths"][:, None]
    feeds["word_embeddings"][:, :, 0] = -1.0 * (np.arange(4) < feeds["word_lengths"][:, None])
    np.testing.assert_allclose(run(hard_alignment(config, WIDTH), feeds)["scores"], -1, atol=1e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("coding", get_args(Coding))
@pytest.mark.parametrize(("region_norm", "word_norm"), [(1, 1), (300, 32), (3000, 20)])
def test_scores_of_any_size_survive_their_masks(
    coding: str, region_norm: float, word_norm: float, precision: str
) -> None:
    """Without normalization a logit is a product of norms over a temperature: 6e9 here, with either sign."""
    rng = np.random.default_rng(5)
    feeds = alignment_feeds(rng, 3, 6, 4, 7)
    feeds["region_embeddings"] *= np.float32(region_norm)
    feeds["word_embeddings"] *= np.float32(word_norm)
    for pooling, temperature in itertools.product(get_args(Pooling), (0.1, 1e-3, 1e-5)):
        config = AlignmentConfig(coding, pooling, temperature, temperature)
        want = reference.score(*tensors(*feeds.values()), config).numpy()
        got = run(at(precision, hard_alignment(config, WIDTH)), feeds)["scores"]
        assert np.isfinite(got).all(), (pooling, temperature)
        error = np.abs(got - want).max() / np.abs(want).max()
        assert error < {"fp32": 1e-5, "fp16": 5e-3}[precision], (pooling, temperature, error)


@pytest.mark.parametrize("graph", ["region_encoder", "text_encoder"])
def test_attention_hides_padding_from_logits_of_any_size(tiny_model: Callable[..., ChanModel], graph: str) -> None:
    """Logits of either sign and some 1e6 large: a key that a finite mask hides would win over the valid ones."""
    model = tiny_model(text="bert")
    bert = model.text_encoder.bert
    for attention in [model.region_encoder.attention, *(layer.attention for layer in bert.layers)]:
        attention.query.weight.mul_(1000)
        attention.key.weight.mul_(1000)
    rng = np.random.default_rng(6)
    lengths = lengths_of(rng, 5, 9)
    if graph == "region_encoder":
        feeds = {"regions": rng.standard_normal((5, 9, 13), dtype=np.float32), "region_lengths": lengths}
        want = model.encode_regions(*tensors(*feeds.values())).numpy()
    else:
        feeds = {"token_ids": rng.integers(0, 30, (5, 9)).astype(np.int32), "token_lengths": lengths}
        want = model.encode_words(*tensors(*feeds.values())).numpy()
    (got,) = run(build_graphs(model)[graph], feeds).values()
    np.testing.assert_allclose(got, want, rtol=0, atol=ROWS["fp32"] * max(1.0, np.abs(want).max()))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_alignment_map(precision: str) -> None:
    rng = np.random.default_rng(4)
    feeds = alignment_feeds(rng, 4, 9, 3, 7)
    feeds["region_embeddings"][3, 8] = feeds["region_embeddings"][3, 2]  # a tie, for the lower region
    feeds["word_embeddings"][2, 0] = feeds["region_embeddings"][3, 2]
    feeds = {name: (half(value) if value.dtype == np.float32 else value) for name, value in feeds.items()}
    scores, regions = (value.numpy() for value in reference.align(*tensors(*feeds.values())))
    got = run(at(precision, alignment_map(WIDTH)), feeds)
    np.testing.assert_allclose(got["word_scores"], scores, rtol=0, atol=ROWS[precision])
    np.testing.assert_array_equal(got["word_regions"], regions)
    assert got["word_regions"][3, 2, 0] == 2
    assert got["word_regions"].dtype == np.int32
    assert (got["word_regions"][:, feeds["word_lengths"][:, None] <= np.arange(7)] == -1).all()


def half(rows: np.ndarray) -> np.ndarray:
    """What both precisions read alike."""
    return rows.astype(np.float16).astype(np.float32)


def alignment_feeds(
    rng: np.random.Generator, images: int, regions: int, captions: int, words: int
) -> dict[str, np.ndarray]:
    names = ("region_embeddings", "region_lengths", "word_embeddings", "word_lengths")
    return dict(zip(names, [*ragged(rng, images, regions, WIDTH), *ragged(rng, captions, words, WIDTH)], strict=True))


def test_names_say_where_they_are(tiny_model: Callable[..., ChanModel]) -> None:
    graphs = build_graphs(tiny_model())
    nodes = {node.name: node.op_type for graph in graphs.values() for node in graph.graph.node}
    assert nodes["region_encoder/attention/qk"] == "MatMul"
    assert nodes["text_encoder/backward/gru"] == "GRU"
    assert nodes["hard_alignment/similarity"] == "Gemm"
    weights = {item.name for item in graphs["region_encoder"].graph.initializer}
    assert {"region_encoder/projection/weight", "region_encoder/attention/key/bias"} <= weights
    for graph in graphs.values():
        names = [node.name for node in graph.graph.node]
        assert len(set(names)) == len(names)


def test_graphs_of_one_model_are_the_same_bytes(tiny_model: Callable[..., ChanModel]) -> None:
    once, again = (build_graphs(tiny_model(text="bert")) for _ in range(2))
    for name, graph in once.items():
        assert graph.SerializeToString(deterministic=True) == again[name].SerializeToString(deterministic=True)


def test_builder_refuses_a_name_twice() -> None:
    builder = GraphBuilder("g")
    x = builder.input("x", "float32", ("N",))
    builder.node("Relu", x, name="relu")
    with pytest.raises(InputError, match="'g/relu'"):
        builder.node("Relu", x, name="relu")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_tensorrt_rtx_reads_every_form(tiny_model: Callable[..., ChanModel], precision: str) -> None:
    """Parsed at fp32, built at fp16, whose casts are the harder; test_engines builds a whole bundle at both."""
    models = {}
    for text, regions in [("bigru", "selfattention"), ("bert", "basic")]:
        graphs = build_graphs(tiny_model(text=text, regions=regions))
        models |= {
            f"region_encoder/{regions}": graphs["region_encoder"],
            f"text_encoder/{text}": graphs["text_encoder"],
        }
    for coding, pooling in itertools.product(get_args(Coding), get_args(Pooling)):
        models[f"hard_alignment/{coding}/{pooling}"] = hard_alignment(AlignmentConfig(coding, pooling), WIDTH)
    models["alignment_map"] = alignment_map(WIDTH)
    failed = [name for name, model in models.items() if not tensorrt_takes(at(precision, model), precision == "fp16")]
    assert not failed


def tensorrt_takes(model: onnx.ModelProto, build: bool) -> bool:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install 'chan-rt[rtx]'")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parsed = trt.OnnxParser(network, logger).parse(model.SerializeToString())
    if not parsed or not build:
        return parsed
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for item in model.graph.input:
        axes = item.type.tensor_type.shape.dim
        profile.set_shape(item.name, *([axis.dim_value or size for axis in axes] for size in (1, 4, 16)))
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None
