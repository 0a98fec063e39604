"""Training learns, is deterministic, and goes on from a stopped run as if it had not been stopped."""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.augment import change_words, drop_regions
from chan_rt.chan_ref.bert import bert_from_pretrained
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.inference import open_tokenizer
from chan_rt.chan_ref.model import ChanModel
from chan_rt.chan_ref.train import resume, train
from chan_rt.chan_ref.train_config import EpochLog, TrainConfig
from chan_rt.chan_ref.train_state import make_optimizer
from chan_rt.chan_ref.validate import chance_rsum, evaluate
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.errors import CheckpointError, InputError
from chan_rt.runtime.evaluation import metrics
from chan_rt.runtime.text import ScanTokenizer

from ..stored_bert import store_bert

WORDS = ["apple", "bear", "car", "dog", "egg", "fish", "goat", "hat", "ink", "jar", "kite", "lamp"]
SMALL = TrainConfig(
    embed_dim=32, word_dim=16, epochs=3, batch_size=40, learning_rate=4e-3, drop_epoch=2, min_count=1, seed=3
)


def make_data(folder: Path, splits: dict[str, int], seed: int = 5) -> Path:
    """Images of three things: a noisy prototype each among 5 regions; captions that name some of them."""
    rng = np.random.default_rng(seed)
    prototypes = rng.standard_normal((len(WORDS), 24))
    (folder / "precomp").mkdir(parents=True)
    for split, count in splits.items():
        things = np.array([rng.choice(len(WORDS), 3, replace=False) for _ in range(count)])
        regions = 0.2 * rng.standard_normal((count, 5, 24))
        regions[:, 1:4] += prototypes[things]
        np.save(folder / f"precomp/{split}_ims.npy", regions.astype(np.float32))
        captions = []
        for names in things:
            captions += [" and ".join(WORDS[t] for t in rng.permutation(names)[: 2 + k % 2]) for k in range(5)]
        (folder / f"precomp/{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), {"train": 80, "dev": 30})


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As users have; tests have one (conftest.py)."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    train(data, run, SMALL)
    return run


def _contents(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.rglob("*")) if file.is_file()}


def test_recall_rises_far_above_chance(data: Path, tmp_path: Path) -> None:
    best = train(data, tmp_path / "run", TrainConfig(**{**vars(SMALL), "epochs": 8, "drop_epoch": 6}))
    chance = 100 / 30  # of R@1; a caption names two things, so several images may fit it
    assert best.i2t.r1 > 15 * chance
    assert best.t2i.r5 > 4 * (5 * chance)
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(8))
    assert lines[-1]["loss"] < lines[1]["loss"]
    assert lines[-1]["learning_rate"] == pytest.approx(SMALL.learning_rate / 10)
    assert max(line["rsum"] for line in lines) == best.rsum


def test_what_a_run_leaves(finished: Path, data: Path) -> None:
    names = set(_contents(finished))
    parts = ("config.json", "model.safetensors", "tokenizer/vocab.json")
    own = {"log.jsonl", "log.csv", "curve.svg", "optimizer-2.safetensors"}
    assert names == own | {f"{kind}/{part}" for kind in ("best", "last") for part in parts}
    last = checkpoint.load(finished / "last")
    assert last.tokenizer_kind == "scan"
    tokenizer = ScanTokenizer.from_file(finished / "last/tokenizer/vocab.json")
    assert last.model.config.vocab_size == tokenizer.vocab_size
    dev = CaptionedImages.open(data, "dev")
    again = evaluate(dev, last.model, tokenizer, "cpu")
    assert again.rsum == last.record["training"]["log"][-1]["rsum"]


@pytest.mark.usefixtures("two_threads")
def test_the_same_seed_gives_the_same_bytes_and_another_does_not(data: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        train(data, tmp_path / name, replace(SMALL, epochs=1, batch_size=100, seed=seed))
    assert _contents(tmp_path / "one") == _contents(tmp_path / "same")
    one, other = (load_file(tmp_path / name / "last/model.safetensors") for name in ("one", "other"))
    name = "region_encoder.projection.weight"
    assert not np.array_equal(one[name], other[name])


@pytest.mark.parametrize("stop_at", [(1, 3), (2, 9)])
def test_a_resumed_run_equals_one_that_never_stopped(
    data: Path, finished: Path, tmp_path: Path, stop_at: tuple[int, int]
) -> None:
    def stop(epoch: int, step: int, steps: int, loss: float) -> None:
        if (epoch, step) == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "run", SMALL, on_step=stop)
    kept = checkpoint.load(tmp_path / "run/last").record["training"]["epoch"]
    assert kept == stop_at[0] - 1
    epochs: list[int] = []
    resume(data, tmp_path / "run", on_epoch=lambda log: epochs.append(log.epoch))
    assert epochs == list(range(stop_at[0], 3))
    assert _contents(tmp_path / "run") == _contents(finished)


