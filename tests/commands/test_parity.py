"""`chan parity`: table, files, and an exit status that a CI job can rely on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.bundle import export_bundle
from chan_rt.runtime.contract import Manifest
from chan_rt.runtime.text import scan_vocabulary

from ..run_chan import chan, ok

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "cat", "dog", "sun"]


def save(path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    config = ModelConfig(region_dim=6, embed_dim=8, vocab_size=len(WORDS) + 1, word_dim=5, region_encoder="basic")
    vocabulary = json.dumps(scan_vocabulary({word: row for row, word in enumerate(WORDS)})).encode()
    checkpoint.save(path, ChanModel(config).eval(), {"vocab.json": vocabulary}, {})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    save(root / "checkpoint", 0)
    save(root / "other", 1)
    export_bundle(root / "checkpoint", root / "bundle", ["fp32"])
    (root / "data" / "precomp").mkdir(parents=True)
    regions = np.random.default_rng(0).standard_normal((4, 3, 6)).astype(np.float32)
    np.save(root / "data" / "precomp" / "test_ims.npy", regions)
    captions = [f"{first} {second}" for first in ("cat", "dog", "sun", "hat") for second in ("cat",) * 3 + ("sun",) * 2]
    (root / "data" / "precomp" / "test_caps.txt").write_text("\n".join(captions) + "\n")
    return root


def run(world: Path, *options: str, reference: str = "checkpoint") -> tuple[int, str]:
    arguments = [str(world / "bundle"), "--checkpoint", str(world / reference), "--data", str(world / "data")]
    result = chan("parity", *arguments, *options)
    return result.exit_code, result.stdout


def test_a_faithful_bundle_exits_with_0(world: Path, tmp_path: Path) -> None:
    json_file, html_file = tmp_path / "report.json", tmp_path / "new/folder/report.html"
    status, output = run(world, "--output-json", str(json_file), "--html", str(html_file), "--record")
    assert status == 0, output
    assert output.splitlines()[0].startswith("4 images and 20 captions")
    assert output.splitlines()[-1] == "parity holds in 1 of 1 stage"
    assert json.loads(json_file.read_text())["passed"] is True
    assert html_file.read_text().startswith("<!doctype html>")
    assert Manifest.load(world / "bundle").parity["onnxruntime/fp32"]["passed"] is True


def test_a_bundle_of_other_weights_exits_with_1(world: Path) -> None:
    status, output = run(world, "--json", reference="other")
    assert status == 1
    raw = json.loads(output)
    assert raw["passed"] is False
    assert next(check for check in raw["stages"][0]["checks"] if check["part"] == "region_encoder")["misses"]


@pytest.mark.parametrize(
    "content", ['{"schema": 1}', "[" * 100_000, "[]", "{", '{"schema": true}', '{"schema": 1, "graph": "\\u0000"}', ""]
)
def test_an_unreadable_sidecar_is_listed_and_stops_no_command(world: Path, tmp_path: Path, content: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(world / "bundle", bundle)
    sidecar = bundle / "engines/region_encoder.fp32.tensorrt_rtx.abc.json"
    sidecar.parent.mkdir()
    sidecar.write_text(content)
    arguments = ["--checkpoint", str(world / "checkpoint"), "--data", str(world / "data")]
    found = ok("parity", bundle, *arguments)
    assert f"Not checked: an engine whose sidecar is unreadable: {sidecar}: " in found
    shown = ok("inspect", bundle)
    assert f"unreadable {sidecar}: the sidecar" in " ".join(shown.split())


def test_errors_are_one_line(world: Path, tmp_path: Path) -> None:
    status, output = run(world, "--precision", "fp16")
    assert status == 1
    assert output == ""
    result = chan("parity", world / "bundle", "--data", world / "data")
    assert result.exit_code == 2
    assert "--checkpoint" in result.stderr
    for option in ("--output-json", "--html"):  # before any work, and nothing is left beside the folder
        (tmp_path / "reports").mkdir(exist_ok=True)
        arguments = ["parity", str(world / "bundle"), "--checkpoint", str(world / "checkpoint")]
        arguments += ["--data", str(world / "data"), option, str(tmp_path / "reports")]
        result = chan(*arguments)
        assert result.exit_code == 2
        assert f"'{tmp_path / 'reports'}' is a directory" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["reports"]


def test_data_that_do_not_fit_are_named_before_any_work(world: Path, tmp_path: Path) -> None:
    def fails_on(data: Path) -> str:
        arguments = ["parity", str(world / "bundle"), "--checkpoint", str(world / "checkpoint"), "--data", str(data)]
        result = chan(*arguments)
        assert result.exit_code == 1
        return result.stderr

    shutil.copytree(world / "data", tmp_path / "data")
    (tmp_path / "data/precomp/test_ids.txt").write_text("0\n1\n2\n3\n")
    for content, rule in (("{", "must be JSON"), ("[1]", "must map image ids to files, got list")):
        (tmp_path / "data/id_mapping.json").write_text(content)
        assert f"Error: {tmp_path / 'data/id_mapping.json'} {rule}" in fails_on(tmp_path / "data")
    np.save(tmp_path / "data/precomp/test_ims.npy", np.zeros((4, 3, 9), np.float32))
    error = fails_on(tmp_path / "data")
    assert f"{tmp_path / 'data/precomp/test_ims.npy'} has features 9 wide and {world / 'bundle'} reads 6" in error


def test_a_gpu_that_is_not_there_is_refused(world: Path) -> None:
    arguments = [str(world / "bundle"), "--checkpoint", str(world / "checkpoint"), "--data", str(world / "data")]
    result = chan("parity", *arguments, "--device", "cuda:77")
    assert result.exit_code == 1
    assert "device cuda:77 is not there: CUDA shows" in result.output
