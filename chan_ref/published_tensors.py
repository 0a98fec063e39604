"""The tensors of a published checkpoint: under our names, in float32, and of exactly the shapes that are expected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runtime.errors import CheckpointError
from . import checkpoint
from .bert import is_padded
from .bert_families import huggingface_names, is_unused
from .config import BertConfig, ModelConfig
from .torch_file import check_tensor

HEAD_WIDTH = 64  # a published BERT does not store its number of heads; all of Devlin et al. have heads this wide
BERT_PREFIX = "bert."
WRAPPERS = ("module.", "_orig_mod.")  # nn.DataParallel and torch.compile put these before every name
REGION_NAMES = {
    "fc.weight": "projection.weight",
    "fc.bias": "projection.bias",
    "feedforward.ln.weight": "norm.weight",
    "feedforward.ln.bias": "norm.bias",
    "feedforward.attn.out_proj.weight": "attention.output.weight",
    "feedforward.attn.out_proj.bias": "attention.output.bias",
}
# The published attention stores query, key and value as one matrix, in this order.
JOINED = {"feedforward.attn.in_proj_weight": "weight", "feedforward.attn.in_proj_bias": "bias"}
JOINED_PARTS = ("query", "key", "value")


def read_part(side: str, part: Mapping[Any, Any], path: Path, repairs: list[str]) -> dict[str, Tensor]:
    """Return the tensors of an encoder, in float32 and under the names without the prefixes of wrappers."""
    tensors: dict[str, Tensor] = {}
    wrapped: dict[str, int] = {}
    converted: dict[str, int] = {}
    for stored, value in part.items():
        name, tensor = str(stored), check_tensor(f"{side} {stored}", value, path)
        while (prefix := next((prefix for prefix in WRAPPERS if name.startswith(prefix)), None)) is not None:
            name, wrapped[prefix] = name.removeprefix(prefix), wrapped.get(prefix, 0) + 1
        if name in tensors:
            raise CheckpointError(f"{path}: the {side} encoder holds {name} twice, with and without a prefix")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            converted[kind] = converted.get(kind, 0) + 1
            tensor = tensor.float()
        tensors[name] = tensor
    repairs += [f"The prefix {prefix} was removed from {n} {side} tensors." for prefix, n in wrapped.items()]
    repairs += [f"{n} {side} tensors were converted from {kind} to float32." for kind, n in converted.items()]
    return tensors


def cut_embedding(tensors: dict[str, Tensor], name: str, used: int, repairs: list[str]) -> None:
    """Remove the rows that pad a word embedding; no word has their ids."""
    table = tensors.get(name)
    if table is not None and table.ndim == 2 and is_padded(len(table), used):
        repairs.append(f"{len(table) - used} rows that pad the word embedding to {len(table)} rows were removed.")
        tensors[name] = table[:used]


def bert_sizes(texts: Mapping[str, Tensor], path: Path, known: Mapping[str, Any], warnings: list[str]) -> BertConfig:
    """Return the sizes of the tensors of a BERT, with the heads and the epsilon that are known of it."""

    def rows_columns(name: str) -> tuple[int, int]:
        tensor = texts.get(f"{BERT_PREFIX}{name}.weight")
        if tensor is None or tensor.ndim != 2:
            raise CheckpointError(
                f"{path}: the text encoder must hold the matrix {BERT_PREFIX}{name}.weight, as BERT does"
            )
        return tensor.shape[0], tensor.shape[1]

    vocab_size, hidden = rows_columns("embeddings.word_embeddings")
    numbered = (re.match(r"bert\.encoder\.layer\.(\d{1,6})\.", name) for name in texts)
    layers = {int(match[1]) for match in numbered if match}
    if layers != set(range(len(layers))) or not layers:
        raise CheckpointError(f"{path}: BERT's layers must be numbered 0, 1, ..., got {sorted(layers)[:20]}")
    sizes = {
        "vocab_size": vocab_size,
        "hidden": hidden,
        "layers": len(layers),
        "intermediate": rows_columns("encoder.layer.0.intermediate.dense")[0],
        "positions": rows_columns("embeddings.position_embeddings")[0],
        "segments": rows_columns("embeddings.token_type_embeddings")[0],
    }
    for name, value in sizes.items():
        if name != "vocab_size" and known.get(name, value) != value:
            raise CheckpointError(
                f"{path}: its BERT has {name} {value}, and the config.json beside the tokenizer says {known[name]}: "
                "give the folder of the BERT that it was trained with"
            )
    heads = known.get("heads")
    if heads is None:
        if hidden % HEAD_WIDTH:
            raise CheckpointError(
                f"{path}: the number of attention heads of its BERT (hidden width {hidden}) is not in the file: "
                "give --heads N, or put the config.json that it was trained with into the folder of --tokenizer"
            )
        heads = hidden // HEAD_WIDTH
        warnings.append(
            f"The number of attention heads of BERT is not in the file: {heads} were assumed, {HEAD_WIDTH} wide as "
            "in every BERT of Devlin et al. If it had another number, import it again with --heads."
        )
    return BertConfig(**sizes, heads=heads, layer_norm_eps=known.get("layer_norm_eps", 1e-12))


def read_state(
    config: ModelConfig, images: Mapping[str, Tensor], texts: Mapping[str, Tensor], path: Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Check names and shapes; return the tensors under the names of `ChanModel`, and the names that are left out."""
    model = checkpoint.skeleton(config, str(path))
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    region_names = {name: f"region_encoder.{our_name}" for name, our_name in REGION_NAMES.items()}
    region_names = {name: our_name for name, our_name in region_names.items() if our_name in ours}
    shapes = {name: ours[our_name] for name, our_name in region_names.items()}
    joined = {name: kind for name, kind in JOINED.items() if config.region_encoder == "selfattention"}
    for name, kind in joined.items():
        rows, *columns = ours[f"region_encoder.attention.query.{kind}"]
        shapes[name] = (rows * len(JOINED_PARTS), *columns)
    checkpoint.check_tensors(shapes, images, f"{path}, image encoder")
    state = {our_name: images[name] for name, our_name in region_names.items()}
    for name, kind in joined.items():
        for part, tensor in zip(JOINED_PARTS, images[name].chunk(len(JOINED_PARTS)), strict=True):
            state[f"region_encoder.attention.{part}.{kind}"] = tensor

    if config.bert is None:
        text_names = {
            name.removeprefix("text_encoder.").replace("embedding.", "embed.").replace("gru.", "rnn."): name
            for name in ours
            if name.startswith("text_encoder.")
        }
        unused = [name for name in texts if name in ("fc.weight", "fc.bias")]
    else:
        text_names = {
            BERT_PREFIX + name: f"text_encoder.bert.{our_name}"
            for name, our_name in huggingface_names(config.bert).items()
        }
        text_names |= {f"linear.{kind}": f"text_encoder.projection.{kind}" for kind in ("weight", "bias")}
        unused = [name for name in texts if is_unused(name.removeprefix(BERT_PREFIX))]
    used = {name: tensor for name, tensor in texts.items() if name not in unused}
    shapes = {name: ours[our_name] for name, our_name in text_names.items()}
    checkpoint.check_tensors(shapes, used, f"{path}, text encoder")
    state |= {our_name: used[name] for name, our_name in text_names.items()}
    # The weights of a GRU trained on a GPU are views of one buffer; a native checkpoint stores each by itself.
    return {name: tensor.clone() for name, tensor in state.items()}, unused
