"""What cannot work is refused before torch is loaded, which takes seconds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chan_rt import demo

CHECKPOINT = str(Path(demo.__file__).parent / "checkpoint")
# In a process of its own, as torch is loaded in this one.
RUN = """
import json, sys
from click.testing import CliRunner
from chan_rt.cli import main
for command in json.loads(sys.argv[1]):
    result = CliRunner().invoke(main, command)
    print(json.dumps([result.exit_code, result.output, "torch" in sys.modules]))
"""
REFUSED = [
    ("train empty -o out", "precomp/train_caps.txt is missing"),
    ("train data -o run", "holds a run already"),
    ("train data -o best", "holds best, which the run would replace"),
    ("train data -o logs", "holds curve.svg, optimizer-3.safetensors, which the run would replace"),
    ("train data -o killed", "holds a run already"),
    ("train data -o CHECKPOINT", "holds a checkpoint: choose another folder"),
    ("train data -o BUNDLE", "holds a bundle: choose another folder"),
    ("train data -o caf\udce9 --tensorboard", "--tensorboard needs a folder whose path is UTF-8"),
    ("train data -o out --resume", "has no finished epoch to resume from"),
    ("train data -o out --start empty", "it has no config.json"),
    ("train data -o out --seed 99999999999999999999999999", "seed must be"),
    ("export empty -o out", "it has no config.json"),
    ("export CHECKPOINT -o full", "exists and is not a bundle"),
    ("export CHECKPOINT -o out --backbone nothing", "backbone must be efficientnet-lite0"),
    ("export CHECKPOINT -o BUNDLE --precision int8 --data data", "is not calibrated"),
    ("export CHECKPOINT -o empty --precision int8 --data data", "it has no manifest.json"),
    ("import none.pth -o out", "File 'none.pth' does not exist"),
    ("import full/file -o full", "exists and is not a checkpoint"),
    ("parity BUNDLE --checkpoint empty --data data", "it has no config.json"),
    ("parity BUNDLE --checkpoint CHECKPOINT --data empty", "precomp/test_caps.txt is missing"),
    ("evaluate empty empty", "precomp/test_caps.txt is missing"),
    ("bench empty", "it has no manifest.json"),
    ("bench BUNDLE --precision fp32 --precision int8", "is not in this bundle at precision 'int8'"),
    ("bench BUNDLE --checkpoint empty", "it has no config.json"),
    ("parity BUNDLE --checkpoint CHECKPOINT --data data --precision int8", "is not in this bundle at precision 'int8'"),
    ("evaluate CHECKPOINT data --precision fp16", "--precision has no effect on checkpoints"),
    ("evaluate CHECKPOINT CHECKPOINT data --backend onnxruntime", "--backend has no effect on checkpoints"),
    ("compare CHECKPOINT CHECKPOINT data --device cuda:1", "--device has no effect on checkpoints"),
    ("compare BUNDLE CHECKPOINT data --other-precision fp16", "--other-precision has no effect on a checkpoint"),
    ("features empty -o out", "no picture"),
    ("features data -o out", "--out must be the data folder itself"),
    ("features full -o out --backbone nothing", "no picture"),
    ("scenes full", "must be a new or empty folder"),
    ("calibrate BUNDLE empty", "precomp/train_caps.txt is missing"),
]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: an empty folder, a folder of something else, and one of a run."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("full").mkdir()
    Path("full/file").touch()
    Path("run/last").mkdir(parents=True)
    Path("best/best").mkdir(parents=True)
    Path("killed/.last.x/old").mkdir(parents=True)
    Path("logs").mkdir()
    Path("logs/curve.svg").touch()
    Path("logs/optimizer-3.safetensors").touch()
    Path("data/precomp").mkdir(parents=True)
    for split in ("train", "test"):
        Path(f"data/precomp/{split}_caps.txt").write_text("a cloud\n" * 5)
    return tmp_path


def test_nothing_heavy_is_loaded_before_what_cannot_work_is_refused(desk: Path, bundle: Path) -> None:
    places = {"CHECKPOINT": CHECKPOINT, "BUNDLE": str(bundle)}
    commands = [[places.get(word, word) for word in arguments.split()] for arguments, _ in REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)], check=True, capture_output=True, text=True, timeout=300
    )
    for (arguments, words), line in zip(REFUSED, done.stdout.splitlines(), strict=True):
        status, output, torch = json.loads(line)
        assert status in (1, 2), arguments
        assert words in output, arguments
        assert not torch, arguments


def test_a_bundle_is_evaluated_without_torch() -> None:
    code = "import sys, chan_rt.chan_ref.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