def test_a_resumed_run_computes_on_weights_that_lie_as_they_did(data: Path, tmp_path: Path) -> None:
    """How a sum is rounded depends on where in memory its numbers begin, and in a file they begin anywhere."""
    narrow = replace(SMALL, embed_dim=16, word_dim=8, batch_size=16, epochs=2)
    train(data, tmp_path / "whole", narrow)
    train(data, tmp_path / "run", replace(narrow, epochs=1))
    resume(data, tmp_path / "run", epochs=2)
    whole, run = (load_file(tmp_path / name / "last/model.safetensors") for name in ("whole", "run"))
    for name, weight in whole.items():
        np.testing.assert_array_equal(weight, run[name], name)


@pytest.mark.parametrize("fails", ["best", "optimizer", "log", "last"])
def test_a_crash_while_saving_loses_no_more_than_the_epoch(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """The disk fails at one point of the second epoch's save; resuming still ends at the same bytes."""
    from chan_rt.runtime import files

    run = tmp_path / "run"
    real_save, real_replace = checkpoint.save, files.os.replace

    def second_epoch() -> bool:
        return (run / "last").exists()

    def save(path: Path, *rest: Any) -> None:
        if second_epoch() and path.name == fails:
            raise OSError("disk full")
        real_save(path, *rest)

    def move(source: Path, target: Path) -> None:
        if second_epoch() and Path(target).name.startswith(fails):
            raise OSError("disk full")
        real_replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        patch.setattr(files.os, "replace", move)
        with pytest.raises(OSError, match="disk full"):
            train(data, run, TrainConfig(**vars(SMALL)))
    resume(data, run)
    leftovers = {name for name in _contents(run) if name.endswith(".partial")}
    assert not leftovers
    assert _contents(run) == _contents(finished)


def test_resume_and_train_refuse_what_does_not_fit(data: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a run already"):
        train(data, finished, SMALL)
    with pytest.raises(InputError, match="no finished epoch"):
        resume(data, tmp_path / "none")
    (tmp_path / "kept").mkdir()
    (finished / "best").rename(tmp_path / "kept" / "best")
    with pytest.raises(InputError, match="no finished epoch to resume from: move best away and leave --resume out"):
        resume(data, tmp_path / "kept")
    before = _contents(tmp_path / "kept")
    try:
        with pytest.raises(InputError, match="holds best, which the run would replace"):
            train(data, tmp_path / "kept", SMALL)
        assert _contents(tmp_path / "kept") == before
    finally:
        (tmp_path / "kept" / "best").rename(finished / "best")
    other = make_data(tmp_path / "other", {"train": 60, "dev": 20}, seed=9)
    with pytest.raises(InputError, match="not the data this run was trained on"):
        resume(other, finished)


def test_without_dev_the_last_training_images_are_held_out(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", {"train": 50})
    steps: list[int] = []
    config = TrainConfig(**{**vars(SMALL), "epochs": 1, "batch_size": 45})
    train(folder, tmp_path / "run", config, on_step=lambda _e, _s, n, _l: steps.append(n))
    assert steps == [5] * 5  # 45 of the 50 images, 225 pairs
    assert checkpoint.load(tmp_path / "run/last").record["training"]["log"][0]["i2t"]["r5"] <= 100
    with pytest.raises(InputError, match="too few training images"):
        train(make_data(tmp_path / "few", {"train": 9}), tmp_path / "run2", config)


def test_an_exploding_loss_is_an_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lower --learning-rate"):
        train(data, tmp_path / "run", TrainConfig(**{**vars(SMALL), "learning_rate": 1e30}))
    whole = TrainConfig(**{**vars(SMALL), "learning_rate": 1e30, "batch_size": 10_000})  # one update in an epoch
    with pytest.raises(InputError, match=r"after epoch 0, scores: must not be NaN, .*: lower --learning-rate"):
        train(data, tmp_path / "whole", whole)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs must be positive, got 0"),
        ("learning_rate", float("nan"), "learning_rate must be positive, got nan"),
        ("learning_rate", 1e38, "learning_rate must be at most 1e30, got 1e\\+38"),
        ("region_drop", 1.0, r"region_drop must be in \[0, 1\), got 1.0"),
        ("loss", "mse", "loss must be one of hinge, infonce"),
        (
            "bert",
            "somewhere",
            r"bert is for text_encoder 'bert' only, got somewhere for 'bigru' \(--text-encoder bert\)",
        ),
        ("seed", -1, "seed must not be negative"),
        ("seed", 2**63, r"seed must be below 2\^63, got 9223372036854775808"),
    ],
)
def test_options_that_make_no_sense_are_named(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**{**vars(SMALL), field: value})


@pytest.mark.parametrize("device", ["nope", "meta", "cuda:99", "cpu:x"])
def test_a_device_that_torch_cannot_use_is_named_before_anything_is_written(
    device: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"device must be one that torch can use here, such as cpu, got '{device}': "):
        train(data, tmp_path / "run", SMALL, device=device)
    with pytest.raises(InputError, match=f"device must be one that torch can use here, such as cpu, got '{device}': "):
        resume(data, tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()


def test_defaults_are_the_published_ones() -> None:
    config = TrainConfig()
    assert (config.epochs, config.drop_epoch, config.learning_rate, config.pairs_per_step) == (25, 15, 5e-4, 384)
    assert (config.region_drop, config.word_drop) == (0.2, 0.2)
    bert = TrainConfig(text_encoder="bert", bert="folder")
    assert (bert.pairs_per_step, bert.bert_learning_rate, bert.bert_weight_decay) == (128, 5e-5, 1e-4)


def test_dropped_regions_close_up_in_order() -> None:
    rng = np.random.default_rng(0)
    regions = np.arange(200 * 12, dtype=np.float32).reshape(200, 12, 1)
    lengths = rng.integers(1, 13, 200).astype(np.int32)
    kept, counts = drop_regions(regions, lengths, 0.2, rng)
    assert kept.shape[1] == counts.max()
    assert counts.min() >= 1
    for row in range(200):
        found = kept[row, : counts[row], 0]
        assert set(found) <= set(regions[row, : lengths[row], 0])
        assert (np.diff(found) > 0).all()
    assert counts.sum() / lengths.sum() == pytest.approx(0.8, abs=0.03)
    one, alone = drop_regions(regions[:, :1], np.ones(200, np.int32), 0.99, rng)
    assert (alone == 1).all()
    np.testing.assert_array_equal(one, regions[:, :1])


def test_changed_words_keep_their_shares_and_the_marks() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 22, 4000).astype(np.int32)
    ids = np.where(np.arange(21) < lengths[:, None], 7, 0).astype(np.int32)
    ids[:, 0] = 1
    ids[np.arange(4000), lengths - 1] = 2
    out, new = change_words(ids, lengths, 0.2, 99, 99, rng)
    inner = (lengths - 2).sum()
    assert (out[:, 0] == 1).all()
    assert (out[np.arange(4000), new - 1] == 2).all()
    assert not out[np.arange(out.shape[1]) >= new[:, None]].any()
    assert (lengths.sum() - new.sum()) / inner == pytest.approx(0.08, abs=0.01)
    assert (out == 99).sum() / inner == pytest.approx(0.10, abs=0.01)
    swapped = (~np.isin(out, [0, 7, 99])).sum() - 2 * 4000
    assert swapped / inner == pytest.approx(0.02, abs=0.005)
    same, same_lengths = change_words(ids, lengths, 0.0, 99, 99, rng)
    np.testing.assert_array_equal(same, ids)
    np.testing.assert_array_equal(same_lengths, lengths)


def test_validation_scores_do_not_depend_on_blocks(data: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import chan_rt.chan_ref.validate as module

    last = checkpoint.load(finished / "last")
    tokenizer = ScanTokenizer.from_file(finished / "last/tokenizer/vocab.json")
    validation = CaptionedImages.open(data, "dev").take(np.arange(3, 20))
    whole = evaluate(validation, last.model.train(), tokenizer, "cpu")
    assert last.model.training
    assert isinstance(whole, metrics.Metrics)
    tokens = tokenizer.encode(validation.captions)
    with torch.inference_mode():
        scores = module._scores(validation, last.model.eval(), tokens, "cpu")
        assert metrics.evaluate(scores, validation.image_of_caption) == whole
        monkeypatch.setattr(module, "_IMAGES", 4)
        monkeypatch.setattr(module, "_CAPTIONS", 7)
        monkeypatch.setattr(module, "_BLOCK_SIMILARITIES", 5 * 7 * 6 * 2)
        # Recalls may not be compared: this model has scores that differ by less than float32 rounds.
        np.testing.assert_allclose(module._scores(validation, last.model, tokens, "cpu"), scores, rtol=0, atol=1e-6)


def _tiny_bert(folder: Path) -> Path:
    """One with the words of this data."""
    return store_bert(folder, ["and", *WORDS], hidden=16)


def test_captions_beyond_the_positions_of_bert_are_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = make_data(tmp_path / "data", {"train": 12, "dev": 4})
    for split in ("train", "dev"):
        file = data / f"precomp/{split}_caps.txt"
        file.write_text(file.read_text().replace("\n", " and apple" * 20 + "\n", 1))
    options = {**vars(SMALL), "text_encoder": "bert", "bert": str(_tiny_bert(tmp_path / "bert")), "epochs": 1}
    assert np.isfinite(train(data, tmp_path / "run", TrainConfig(**options)).loss)
    assert "1 caption has more than 16 wordpieces, the rest is cut" in caplog.text


def test_every_group_of_a_model_with_bert_decays_as_published(data: Path, tmp_path: Path) -> None:
    bert = _tiny_bert(tmp_path / "bert")
    config = TrainConfig(**{**vars(SMALL), "text_encoder": "bert", "bert": str(bert)})
    sizes, _ = bert_from_pretrained(bert)
    shape = ModelConfig(region_dim=24, embed_dim=32, text_encoder="bert", bert=sizes)
    groups = make_optimizer(ChanModel(shape), config).param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(4e-3, 1e-4), (5e-5, 1e-4)]
    (only,) = make_optimizer(
        ChanModel(replace(shape, text_encoder="bigru", bert=None, vocab_size=9)), SMALL
    ).param_groups
    assert (only["lr"], only["weight_decay"]) == (4e-3, 0.01)


def test_a_model_with_a_padded_bert_is_as_large_as_its_tokenizer(data: Path, tmp_path: Path) -> None:
    bert = _tiny_bert(tmp_path / "bert")
    tensors = load_file(bert / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    used = len(tensors[name])
    rows = -(-(used + 1) // 64) * 64
    tensors[name] = np.concatenate([tensors[name], np.ones((rows - used, tensors[name].shape[1]), np.float32)])
    save_file({key: torch.from_numpy(value) for key, value in tensors.items()}, bert / "model.safetensors")
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "vocab_size": rows}))
    options = {**vars(SMALL), "text_encoder": "bert", "bert": str(bert), "epochs": 1}
    train(data, tmp_path / "run", TrainConfig(**options))
    last = checkpoint.load(tmp_path / "run/last")
    assert last.model.config.bert.vocab_size == used
    open_tokenizer(last, tmp_path / "run/last")


