"""What training on one's own data adds: frozen text encoders, bfloat16, early stopping, logs, runs that are killed."""

import csv
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.bert_families import huggingface_names
from chan_rt.chan_ref.curve import curve_svg
from chan_rt.chan_ref.run_folder import stopped_early
from chan_rt.chan_ref.train import resume, train
from chan_rt.chan_ref.train_config import EpochLog, TrainConfig
from chan_rt.runtime.errors import InputError, MissingExtra
from chan_rt.runtime.evaluation.metrics import Recalls

from ..stored_bert import store_bert

WORDS = ["apple", "bear", "car", "dog", "egg", "fish"]
SMALL = TrainConfig(
    embed_dim=8,
    word_dim=8,
    region_encoder="basic",
    epochs=3,
    batch_size=12,
    learning_rate=4e-3,
    drop_epoch=2,
    min_count=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of two things each to train on, six to validate on."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(5)
    prototypes = rng.standard_normal((len(WORDS), 6))
    (folder / "precomp").mkdir()
    for split, count in (("train", 12), ("dev", 6)):
        things = np.array([rng.choice(len(WORDS), 2, replace=False) for _ in range(count)])
        regions = prototypes[things] + 0.1 * rng.standard_normal((count, 2, 6))
        np.save(folder / f"precomp/{split}_ims.npy", regions.astype(np.float32))
        captions = [f"{WORDS[a]} and {WORDS[b]}" for a, b in things]
        (folder / f"precomp/{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(store_bert(tmp_path_factory.mktemp("bert") / "bert", ["and", *WORDS], hidden=8, intermediate=16))


def contents(run: Path) -> dict[str, bytes]:
    """The files of a run, without hidden ones, which a killed process may leave."""
    files = (file for file in sorted(run.rglob("*")) if file.is_file())
    names = {file: file.relative_to(run) for file in files}
    return {str(name): file.read_bytes() for file, name in names.items() if not str(name).startswith(".")}


def with_bert(bert: str, **changes: object) -> TrainConfig:
    return TrainConfig(**{**vars(SMALL), "text_encoder": "bert", "bert": bert, **changes})


def test_a_frozen_bert_stays_as_it_was_and_the_rest_learns(data: Path, bert: str, tmp_path: Path) -> None:
    config = with_bert(bert, bert_tuning="frozen", epochs=2)
    train(data, tmp_path / "run", config)
    model = checkpoint.load(tmp_path / "run/last").model
    stored = load_file(Path(bert) / "model.safetensors")
    names = huggingface_names(model.config.bert)
    ours = {name: tensor.numpy() for name, tensor in model.text_encoder.get_submodule("bert").state_dict().items()}
    assert all(np.array_equal(ours[our_name], stored[theirs]) for theirs, our_name in names.items())
    moments = load_file(tmp_path / "run/optimizer-1.safetensors")
    assert not any("text_encoder.bert." in name for name in moments)
    assert any("text_encoder.projection" in name for name in moments)
    # the run goes on exactly, and its captions pass no dropout
    resume(data, tmp_path / "run", epochs=3)
    train(data, tmp_path / "whole", replace(config, epochs=3))
    assert (
        contents(tmp_path / "run")["last/model.safetensors"] == contents(tmp_path / "whole")["last/model.safetensors"]
    )
    train(data, tmp_path / "tuned", replace(config, bert_tuning="all"))
    tuned = checkpoint.load(tmp_path / "tuned/last").model.text_encoder.get_submodule("bert").state_dict()
    assert not np.array_equal(tuned["words.weight"].numpy(), ours["words.weight"])


def test_frozen_needs_bert() -> None:
    with pytest.raises(InputError, match="bert_tuning must be 'all' without bert, got 'frozen'"):
        replace(SMALL, bert_tuning="frozen")
    with pytest.raises(InputError, match="bert_tuning must be one of all, frozen"):
        replace(SMALL, bert_tuning="some")  # type: ignore[arg-type]


def test_bf16_trains_in_float32_weights_and_resumes_exactly(data: Path, bert: str, tmp_path: Path) -> None:
    config = with_bert(bert, bf16=True, epochs=2)
    logs: list[EpochLog] = []
    train(data, tmp_path / "run", config, on_epoch=logs.append)
    assert {tensor.dtype for tensor in load_file(tmp_path / "run/last/model.safetensors").values()} == {
        np.dtype("float32")
    }
    exact: list[EpochLog] = []
    train(data, tmp_path / "exact", replace(config, bf16=False), on_epoch=exact.append)
    assert logs[0].loss != exact[0].loss
    assert logs[0].loss == pytest.approx(exact[0].loss, rel=0.05)
    resume(data, tmp_path / "run", epochs=3)
    train(data, tmp_path / "whole", replace(config, epochs=3))
    assert (
        contents(tmp_path / "run")["last/model.safetensors"] == contents(tmp_path / "whole")["last/model.safetensors"]
    )


def test_the_temperature_of_infonce_is_used(data: Path, tmp_path: Path) -> None:
    config = replace(SMALL, loss="infonce", epochs=1)
    cold, warm = (
        train(data, tmp_path / f"{value}", replace(config, loss_temperature=value)).loss for value in (0.01, 1.0)
    )
    assert cold > 2 * warm
    assert train(data, tmp_path / "default", config).loss == cold
    with pytest.raises(InputError, match="loss_temperature must be positive, got 0"):
        replace(SMALL, loss_temperature=0.0)


def test_early_stopping_ends_after_epochs_that_were_no_better(data: Path, tmp_path: Path) -> None:
    """With a rate that changes nothing, no epoch is better than the first."""
    config = replace(SMALL, learning_rate=1e-30, epochs=9, patience=2)
    run = tmp_path / "run"
    train(data, run, config)
    logs = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [log["best"] for log in logs] == [True, False, False]
    assert stopped_early(run)
    resume(data, run)
    assert len((run / "log.jsonl").read_text().splitlines()) == 3
    resume(data, run, patience=3)
    assert len((run / "log.jsonl").read_text().splitlines()) == 4
    resume(data, run, epochs=6, patience=0)
    assert len((run / "log.jsonl").read_text().splitlines()) == 6
    assert not stopped_early(run)


def test_the_table_and_the_picture_show_every_epoch(data: Path, tmp_path: Path) -> None:
    best = train(data, tmp_path / "run", SMALL)
    logs = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    with open(tmp_path / "run/log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["rsum"]) for row in rows] == [log["rsum"] for log in logs]
    assert [float(row["t2i_r10"]) for row in rows] == [log["t2i"]["r10"] for log in logs]
    picture = ElementTree.parse(tmp_path / "run/curve.svg").getroot()
    lines = [element.get("points", "").split() for element in picture.iter() if element.tag.endswith("polyline")]
    assert [len(points) for points in lines] == [3] * 5
    assert f"best epoch {best.epoch}: rsum {best.rsum:.1f}" in "".join(picture.itertext())


@pytest.mark.parametrize("count", [1, 2, 7, 40, 1000])
@pytest.mark.parametrize("loss", [0.0, 3e-7, 0.7, 12345.0])
def test_the_picture_of_any_run_lies_within_its_frame(count: int, loss: float) -> None:
    recalls = Recalls(0.0, 50.0, 100.0, 1.0, 1.0)
    svg = curve_svg([EpochLog(n, loss * (count - n), 1e-3, recalls, recalls, 300.0, n == 0) for n in range(count)])
    root = ElementTree.fromstring(svg)
    points = [
        tuple(map(float, point.split(","))) for element in root.iter() for point in element.get("points", "").split()
    ]
    assert len(points) == 5 * count
    assert all(0 <= x <= 760 and 0 <= y <= 300 for x, y in points)
    ticks = [element for element in root.iter() if element.tag.endswith("text")]
    assert len(ticks) < 45


def test_tensorboard_is_written_where_it_is_installed(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(data, tmp_path / "run", replace(SMALL, epochs=2), tensorboard=True)
    resume(data, tmp_path / "run", epochs=3, tensorboard=True)
    found = EventAccumulator(str(tmp_path / "run/tensorboard")).Reload()
    logs = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [event.step for event in found.Scalars("rsum")] == [0, 1, 2]
    assert [event.value for event in found.Scalars("i2t/r1")] == pytest.approx([log["i2t"]["r1"] for log in logs])


def test_without_tensorboard_the_extra_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingExtra, match=r"--tensorboard needs tensorboard.*: pip install 'chan-rt\[tensorboard\]'"):
        train(data, tmp_path / "run", SMALL, tensorboard=True)
    assert not (tmp_path / "run").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.chan_ref.test_train_options import SMALL, contents
from chan_rt.chan_ref.train import resume, train
from chan_rt.runtime import files

data, folder = map(Path, sys.argv[1:])
train(data, folder / "whole", SMALL)
files.exchange = lambda first, second: False  # folders are replaced by two renames
real = files.os.replace


def killed(point, run):
    seen = set()

    def replace(source, target):
        seen.add(Path(target).name)
        second = "optimizer-1.safetensors" in seen
        if second and Path(target).name.startswith(point.removeprefix("after ")):
            if point.startswith("after "):
                real(source, target)
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)

    files.os.replace = replace
    train(data, run, SMALL)


for point in ("optimizer-1", "after optimizer-1", "curve", "last", "after last"):
    run = folder / point
    child = os.fork()
    if not child:
        killed(point, run)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, point
    resume(data, run)
    assert contents(run) == contents(folder / "whole"), point
    print("resumed", point)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_killed_run_goes_on_to_the_same_bytes(data: Path, tmp_path: Path) -> None:
    """SIGKILL while the second epoch is written, at each kind of file. One process forks, so that torch loads once."""
    words = [sys.executable, "-c", KILLED.format(root=str(Path(__file__).parents[2])), str(data), str(tmp_path)]
    found = subprocess.run(
        words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=300
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("resumed") == 5
