"""chan calibrate and chan sensitivity on a tiny bundle and made-up data, as a user calls them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from chan_rt import cli
from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.bundle import export_bundle
from chan_rt.runtime.text import ScanTokenizer, build_scan_vocabulary

IMAGES = 20
WORDS = [f"w{index}" for index in range(12)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    vocabulary = build_scan_vocabulary(WORDS, 1)
    torch.manual_seed(0)
    vocab_size = ScanTokenizer(vocabulary["word2idx"]).vocab_size
    model = ChanModel(ModelConfig(8, 16, vocab_size=vocab_size, word_dim=8)).eval()
    checkpoint.save(root / "checkpoint", model, {"vocab.json": json.dumps(vocabulary).encode()}, {})
    export_bundle(root / "checkpoint", root / "bundle", ("fp32",))
    rng = np.random.default_rng(0)
    (root / "data/precomp").mkdir(parents=True)
    for split in ("train", "dev"):
        np.save(root / f"data/precomp/{split}_ims.npy", rng.standard_normal((IMAGES, 4, 8)).astype(np.float32))
        captions = [" ".join(rng.choice(WORDS, 4)) for _ in range(5 * IMAGES)]
        (root / f"data/precomp/{split}_caps.txt").write_text("\n".join(captions) + "\n")
    return root


def chan(*arguments: object) -> str:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_calibrate_then_sensitivity(world: Path, tmp_path: Path) -> None:
    table = chan("calibrate", world / "bundle", world / "data")
    assert "20 images, 100 captions, method minmax" in table
    assert "region_encoder" in table
    assert json.loads(chan("calibrate", world / "bundle", world / "data", "--json"))["data"]["images"] == IMAGES
    plan, plot = tmp_path / "plan.json", tmp_path / "plot.png"
    options = ["--max-rsum-drop", 600, "--plan", plan, "--plot", plot, "--json"]
    found = json.loads(chan("sensitivity", world / "bundle", world / "data", *options))
    assert found["plan"]["int8"] == found["plan"]["layers"] == len(found["effects"])
    assert set(json.loads(plan.read_text())["exclude"]) == {"region_encoder", "text_encoder"}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_a_plan_needs_a_limit(world: Path, tmp_path: Path) -> None:
    arguments = ["sensitivity", str(world / "bundle"), str(world / "data"), "--plan", str(tmp_path / "plan.json")]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert "--plan needs --max-rsum-drop" in result.output


@pytest.mark.parametrize(
    ("precisions", "message"),
    [(["fp32", "int8"], "export fp32 and fp16, calibrate, then export int8"), (["int8"], "give --data")],
)
def test_export_says_what_int8_needs(world: Path, precisions: list[str], message: str) -> None:
    arguments = ["export", str(world / "checkpoint"), "-o", str(world / "bundle")]
    for precision in precisions:
        arguments += ["--precision", precision]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 2
    assert message in result.output
