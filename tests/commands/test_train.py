"""`chan train`: options reach the run, Ctrl-C keeps the last epoch, --resume goes on."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ..run_chan import chan

SMALL = ["--embed-dim", "16", "--word-dim", "8", "--region-encoder", "basic", "--batch-size", "20", "--min-count", "1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "data/precomp"
    folder.mkdir(parents=True)
    for split, count in (("train", 12), ("dev", 4)):
        np.save(folder / f"{split}_ims.npy", rng.standard_normal((count, 3, 8)).astype(np.float32))
        lines = (f"thing {row % 7} here" for row in range(5 * count))
        (folder / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
    return tmp_path / "data"


def test_options_reach_the_run_and_resume_lengthens_it(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    extra = ["--epochs", "2", "--pooling", "Mean", "--coding", "THA", "--seed", "7", "--loss", "infonce"]
    result = chan("train", data, "-o", run, *SMALL, *extra)
    assert result.exit_code == 0, result.output
    assert result.output.count("three numbers are R@1, R@5 and R@10 on the validation images") == 1
    assert "epoch   1" in result.output
    assert result.output.endswith(f"{run}: next, `chan export {run}/best -o bundle`\n")
    record = json.loads((run / "last/config.json").read_text())
    assert record["model"]["alignment"]["coding"] == "THA"
    options = record["training"]["options"]
    assert (options["embed_dim"], options["seed"], options["loss"], options["epochs"]) == (16, 7, "infonce", 2)
    assert options["alignment"]["pooling"] == "Mean"

    result = chan("train", data, "-o", run, "--resume", "--epochs", "3")
    assert result.exit_code == 0, result.output
    assert len((run / "log.jsonl").read_text().splitlines()) == 3

    result = chan("train", data, "-o", run, "--resume", "--seed", "1")
    assert result.exit_code == 2
    assert "leave out --seed" in result.output


def test_ctrl_c_keeps_the_last_finished_epoch(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", str(data), "-o", str(run), *SMALL, "--epochs", "100000"]
    # a test runner started in the background ignores SIGINT, and its children would too
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heard}; from chan_rt.cli import main; main({command!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # what the numbers are
    first = process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert first.startswith("epoch")
    assert process.returncode == 130
    assert "is kept in" in err
    assert "--resume" in err
    assert "Traceback" not in err
    kept = json.loads((run / "last/config.json").read_text())["training"]["epoch"]
    assert f"epoch {kept} is kept" in err
    assert (run / f"optimizer-{kept}.safetensors").is_file()
