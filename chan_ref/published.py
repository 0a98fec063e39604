"""Read published CHAN checkpoints (`model_best.pth`) as data. Every choice is taken from the options they contain.

The file is `torch.save` of `{epoch, model: [image, text, similarity, criterion], best_rsum, opt, Eiters}`; the last two
state dicts are empty. What can be repaired without a loss is repaired and reported: prefixes of wrappers, weights of
another precision, embeddings padded to more rows, objects among the options that are not data, and an epoch or a best
rsum that is no plain number: no score depends on these two.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..runtime.contract import AlignmentConfig, sha256_file
from ..runtime.errors import BundleError, CheckpointError, InputError
from ..runtime.text import SCAN_MASK, BertTokenizer, ScanTokenizer, read_vocabulary, scan_vocabulary
from . import checkpoint
from .bert import read_settings, read_tokenizer
from .checkpoint_config import check_place
from .config import ModelConfig
from .model import ChanModel
from .published_tensors import bert_sizes, cut_embedding, read_part, read_state
from .torch_file import find_unknown, not_data, read_torch_file

KEYS = {"model", "opt"}
OTHERS = {  # other kinds of checkpoints, by a key that they contain
    "state_dict": "a PyTorch Lightning or torchvision training checkpoint",
    "model_state_dict": "a plain PyTorch training checkpoint",
}


@dataclass(frozen=True)
class Published:
    """The contents of a published checkpoint.

    Attributes:
        model: the model with the published weights, on the CPU and in evaluation mode.
        word2idx: the whole vocabulary, `<mask>` included; None if the file does not contain it.
        epoch, best_rsum: the epoch of the checkpoint, and the best validation rsum of its training; None if the file
            does not store it as a finite number, which `repairs` then says.
        unused: names of tensors that the file contains and that no score depends on; they are left out.
        repairs: what was changed or skipped without a loss, as sentences.
        warnings: what the file does not say and had to be assumed, as sentences.
    """

    model: ChanModel
    word2idx: Mapping[str, int] | None
    epoch: int | None
    best_rsum: float | None
    unused: tuple[str, ...]
    repairs: tuple[str, ...]
    warnings: tuple[str, ...]


def read_published(path: str | Path, bert: Mapping[str, Any] | None = None) -> Published:
    """Read a published checkpoint without executing anything in it.

    Args:
        path: the published file.
        bert: fields of BertConfig that are known of its BERT, by name; `heads` and `layer_norm_eps` cannot be read from
            the file, and the others must be those of its tensors.

    Raises:
        CheckpointError: the file cannot be read safely, is not a CHAN checkpoint, names an encoder that this package
            does not have, or its tensors do not match its options.
    """
    path = Path(path)
    raw = read_torch_file(path, keep_unknown=True)
    needed = raw.get("model") if isinstance(raw, dict) and raw.keys() >= KEYS else raw
    if (asked := find_unknown(needed)) is not None:
        raise CheckpointError(not_data(path, asked))
    if not isinstance(raw, dict) or not raw.keys() >= KEYS:
        raise CheckpointError(f"{path} is not a published CHAN checkpoint: {_what_else(raw)}")
    options = raw["opt"]
    if not isinstance(options, argparse.Namespace):
        raise CheckpointError(f"{path}: opt must be an argparse.Namespace, got {type(options).__name__}")
    repairs: list[str] = []
    warnings: list[str] = []
    options = {name: value for name, value in vars(options).items() if not _is_skipped(f"opt.{name}", value, repairs)}
    parts = raw["model"]
    if not isinstance(parts, list) or len(parts) != 4 or not all(isinstance(part, Mapping) for part in parts):
        raise CheckpointError(f"{path}: model must be a list of four state dicts: image, text, similarity, criterion")
    if parts[2] or parts[3]:
        raise CheckpointError(f"{path}: its similarity and criterion hold tensors: this is another model's checkpoint")
    images, texts = (read_part(side, part, path, repairs) for side, part in zip(("image", "text"), parts, strict=False))
    config = _read_config(options, texts, path, bert or {}, warnings)
    if config.bert is None:
        cut_embedding(texts, "embed.weight", config.vocab_size, repairs)
    state, unused = read_state(config, images, texts, path)
    return Published(
        model=checkpoint.build(config, state, str(path)),
        word2idx=_read_word2idx(options.get("word2idx"), path),
        epoch=_read_epoch(raw, repairs),
        best_rsum=_read_number("best_rsum", raw, repairs),
        unused=tuple(unused),
        repairs=tuple(repairs),
        warnings=tuple(warnings),
    )


def import_published(
    path: str | Path,
    out: str | Path,
    vocabulary: str | Path | None = None,
    tokenizer: str | Path | None = None,
    force: bool = False,
    heads: int | None = None,
) -> dict[str, Any]:
    """Convert a published checkpoint to a native one.

    Args:
        path: the published file.
        out: the checkpoint directory to write; nothing is written before everything has been checked.
        vocabulary: SCAN vocabulary JSON of a GRU model; not needed if the file contains its own.
        tokenizer: directory with tokenizer.json or vocab.txt, for a BERT model; its config.json, if there is one, gives
            the number of attention heads and the epsilon of the layer norms.
        force: replace a checkpoint at OUT.
        heads: number of attention heads of a BERT model, where no config.json has it.

    Returns:
        A summary of the import, as plain data; `repairs` and `warnings` are lists of sentences.

    Raises:
        CheckpointError: as in `read_published`; or the tokenizer is missing or has another size; or OUT is not empty
            (with `force`: not empty and not a checkpoint).
    """
    path = Path(path)
    check_place(out, force)
    settings = read_settings(tokenizer) if tokenizer is not None else {}
    if heads is not None:
        if settings.get("heads", heads) != heads:
            raise CheckpointError(f"heads must be {settings['heads']}, as {tokenizer}/config.json says, got {heads}")
        settings["heads"] = heads
    published = read_published(path, settings)
    files = _tokenizer_files(published, path, vocabulary, tokenizer)
    published = _without_padding(published, files, path)
    config = published.model.config
    found = {
        "file": path.name,
        "sha256": sha256_file(path),
        "epoch": published.epoch,
        "best_rsum": published.best_rsum,
        "unused": list(published.unused),
        "repairs": list(published.repairs),
        "warnings": list(published.warnings),
    }
    checkpoint.save(out, published.model, files, {"imported": found})
    return {
        **found,
        "model": config.to_dict(),
        "vocabulary": config.bert.vocab_size if config.bert is not None else config.vocab_size,
        "parameters": sum(parameter.numel() for parameter in published.model.parameters()),
        "checkpoint": str(out),
    }


def _what_else(raw: object) -> str:
    if not isinstance(raw, Mapping):
        return f"expected a dictionary, got {type(raw).__name__}"
    for key, name in OTHERS.items():
        if key in raw:
            return f"it looks like {name}"
    if raw and all(isinstance(value, Tensor) for value in raw.values()):
        return "it is a bare state dict, without the options that the model was trained with"
    return f"it lacks {', '.join(sorted(KEYS - raw.keys()))}"


def _is_skipped(name: str, value: object, repairs: list[str]) -> bool:
    """Return whether a value holds an object that is not data, which is then reported."""
    asked = find_unknown(value)
    if asked is not None:
        repairs.append(f"{name} was skipped: it holds a {asked}, which is not data. It was not executed.")
    return asked is not None


def _read_epoch(raw: Mapping[str, Any], repairs: list[str]) -> int | None:
    number = _read_number("epoch", raw, repairs)
    if number is not None and not number.is_integer():
        repairs.append(_left_out("epoch", f"it is {number:g}, not a whole number"))
        return None
    return None if number is None else int(number)


def _read_number(name: str, raw: Mapping[str, Any], repairs: list[str]) -> float | None:
    """Return a number on which no score depends, also of a tensor; anything else is left out and reported."""
    if name not in raw:
        repairs.append(f"The file has no {name}. No score depends on it.")
        return None
    value = raw[name]
    if _is_skipped(name, value, repairs):
        return None
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if type(value) not in (int, float):
        repairs.append(_left_out(name, f"it is of type {type(value).__name__.strip('_')}, not a number"))
        return None
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        repairs.append(_left_out(name, f"it is {number:g}, not a finite number"))
        return None
    return number


def _left_out(name: str, why: str) -> str:
    return f"{name} was left out: {why}. No score depends on it."


def _without_padding(published: Published, files: Mapping[str, bytes], path: Path) -> Published:
    """Remove the rows that pad a BERT's word embedding to more rows than its tokenizer has wordpieces."""
    config = published.model.config
    if config.bert is None:
        return published
    used = BertTokenizer(files["tokenizer.json"].decode()).vocab_size
    if used == config.bert.vocab_size:
        return published
    repairs: list[str] = []
    state = dict(published.model.state_dict())
    cut_embedding(state, "text_encoder.bert.words.weight", used, repairs)
    config = replace(config, bert=replace(config.bert, vocab_size=used))
    model = checkpoint.build(config, {name: tensor.clone() for name, tensor in state.items()}, str(path))
    return replace(published, model=model, repairs=(*published.repairs, *repairs))


