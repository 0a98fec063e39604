"""A run that starts from a checkpoint: what is kept, which words are added, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.first_model import started_model
from chan_rt.chan_ref.inference import ReferenceMatcher
from chan_rt.chan_ref.train import resume, train
from chan_rt.chan_ref.train_config import TrainConfig
from chan_rt.chan_ref.train_data import TrainData
from chan_rt.chan_ref.train_state import make_optimizer
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import CheckpointError, InputError
from chan_rt.runtime.evaluation.metrics import Metrics

from ..run_chan import chan
from ..stored_bert import store_bert

OLD = ["apple", "bear", "car", "dog", "egg", "fish"]
NEW = [*OLD[3:], "goat", "hat", "ink"]
SMALL = TrainConfig(
    embed_dim=8,
    word_dim=6,
    region_encoder="basic",
    alignment=AlignmentConfig(pooling="Mean"),
    epochs=2,
    batch_size=12,
    learning_rate=4e-3,
    min_count=1,
)
WIDTH = 16


def make_data(folder: Path, words: list[str], width: int = WIDTH) -> Path:
    """Images of two things each: twelve to train on, eight to validate on."""
    rng = np.random.default_rng(5)
    prototypes = {word: rng.standard_normal(width) for word in sorted({*OLD, *NEW})}
    (folder / "precomp").mkdir(parents=True)
    for split, count in (("train", 12), ("dev", 8)):
        things = [rng.choice(words, 2, replace=False) for _ in range(count)]
        regions = np.array([[prototypes[word] for word in pair] for pair in things])
        regions += 0.1 * rng.standard_normal(regions.shape)
        np.save(folder / f"precomp/{split}_ims.npy", regions.astype(np.float32))
        (folder / f"precomp/{split}_caps.txt").write_text("".join(f"{a} and {b}\n" for a, b in things))
    return folder


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint to start from."""
    folder = tmp_path_factory.mktemp("before")
    train(make_data(folder / "data", OLD), folder / "run", SMALL)
    return folder / "run/best"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "data", NEW)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A checkpoint with BERT, with random weights."""
    folder = tmp_path_factory.mktemp("bert")
    stored = store_bert(folder / "bert", ["and", *NEW], hidden=8, intermediate=16)
    train(data, folder / "run", replace(SMALL, text_encoder="bert", bert=str(stored), epochs=1))
    return folder / "run/best"


def test_old_captions_score_as_before_and_new_words_follow(before: Path, data: Path) -> None:
    config, model, files, added = started_model(TrainConfig(start=str(before), min_count=1), TrainData.open(data))
    shape = (config.embed_dim, config.word_dim, config.region_encoder, config.alignment)
    assert shape == (8, 6, "basic", SMALL.alignment)
    assert added == 3
    old = json.loads((before / "tokenizer/vocab.json").read_text())["word2idx"]
    new = json.loads(files["vocab.json"])["word2idx"]
    assert {word: new[word] for word in old} == old
    assert new.keys() - old.keys() == {"goat", "hat", "ink"}
    reference = ReferenceMatcher.open(before)
    weight = "text_encoder.embedding.weight"
    first, grown = reference.model.state_dict()[weight], model.state_dict()[weight]
    assert torch.equal(grown[: len(old)], first[:-1])
    assert torch.equal(grown[-1], first[-1])  # of <mask>, which is the last again
    fresh = grown[len(old) : -1]
    assert len(fresh) == 3
    assert 0.01 < fresh.abs().max() <= 0.1
    ids = reference.tokenizer.encode(["apple and bear"])
    words = model.eval().encode_words(torch.from_numpy(ids.ids), torch.from_numpy(ids.lengths))
    np.testing.assert_array_equal(words.detach().numpy(), reference.encode_texts(["apple and bear"]).vectors)


def test_words_that_are_too_rare_are_not_added(before: Path, data: Path) -> None:
    _, _, files, added = started_model(TrainConfig(start=str(before), min_count=99), TrainData.open(data))
    assert added == 0
    assert files["vocab.json"] == (before / "tokenizer/vocab.json").read_bytes()


def test_a_run_begins_with_the_recalls_of_the_checkpoint_and_resumes_exactly(
    before: Path, data: Path, tmp_path: Path
) -> None:
    config = TrainConfig(start=str(before), min_count=1, batch_size=12, epochs=1, learning_rate=1e-30)
    seen: list[tuple[int, Metrics]] = []
    best = train(data, tmp_path / "still", config, on_start=lambda *values: seen.append(values))
    ((added, found),) = seen
    assert added == 3
    assert (found.i2t, found.t2i, found.rsum) == (best.i2t, best.t2i, best.rsum)  # at a rate that changes nothing
    config = replace(config, learning_rate=4e-3, epochs=3)
    train(data, tmp_path / "whole", config)
    train(data, tmp_path / "parts", replace(config, epochs=1))
    resume(data, tmp_path / "parts", epochs=3)
    whole, parts = (tmp_path / name / "last/model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    record = checkpoint.load(tmp_path / "parts/last").record["training"]["options"]
    assert (record["start"], record["embed_dim"]) == (str(before), 8)


def test_a_checkpoint_with_bert_keeps_its_tokenizer_rates_and_decay(bert: Path, data: Path, tmp_path: Path) -> None:
    options = TrainConfig(start=str(bert), bert_tuning="frozen", epochs=1, batch_size=12, learning_rate=4e-3)
    config, model, files, added = started_model(options, TrainData.open(data))
    assert (config.text_encoder, config.pairs_per_step, added) == ("bert", 12, 0)
    assert replace(config, batch_size=0).pairs_per_step == 128
    assert files["tokenizer.json"] == (bert / "tokenizer/tokenizer.json").read_bytes()
    groups = make_optimizer(model, config).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(4e-3, 1e-4), (5e-5, 1e-4)]
    train(data, tmp_path / "run", options)
    first, last = (checkpoint.load(path).model.state_dict() for path in (bert, tmp_path / "run/last"))
    same = {name: torch.equal(first[name], last[name]) for name in first}
    assert all(kept == name.startswith("text_encoder.bert.") for name, kept in same.items())


def test_what_does_not_fit_is_refused(before: Path, data: Path, tmp_path: Path) -> None:
    wide = make_data(tmp_path / "wide", NEW, width=24)
    with pytest.raises(InputError, match="reads 16 numbers a region, the features of the data have 24"):
        train(wide, tmp_path / "run", TrainConfig(start=str(before)))
    with pytest.raises(InputError, match=r"bert_tuning must be 'all', got 'frozen': the checkpoint .* has no BERT"):
        train(data, tmp_path / "run", TrainConfig(start=str(before), bert_tuning="frozen"))
    with pytest.raises(InputError, match="bert must not be given with start"):
        TrainConfig(start=str(before), text_encoder="bert", bert="somewhere")
    with pytest.raises(CheckpointError, match="is not a checkpoint but the folder of a run: give"):
        train(data, tmp_path / "run", TrainConfig(start=str(before.parent)))
    assert not (tmp_path / "run/last").exists()


def test_the_command_says_what_it_starts_from_and_whether_it_got_better(
    before: Path, data: Path, tmp_path: Path
) -> None:
    command = ["train", str(data), "-o", str(tmp_path / "run"), "--start", str(before), "--epochs", "1"]
    result = chan(*command, "--min-count", "1", "--learning-rate", "1e-30")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "3 words of the captions added to the vocabulary"
    assert lines[1].startswith("three numbers are R@1")
    assert lines[2].startswith("at the start               image-to-text")
    assert lines[2][lines[2].index("image") :] in lines[3]
    assert "no epoch is better than the checkpoint it started from" in result.stderr
    result = chan(*command, "--embed-dim", "8", "--pooling", "LSE")
    assert result.exit_code == 2
    assert "the checkpoint of --start decides what the model is: leave out --embed-dim, --pooling" in result.output


def test_a_published_file_in_the_place_of_a_checkpoint_is_pointed_to_import(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "model_best.pth"
    file.write_bytes(b"")
    for command in (
        ["train", str(data), "-o", str(tmp_path / "run"), "--start", str(file)],
        ["evaluate", str(file), str(data)],
        ["export", str(file), "-o", str(tmp_path / "bundle")],
    ):
        result = chan(*command)
        assert result.exit_code == 2
        assert f"is a file: make a checkpoint of it with `chan import {file} -o CHECKPOINT`" in result.output
