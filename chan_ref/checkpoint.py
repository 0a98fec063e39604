"""A checkpoint on disk: a directory of safetensors and JSON, no pickle.

CHECKPOINT/
├── model.safetensors    every tensor of `ChanModel.state_dict()`
├── config.json          {"schema": 1, "model": ModelConfig.to_dict(), "sha256": {...}, ...the training record}
└── tokenizer/           vocab.json (SCAN vocabulary) or tokenizer.json (wordpiece)

`sha256` has the hash of the weights and of each file of the tokenizer, by its path, and that of `model`. A bit that
changed in any of them would give other numbers, and no error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..runtime.contract import sha256_file
from ..runtime.errors import CheckpointError, reason_of
from ..runtime.files import atomic_folder, recover
from .checkpoint_config import CONFIG, SCHEMA, check_place, not_a_checkpoint, read_record
from .config import ModelConfig
from .model import ChanModel
from .weights import load_tensors, save_tensors

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer"
HASH = "sha256"
TokenizerKind = Literal["scan", "bert"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that `load` has read.

    Attributes:
        model: the model, on the CPU and in evaluation mode.
        tokenizer_kind: `scan` for a BiGRU, `bert` for BERT.
        tokenizer_files: name -> bytes; empty where the checkpoint was saved without one.
        record: the other keys of `config.json` (epochs, recalls, options). Nothing depends on them.
    """

    model: ChanModel
    tokenizer_kind: TokenizerKind
    tokenizer_files: Mapping[str, bytes]
    record: Mapping[str, Any]