def _read_config(
    options: Mapping[str, Any],
    texts: Mapping[str, Tensor],
    path: Path,
    known: Mapping[str, Any],
    warnings: list[str],
) -> ModelConfig:
    def option(name: str, kind: type) -> Any:
        if name not in options:
            raise CheckpointError(f"{path}: opt lacks {name}, which every CHAN checkpoint has")
        return _typed(options[name], kind, f"opt.{name}", path)

    regions, text = option("precomp_enc_type", str), option("text_enc_type", str)
    if regions == "transformer":
        raise CheckpointError(
            f"{path}: opt.precomp_enc_type 'transformer' is not supported: its published attention runs across the "
            "images of a batch, not across the regions of an image, so an embedding depends on the batch: refused"
        )
    words = {}
    if text == "bigru":
        if option("num_layers", int) != 1:
            raise CheckpointError(f"{path}: opt.num_layers must be 1, got {option('num_layers', int)}")
        words = {"vocab_size": option("vocab_size", int), "word_dim": option("word_dim", int)}
    try:
        return ModelConfig(
            region_dim=option("img_dim", int),
            embed_dim=option("embed_size", int),
            region_encoder=regions,
            text_encoder=text,
            **words,
            bert=bert_sizes(texts, path, known, warnings) if text == "bert" else None,
            normalize_regions=not option("no_imgnorm", bool),
            normalize_words=not option("no_txtnorm", bool),
            alignment=AlignmentConfig(
                coding=option("coding_type", str).removesuffix("Coding"),
                pooling=option("pooling_type", str).removesuffix("Pooling"),
                attention_temperature=float(option("alpha", float)),
                pooling_temperature=float(option("belta", float)),
            ),
        )
    except (InputError, CheckpointError) as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _read_word2idx(word2idx: object, path: Path) -> Mapping[str, int] | None:
    if word2idx is None:
        return None
    if not isinstance(word2idx, dict) or not all(
        isinstance(word, str) and type(row) is int for word, row in word2idx.items()
    ):
        raise CheckpointError(f"{path}: opt.word2idx must map words to integers")
    return word2idx


