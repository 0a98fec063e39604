"""`chan inspect` of a checkpoint: what it is, and where it comes from."""

import json
from pathlib import Path

import numpy as np
import pytest

from chan_rt import demo
from chan_rt.chan_ref import checkpoint

from ..run_chan import chan, ok

GOLDEN = Path(__file__).parents[1] / "golden"


def test_an_imported_checkpoint_names_its_file(tmp_path: Path) -> None:
    ok("import", GOLDEN / "bigru_word2idx.pth", "-o", tmp_path / "checkpoint")
    shown = ok("inspect", tmp_path / "checkpoint")
    assert "imported   from bigru_word2idx.pth" in shown
    assert "region_encoder" in shown
    found = json.loads(ok("inspect", tmp_path / "checkpoint", "--json"))
    state = checkpoint.load(tmp_path / "checkpoint").model.state_dict()
    assert found["parameters"] == sum(tensor.numel() for tensor in state.values())
    assert (found["kind"], found["tokenizer"], found["training"]) == ("checkpoint", "scan", None)
    assert found["imported"]["file"] == "bigru_word2idx.pth"


def test_a_trained_checkpoint_names_its_epoch_and_options(tmp_path: Path) -> None:
    precomp = tmp_path / "data/precomp"
    precomp.mkdir(parents=True)
    for split in ("train", "dev"):
        np.save(precomp / f"{split}_ims.npy", np.random.default_rng(0).standard_normal((4, 3, 8)).astype(np.float32))
        (precomp / f"{split}_caps.txt").write_text("a red apple\na table\n" * 2)
    small = ["--embed-dim", 8, "--word-dim", 4, "--epochs", 2, "--min-count", 1, "--seed", 5]
    ok("train", tmp_path / "data", "-o", tmp_path / "run", *small)
    log = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[1])
    shown = " ".join(ok("inspect", tmp_path / "run/last").split())
    assert f"trained to epoch 1, rsum {log['rsum']:.1f} on the validation images" in shown
    assert "seed 5" in shown
    result = chan("inspect", tmp_path / "run")
    assert result.exit_code == 1
    assert f"is not a checkpoint but the folder of a run: give {tmp_path / 'run' / 'best'}" in result.output


@pytest.mark.parametrize("training", [3, {}, {"epoch": 1, "log": [], "options": {}}, {"epoch": 0, "log": 7}])
def test_a_record_that_makes_no_sense_is_one_line(tmp_path: Path, training: object) -> None:
    loaded = checkpoint.load(Path(demo.__file__).parent / "checkpoint")
    checkpoint.save(tmp_path / "odd", loaded.model, loaded.tokenizer_files, {"training": training})
    result = chan("inspect", tmp_path / "odd")
    assert result.exit_code == 1
    assert f"{tmp_path / 'odd'}: the record of its making cannot be understood" in result.output
