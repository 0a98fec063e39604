"""BERT and the relatives that are BERT under other names: DistilBERT and RoBERTa.

All of them become `encoders.Bert`, so what follows (training, export, engines) does not know which one it was.
DistilBERT has no segments. RoBERTa counts positions from the row behind that of its padding, and its tokenizer is
another (`runtime/text.py`). MiniLM calls itself a BERT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..runtime.errors import CheckpointError
from .config import BertConfig
from .encoders import Bert


@dataclass(frozen=True)
class Family:
    """How Hugging Face's folders of one `model_type` are read.

    Attributes:
        sizes: fields of BertConfig by their keys in config.json.
        activation: key in config.json of the activation, which must be `gelu`.
        modules: modules of `encoders.Bert` by their names in the file, those within a layer without the layer's name.
        layers: what stands before a layer's number.
        prefix: what stands before every name where the model is stored within another.
        unused: beginnings of the names on which the last hidden state does not depend.
        has_segments: whether there are embeddings of segments.
    """

    sizes: Mapping[str, str]
    activation: str
    modules: Mapping[str, str]
    layers: str
    prefix: str
    unused: tuple[str, ...]
    has_segments: bool = True


_EMBEDDINGS = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "norm": "embeddings.LayerNorm",
}
_BERT = Family(
    sizes={
        "vocab_size": "vocab_size",
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "intermediate": "intermediate_size",
        "positions": "max_position_embeddings",
        "segments": "type_vocab_size",
    },
    activation="hidden_act",
    modules={
        **_EMBEDDINGS,
        "segments": "embeddings.token_type_embeddings",
        "attention.query": "attention.self.query",
        "attention.key": "attention.self.key",
        "attention.value": "attention.self.value",
        "attention.output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
        "output_norm": "output.LayerNorm",
    },
    layers="encoder.layer.",
    prefix="bert.",
    unused=("pooler.", "cls.", "embeddings.position_ids", "embeddings.token_type_ids"),
)
FAMILIES: Mapping[str, Family] = {
    "bert": _BERT,
    "distilbert": Family(
        sizes={
            "vocab_size": "vocab_size",
            "hidden": "dim",
            "layers": "n_layers",
            "heads": "n_heads",
            "intermediate": "hidden_dim",
            "positions": "max_position_embeddings",
        },
        activation="activation",
        modules={
            **_EMBEDDINGS,
            "attention.query": "attention.q_lin",
            "attention.key": "attention.k_lin",
            "attention.value": "attention.v_lin",
            "attention.output": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "intermediate": "ffn.lin1",
            "output": "ffn.lin2",
            "output_norm": "output_layer_norm",
        },
        layers="transformer.layer.",
        prefix="distilbert.",
        unused=("vocab_", "pre_classifier.", "classifier.", "qa_outputs."),
        has_segments=False,
    ),
    "roberta": Family(
        sizes=_BERT.sizes,
        activation="hidden_act",
        modules=_BERT.modules,
        layers=_BERT.layers,
        prefix="roberta.",
        unused=(*_BERT.unused, "lm_head.", "classifier.", "qa_outputs."),
    ),
}


def family_of(raw: Mapping[str, Any], path: object) -> str:
    """The `model_type` of a config.json; CheckpointError where `encoders.Bert` is not such a model."""
    kind = raw.get("model_type", "bert")
    if kind not in FAMILIES:
        raise CheckpointError(f"{path}: model_type must be one of {', '.join(FAMILIES)}, got {kind!r}")
    for key, only in ((FAMILIES[kind].activation, "gelu"), ("position_embedding_type", "absolute")):
        if raw.get(key, only) != only:
            raise CheckpointError(f"{path}: {key} must be {only!r}, got {raw[key]!r}")
    return str(kind)


def read_sizes(raw: Mapping[str, Any], kind: str, path: object) -> BertConfig:
    """The sizes that a config.json describes, as its file of weights has them.

    Raises:
        CheckpointError: a size is missing, or is none.
    """
    family = FAMILIES[kind]
    if missing := [name for name in family.sizes.values() if name not in raw]:
        raise CheckpointError(f"{path} is not the configuration of a BERT: it lacks {', '.join(missing)}")
    sizes = {field: raw[name] for field, name in family.sizes.items()}
    if not family.has_segments:
        sizes["segments"] = 1
    try:
        return BertConfig(**sizes, layer_norm_eps=raw.get("layer_norm_eps", 1e-12))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def first_position(raw: Mapping[str, Any], kind: str, path: object) -> int:
    """The row of the position embedding that belongs to a caption's first token."""
    if kind != "roberta":
        return 0
    padding = raw.get("pad_token_id", 1)
    if type(padding) is not int or padding < 0:
        raise CheckpointError(f"{path}: pad_token_id must be a number of a token, got {padding!r}")
    return padding + 1


def huggingface_names(config: BertConfig, kind: str = "bert") -> dict[str, str]:
    """Map Hugging Face's name of each tensor of `encoders.Bert` to its name here; without segments where none are."""
    family = FAMILIES[kind]
    with torch.device("meta"):
        ours = list(Bert(config).state_dict())
    names = {}
    for name in ours:
        module, _, part = name.rpartition(".")
        prefix = ""
        if module.startswith("layers."):
            _, row, module = module.split(".", 2)
            prefix = f"{family.layers}{row}."
        if module in family.modules:
            names[f"{prefix}{family.modules[module]}.{part}"] = name
    return names


def is_unused(name: str, kind: str = "bert") -> bool:
    """Return whether the last hidden state does not depend on a tensor: pooler, heads, stored position ids."""
    return name.startswith(FAMILIES[kind].unused)


def stored_name(name: str, kind: str) -> str:
    """A tensor's name within its model; checkpoints converted from TensorFlow call a norm's tensors gamma and beta."""
    name = name.removeprefix(FAMILIES[kind].prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def no_segments(config: BertConfig) -> Tensor:
    """Embeddings of segments [1, H] that add nothing."""
    return torch.zeros(1, config.hidden)
