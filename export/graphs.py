"""The ONNX graphs of a CHAN model, written by hand from its weights. `chan_ref.encoders` defines what they compute.

region_encoder   regions [B, R, F], region_lengths [B] -> region_embeddings [B, R, D], exact zeros past the length
text_encoder     token_ids [B, W], token_lengths [B] -> word_embeddings [B, W, D], likewise
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import numpy as np
import onnx
from onnx import TensorProto
from torch import Tensor, nn

from ..chan_ref.encoders import BertLayer, BertTextEncoder, BiGRUTextEncoder, RegionEncoder, SelfAttention
from ..chan_ref.model import ChanModel
from ..runtime.contract import GraphName
from .alignment import alignment_map, hard_alignment
from .builder import EPSILON, MASKED, GraphBuilder


def build_graphs(model: ChanModel) -> dict[GraphName, onnx.ModelProto]:
    """Every float32 graph of a model but the backbone, by its name in the bundle."""
    text = model.text_encoder
    return {
        "region_encoder": region_encoder(model.region_encoder),
        "text_encoder": bert_text_encoder(text) if isinstance(text, BertTextEncoder) else bigru_text_encoder(text),
        "hard_alignment": hard_alignment(model.config.alignment, model.config.embed_dim),
        "alignment_map": alignment_map(model.config.embed_dim),
    }


def region_encoder(encoder: RegionEncoder) -> onnx.ModelProto:
    """regions, region_lengths -> region_embeddings; `basic` or `selfattention` as the encoder is."""
    b = GraphBuilder("region_encoder")
    width, embed = encoder.projection.in_features, encoder.projection.out_features
    regions = b.input("regions", "float32", ("B", "R", width))
    valid = b.length_mask(b.input("region_lengths", "int32", ("B",)), regions)  # [B, R]
    x = _linear(b, regions, encoder.projection, "projection")  # [B, R, D]
    if encoder.attention is not None and encoder.norm is not None:
        # Padding may hold anything, and `0 * NaN` is NaN, so padding is replaced before attention.
        x = b.node("Where", b.row_mask(valid), x, b.real(0.0), name="clear_padding")
        y = _attention(b, _layer_norm(b, x, encoder.norm, "norm"), encoder.attention, _key_mask(b, valid))
        x = b.node("Add", x, y, name="residual")
    _finish_rows(b, x, valid, encoder.normalize, "region_embeddings")
    b.output("region_embeddings", "float32", ("B", "R", embed))
    return b.build()


def bigru_text_encoder(encoder: BiGRUTextEncoder) -> onnx.ModelProto:
    """token_ids, token_lengths -> word_embeddings. No valid step depends on the padding.

    TensorRT does not parse a half GRU with `sequence_lens`. Two forward GRUs do: the second reads each caption reversed
    within its length, so that in both directions padding comes after the last valid step and cannot reach it.
    """
    b = GraphBuilder("text_encoder")
    ids, lengths, valid = _captions(b)
    words = b.node("Gather", b.weight("embedding/weight", _array(encoder.embedding.weight)), ids, name="embedding")
    words = b.node("Transpose", words, name="time_major", perm=[1, 0, 2])  # [W, B, E]
    lengths64 = b.node("Cast", lengths, name="lengths64", to=TensorProto.INT64)
    backward_words = b.node("ReverseSequence", words, lengths64, name="reverse", time_axis=0, batch_axis=1)
    forward = _gru(b, words, encoder.gru, "", "forward")  # [W, 1, B, D]
    backward = _gru(b, backward_words, encoder.gru, "_reverse", "backward")
    axis = b.integers(1)
    forward = b.node("Squeeze", forward, axis, name="forward/states")  # [W, B, D]
    backward = b.node("Squeeze", backward, axis, name="backward/states")
    backward = b.node("ReverseSequence", backward, lengths64, name="restore", time_axis=0, batch_axis=1)
    x = b.node("Add", forward, backward, name="sum")
    x = b.node("Mul", x, b.real(0.5), name="mean")
    x = b.node("Transpose", x, name="batch_major", perm=[1, 0, 2])  # [B, W, D]
    _finish_rows(b, x, valid, encoder.normalize, "word_embeddings")
    b.output("word_embeddings", "float32", ("B", "W", encoder.gru.hidden_size))
    return b.build()


def bert_text_encoder(encoder: BertTextEncoder) -> onnx.ModelProto:
    """token_ids, token_lengths -> word_embeddings; W at most the encoder's positions."""
    b = GraphBuilder("text_encoder")
    bert = encoder.bert
    ids, _, valid = _captions(b)
    x = b.node("Gather", b.weight("words/weight", _array(bert.words.weight)), ids, name="words")  # [B, W, H]
    # All tokens are of segment 0, so its row is part of every position's.
    positions = b.weight("positions/weight", _array(bert.positions.weight + bert.segments.weight[0]))
    size = b.node("Shape", ids, name="size", start=1, end=2)
    positions = b.node("Slice", positions, b.integers(0), size, b.integers(0), name="positions")
    x = _layer_norm(b, b.node("Add", x, positions, name="embedded"), bert.norm, "norm")
    keys = _key_mask(b, valid)
    for index, layer in enumerate(cast("Iterable[BertLayer]", bert.layers)):
        with b.scope(f"layer{index}"):
            x = b.node("Add", x, _attention(b, x, layer.attention, keys), name="attention_residual")
            x = _layer_norm(b, x, layer.attention_norm, "attention_norm")
            y = b.node("Gelu", _linear(b, x, layer.intermediate, "intermediate"), name="gelu", approximate="none")
            x = b.node("Add", x, _linear(b, y, layer.output, "output"), name="output_residual")
            x = _layer_norm(b, x, layer.output_norm, "output_norm")
    x = _linear(b, x, encoder.projection, "projection")  # [B, W, D]
    _finish_rows(b, x, valid, encoder.normalize, "word_embeddings")
    b.output("word_embeddings", "float32", ("B", "W", encoder.projection.out_features))
    return b.build()