def _tokenizer_files(
    published: Published, path: Path, vocabulary: str | Path | None, tokenizer: str | Path | None
) -> dict[str, bytes]:
    config = published.model.config
    if config.bert is not None:
        if vocabulary is not None:
            raise CheckpointError(f"{path} has a BERT text encoder: give --tokenizer DIR instead of --vocab")
        if tokenizer is None:
            raise CheckpointError(
                f"{path} has a BERT text encoder and does not carry its wordpieces: give --tokenizer DIR, a folder "
                "with the tokenizer.json or vocab.txt that it was trained with (bert-base-uncased, as published)"
            )
        return read_tokenizer(tokenizer, config.bert.vocab_size)
    if tokenizer is not None:
        raise CheckpointError(f"{path} has a word vocabulary: give --vocab FILE instead of --tokenizer")
    words, source = None, ""
    if published.word2idx is not None:
        words = dict(published.word2idx)
        # `<mask>` is appended when a vocabulary is loaded, so the file must not contain it.
        if SCAN_MASK in words and words.pop(SCAN_MASK) != len(words):
            raise CheckpointError(f"{path}: opt.word2idx must give {SCAN_MASK} the last id")
        source = f"{path}: opt.word2idx"
    if vocabulary is not None:
        given = read_vocabulary(vocabulary)
        ScanTokenizer(given)
        if words is not None and given != words:
            raise CheckpointError(f"{vocabulary} differs from the vocabulary that {path} carries: leave out --vocab")
        words, source = given, str(vocabulary)
    if words is None:
        raise CheckpointError(
            f"{path} does not carry its vocabulary: give --vocab FILE, the JSON file that it was trained with "
            f"({config.vocab_size - 1} words, in the format of SCAN and VSE-infinity)"
        )
    try:
        content, rows = scan_vocabulary(words), ScanTokenizer(words).vocab_size
    except BundleError as error:
        raise CheckpointError(f"{source}: {error}") from error
    if rows != config.vocab_size:
        raise CheckpointError(
            f"{source} must have {config.vocab_size - 1} words, one fewer than the embedding has rows, got {rows - 1}"
        )
    return {"vocab.json": json.dumps(content).encode()}


def _typed(value: object, kind: type, name: str, path: Path) -> Any:
    """Return the value if it is of its kind. A float may be stored as an int, and must be finite."""
    fits = type(value) is kind or (kind is float and type(value) is int)
    if not fits:
        raise CheckpointError(f"{path}: {name} must be of type {kind.__name__}, got {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise CheckpointError(f"{path}: {name} must be finite, got {value}")
    return value
