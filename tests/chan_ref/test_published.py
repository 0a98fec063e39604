"""`chan import`: the five published checkpoints give the recorded values; all else is refused with its reason."""

from __future__ import annotations

import argparse
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.chan_ref.published import import_published, read_published
from chan_rt.runtime.errors import ChanError, CheckpointError
from chan_rt.runtime.text import BERT_SPECIALS, SCAN_SPECIALS, scan_vocabulary

from ..run_chan import chan

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("b*.npz"))
GRU, OWN_WORDS, BERT = "bigru_selfattention_vha_lse", "bigru_word2idx", "bert_basic_vha_mean"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the five published files, a vocabulary that fits and a BERT tokenizer that fits."""
    folder = tmp_path_factory.mktemp("published")
    for name in NAMES:
        packed = GOLDEN / f"{name}.pth.xz"
        if packed.is_file():
            (folder / f"{name}.pth").write_bytes(lzma.decompress(packed.read_bytes()))
        else:
            shutil.copy(GOLDEN / f"{name}.pth", folder)
    words = [*SCAN_SPECIALS, *(f"w{row}" for row in range(35))]
    (folder / "vocab.json").write_text(json.dumps(scan_vocabulary({word: row for row, word in enumerate(words)})))
    (folder / "bert").mkdir()
    pieces = [*BERT_SPECIALS, *(f"w{row}" for row in range(64 - len(BERT_SPECIALS)))]
    (folder / "bert" / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return folder


def _tokenizer(folder: Path, name: str) -> dict[str, Path]:
    if name == BERT:
        return {"tokenizer": folder / "bert"}
    return {} if name == OWN_WORDS else {"vocabulary": folder / "vocab.json"}


@pytest.mark.parametrize("name", NAMES)
def test_an_imported_checkpoint_gives_the_published_values(published: Path, tmp_path: Path, name: str):
    import_published(published / f"{name}.pth", tmp_path / "out", **_tokenizer(published, name))
    model = checkpoint.load(tmp_path / "out").model
    golden = {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / f"{name}.npz").items() if value.ndim}
    image_lengths, caption_lengths = golden["image_lengths"], golden["caption_lengths"]
    with torch.inference_mode():
        regions = model.region_encoder(golden["images"], image_lengths, match_padding=True)
        words = model.encode_words(golden["captions"], caption_lengths)
        scores = model.score(regions, image_lengths, words, caption_lengths)
    for found, expected, lengths in (
        (regions, golden["image_embeddings"], image_lengths),
        (words, golden["caption_embeddings"], caption_lengths),
    ):
        for row, length in enumerate(lengths):
            torch.testing.assert_close(found[row, :length], expected[row, :length], rtol=1e-5, atol=1e-5)
            assert (found[row, length:] == 0).all()
    alignment = model.config.alignment
    expected = golden[f"scores/{alignment.coding}Coding/{alignment.pooling}Pooling"]
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)
    masked = model.encode_regions(golden["images"], image_lengths)
    ragged = not (image_lengths == image_lengths[0]).all()
    assert torch.allclose(masked, regions, rtol=1e-5, atol=1e-5) == (not ragged)


def test_what_was_found_is_said(published: Path, tmp_path: Path):
    arguments = ["import", str(published / f"{GRU}.pth"), "-o", str(tmp_path / "out")]
    result = chan(*arguments, "--vocab", published / "vocab.json")
    assert result.exit_code == 0, result.output
    for words in (
        "selfattention, 48 -> 32",
        "bigru, words 12 -> GRU -> 32",
        "LSE, temperature 0.1",
        "fc.weight, fc.bias",
        f"out: next, `chan export {tmp_path / 'out'} -o bundle`",
    ):
        assert words in result.output
    result = chan(*arguments, "--vocab", published / "vocab.json", "--json", "--force")
    found = json.loads(result.output)
    assert found["best_rsum"] == 123.4
    assert found["epoch"] == 3
    assert found["unused"] == ["fc.weight", "fc.bias"]
    assert found["model"] == checkpoint.load(tmp_path / "out").model.config.to_dict()
    assert checkpoint.load(tmp_path / "out").record["imported"]["sha256"] == found["sha256"]


def test_sizes_of_bert_are_read_off_its_tensors(published: Path):
    found = read_published(published / f"{BERT}.pth")
    bert = found.model.config.bert
    assert bert is not None
    assert (bert.vocab_size, bert.hidden, bert.layers, bert.heads) == (64, 768, 1, 12)
    assert (bert.intermediate, bert.positions, bert.segments) == (32, 32, 2)
    assert found.unused == ("bert.pooler.dense.weight", "bert.pooler.dense.bias")


def test_bert_tokens_inside_a_caption_are_never_padding():
    golden = np.load(GOLDEN / f"{BERT}.npz")
    real = np.arange(golden["captions"].shape[1]) < golden["caption_lengths"][:, None]
    # The published mask is `id != 0` and ours the length: the same, as long as this holds.
    np.testing.assert_array_equal(golden["captions"] != 0, real)


def test_the_vocabulary_in_the_file_becomes_a_vocabulary_file(published: Path, tmp_path: Path):
    import_published(published / f"{OWN_WORDS}.pth", tmp_path / "out")
    files = checkpoint.load(tmp_path / "out").tokenizer_files
    assert json.loads(files["vocab.json"]) == json.loads((published / "vocab.json").read_text())


def _scan(published: Path, words: int, **changes: int) -> str:
    table = {word: row for row, word in enumerate([*SCAN_SPECIALS, *(f"x{row}" for row in range(words - 4))])}
    table.update(changes)
    path = published / "other.json"
    path.write_text(
        json.dumps({"word2idx": table, "idx2word": {str(v): k for k, v in table.items()}, "idx": len(table)})
    )
    return str(path)


@pytest.mark.parametrize(
    ("name", "tokenizer", "message"),
    [
        (GRU, {}, r"does not carry its vocabulary: give --vocab FILE, .* \(39 words"),
        (BERT, {}, r"does not carry its wordpieces: give --tokenizer DIR"),
        (GRU, {"tokenizer": "bert"}, r"has a word vocabulary: give --vocab FILE"),
        (BERT, {"vocabulary": "vocab.json"}, r"has a BERT text encoder: give --tokenizer DIR"),
        (GRU, {"vocabulary": "missing.json"}, r"missing.json cannot be read"),
        (GRU, {"vocabulary": lambda folder: _scan(folder, 12)}, r"must have 39 words, .* got 12"),
        (GRU, {"vocabulary": lambda folder: _scan(folder, 39, x5=8)}, r"inverse"),
        (OWN_WORDS, {"vocabulary": lambda folder: _scan(folder, 39)}, r"differs from the vocabulary that .* carries"),
        (BERT, {"tokenizer": "."}, r"holds no BERT tokenizer: expected tokenizer.json or vocab.txt"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    published: Path, tmp_path: Path, name: str, tokenizer: dict[str, Any], message: str
):
    paths = {key: value(published) if callable(value) else published / value for key, value in tokenizer.items()}
    with pytest.raises(ChanError, match=message):
        import_published(published / f"{name}.pth", tmp_path / "out", **paths)
    assert list(tmp_path.iterdir()) == []


def _load(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def _set(key: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda raw: setattr(raw["opt"], key, value)


def _drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda raw: delattr(raw["opt"], key)


def _tensor(part: int, name: str, tensor: torch.Tensor | None) -> Callable[[dict[str, Any]], None]:
    def change(raw: dict[str, Any]) -> None:
        if tensor is None:
            del raw["model"][part][name]
        else:
            raw["model"][part][name] = tensor

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("precomp_enc_type", "transformer"), r"'transformer'.*across the images of a batch.*refused"),
        (_set("precomp_enc_type", "backbone"), r"region_encoder must be basic or selfattention, got 'backbone'"),
        (_set("precomp_enc_type", "basic"), r"image encoder: .* unexpected feedforward.ln.weight \[32\]"),
        (_set("text_enc_type", "bert"), r"must hold the matrix bert.embeddings.word_embeddings.weight"),
        (_set("num_layers", 2), r"opt.num_layers must be 1, got 2"),
        (_set("img_dim", 2048), r"fc.weight must be \[32, 2048\], got \[32, 48\]"),
        (_set("embed_size", 2**62), r"the configuration makes no model"),
        (_set("embed_size", 36), r"embed_dim must be a multiple of attention_heads, got 36 and 8"),
        (_set("embed_size", "32"), r"opt.embed_size must be of type int, got str"),
        (_set("vocab_size", 41), r"embed.weight must be \[41, 12\], got \[40, 12\]"),
        (_set("coding_type", "HardCoding"), r"coding must be one of VHA, THA, VSA, got 'Hard'"),
        (_set("pooling_type", "TopKPooling"), r"pooling must be one of .*, got 'TopK'"),
        (_set("belta", 0.0), r"pooling_temperature must be positive and finite, got 0.0"),
        (_set("belta", float("nan")), r"opt.belta must be finite, got nan"),
        (_set("no_imgnorm", 1), r"opt.no_imgnorm must be of type bool, got int"),
        (_set("word2idx", ["a"]), r"opt.word2idx must map words to integers"),
        (_drop("coding_type"), r"opt lacks coding_type"),
        (_tensor(0, "fc.bias", None), r"image encoder: .* missing fc.bias \[32\]"),
        (_tensor(1, "rnn.weight_ih_l1", torch.zeros(3)), r"text encoder: .* unexpected rnn.weight_ih_l1 \[3\]"),
        (_tensor(0, "fc.bias", torch.zeros(32).long()), r"fc.bias must be float32, got int64"),
        (_tensor(0, "fc.bias", torch.full((32,), torch.inf)), r"fc.bias holds NaN or infinity"),
        (_tensor(0, "fc.weight", torch.zeros(1).expand(32, 48)), r"image fc.weight must be a plain tensor, got a view"),
        (_tensor(0, "fc.weight", torch.zeros(32, 48).to_sparse()), r"not data: refused, nothing was executed"),
        (_tensor(0, "fc.bias", "bias"), r"image fc.bias must be a tensor, got str"),
        (_tensor(2, "w", torch.zeros(1)), r"its similarity and criterion hold tensors"),
        (lambda raw: raw.pop("opt"), r"not a published CHAN checkpoint: it lacks opt"),
        (lambda raw: raw.update(opt={}), r"opt must be an argparse.Namespace, got dict"),
        (lambda raw: raw["model"].pop(), r"model must be a list of four state dicts"),
    ],
)
def test_what_does_not_fit_its_options_is_refused(
    published: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
):
    raw = _load(published / f"{GRU}.pth")
    change(raw)
    torch.save(raw, tmp_path / "changed.pth")
    with pytest.raises(CheckpointError, match=message):
        import_published(tmp_path / "changed.pth", tmp_path / "out", published / "vocab.json")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "epoch": 3}, "it looks like a PyTorch Lightning"),
        ({"w": torch.zeros(2)}, "it is a bare state dict"),
        ([1, 2], "expected a dictionary, got list"),
    ],
)
def test_checkpoints_of_other_models_are_refused(tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=message):
        read_published(tmp_path / "other.pth")


def test_an_imported_checkpoint_replaces_only_a_checkpoint(published: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    result = chan("import", published / f"{OWN_WORDS}.pth", "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "exists and is not a checkpoint" in result.output
    assert (tmp_path / "out" / "notes").read_text() == "mine"


def test_a_checkpoint_is_replaced_only_by_force_and_only_by_a_whole_one(published: Path, tmp_path: Path):
    def run(*options: str) -> str:
        arguments = ["import", str(published / f"{OWN_WORDS}.pth"), "-o", str(tmp_path / "out"), *options]
        result = chan(*arguments)
        return result.output if result.exit_code else ""

    def content() -> dict[str, bytes]:
        return {str(file): file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}

    assert run() == ""
    model = ChanModel(ModelConfig(region_dim=6, embed_dim=8, vocab_size=12, word_dim=5))
    checkpoint.save(tmp_path / "out", model, {}, {"epoch": 25})  # of a training, say
    before = content()
    assert f"{tmp_path / 'out'} holds a checkpoint already: --force replaces it" in run()
    assert "give --vocab FILE instead of --tokenizer" in run("--force", "--tokenizer", str(published / "bert"))
    assert content() == before
    assert run("--force") == ""
    assert "imported" in checkpoint.load(tmp_path / "out").record
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_hugging_face_folder_is_never_replaced(published: Path, tmp_path: Path):
    """It has a config.json of its own, and --tokenizer DIR may well be given where -o should."""
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    arguments = ["import", str(published / f"{OWN_WORDS}.pth"), "-o", str(tmp_path / "bert"), "--force"]
    result = chan(*arguments)
    assert result.exit_code == 1
    assert "exists and is not a checkpoint" in result.output
    assert (tmp_path / "bert" / "config.json").read_text() == '{"model_type": "bert"}'


def test_weights_trained_on_a_gpu_share_a_buffer_and_import_all_the_same(published: Path, tmp_path: Path):
    raw = _load(published / f"{OWN_WORDS}.pth")
    texts = raw["model"][1]
    buffer = torch.cat([texts[name].flatten() for name in texts])
    start = 0
    for name, tensor in texts.items():
        texts[name] = buffer[start : start + tensor.numel()].view_as(tensor)
        start += tensor.numel()
    torch.save(raw, tmp_path / "shared.pth")
    import_published(tmp_path / "shared.pth", tmp_path / "out")
    found = checkpoint.load(tmp_path / "out").model.state_dict()
    expected = read_published(published / f"{OWN_WORDS}.pth").model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
