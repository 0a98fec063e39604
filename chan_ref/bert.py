"""Read pretrained models of BERT's family from Hugging Face's folders, without `transformers`: `bert_families`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..runtime.errors import BundleError, CheckpointError, reason_of
from ..runtime.strict_json import unique_keys
from ..runtime.text import BertTokenizer, bert_tokenizer_json
from .bert_families import (
    FAMILIES,
    family_of,
    first_position,
    huggingface_names,
    is_unused,
    no_segments,
    read_sizes,
    stored_name,
)
from .checkpoint import check_tensors
from .config import BertConfig
from .encoders import Bert
from .torch_file import check_tensor, read_torch_file
from .weights import load_tensors

CONFIG_FIELDS = FAMILIES["bert"].sizes


def bert_from_pretrained(directory: str | Path) -> tuple[BertConfig, dict[str, Tensor]]:
    """Read a local Hugging Face model: config.json with model.safetensors or pytorch_model.bin.

    Args:
        directory: laid out as `huggingface-cli download bert-base-uncased --local-dir DIR` writes it; of a BERT
            (MiniLM as well), a DistilBERT or a RoBERTa.

    Returns:
        The sizes, and the float32 tensors for `BertTextEncoder.bert.load_state_dict`.

    Raises:
        CheckpointError: a file is missing or damaged, the model is none of these, or names or shapes do not match its
            sizes.
    """
    directory = Path(directory)
    path = directory / "config.json"
    raw = _read_json(path)
    kind = family_of(raw, path)
    config, first = read_sizes(raw, kind, path), first_position(raw, kind, path)
    names = huggingface_names(config, kind)
    state = {}
    for stored, tensor in _read_weights(directory).items():
        name = stored_name(stored, kind)
        if not is_unused(name, kind):
            state[name] = tensor.float() if tensor.is_floating_point() else tensor
    with torch.device("meta"):
        ours = Bert(config).state_dict()
    check_tensors({name: tuple(ours[our_name].shape) for name, our_name in names.items()}, state, str(directory))
    weights = {names[name]: tensor for name, tensor in state.items()}
    weights.setdefault("segments.weight", no_segments(config))
    if first >= config.positions:
        raise CheckpointError(f"{path}: max_position_embeddings must be above {first}, got {config.positions}")
    weights["positions.weight"] = weights["positions.weight"][first:]
    return replace(config, positions=config.positions - first), weights


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
    if (kind := family_of(raw, path)) != "bert":
        raise CheckpointError(f"{path}: model_type must be 'bert', got {kind!r}")
    names = {**CONFIG_FIELDS, "layer_norm_eps": "layer_norm_eps"}
    return {field: raw[name] for field, name in names.items() if name in raw}


def is_padded(rows: int, used: int) -> bool:
    """Return whether a word embedding of `rows` rows is one of `used` rows, padded to a multiple of 8 to 128."""
    return used < rows and any(rows == -(-used // step) * step for step in (8, 16, 32, 64, 128))


def read_tokenizer(directory: str | Path, vocab_size: int) -> dict[str, bytes]:
    """Read a tokenizer from DIR/tokenizer.json or DIR/vocab.txt, with the settings of DIR/tokenizer_config.json.

    That of a RoBERTa is read from tokenizer.json alone.

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
    if not str(raw.get("tokenizer_class", "BertTokenizer")).startswith(("Bert", "DistilBert")):
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
    vocabulary = stored.get("model", {}).get("vocab", {})
    if stored.get("post_processor") is None and "[CLS]" in vocabulary:  # every BERT has one; `transformers` adds it too
        ends = {name: ["[" + name.upper() + "]", vocabulary.get("[" + name.upper() + "]")] for name in ("sep", "cls")}
        stored["post_processor"] = {"type": "BertProcessing", **ends}
    return whole, json.dumps(stored, ensure_ascii=False)


def _read_weights(directory: Path) -> dict[str, Tensor]:
    path = directory / "model.safetensors"
    if path.is_file():
        try:
            return load_tensors(path)
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
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(raw).__name__}")
    return raw
