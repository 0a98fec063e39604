"""The configuration of each model of the repository: what it takes, returns, batches and is warmed up with.

https://github.com/triton-inference-server/server/blob/main/docs/user_guide/model_configuration.md

A batch of Triton is requests put together along their first axis, and it puts together only requests whose other axes
agree. So the encoders and the backbone, whose tensors all begin with B, are batched; a client that pads captions to a
few lengths makes more of them agree. The two alignment graphs have two such axes, images and captions, and are not
batched: whoever has many sends them in one request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...runtime.checks import check_positive
from ...runtime.contract import GraphSpec, TensorSpec
from ...runtime.errors import InputError, shortened
from .pbtxt import Message, Symbol, Value, mapping

PREFIX = "chan_"  # of every model's name, because a server may have other models
SEARCH = "chan_search"
RANGES = "chan_ranges"  # parameter with the sizes that each symbol may take
SHA256 = "chan_sha256"  # parameter with the hash of the model's file
_MOST = {"instances": 2**31 - 1, "queue": 2**32 - 1}  # int32 and uint32 in Triton's configuration
SEARCH_BATCH = 64  # queries that chan_search does together
TIMEOUT_SECONDS = 30
MODEL_FILES: Mapping[str, str] = {"onnxruntime": "model.onnx", "tensorrt": "model.plan", "python": "model.py"}
DATA_TYPES: Mapping[str, str] = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
_WARMUP_CAPTION = "a"
LIMITS = ("max_k", "max_characters", "max_pixels")  # parameters of chan_search: the fields of `Limits`, in order

# Inputs of chan_search, each a row for each query: name, type, dims, what it is. A request has one of the first three.
SEARCH_INPUTS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("caption", "TYPE_STRING", (1,)),
    ("picture", "TYPE_STRING", (1,)),
    ("embedding", "TYPE_FP32", (-1, -1)),
    ("length", "TYPE_INT32", (1,)),
)
SEARCH_OUTPUTS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("ids", "TYPE_STRING", (-1,)),
    ("scores", "TYPE_FP64", (-1,)),
    ("hits", "TYPE_INT32", (1,)),
    ("regions", "TYPE_INT32", (-1, -1)),
    ("similarities", "TYPE_FP32", (-1, -1)),
    ("words", "TYPE_STRING", (-1,)),
    ("metadata", "TYPE_STRING", (-1,)),
    ("certified", "TYPE_BOOL", (1,)),
    ("reason", "TYPE_STRING", (1,)),
)


@dataclass(frozen=True)
class Served:
    """How every model of a repository is served.

    Attributes:
        instances: of each model, which work at the same time.
        queue: requests for a model that may wait; one more is refused.
    """

    instances: int = 1
    queue: int = 128

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            if check_positive(name, getattr(self, name)) > most:
                raise InputError(f"{name} must be at most {most}, got {shortened(str(getattr(self, name)), 40)}")


@dataclass(frozen=True)
class ModelFolder:
    """One model of a repository.

    Attributes:
        name: of the model and its folder.
        config: what its config.pbtxt says.
        warmup: files of its folder `warmup`, by name.
    """

    name: str
    config: Message
    warmup: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """The most rows that are run together; 0 where Triton does not batch the model."""
        size = self.config["max_batch_size"]
        assert isinstance(size, int)
        return size


def batch_symbol(spec: GraphSpec) -> str | None:
    """The symbol that every tensor of a graph begins with, and which occurs nowhere else; None where there is none."""
    heads = {tensor.shape[0] if tensor.shape else 0 for tensor in (*spec.inputs, *spec.outputs)}
    rest = {symbol for tensor in (*spec.inputs, *spec.outputs) for symbol in tensor.shape[1:]}
    (head, *more) = heads
    return head if isinstance(head, str) and not more and head not in rest else None


def graph_model(
    graph: str,
    precision: str,
    spec: GraphSpec,
    served: Served,
    backend: str,
    sha256: str,
    tuned: Sequence[int] = (),
    facts: Mapping[str, str] | None = None,
) -> ModelFolder:
    """The model that runs a graph.

    Args:
        graph, precision, spec: of the bundle. For an engine, the ranges are those of its profiles.
        served: how it is served.
        backend: `onnxruntime` or `tensorrt`.
        sha256: of the model's file.
        tuned: of an engine, the batch size that each of its profiles is tuned for.
        facts: more parameters.
    """
    batch = batch_symbol(spec)
    batcher: dict[str, Value] = {} if batch is None else {"dynamic_batching": _batcher(served, tuned)}
    samples = _warmup(spec, batch)
    ranges = {symbol: [sizes.min, sizes.opt, sizes.max] for symbol, sizes in spec.ranges.items()}
    profiles: dict[str, Value] = {"profile": [str(index) for index in range(len(tuned))]} if tuned else {}
    told = {"chan_graph": graph, "chan_precision": precision, RANGES: json.dumps(ranges), SHA256: sha256}
    config: Message = {
        "name": PREFIX + graph,
        "backend": backend,
        "max_batch_size": 0 if batch is None else spec.ranges[batch].max,
        "input": [_tensor(tensor, batch) for tensor in spec.inputs],
        "output": [_tensor(tensor, batch) for tensor in spec.outputs],
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [{"count": served.instances, "kind": Symbol("KIND_AUTO"), **profiles}],
        **batcher,
        "parameters": parameters({**told, **(facts or {})}),
        "model_warmup": [sample for sample, _ in samples],
    }
    return ModelFolder(PREFIX + graph, config, {name: data for _, files in samples for name, data in files.items()})


def search_model(served: Served, facts: Mapping[str, str], takes_captions: bool) -> ModelFolder:
    """The model that searches a gallery.

    Args:
        served: how it is served.
        facts: its parameters.
        takes_captions: whether it can be warmed up with a caption: its gallery holds images.
    """
    text = _WARMUP_CAPTION.encode()
    inputs: list[Message] = [
        {"name": name, "data_type": Symbol(kind), "dims": dims, "optional": True, "allow_ragged_batch": True}
        for name, kind, dims in SEARCH_INPUTS
    ]
    warmup: Message = {
        "name": "caption",
        "batch_size": 1,
        "inputs": mapping({"caption": _input("TYPE_STRING", [1], {"input_data_file": "caption"})}),
    }
    config: Message = {
        "name": SEARCH,
        "backend": "python",
        "max_batch_size": SEARCH_BATCH,
        "input": inputs,
        "output": [{"name": name, "data_type": Symbol(kind), "dims": dims} for name, kind, dims in SEARCH_OUTPUTS],
        "version_policy": {"latest": {"num_versions": 1}},
        "instance_group": [{"count": served.instances, "kind": Symbol("KIND_CPU")}],
        "dynamic_batching": _batcher(served),
        "parameters": parameters(facts),
        "model_warmup": [warmup] if takes_captions else [],
    }
    return ModelFolder(SEARCH, config, {"caption": len(text).to_bytes(4, "little") + text} if takes_captions else {})


def parameters(values: Mapping[str, str]) -> list[Message]:
    """The field `parameters` of a configuration."""
    return mapping({name: {"string_value": value} for name, value in values.items()})


def _batcher(served: Served, tuned: Sequence[int] = ()) -> Message:
    """A request starts as soon as an instance is free, together with those that came while none was."""
    preferred: dict[str, Value] = {"preferred_batch_size": sorted(set(tuned))} if tuned else {}
    policy: Message = {
        "timeout_action": Symbol("REJECT"),
        "default_timeout_microseconds": TIMEOUT_SECONDS * 1_000_000,
        "allow_timeout_override": True,
        "max_queue_size": served.queue,
    }
    return {**preferred, "default_queue_policy": policy}


def _tensor(tensor: TensorSpec, batch: str | None) -> Message:
    """A tensor without its axis of the batch. Triton knows none without any axis, so such a one has an axis of 1."""
    dims = _dims(tensor, batch)
    found: Message = {"name": tensor.name, "data_type": Symbol(DATA_TYPES[tensor.dtype]), "dims": dims or [1]}
    return found if dims else {**found, "reshape": {}}


def _dims(tensor: TensorSpec, batch: str | None, sizes: Mapping[str, int] | None = None) -> list[int]:
    axes = tensor.shape if batch is None else tensor.shape[1:]
    return [axis if isinstance(axis, int) else (sizes or {}).get(axis, -1) for axis in axes]


def _warmup(spec: GraphSpec, batch: str | None) -> list[tuple[Message, dict[str, bytes]]]:
    """Requests that a model is warmed up with, of the sizes it is tuned for and of the smallest; and their files."""
    found: list[tuple[Message, dict[str, bytes]]] = []
    for name, which in (("smallest", "min"), ("tuned", "opt")):
        sizes: dict[str, int] = {symbol: getattr(sizes, which) for symbol, sizes in spec.ranges.items()}
        inputs: dict[str, Value] = {}
        files: dict[str, bytes] = {}
        for tensor in spec.inputs:
            dims = _dims(tensor, batch, sizes) or [1]
            if tensor.name.endswith("_lengths"):
                file = f"{name}-{tensor.name}"
                longest = sizes["R" if tensor.name == "region_lengths" else "W"]
                files[file] = np.full(dims, longest, tensor.dtype).tobytes()
                content: Message = {"input_data_file": file}
            else:  # ids of padding, or random numbers
                content = {"zero_data" if tensor.dtype.startswith("int") else "random_data": True}
            inputs[tensor.name] = _input(DATA_TYPES[tensor.dtype], dims, content)
        count = 1 if batch is None else sizes[batch]
        found.append(({"name": name, "batch_size": max(1, count), "inputs": mapping(inputs)}, files))
    (smallest, _), (tuned, _) = found
    return found if {**smallest, "name": ""} != {**tuned, "name": ""} else found[1:]


def _input(data_type: str, dims: Sequence[int], content: Message) -> Message:
    return {"data_type": Symbol(data_type), "dims": dims, **content}
