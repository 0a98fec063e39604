"""A native checkpoint: what is saved comes back, what does not fit is named, what breaks leaves the old one."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from chan_rt.calibration.calibrate import Calibration
from chan_rt.chan_ref import checkpoint, checkpoint_config, weights
from chan_rt.chan_ref.bert import bert_from_pretrained
from chan_rt.chan_ref.config import BertConfig, ModelConfig
from chan_rt.chan_ref.inference import read_tokenizer
from chan_rt.chan_ref.model import ChanModel
from chan_rt.chan_ref.run_folder import last_epoch
from chan_rt.runtime import files
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import BundleError, CheckpointError, InputError

BERT = BertConfig(vocab_size=12, hidden=16, layers=2, heads=4, intermediate=8, positions=6)
GRU = ModelConfig(region_dim=6, embed_dim=8, vocab_size=12, word_dim=5, alignment=AlignmentConfig("THA", "Softmax"))
WITH_BERT = ModelConfig(region_dim=6, embed_dim=8, region_encoder="basic", text_encoder="bert", bert=BERT)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "run", ChanModel(GRU), {"vocab.json": b"{}"}, {"epoch": 3})
    return tmp_path / "run"


@pytest.mark.parametrize("config", [GRU, WITH_BERT], ids=["gru", "bert"])
def test_what_is_saved_comes_back(tmp_path: Path, config: ModelConfig):
    model = ChanModel(config)
    checkpoint.save(tmp_path / "a" / "b", model, {"vocab.json": b"words"}, {"epoch": 3, "recalls": [1.5]})
    loaded = checkpoint.load(tmp_path / "a" / "b")
    assert loaded.model.config == config
    assert loaded.tokenizer_kind == ("scan" if config is GRU else "bert")
    assert loaded.tokenizer_files == {"vocab.json": b"words"}
    assert loaded.record == {"epoch": 3, "recalls": [1.5]}
    assert not loaded.model.training
    expected, found = model.state_dict(), loaded.model.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


@pytest.mark.skipif(sys.platform != "linux", reason="such names are Linux's")
def test_a_checkpoint_lies_at_any_path(tmp_path: Path) -> None:
    """safetensors itself takes paths in UTF-8 only."""
    place = tmp_path / "caf\udce9\n a"
    model = ChanModel(GRU)
    checkpoint.save(place, model, {"vocab.json": b"{}"}, {"epoch": 3})
    loaded = checkpoint.load(place)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    (place / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"cannot be read: .*header"):
        checkpoint.load(place)


def test_saving_again_replaces_and_leaves_nothing_beside(saved: Path):
    checkpoint.save(saved, ChanModel(GRU), {}, {"epoch": 4})
    loaded = checkpoint.load(saved)
    assert loaded.record == {"epoch": 4}
    assert loaded.tokenizer_files == {}
    assert [path.name for path in saved.parent.iterdir()] == ["run"]


def test_the_same_model_makes_the_same_bytes(saved: Path, tmp_path: Path):
    loaded = checkpoint.load(saved)
    checkpoint.save(tmp_path / "again", loaded.model, loaded.tokenizer_files, loaded.record)
    for file in ("model.safetensors", "config.json", "tokenizer/vocab.json"):
        assert (saved / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.parametrize("at", range(3), ids=["making room", "moving in", "writing"])
def test_an_interrupted_save_keeps_the_old_one(saved: Path, monkeypatch: pytest.MonkeyPatch, at: int):
    replace, calls = os.replace, []

    def interrupted(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        replace(source, target)

    if at == 2:
        monkeypatch.setattr(checkpoint, "save_tensors", lambda *_: interrupted(Path(), Path()))
        at = 0
    monkeypatch.setattr(files, "exchange", lambda *_: False)  # as where a system cannot exchange two folders
    monkeypatch.setattr(os, "replace", interrupted)
    monkeypatch.setattr(files, "exchange", lambda first, second: False)  # two renames
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(saved, ChanModel(GRU), {}, {"epoch": 4})
    assert checkpoint.load(saved).record == {"epoch": 3}
    assert [path.name for path in saved.parent.iterdir()] == ["run"]


def test_a_checkpoint_left_between_two_renames_is_brought_back(saved: Path):
    hidden = saved.parent / f".{saved.name}.x1"
    hidden.mkdir()
    saved.rename(hidden / "old")
    checkpoint.load(saved)
    assert not hidden.exists()


def test_something_else_is_never_replaced(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("1")
    with pytest.raises(CheckpointError, match="exists and is not a checkpoint"):
        checkpoint.save(tmp_path / "thesis", ChanModel(GRU), {}, {})
    assert (tmp_path / "thesis" / "chapter").read_text() == "1"


@pytest.mark.parametrize(
    ("files", "record", "message"),
    [
        ({"../vocab.json": b""}, {}, r"plain names, got \.\./vocab.json"),
        ({}, {"model": 1}, "must not hold model"),
        ({}, {"loss": float("nan")}, "the record must be JSON"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path: Path, files: dict, record: dict, message: str):
    with pytest.raises(CheckpointError, match=message):
        checkpoint.save(tmp_path / "run", ChanModel(GRU), files, record)
    assert list(tmp_path.iterdir()) == []


def _edit_tensors(saved: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(saved / "model.safetensors")
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
    save_file(tensors, saved / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region_encoder__norm__bias": None}, r"missing region_encoder.norm.bias \[8\]"),
        ({"other": torch.zeros(2)}, r"unexpected other \[2\]"),
        ({"region_encoder__norm__bias": torch.zeros(9)}, r"region_encoder.norm.bias must be \[8\], got \[9\]"),
        ({"region_encoder__norm__bias": torch.zeros(8).half()}, "norm.bias must be float32, got float16"),
        ({"region_encoder__norm__bias": torch.full((8,), torch.nan)}, "norm.bias holds NaN or infinity"),
    ],
)
def test_loading_is_strict_and_names_what_differs(saved: Path, changes: dict, message: str):
    _edit_tensors(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"schema": 2}, "schema must be 1, got 2"),
        ({"model": {}}, "model configuration cannot be understood"),
        ({"model": "gru"}, "model configuration cannot be understood"),
        ({"model": {**GRU.to_dict(), "normalize_words": "no"}}, "normalize_words must be true or false, got 'no'"),
        ({"model": {**GRU.to_dict(), "depth": 3}}, "depth"),
        ({"model": {**GRU.to_dict(), "embed_dim": "8"}}, "embed_dim must be a positive integer, got '8'"),
        ({"model": {**GRU.to_dict(), "embed_dim": 0}}, "embed_dim must be a positive integer, got 0"),
        ({"model": {**GRU.to_dict(), "embed_dim": 2**25}}, "tensors do not fit"),
        ({"model": {**WITH_BERT.to_dict(), "bert": {"layers": 10**9}}}, "cannot make 1000000000 BERT layers"),
        ({"model": {**GRU.to_dict(), "alignment": {"coding": "VHB"}}}, "coding must be one of"),
    ],
)
def test_a_wrong_configuration_is_named(saved: Path, edit: dict, message: str):
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, **edit}))
    with pytest.raises(CheckpointError, match=message) as raised:
        checkpoint.load(saved)
    assert str(saved) in str(raised.value)


def test_the_configuration_is_read_without_the_weights(saved: Path):
    (saved / "model.safetensors").unlink()
    assert checkpoint_config.read_config(saved) == GRU
    (saved / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint_config.read_config(saved)


def test_json_nested_too_deep_is_an_error(saved: Path, tmp_path: Path):
    deep = "[" * 100_000
    with pytest.raises(BundleError, match=r"vocab.json must be a vocabulary .*: it is nested too deep"):
        read_tokenizer({"vocab.json": deep.encode()})
    with pytest.raises(InputError, match="cannot be understood: it is nested too deep"):
        Calibration.from_json(deep)
    (saved / "config.json").write_text(deep)
    for read in (checkpoint.load, checkpoint_config.read_config, bert_from_pretrained):
        with pytest.raises(CheckpointError, match="cannot be read: it is nested too deep"):
            read(saved)
    saved.rename(tmp_path / "last")
    with pytest.raises(CheckpointError, match="was not written by `chan train`: it is nested too deep"):
        last_epoch(tmp_path)


def test_a_run_that_is_given_for_its_checkpoint_is_told_apart(saved: Path, tmp_path: Path):
    saved.rename(tmp_path / "best")
    for read in (checkpoint.load, checkpoint_config.read_config):
        with pytest.raises(CheckpointError, match=f"is not a checkpoint but the folder of a run: give {tmp_path}/best"):
            read(tmp_path)


def flip_weight(saved: Path) -> None:
    content = bytearray((saved / "model.safetensors").read_bytes())
    content[-2] ^= 0x10  # of a weight, which stays finite
    (saved / "model.safetensors").write_bytes(content)


def flip_word(saved: Path) -> None:
    (saved / "tokenizer" / "vocab.json").write_bytes(b"{ }")


def flip_number(saved: Path) -> None:
    text = (saved / "config.json").read_text()
    changed = re.sub(r'("attention_temperature": )[0-9.]+', r"\g<1>0.75", text)
    assert changed != text
    (saved / "config.json").write_text(changed)


@pytest.mark.parametrize(
    ("flip", "named"),
    [
        (flip_weight, "model.safetensors"),
        (flip_word, "tokenizer/vocab.json"),
        (flip_number, "`model` of .*config.json"),
    ],
)
def test_what_was_altered_is_named(flip: Callable[[Path], None], named: str, saved: Path) -> None:
    flip(saved)
    with pytest.raises(CheckpointError, match=rf"{named} was altered: .*remove sha256 from config.json"):
        checkpoint.load(saved)
    config = json.loads((saved / "config.json").read_text())
    weights = config["sha256"]["model.safetensors"]
    for earlier in (weights, None):  # as earlier versions wrote it
        config["sha256"] = earlier
        (saved / "config.json").write_text(json.dumps(config))
        if flip is flip_weight and earlier:
            with pytest.raises(CheckpointError, match="was altered"):
                checkpoint.load(saved)
        else:
            assert checkpoint.load(saved).record == {"epoch": 3}


def test_a_missing_file_of_the_tokenizer_is_named(saved: Path) -> None:
    (saved / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer/vocab.json was altered: .* got none"):
        checkpoint.load(saved)


def test_a_checkpoint_that_takes_its_place_while_it_is_read_is_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a run that trains on replaces it: never the record of one with the weights of the other."""
    other, load_tensors = ChanModel(GRU), checkpoint.load_tensors

    def replaced(path: Path) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(checkpoint, "load_tensors", load_tensors)
        checkpoint.save(saved, other, {"vocab.json": b"{}"}, {"epoch": 4})
        return load_tensors(path)

    monkeypatch.setattr(checkpoint, "load_tensors", replaced)
    loaded = checkpoint.load(saved)
    assert loaded.record == {"epoch": 4}
    assert all(torch.equal(tensor, loaded.model.state_dict()[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_missing_and_truncated_files_are_named(saved: Path, file: str):
    content = (saved / file).read_bytes()
    (saved / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(saved)
    (saved / file).unlink()
    with pytest.raises(CheckpointError, match=r"is not a checkpoint.*make one with"):
        checkpoint.load(saved)


def test_weights_have_the_mode_of_the_umask(tmp_path: Path):
    before = os.umask(0o022)
    try:
        checkpoint.save(tmp_path / "run", ChanModel(GRU), {"vocab.json": b"{}"}, {})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "run").glob("*.*")} == {0o644}


def test_a_full_disk_is_an_error_that_names_the_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch):
    """safetensors' own error is no OSError."""

    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        checkpoint.save(saved, ChanModel(GRU), {}, {})
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(saved / "model.safetensors"))
    assert checkpoint.load(saved).record == {"epoch": 3}


def test_safetensors_says_what_the_system_says(tmp_path: Path):
    """A real error of its writer, whose words are read."""
    with pytest.raises(OSError, match="File name too long") as caught:
        weights.save_tensors({"x": torch.zeros(1)}, tmp_path / ("x" * 300))
    assert caught.value.errno == errno.ENAMETOOLONG