def test_a_collapse_is_noticed_and_the_best_epoch_kept(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", {"train": 80, "dev": 40})
    options = {**vars(SMALL), "epochs": 5, "drop_epoch": 9}
    logs: list[EpochLog] = []
    hopeless = TrainConfig(**{**options, "warmup_epochs": 0, "learning_rate": 3e-2})
    best = train(data, tmp_path / "collapsed", hopeless, on_epoch=logs.append)
    assert logs[-1].collapsed
    dev = CaptionedImages.open(data, "dev")
    assert logs[-1].rsum < 2 * chance_rsum(dev.num_images, dev.image_of_caption)
    assert not best.collapsed
    assert checkpoint.load(tmp_path / "collapsed/best").record["training"]["epoch"] == best.epoch < logs[-1].epoch
    lines = [json.loads(line) for line in (tmp_path / "collapsed/log.jsonl").read_text().splitlines()]
    assert [line["collapsed"] for line in lines] == [log.collapsed for log in logs]
    logs.clear()
    train(data, tmp_path / "learns", TrainConfig(**options), on_epoch=logs.append)
    assert not any(log.collapsed for log in logs)


def test_the_log_of_an_older_version_is_read(finished: Path) -> None:
    line = json.loads((finished / "log.jsonl").read_text().splitlines()[0])
    del line["collapsed"]
    assert EpochLog.from_dict(line).collapsed is False


@pytest.mark.parametrize("captions", [[1, 1, 1, 1], [5] * 40, [1, 2, 3, 30], [1, 9]])
def test_chance_is_what_random_scores_have(captions: list[int]) -> None:
    owners = np.repeat(np.arange(len(captions)), captions)
    rng = np.random.default_rng(0)
    found = [metrics.evaluate(rng.random((len(captions), len(owners))), owners).rsum for _ in range(400)]
    assert np.mean(found) == pytest.approx(chance_rsum(len(captions), owners), abs=4 * np.std(found) / 20 + 0.01)


def test_bert_trains_with_a_rate_and_decay_of_its_own(data: Path, tmp_path: Path) -> None:
    bert = _tiny_bert(tmp_path / "bert")
    options = {**vars(SMALL), "text_encoder": "bert", "bert": str(bert), "epochs": 2, "learning_rate": 1e-2}
    train(data, tmp_path / "run", TrainConfig(**options))
    last = checkpoint.load(tmp_path / "run/last")
    assert last.tokenizer_kind == "bert"
    start = load_file(bert / "model.safetensors")
    embedding = last.model.state_dict()["text_encoder.bert.words.weight"].numpy()
    assert not np.array_equal(embedding, start["embeddings.word_embeddings.weight"])

    # With a rate next to none for BERT's own weights they stay, while the rest learns.
    train(data, tmp_path / "frozen", TrainConfig(**{**options, "bert_learning_rate": 1e-30}))
    frozen = checkpoint.load(tmp_path / "frozen/last").model.state_dict()
    np.testing.assert_array_equal(
        frozen["text_encoder.bert.words.weight"].numpy(), start["embeddings.word_embeddings.weight"]
    )

    # Dropout draws from the epoch's seed too: a resumed run is still the same.
    resume(data, tmp_path / "run", epochs=3)
    train(data, tmp_path / "whole", TrainConfig(**{**options, "epochs": 3}))
    assert (
        _contents(tmp_path / "run")["last/model.safetensors"] == _contents(tmp_path / "whole")["last/model.safetensors"]
    )


def test_two_processes_never_train_in_one_folder(data: Path, tmp_path: Path) -> None:
    """The second is refused before the first has saved anything, and later while it resumes."""
    run, refused = tmp_path / "run", []

    def second(epoch: int, step: int, steps: int, loss: float) -> None:
        if step == 0:
            for start in (lambda: train(data, run, SMALL), lambda: resume(data, run)):
                with pytest.raises(InputError) as caught:
                    start()
                refused.append(str(caught.value))

    train(data, run, replace(SMALL, epochs=1), on_step=second)
    resume(data, run, epochs=2, on_step=second)
    wanted = f"another process trains in {run}: wait for it to end, or choose another folder"
    assert refused == [wanted] * 4
    with pytest.raises(InputError, match="has no finished epoch"):
        resume(data, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_best_checkpoint_that_is_gone_is_missed_at_resume(data: Path, tmp_path: Path) -> None:
    """Later epochs may be no better, and the run would end by naming a folder that is not there."""
    run = tmp_path / "run"
    train(data, run, replace(SMALL, epochs=1))
    shutil.rmtree(run / "best")
    with pytest.raises(CheckpointError) as caught:
        resume(data, run, epochs=2)
    assert str(caught.value) == (
        f"{run}/best does not hold the best epoch so far, 0, any more: bring it back, or copy {run}/last there to go "
        "on without it"
    )
    shutil.copytree(run / "last", run / "best")
    resume(data, run, epochs=2)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"embed_dim": 10**8},
            "a model with embed_dim 100,000,000 and word_dim 16 takes .* GB, more than this machine",
        ),
        ({"embed_dim": 10**16}, "embed_dim 10,000,000,000,000,000 and word_dim 16 are more than a tensor can have"),
        ({"word_dim": 10**20}, "word_dim 100,000,000,000,000,000,000 are more than a tensor can have"),
    ],
)
def test_a_model_that_fits_into_no_memory_is_an_error(
    data: Path, tmp_path: Path, sizes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(data, tmp_path / "run", replace(SMALL, **sizes))
    assert not (tmp_path / "run").exists()


def test_a_step_that_finds_no_memory_is_an_error(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lower --batch-size or --embed-dim"):
        train(data, tmp_path / "run", SMALL, on_step=lambda *_: torch.empty(10**15) and None)


def test_a_loss_that_is_not_finite_before_any_update_is_not_blamed_on_the_learning_rate(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", {"train": 20, "dev": 6})
    file = data / "precomp/train_ims.npy"
    sound = np.load(file)
    np.save(file, sound * np.float32(1e30))
    with pytest.raises(InputError, match=r"before anything was learned: .* reach \d[.\d]*e\+30; scale features"):
        train(data, tmp_path / "run", SMALL)
    np.save(file, sound)
    with pytest.raises(InputError, match=r"the loss became (nan|inf) in epoch \d, step \d+: lower --learning-rate"):
        train(data, tmp_path / "run", replace(SMALL, learning_rate=1e30))


def test_the_files_of_a_run_have_the_mode_of_the_umask(data: Path, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        train(data, tmp_path / "run", replace(SMALL, epochs=1))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "run").rglob("*") if file.is_file()} == {0o644}