def save(path: str | Path, model: ChanModel, tokenizer_files: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
    """Write a checkpoint beside PATH and move it into place, replacing an older checkpoint there.

    Args:
        path: the directory to write.
        model: the model to save, on any device.
        tokenizer_files: plain file names -> bytes, for `tokenizer/`.
        record: further keys of `config.json`, as JSON data; `schema`, `model` and `sha256` are reserved.

    Raises:
        CheckpointError: PATH holds something that is not a checkpoint, or the record or a file name breaks its rule.
    """
    path = Path(path)
    if reserved := {"schema", "model", HASH} & record.keys():
        raise CheckpointError(f"the record must not hold {', '.join(sorted(reserved))}: those keys are reserved")
    if unplain := [name for name in tokenizer_files if Path(name).name != name]:
        raise CheckpointError(f"tokenizer files must be plain names, got {', '.join(unplain)}")
    check_place(path, force=True)
    config = {"schema": SCHEMA, "model": model.config.to_dict(), HASH: "", **record}
    try:
        json.dumps(config, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"the record must be JSON: {error}") from error
    with atomic_folder(path) as fresh:
        (fresh / TOKENIZER).mkdir()
        save_tensors(model.state_dict(), fresh / WEIGHTS)
        for name, content in tokenizer_files.items():
            (fresh / TOKENIZER / name).write_bytes(content)
        config[HASH] = _hashes(fresh, config["model"], tokenizer_files)
        (fresh / CONFIG).write_text(json.dumps(config, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint. Every name, shape and dtype must match its configuration, and what is in it its hash.

    Checkpoints of earlier versions have no hashes, or that of the weights alone.

    Raises:
        CheckpointError: PATH is not a checkpoint, has another schema, its tensors do not match its configuration, or
            are not those that were saved. The message names what differs.
    """
    path = Path(path)
    try:
        recover(path)
        config, record = read_record(path)
        state = load_tensors(path / WEIGHTS)
        files = sorted((path / TOKENIZER).iterdir()) if (path / TOKENIZER).is_dir() else []
        tokenizer_files = {file.name: file.read_bytes() for file in files if file.is_file()}
    except OSError as error:
        raise not_a_checkpoint(path, error) from error
    except (ValueError, SafetensorError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error
    model = build(config, state, str(path))
    if (expected := record.pop(HASH, None)) is not None and not _is_as_saved(path, tokenizer_files, expected):
        return load(path)
    return Checkpoint(
        model=model,
        tokenizer_kind="scan" if config.text_encoder == "bigru" else "bert",
        tokenizer_files=tokenizer_files,
        record=record,
    )


def _hashes(path: Path, model: object, tokenizer: Mapping[str, bytes]) -> dict[str, str]:
    """What `sha256` of `config.json` holds of a checkpoint, whose weights lie in a folder."""
    plain = json.dumps(model, sort_keys=True).encode()
    texts = {f"{TOKENIZER}/{name}": content for name, content in tokenizer.items()} | {"model": plain}
    return {name: hashlib.sha256(text).hexdigest() for name, text in texts.items()} | {
        WEIGHTS: sha256_file(path / WEIGHTS)
    }


def _is_as_saved(path: Path, tokenizer: Mapping[str, bytes], saved: object) -> bool:
    """Whether everything is what was saved; False where another checkpoint took its place meanwhile.

    Raises:
        CheckpointError: it is not.
    """
    expected = saved if isinstance(saved, dict) else {WEIGHTS: saved}
    model = json.loads((path / CONFIG).read_text(encoding="utf-8"))["model"]  # as written: versions may add to it
    found = _hashes(path, model, tokenizer)
    wrong = [name for name, value in expected.items() if found.get(name) != value]
    if wrong and read_record(path)[1].get(HASH) == saved:
        name = wrong[0]
        where = f"`model` of {path / CONFIG}" if name == "model" else path / name
        raise CheckpointError(
            f"{where} was altered: its sha256 must be {expected[name]}, got {found.get(name, 'none')}. Copy the "
            f"checkpoint again; if you changed it yourself, remove {HASH} from {CONFIG}"
        )
    return not wrong


def build(config: ModelConfig, state: Mapping[str, Tensor], source: str) -> ChanModel:
    """Build a model from given tensors, in evaluation mode.

    Args:
        config: the model's sizes and choices.
        state: float32 tensors under the names of `ChanModel.state_dict()`; the model shares their memory.
        source: origin of the tensors, for error messages.

    Raises:
        CheckpointError: names, shapes or dtypes do not match the configuration; the message lists the first few.
    """
    if config.bert is not None and config.bert.layers > len(state):
        raise CheckpointError(f"{source}: {len(state)} tensors cannot make {config.bert.layers} BERT layers")
    model = skeleton(config, source)
    check_tensors({name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, state, source)
    model.load_state_dict(dict(state), strict=True, assign=True)
    return model.requires_grad_(True).eval()


def skeleton(config: ModelConfig, source: str) -> ChanModel:
    """Build a model on the meta device: it has names and shapes but no memory, so a wrong size cannot exhaust it.

    Raises:
        CheckpointError: the sizes are too large for a tensor.
    """
    try:
        with torch.device("meta"):
            return ChanModel(config)
    except (RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{source}: the configuration makes no model: {error}") from error


def check_tensors(expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor], source: str) -> None:
    """Check that tensors have the expected names and shapes, are float32, and are finite.

    Raises:
        CheckpointError: the message lists what is missing, unexpected or different.
    """
    faults = [f"missing {name} {list(shape)}" for name, shape in expected.items() if name not in state]
    faults += [f"unexpected {name} {list(tensor.shape)}" for name, tensor in state.items() if name not in expected]
    for name, shape in expected.items():
        if name not in state:
            continue
        tensor = state[name]
        if tuple(tensor.shape) != shape:
            faults.append(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
        elif tensor.dtype != torch.float32:
            faults.append(f"{name} must be float32, got {str(tensor.dtype).removeprefix('torch.')}")
        elif not _is_finite(tensor):
            faults.append(f"{name} holds NaN or infinity")
    if faults:
        shown = "; ".join(faults[:6]) + (f"; and {len(faults) - 6} more" if len(faults) > 6 else "")
        raise CheckpointError(f"{source}: the tensors do not fit the configuration: {shown}")


def _is_finite(tensor: Tensor) -> bool:
    """Check the smallest and the largest value, which carry any NaN: 0.009 s for 23 M values; `isfinite` takes 0.36."""
    return tensor.numel() == 0 or all(bool(end.isfinite()) for end in tensor.aminmax())