def _captions(b: GraphBuilder) -> tuple[str, str, str]:
    """The inputs of a text encoder: ids [B, W] with 0 past each length, lengths [B] and the mask [B, W]."""
    ids = b.input("token_ids", "int32", ("B", "W"))
    lengths = b.input("token_lengths", "int32", ("B",))
    valid = b.length_mask(lengths, ids)
    padding = b.node("Cast", b.integer(0), name="padding_id", to=TensorProto.INT32)
    return b.node("Where", valid, ids, padding, name="clear_padding"), lengths, valid


def _key_mask(b: GraphBuilder, valid: str) -> str:
    """A mask [B, L] as [B, 1, 1, L], for the keys of attention's logits [B, heads, L, L]."""
    return b.node("Unsqueeze", valid, b.integers(1, 2), name="valid_keys")


def _linear(b: GraphBuilder, x: str, layer: nn.Linear, name: str) -> str:
    """x W^T + bias over the last axis; the MatMul carries `name`, its weight is [in, out] as quantization wants it."""
    y = b.node("MatMul", x, b.weight(f"{name}/weight", _array(layer.weight).T), name=name)
    return b.node("Add", y, b.weight(f"{name}/bias", _array(layer.bias)), name=f"{name}/add_bias")


def _layer_norm(b: GraphBuilder, x: str, norm: nn.LayerNorm, name: str) -> str:
    weight, bias = b.weight(f"{name}/weight", _array(norm.weight)), b.weight(f"{name}/bias", _array(norm.bias))
    return b.node("LayerNormalization", x, weight, bias, name=name, axis=-1, epsilon=norm.eps)


def _attention(b: GraphBuilder, x: str, attention: SelfAttention, valid_keys: str) -> str:
    """Multi-head scaled dot-product self-attention of [B, L, width]; `valid_keys` from `_key_mask`."""
    width = attention.query.in_features
    head = width // attention.heads
    split = b.integers(0, 0, attention.heads, head)

    def by_head(rows: str, name: str, perm: list[int]) -> str:
        rows = b.node("Reshape", rows, split, name=f"{name}/split")
        return b.node("Transpose", rows, name=f"{name}/heads", perm=perm)

    with b.scope("attention"):
        # Scaled before the product: unscaled logits of BERT would use up half's range.
        queries = b.node("Mul", _linear(b, x, attention.query, "query"), b.real(head**-0.5), name="query/scaled")
        queries = by_head(queries, "query", [0, 2, 1, 3])  # [B, heads, L, d]
        keys = by_head(_linear(b, x, attention.key, "key"), "key", [0, 2, 3, 1])  # [B, heads, d, L]
        values = by_head(_linear(b, x, attention.value, "value"), "value", [0, 2, 1, 3])
        logits = b.node("MatMul", queries, keys, name="qk")
        logits = b.node("Where", valid_keys, logits, b.real(MASKED), name="masked_keys")
        weights = b.node("Softmax", logits, name="softmax", axis=-1)
        attended = b.node("MatMul", weights, values, name="attended")
        attended = b.node("Transpose", attended, name="joined", perm=[0, 2, 1, 3])
        attended = b.node("Reshape", attended, b.integers(0, 0, width), name="rows")
        return _linear(b, attended, attention.output, "output")


def _gru(b: GraphBuilder, x: str, gru: nn.GRU, suffix: str, name: str) -> str:
    """One forward pass with the weights of `gru`'s direction `suffix`: [W, B, E] -> [W, 1, B, D]."""
    with b.scope(name):
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        gates = [_zrn(_array(getattr(gru, f"{kind}_l0{suffix}"))) for kind in kinds]
        weight = b.weight("weight", gates[0][None])
        recurrence = b.weight("recurrence", gates[1][None])
        bias = b.weight("bias", np.concatenate(gates[2:])[None])
        # linear_before_reset: torch multiplies the reset gate into W_hn h + b_hn, not into h.
        return b.node(
            "GRU", x, weight, recurrence, bias, name="gru", hidden_size=gru.hidden_size, linear_before_reset=1
        )


def _zrn(gates: np.ndarray) -> np.ndarray:
    """torch stacks the gates reset, update, new; ONNX update, reset, new."""
    reset, update, new = np.split(gates, 3)
    return np.concatenate([update, reset, new])


def _finish_rows(b: GraphBuilder, x: str, valid: str, normalize: bool, output: str) -> None:
    """Rows divided by their L2 norm + EPSILON where the model does so, exact zeros past the length."""
    with b.scope("normalize"):
        if normalize:
            norm = b.node("ReduceL2", x, b.integers(-1), name="norm", keepdims=1)
            x = b.node("Div", x, b.node("Add", norm, b.real(EPSILON), name="safe_norm"), name="unit")
        b.node("Where", b.row_mask(valid), x, b.real(0.0), name="zero_padding", output=output)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
