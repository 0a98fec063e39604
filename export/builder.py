"""A small writer of ONNX graphs: scoped names, shared constants, and the same bytes for the same calls.

Graphs are written by hand rather than traced: every axis is dynamic because nothing ever froze it, every node has a
name that quantization plans, engine inspectors and error messages can use, and no path, time or version enters the
file. A mask replaces what it hides: by MASKED before a maximum or a softmax, by 0 before a sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..runtime.errors import InputError

# 17 brought LayerNormalization, 19 QuantizeLinear of half, 20 Gelu: one node each for what int8 plans, fp32 islands and
# TensorRT's fusions look for. TensorRT 10 and 11, TensorRT-RTX and onnxruntime since 1.17 read it. IR 9 goes with it.
OPSET = 20
IR_VERSION = 9
PRODUCER = "chan_rt"
# Below every number in float32 and in half alike. A finite value would not be: the logits of a model without
# normalization are products of norms over a temperature, with no bound.
MASKED = -math.inf
# Added to every norm, as published; it vanishes in half.
EPSILON = 1e-8
# Scopes that stay float32 in an fp16 graph: norms (EPSILON, sums of D squares), pooling (log-sum-exp, long sums) and
# VSA's attention (a norm from a quadratic form).
FP32_SCOPES = ("normalize", "pool", "attend")

Attribute = int | float | str | Sequence[int]
DTYPES: dict[str, int] = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


class GraphBuilder:
    """Appends nodes to one graph; values are named after the node that makes them.

    Args:
        name: the graph's name, and the outermost scope of every node.
    """

    def __init__(self, name: str) -> None:
        self._graph = onnx.GraphProto(name=name)
        self._scopes = [name]
        self._names: set[str] = set()
        self._constants: dict[str, str] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Nodes and weights made inside are named `.../name/...`."""
        self._scopes.append(name)
        try:
            yield
        finally:
            self._scopes.pop()

    def input(self, name: str, dtype: str, shape: Sequence[int | str]) -> str:
        """Declare a graph input; a string in `shape` is a symbolic dimension."""
        self._graph.input.append(helper.make_tensor_value_info(self._claim(name), DTYPES[dtype], shape))
        return name

    def output(self, name: str, dtype: str, shape: Sequence[int | str]) -> None:
        """Declare a graph output, made by a node whose `output` was this name."""
        self._graph.output.append(helper.make_tensor_value_info(name, DTYPES[dtype], shape))

    def weight(self, name: str, value: np.ndarray) -> str:
        """Add a float32 weight named after the current scope."""
        full = self._claim("/".join([*self._scopes, name]))
        self._graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), full))
        return full

    def integers(self, *values: int) -> str:
        """A shared int64 vector."""
        return self._constant("int64/" + "_".join(map(str, values)), np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """A shared int64 scalar."""
        return self._constant(f"int64/scalar_{value}", np.int64(value))

    def real(self, value: float) -> str:
        """A shared float32 scalar."""
        return self._constant(f"float32/{value!r}", np.float32(value))

    def node(
        self,
        op: str,
        *inputs: str,
        name: str,
        output: str | None = None,
        **attributes: Attribute,
    ) -> str:
        """Append a node with one output, `output` or else the node's scoped name; returns the output's name."""
        full = "/".join([*self._scopes, name])
        value = self._claim(output or full)
        node = helper.make_node(op, inputs, [value], name=full)
        node.attribute.extend(helper.make_attribute(key, item) for key, item in sorted(attributes.items()))
        self._graph.node.append(node)
        return value

    def top_k(self, x: str, k: int, *, name: str, values: str) -> str:
        """The k largest along the last axis, largest first: they are named `values`; returns the indices' name."""
        full = "/".join([*self._scopes, name])
        outputs = [self._claim(values), self._claim(f"{full}/index")]
        self._graph.node.append(helper.make_node("TopK", [x, self.integers(k)], outputs, name=full))
        return outputs[1]

    def length_mask(self, lengths: str, rows: str) -> str:
        """Boolean [B, L]: True at positions below each length; L is the second dimension of `rows`."""
        with self.scope(f"{lengths}_mask"):
            size = self.node("Squeeze", self.node("Shape", rows, name="shape", start=1, end=2), name="size")
            positions = self.node("Range", self.integer(0), size, self.integer(1), name="positions")
            limit = self.node("Cast", lengths, name="int64", to=TensorProto.INT64)
            return self.node(
                "Less", positions, self.node("Unsqueeze", limit, self.integers(1), name="limit"), name="valid"
            )

    def row_mask(self, valid: str) -> str:
        """A mask [B, L] as [B, L, 1], for whole rows."""
        return self.node("Unsqueeze", valid, self.integers(2), name="valid_rows")

    def build(self) -> onnx.ModelProto:
        """The finished model."""
        return helper.make_model(
            self._graph,
            producer_name=PRODUCER,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )

    def _constant(self, key: str, value: np.ndarray | np.generic) -> str:
        if key not in self._constants:
            name = self._claim(f"constants/{key}")
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
            self._constants[key] = name
        return self._constants[key]

    def _claim(self, name: str) -> str:
        if name in self._names:
            raise InputError(f"graph {self._graph.name} already has a value named {name!r}")
        self._names.add(name)
        return name
