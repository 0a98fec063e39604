"""Read pretrained BERT models from Hugging Face directories, without `transformers`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..runtime.errors import BundleError, CheckpointError, reason_of
from ..runtime.text import BertTokenizer, bert_tokenizer_json
from .checkpoint import check_tensors
from .config import BertConfig
from .encoders import Bert
from .torch_file import check_tensor, read_torch_file

# BertConfig's fields by their names in config.json.
CONFIG_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
    "positions": "max_position_embeddings",
    "segments": "type_vocab_size",
}
MODULES = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "segments": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}


def huggingface_names(config: BertConfig) -> dict[str, str]:
    """Map Hugging Face's name of each tensor of `encoders.Bert` to its name here."""
    with torch.device("meta"):
        ours = list(Bert(config).state_dict())
    names = {}
    for name in ours:
        module, _, kind = name.rpartition(".")
        prefix = ""
        if module.startswith("layers."):
            _, row, module = module.split(".", 2)
            prefix = f"encoder.layer.{row}."
        names[f"{prefix}{MODULES[module]}.{kind}"] = name
    return names


def is_unused(name: str) -> bool:
    """Return whether the last hidden state does not depend on a tensor: pooler, heads, stored position ids."""
    return name.startswith(("pooler.", "cls.")) or name == "embeddings.position_ids"


def bert_from_pretrained(directory: str | Path) -> tuple[BertConfig, dict[str, Tensor]]:
    """Read a local Hugging Face BERT: config.json with model.safetensors or pytorch_model.bin.

    Args:
        directory: laid out as `huggingface-cli download bert-base-uncased --local-dir DIR` writes it.

    Returns:
        The sizes, and the float32 tensors for `BertTextEncoder.bert.load_state_dict`.

    Raises:
        CheckpointError: a file is missing or damaged, the model is not a BERT, or names or shapes do not match its
            sizes.
    """
    directory = Path(directory)
    config = read_config(directory)
    names = huggingface_names(config)
    state = {}
    for name, tensor in _read_weights(directory).items():
        name = name.removeprefix("bert.")  # bert-base-uncased is stored within its pretraining model
        if is_unused(name):
            continue
        # Checkpoints converted from TensorFlow call a norm's weight and bias gamma and beta.
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        state[name] = tensor.float() if tensor.is_floating_point() else tensor
    with torch.device("meta"):
        ours = Bert(config).state_dict()
    check_tensors({name: tuple(ours[our_name].shape) for name, our_name in names.items()}, state, str(directory))
    return config, {names[name]: tensor for name, tensor in state.items()}


