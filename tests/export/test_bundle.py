"""A bundle is complete, reproducible and checked, and nothing half-written or foreign is ever touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from chan_rt.chan_ref import checkpoint as checkpoint_module
from chan_rt.chan_ref.backbones.base import Backbone
from chan_rt.chan_ref.checkpoint import load
from chan_rt.export.backbone import backbone
from chan_rt.export.bundle import RANGES, ExportedGraph, export_bundle
from chan_rt.export.check import Case, check_graph, make_cases, run_without_warnings
from chan_rt.runtime.contract import Manifest, Range, verified
from chan_rt.runtime.errors import BundleError, CheckpointError, InputError, TensorError
from chan_rt.runtime.matcher import Matcher
from chan_rt.runtime.text import scan_vocabulary

from ..altered import forget_hashes
from ..run_chan import chan, ok

WORDS = ["<pad>", "<start>", "<end>", "<unk>", *(f"w{i}" for i in range(25))]  # of the tiny checkpoints
Save = Callable[..., Path]
Full = tuple[Path, list[ExportedGraph]]


def files_of(bundle: Path) -> dict[str, bytes]:
    return {str(path.relative_to(bundle)): path.read_bytes() for path in bundle.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def full(tiny_backbone: Backbone, save_model: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Full:
    """A bundle with a backbone, and what export said of it."""
    root = tmp_path_factory.mktemp("full")
    save_model(root / "checkpoint")
    _, exported = export_bundle(root / "checkpoint", root / "bundle", backbone=tiny_backbone)
    return root / "bundle", exported


def test_a_bundle_may_lie_where_the_path_is_not_utf8(save_model: Callable[..., None], tmp_path: Path) -> None:
    """onnx's checker ended in a traceback, and onnxruntime's error was a list of the types that it takes."""
    save_model(tmp_path / "checkpoint")
    place = tmp_path / os.fsdecode(b"bundle-\xff")
    _, exported = export_bundle(tmp_path / "checkpoint", place, ("fp32",))
    _, again = export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", ("fp32",))
    assert exported == again
    with Matcher.open(place, "onnxruntime") as there, Matcher.open(tmp_path / "bundle", "onnxruntime") as here:
        np.testing.assert_array_equal(there.encode_texts(["w1 w2"]).vectors, here.encode_texts(["w1 w2"]).vectors)


def test_bundle_is_complete(full: Full, tiny_backbone: Backbone) -> None:
    bundle, exported = full
    manifest = Manifest.load(bundle)
    graphs = {"backbone", "region_encoder", "text_encoder", "hard_alignment", "alignment_map"}
    assert {(one.name, one.precision) for one in exported} == {(g, p) for g in graphs for p in ("fp32", "fp16")}
    assert set(manifest.graphs) == graphs
    for by_precision in manifest.graphs.values():
        for spec in by_precision.values():
            model = onnx.load(verified(bundle, spec.file, spec.sha256))
            assert spec.opset == model.opset_import[0].version
            for told, real in [(spec.inputs, model.graph.input), (spec.outputs, model.graph.output)]:
                assert [item.name for item in told] == [item.name for item in real]
                for item, info in zip(told, real, strict=True):
                    tensor = info.type.tensor_type
                    assert item.dtype == helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
                    assert item.shape == tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
            symbols = {axis for tensor in spec.inputs for axis in tensor.shape if isinstance(axis, str)}
            assert set(spec.ranges) == symbols
    assert manifest.preprocess == tiny_backbone.preprocess
    for file, sha256 in manifest.tokenizer.files.items():
        verified(bundle, file, sha256)
    assert manifest.tokenizer.kind == "scan"
    assert {one.name for one in exported if one.error > 1e-3} <= {"backbone"}


def test_words_of_a_bert_bundle_end_at_its_positions(save_tiny: Save, tmp_path: Path) -> None:
    manifest, _ = export_bundle(save_tiny(text="bert", regions="basic"), tmp_path / "bundle", ["fp32"])
    assert manifest.tokenizer.kind == "bert"
    assert manifest.graph("text_encoder", "fp32").ranges["W"].max == 20 < RANGES["W"].max
    assert manifest.graph("hard_alignment", "fp32").ranges["W"].max == 20


def test_the_largest_numbers_of_regions_and_words_may_be_chosen(save_tiny: Save, tmp_path: Path) -> None:
    checkpoint = save_tiny()
    manifest, _ = export_bundle(checkpoint, tmp_path / "bundle", ["fp32"], max_regions=12, max_words=200)
    for graph in ("region_encoder", "hard_alignment", "alignment_map"):
        assert manifest.graph(graph, "fp32").ranges["R"] == Range(1, 12, 12)
    for graph in ("text_encoder", "hard_alignment", "alignment_map"):
        assert manifest.graph(graph, "fp32").ranges["W"] == Range(1, 16, 200)
    assert manifest.max_words == 200
    with Matcher.open(tmp_path / "bundle", "onnxruntime") as matcher:
        texts = matcher.encode_texts([" ".join(["w1"] * 198)])
        assert texts.lengths.tolist() == [200]
        images = matcher.encode_images(np.ones((1, 12, manifest.region_dim), np.float32))
        assert np.isfinite(matcher.score(images, texts)).all()
        with pytest.raises(TensorError, match="R must be at most 12"):
            matcher.encode_images(np.ones((1, 13, manifest.region_dim), np.float32))
    for sizes, message in (
        ({"max_regions": 0}, "max_regions must be positive and at most 65536, got 0"),
        ({"max_regions": 65537}, "max_regions must be positive and at most 65536, got 65537"),
        ({"max_words": 2}, "a word with the marks of start and end, and at most 65536, got 2"),
        ({"max_words": 10**19}, "and at most 65536, got 10000000000000000000"),
    ):
        with pytest.raises(InputError, match=message):
            export_bundle(checkpoint, tmp_path / "other", ["fp32"], **sizes)
    bert = save_tiny(text="bert", regions="basic")
    with pytest.raises(InputError, match="max_words must be at most the 20 positions of this model's BERT, got 21"):
        export_bundle(bert, tmp_path / "other", ["fp32"], max_words=21)
    assert not (tmp_path / "other").exists()


def test_the_same_checkpoint_gives_the_same_bytes_in_another_process(save_tiny: Save, tmp_path: Path) -> None:
    checkpoint = save_tiny()
    export_bundle(checkpoint, tmp_path / "here")
    code = "import sys; from chan_rt.export.bundle import export_bundle; export_bundle(sys.argv[1], sys.argv[2])"
    environment = os.environ | {"PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    there = tmp_path / "elsewhere" / "there"
    subprocess.run([sys.executable, "-c", code, str(checkpoint), str(there)], check=True, env=environment, timeout=120)
    assert files_of(tmp_path / "here") == files_of(there)


def test_a_traced_graph_is_reproducible(full: Full, tiny_backbone: Backbone) -> None:
    content = (full[0] / "graphs/fp32/backbone.onnx").read_bytes()
    assert backbone(tiny_backbone, 13).SerializeToString(deterministic=True) == content
    for word in (b"/work", b".py", b"site-packages", b"pytorch", b"stack_trace"):
        assert word not in content


def test_what_is_there_stays(save_tiny: Save, tmp_path: Path) -> None:
    checkpoint, out = save_tiny(), tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "sub/thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(InputError, match="is not a bundle"):
            export_bundle(checkpoint, out, force=force)
    assert (out / "sub/thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not a bundle"):
        export_bundle(checkpoint, tmp_path / "file", force=True)


def test_a_bundle_is_replaced_only_when_told_to(save_tiny: Save, tmp_path: Path) -> None:
    checkpoint, out = save_tiny(), tmp_path / "bundle"
    out.mkdir()  # an empty folder is free
    export_bundle(checkpoint, out, ["fp32"])
    with pytest.raises(InputError, match="--force replaces it"):
        export_bundle(checkpoint, out, ["fp16"])
    manifest, _ = export_bundle(checkpoint, out, ["fp16"], force=True)
    assert Manifest.load(out) == manifest
    assert not (out / "graphs/fp32").exists()


@pytest.mark.parametrize("stop_at", [0, 3])
def test_an_interrupted_export_leaves_what_was(save_tiny: Save, tmp_path: Path, stop_at: int) -> None:
    checkpoint, out = save_tiny(), tmp_path / "made" / "bundle"
    export_bundle(checkpoint, out, ["fp32"])
    before = files_of(out)
    calls: list[str] = []

    def interrupt(graph: str, total: int) -> None:
        calls.append(graph)
        if len(calls) > stop_at:
            raise KeyboardInterrupt

    for target, force in [(out, True), (tmp_path / "made" / "new", False)]:
        calls.clear()
        with pytest.raises(KeyboardInterrupt):
            export_bundle(checkpoint, target, ["fp16"], force=force, on_graph=interrupt)
    assert files_of(out) == before
    assert os.listdir(tmp_path / "made") == ["bundle"]


def test_refusals(save_tiny: Save, tiny_backbone: Backbone, tmp_path: Path) -> None:
    checkpoint = save_tiny()
    with pytest.raises(InputError, match="precision must be one or more of fp32, fp16, got fp8"):
        export_bundle(checkpoint, tmp_path / "out", ["fp8"])
    with pytest.raises(InputError, match="got none"):
        export_bundle(checkpoint, tmp_path / "out", [])
    for file in (checkpoint / "tokenizer").iterdir():
        file.unlink()
    forget_hashes(checkpoint)
    with pytest.raises(BundleError, match="has no tokenizer"):
        export_bundle(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [len(WORDS) - 1, len(WORDS) + 3])
def test_a_vocabulary_of_another_model_is_refused(save_tiny: Save, tmp_path: Path, words: int) -> None:
    checkpoint = save_tiny()
    foreign = scan_vocabulary({word: row for row, word in enumerate([*WORDS, "x", "y", "z"][:words])})
    (checkpoint / "tokenizer/vocab.json").write_text(json.dumps(foreign))
    forget_hashes(checkpoint)
    with pytest.raises(
        CheckpointError, match=rf"tokenizer has {words + 1} ids and its word embedding {len(WORDS) + 1}"
    ):
        export_bundle(checkpoint, tmp_path / "out")
    result = chan("export", checkpoint, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert f"its tokenizer has {words + 1} ids" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_reads_the_weights_once(save_tiny: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    load_tensors = checkpoint_module.load_tensors
    monkeypatch.setattr(checkpoint_module, "load_tensors", lambda path: read.append(path) or load_tensors(path))
    ok("export", save_tiny(), "-o", tmp_path / "out", "--precision", "fp32")
    assert len(read) == 1


def test_a_backbone_that_does_not_fit_is_refused(save_tiny: Save, tiny_backbone: Backbone, tmp_path: Path) -> None:
    odd = Backbone(tiny_backbone.module, replace(tiny_backbone.preprocess, grid=3))
    with pytest.raises(BundleError, match=r"to \[2, 9, 13\], what this model reads, got \[2, 4, 13\]"):
        export_bundle(save_tiny(), tmp_path / "out", backbone=odd)
    assert not (tmp_path / "out").exists()


# --- a planted fault fails the export ---------------------------------------------------------------------------------


@pytest.fixture
def region_graph(save_tiny: Save, tmp_path: Path) -> tuple[Path, list[Case]]:
    """A good region encoder on disk and its cases."""
    checkpoint = save_tiny()
    export_bundle(checkpoint, tmp_path / "bundle", ["fp32"])
    path = tmp_path / "bundle/graphs/fp32/region_encoder.onnx"
    cases = make_cases("region_encoder", load(checkpoint).model, None)
    assert check_graph(path, "fp32", cases) < 1e-5
    return path, cases


def node_named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


CHANGED = {  # the first number of a constant
    "weight": ("region_encoder/attention/key/weight", 2.0),
    "attention mask": ("constants/float32/-inf", 0.0),  # padding becomes a key
    "axis": ("constants/int64/-1", 1),  # the norm is taken over regions
}


@pytest.mark.parametrize("fault", [*CHANGED, "mask", "nan"])
def test_a_wrong_graph_is_caught(region_graph: tuple[Path, list[Case]], fault: str) -> None:
    path, cases = region_graph
    model = onnx.load(path)
    message = "differs from the torch reference"
    if fault in CHANGED:
        name, value = CHANGED[fault]
        weight = next(item for item in model.graph.initializer if item.name == name)
        changed = numpy_helper.to_array(weight).copy()
        changed.flat[0] = value
        weight.CopyFrom(numpy_helper.from_array(changed, name))
    elif fault == "mask":  # rows past the length are no longer zeroed
        node_named(model, "region_encoder/normalize/zero_padding").input[2] = "region_encoder/normalize/unit"
    else:
        node_named(model, "region_encoder/normalize/zero_padding").input[2] = "nan"
        model.graph.initializer.append(numpy_helper.from_array(np.float32(np.nan), "nan"))
        message = "holds NaN or infinity"
    onnx.save(model, path)
    with pytest.raises(BundleError, match=message):
        check_graph(path, "fp32", cases)


def test_a_frozen_axis_is_caught(region_graph: tuple[Path, list[Case]]) -> None:
    path, cases = region_graph
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 36
    onnx.save(model, path)
    with pytest.raises(BundleError, match=r"does not run in onnxruntime|is not valid ONNX"):
        check_graph(path, "fp32", cases)


def test_a_wrong_alignment_index_is_caught(save_tiny: Save, tmp_path: Path) -> None:
    checkpoint = save_tiny()
    export_bundle(checkpoint, tmp_path / "bundle", ["fp32"])
    path = tmp_path / "bundle/graphs/fp32/alignment_map.onnx"
    model = onnx.load(path)
    node_named(model, "alignment_map/region").op_type = "ArgMin"
    onnx.save(model, path)
    cases = make_cases("alignment_map", load(checkpoint).model, None)
    with pytest.raises(BundleError, match="differs from the torch reference"):
        check_graph(path, "fp32", cases)


def test_an_onnxruntime_shape_warning_fails(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The output is declared [4]; NonZero's real size is known only at run time, and onnxruntime merely warns."""
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "g.onnx")
    good, bad = (Case({"x": np.ones(size, np.float32)}, {}) for size in (4, 3))
    run_without_warnings(tmp_path / "g.onnx", "g", [good])
    with pytest.raises(BundleError, match=r"onnxruntime warns of g: .*Expected shape from model"):
        run_without_warnings(tmp_path / "g.onnx", "g", [bad])
    os.write(2, b"still here\n")
    assert capfd.readouterr().err == "still here\n"


# --- the command ------------------------------------------------------------------------------------------------------


def test_command(save_tiny: Save, tmp_path: Path) -> None:
    checkpoint, out = save_tiny(), tmp_path / "bundle"
    result = ok("export", checkpoint, "-o", out, "--precision", "fp32")
    assert "region_encoder" in result
    assert "left out: this model reads 13-d regions, the demo's backbone makes 1280-d ones" in result
    again = chan("export", checkpoint, "-o", out)
    assert again.exit_code == 1
    assert "--force replaces it" in again.output
    forced = ["export", str(checkpoint), "-o", str(out), "--force", "--no-backbone", "--json"]
    record = json.loads(chan(*forced).stdout)
    assert {row["precision"] for row in record["graphs"]} == {"fp32", "fp16"}
    assert all(len(row["sha256"]) == 64 and row["bytes"] > 0 for row in record["graphs"])
