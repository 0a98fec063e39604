"""Read published CHAN checkpoints (`model_best.pth`) as data. Every choice is taken from the options they contain.

The file is `torch.save` of `{epoch, model: [image, text, similarity, criterion], best_rsum, opt, Eiters}`; the last two
state dicts are empty.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..runtime.contract import AlignmentConfig, sha256_file
from ..runtime.errors import BundleError, CheckpointError, InputError
from ..runtime.text import SCAN_MASK, ScanTokenizer, scan_vocabulary
from . import checkpoint
from .bert import huggingface_names, is_unused, read_tokenizer
from .config import BertConfig, ModelConfig
from .model import ChanModel
from .torch_file import check_tensor, read_torch_file

KEYS = {"epoch", "model", "best_rsum", "opt"}
HEAD_WIDTH = 64  # a published BERT does not store its number of heads; all of Devlin et al. have heads this wide
BERT_PREFIX = "bert."
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
        epoch, best_rsum: the epoch of the checkpoint, and the best validation rsum of its training.
        unused: names of tensors that the file contains and that no score depends on; they are left out.
    """

    model: ChanModel
    word2idx: Mapping[str, int] | None
    epoch: int
    best_rsum: float
    unused: tuple[str, ...]


def read_published(path: str | Path) -> Published:
    """Read a published checkpoint without executing anything in it.

    Raises:
        CheckpointError: the file cannot be read safely, is not a CHAN checkpoint, names an encoder that this package
            does not have, or its tensors do not match its options.
    """
    path = Path(path)
    raw = read_torch_file(path)
    if not isinstance(raw, dict) or not raw.keys() >= KEYS:
        raise CheckpointError(f"{path} is not a published CHAN checkpoint: {_what_else(raw)}")
    options = raw["opt"]
    if not isinstance(options, argparse.Namespace):
        raise CheckpointError(f"{path}: opt must be an argparse.Namespace, got {type(options).__name__}")
    parts = raw["model"]
    if not isinstance(parts, list) or len(parts) != 4 or not all(isinstance(part, Mapping) for part in parts):
        raise CheckpointError(f"{path}: model must be a list of four state dicts: image, text, similarity, criterion")
    if parts[2] or parts[3]:
        raise CheckpointError(f"{path}: its similarity and criterion hold tensors: this is another model's checkpoint")
    images, texts = (
        {str(name): check_tensor(f"{side} {name}", tensor, path) for name, tensor in part.items()}
        for side, part in zip(("image", "text"), parts, strict=False)
    )
    config = _read_config(vars(options), texts, path)
    state, unused = _read_state(config, images, texts, path)
    return Published(
        model=checkpoint.build(config, state, str(path)),
        word2idx=_read_word2idx(vars(options).get("word2idx"), path),
        epoch=_typed(raw["epoch"], int, "epoch", path),
        best_rsum=float(_typed(raw["best_rsum"], float, "best_rsum", path)),
        unused=tuple(unused),
    )


def import_published(
    path: str | Path,
    out: str | Path,
    vocabulary: str | Path | None = None,
    tokenizer: str | Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Convert a published checkpoint to a native one.

    Args:
        path: the published file.
        out: the checkpoint directory to write; nothing is written before everything has been checked.
        vocabulary: SCAN vocabulary JSON of a GRU model; not needed if the file contains its own.
        tokenizer: directory with tokenizer.json or vocab.txt, for a BERT model.
        force: replace a checkpoint at OUT.

    Returns:
        A summary of the import, as plain data.

    Raises:
        CheckpointError: as in `read_published`; or the tokenizer is missing or has another size; or OUT is not empty
            (with `force`: not empty and not a checkpoint).
    """
    path = Path(path)
    checkpoint.check_place(out, force)
    published = read_published(path)
    files = _tokenizer_files(published, path, vocabulary, tokenizer)
    config = published.model.config
    found = {
        "file": path.name,
        "sha256": sha256_file(path),
        "epoch": published.epoch,
        "best_rsum": published.best_rsum,
        "unused": list(published.unused),
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


def _read_config(options: Mapping[str, Any], texts: Mapping[str, Tensor], path: Path) -> ModelConfig:
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
            bert=_bert_sizes(texts, path) if text == "bert" else None,
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


def _bert_sizes(texts: Mapping[str, Tensor], path: Path) -> BertConfig:
    def rows_columns(name: str) -> tuple[int, int]:
        tensor = texts.get(f"{BERT_PREFIX}{name}.weight")
        if tensor is None or tensor.ndim != 2:
            raise CheckpointError(
                f"{path}: the text encoder must hold the matrix {BERT_PREFIX}{name}.weight, as BERT does"
            )
        return tensor.shape[0], tensor.shape[1]

    vocab_size, hidden = rows_columns("embeddings.word_embeddings")
    if hidden % HEAD_WIDTH:
        raise CheckpointError(f"{path}: BERT's hidden width must be a multiple of {HEAD_WIDTH}, got {hidden}")
    numbered = (re.match(r"bert\.encoder\.layer\.(\d{1,6})\.", name) for name in texts)
    layers = {int(match[1]) for match in numbered if match}
    if layers != set(range(len(layers))) or not layers:
        raise CheckpointError(f"{path}: BERT's layers must be numbered 0, 1, ..., got {sorted(layers)[:20]}")
    return BertConfig(
        vocab_size=vocab_size,
        hidden=hidden,
        layers=len(layers),
        heads=hidden // HEAD_WIDTH,
        intermediate=rows_columns("encoder.layer.0.intermediate.dense")[0],
        positions=rows_columns("embeddings.position_embeddings")[0],
        segments=rows_columns("embeddings.token_type_embeddings")[0],
    )


def _read_state(
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
        ScanTokenizer.from_file(vocabulary)
        given = json.loads(Path(vocabulary).read_text(encoding="utf-8"))["word2idx"]
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