def read_config(directory: str | Path) -> BertConfig:
    """Read the sizes of a BERT from DIR/config.json.

    Raises:
        CheckpointError: it cannot be read, or it describes something that `encoders.Bert` does not implement.
    """
    path = Path(directory) / "config.json"
    raw = _read_json(path)
    _check_kind(raw, path)
    if missing := [name for name in CONFIG_FIELDS.values() if name not in raw]:
        raise CheckpointError(f"{path} is not the configuration of a BERT: it lacks {', '.join(missing)}")
    sizes = {field: raw[name] for field, name in CONFIG_FIELDS.items()}
    try:
        return BertConfig(**sizes, layer_norm_eps=raw.get("layer_norm_eps", 1e-12))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_settings(directory: str | Path) -> dict[str, Any]:
    """Read from DIR/config.json what the tensors of a BERT do not tell: `heads` and `layer_norm_eps`.

    Returns:
        Fields of BertConfig; those that the file does not have, or all without such a file, are left out.

    Raises:
        CheckpointError: the file cannot be read, or it describes a model that `encoders.Bert` does not implement.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        return {}
    raw = _read_json(path)
    _check_kind(raw, path)
    names = {**CONFIG_FIELDS, "layer_norm_eps": "layer_norm_eps"}
    return {field: raw[name] for field, name in names.items() if name in raw}


def is_padded(rows: int, used: int) -> bool:
    """Return whether a word embedding of `rows` rows is one of `used` rows, padded to a multiple of 8 to 128."""
    return used < rows and any(rows == -(-used // step) * step for step in (8, 16, 32, 64, 128))


def read_tokenizer(directory: str | Path, vocab_size: int) -> dict[str, bytes]:
    """Read a BERT tokenizer from DIR/tokenizer.json or DIR/vocab.txt, with the settings of DIR/tokenizer_config.json.

    Args:
        directory: a local Hugging Face directory.
        vocab_size: rows of the model's word embedding; it may be padded (see `is_padded`).

    Returns:
        The files for `checkpoint.save`.

    Raises:
        CheckpointError: neither file exists, the file is not a BERT tokenizer, or the sizes differ.
        BundleError: vocab.txt lacks one of BERT's special tokens.
    """
    source, text = _tokenizer_json(Path(directory))
    try:
        found = BertTokenizer(text).vocab_size
    except BundleError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if found != vocab_size and not is_padded(vocab_size, found):
        raise CheckpointError(f"{source} must have {vocab_size} wordpieces, as the model's embedding, got {found}")
    return {"tokenizer.json": text.encode()}


def _tokenizer_json(directory: Path) -> tuple[Path, str]:
    """Return the file that describes the tokenizer, and the text of a `tokenizer.json` with all of its settings.

    tokenizer_config.json, if there is one, overrides the settings of tokenizer.json, as it does in `transformers`.
    """
    whole, words = directory / "tokenizer.json", directory / "vocab.txt"
    settings = directory / "tokenizer_config.json"
    raw = _read_json(settings) if settings.is_file() else {}
    if not str(raw.get("tokenizer_class", "BertTokenizer")).startswith("Bert"):
        raw = {}  # `transformers` then takes tokenizer.json as it is
    for key in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
        if raw.get(key) is not None and type(raw[key]) is not bool:
            raise CheckpointError(f"{settings}: {key} must be true, false or null, got {raw[key]!r}")
    if not whole.is_file():
        if not words.is_file():
            raise CheckpointError(f"{directory} holds no BERT tokenizer: expected tokenizer.json or vocab.txt")
        lowercase, chinese = raw.get("do_lower_case"), raw.get("tokenize_chinese_chars")
        return words, bert_tokenizer_json(
            words,
            lowercase=True if lowercase is None else lowercase,
            strip_accents=raw.get("strip_accents"),
            split_chinese=True if chinese is None else chinese,
        )
    text = whole.read_text(encoding="utf-8", errors="replace")
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError):
        return whole, text  # BertTokenizer reports what is wrong
    if not isinstance(stored, dict):
        return whole, text
    names = {"lowercase": "do_lower_case", "strip_accents": "strip_accents"}
    names["handle_chinese_chars"] = "tokenize_chinese_chars"
    changes = {ours: raw[theirs] for ours, theirs in names.items() if theirs in raw}
    normalizer = stored.get("normalizer")
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        stored["normalizer"] = {**normalizer, **changes}
    elif changes:
        raise CheckpointError(
            f"{settings} sets {', '.join(names[name] for name in changes)}, which needs a BertNormalizer in {whole}"
        )
    if stored.get("post_processor") is None:  # every BERT has one; `transformers` adds it too
        vocabulary = stored.get("model", {}).get("vocab", {})
        ends = {name: ["[" + name.upper() + "]", vocabulary.get("[" + name.upper() + "]")] for name in ("sep", "cls")}
        stored["post_processor"] = {"type": "BertProcessing", **ends}
    return whole, json.dumps(stored, ensure_ascii=False)


def _check_kind(raw: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError if a config.json describes a model that `encoders.Bert` does not implement."""
    for key, only in (("model_type", "bert"), ("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
        if raw.get(key, only) != only:
            raise CheckpointError(f"{path}: {key} must be {only!r}, got {raw[key]!r}")


def _read_weights(directory: Path) -> dict[str, Tensor]:
    path = directory / "model.safetensors"
    if path.is_file():
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error
    path = directory / "pytorch_model.bin"
    if not path.is_file():
        raise CheckpointError(f"{directory} holds no weights: expected model.safetensors or pytorch_model.bin")
    raw = read_torch_file(path)
    if not isinstance(raw, Mapping):
        raise CheckpointError(f"{path} must hold a dictionary of tensors, got {type(raw).__name__}")
    return {str(name): check_tensor(str(name), tensor, path) for name, tensor in raw.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(raw).__name__}")
    return raw
