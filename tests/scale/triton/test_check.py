"""`chan triton --validate` accepts what `chan triton` writes, and names what is wrong with anything else."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from chan_rt.scale.triton import Served, check_repository, write_repository

from ...run_chan import chan

pytest.importorskip("tritonclient", reason="tritonclient is not installed: make test-triton")

NAMES = ["alignment_map", "backbone", "hard_alignment", "region_encoder", "search", "text_encoder"]


def test_what_is_written_is_valid(repository: Path) -> None:
    checks = check_repository(repository)
    assert [check.name for check in checks] == [f"chan_{name}" for name in NAMES]
    assert [problem for check in checks for problem in check.problems] == []
    assert [unchecked for check in checks for unchecked in check.unchecked] == []


@pytest.mark.parametrize(("coding", "precisions"), [("VSA", ("fp32",)), ("VHA", ("fp32", "fp16"))])
def test_other_bundles_are_valid_at_every_precision(
    make_small_model: Callable[..., object], tmp_path: Path, coding: str, precisions: tuple[str, ...]
) -> None:
    bundle = make_small_model(coding, precisions=precisions).bundle  # type: ignore[attr-defined]
    for precision in precisions:
        write_repository(bundle, tmp_path / precision, precision=precision, served=Served(3, 7))
        checks = check_repository(tmp_path / precision)
        assert len(checks) == 4
        assert [problem for check in checks for problem in check.problems] == []


TEXT = "text_encoder"
# Model, what is replaced in its configuration, what by, and the problem.
WRONG = [
    (TEXT, 'name: "chan_text', 'name: "other_text', "name must be that of its folder, 'chan_text_encoder'"),
    (TEXT, "max_batch_size", "max_batch_sizes", 'no field named "max_batch_sizes"'),
    (TEXT, "TYPE_INT32", "TYPE_INT31", "Enum type .* has no value named TYPE_INT31"),
    (TEXT, "data_type: TYPE_INT32", "data_type: TYPE_INT64", "token_ids: data_type must be TYPE_INT32, got"),
    (TEXT, 'backend: "onnxruntime"', 'backend: "onnx"', "backend must be one of onnxruntime, tensorrt, python"),
    (TEXT, 'name: "token_ids"', 'name: "tokens"', "input must name the graph's token_ids, token_lengths, got"),
    (TEXT, "dims: [-1, 16]", "dims: [-1, 17]", r"word_embeddings: its shape must be \[-1, 16\], got \[-1, 17\]"),
    (TEXT, "  reshape {}\n", "", r"token_lengths: its shape must be \[\], got \[1\]"),
    (TEXT, "max_batch_size: 256", "max_batch_size: 512", "max_batch_size must be at most 256, the largest B"),
    (TEXT, "max_batch_size: 256", "max_batch_size: 0", "dynamic_batching needs a max_batch_size above 0, got 0"),
    (TEXT, "max_batch_size: 256", "max_batch_size: 16", "batch_size must be between 1 and max_batch_size 16, got"),
    (TEXT, r"\042W\042: [1, 16, 128]", r"\042V\042: [1, 16, 128]", "must have the graph's B, W, got B, V"),
    (TEXT, r"\042W\042: [1, 16, 128]", r"\042W\042: 1", "chan_ranges must be an object of lists of three"),
    (TEXT, "dims: [16]", "dims: [160]", "W of token_ids must be between 1 and 128, once, got 160"),
    (TEXT, '"tuned-token_lengths"', '"gone"', "token_lengths needs warmup/gone with 4 bytes, got no file"),
    (TEXT, 'key: "token_ids"', 'key: "ids"', "model_warmup smallest: inputs must be token_ids, token_lengths"),
    (TEXT, "dynamic_batching {", "dynamic_batching {\n  preferred_batch_size: [257]", "preferred_batch_size must be"),
    (TEXT, "count: 1", "count: -1", "count of an instance_group must not be negative, got -1"),
    ("hard_alignment", "dims: [-1, -1]", "dims: [-1]", r"scores: its shape must be \[-1, -1\], got \[-1\]"),
    ("search", "TYPE_FP64", "TYPE_FP32", r"output scores: TYPE_FP32 \[-1\] is not what chan_search has"),
    ("search", 'name: "caption"\n  data', 'name: "captions"\n  data', r"input caption: TYPE_STRING \[1\] is missing"),
    (TEXT, "data_type: TYPE_INT32", "data_type: 99", "token_ids: data_type must be TYPE_INT32, got 99"),
    (TEXT, "data_type: TYPE_INT32", "data_type: TYPE_STRING", "warmup.*: data_type of token_ids must be TYPE_INT32"),
    (TEXT, r"\042W\042: [1, 16, 128]", r"\042W\042: [1, 16, 1e999]", "chan_ranges must be an object of lists of three"),
    (TEXT, r"{\042B", "[" * 100_000, "chan_ranges must be an object of lists of three"),
    ("search", 'string_value: "1000"', 'string_value: "1e3"', "max_k must be a whole number from 1 on, got '1e3'"),
    ("search", 'string_value: "fp32"', 'string_value: "fp16"', "was made with another model"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "old", "new", "problem"), WRONG)
def test_a_wrong_configuration_is_named(
    repository: Path, tmp_path: Path, model: str, old: str, new: str, problem: str
) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "copy"))
    config = copy / f"chan_{model}" / "config.pbtxt"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new))
    found = {check.name: check.problems for check in check_repository(copy)}
    (named,) = (problems for problems in found.values() if problems)
    assert named == found[f"chan_{model}"]
    assert any(re.search(problem, one) for one in named), named


def test_wrong_files_are_named(repository: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(repository, tmp_path / "copy"))
    (copy / "chan_text_encoder/1/model.onnx").unlink()
    (copy / "chan_region_encoder/1").rename(copy / "chan_region_encoder/first")
    (copy / "chan_hard_alignment/1/model.onnx").write_bytes(b"altered")
    (copy / "chan_backbone/config.pbtxt").unlink()
    (copy / "chan_search/1/bundle/tokenizer/vocab.json").write_bytes(b"{}")
    (copy / "chan_search/1/model.py").write_bytes(b"\xff\xfe")
    found = {check.name: " ".join(check.problems) for check in check_repository(copy)}
    assert "version 1 has no model.onnx" in found["chan_text_encoder"]
    assert "there is no version" in found["chan_region_encoder"]
    assert "1/model.onnx was altered" in found["chan_hard_alignment"]
    assert "config.pbtxt cannot be read: No such file" in found["chan_backbone"]
    assert "vocab.json was altered" in found["chan_search"]
    assert "1/model.py was altered" in found["chan_search"]


def test_a_gallery_that_is_elsewhere_is_not_checked(bundle: Path, gallery: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "out", gallery=gallery, gallery_place="/galleries/photos")
    (check,) = (check for check in check_repository(tmp_path / "out") if check.name == "chan_search")
    assert check.problems == ()
    assert check.unchecked == ("the gallery /galleries/photos, which is not on this machine",)


def test_a_place_that_cannot_be_a_path_is_not_on_this_machine(bundle: Path, gallery: Path, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path / "out", gallery=gallery, gallery_place="/" + "x" * 5000)
    (check,) = (check for check in check_repository(tmp_path / "out") if check.name == "chan_search")
    assert (check.problems, len(check.unchecked)) == ((), 1)


def test_the_command(repository: Path, tmp_path: Path) -> None:
    run = chan("triton", "--validate", repository)
    assert run.exit_code == 0
    assert run.stdout.count(" valid\n") == 6
    copy = Path(shutil.copytree(repository, tmp_path / "copy"))
    shutil.rmtree(copy / "chan_text_encoder" / "1")
    run = chan("triton", "--validate", copy, "--json")
    assert run.exit_code == 1
    models = {model["name"]: model for model in json.loads(run.stdout)["models"]}
    assert models["chan_text_encoder"]["problems"] == ["there is no version: a folder with a number for its name"]
    run = chan("triton", "--validate", tmp_path)
    assert run.exit_code == 1
    assert "is not a repository of chan triton" in run.output
