"""int8 graphs join a bundle only when parity passes; faults planted in the calibration are caught by it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from chan_rt.calibration import qdq
from chan_rt.calibration.calibrate import RANGES_FILE, calibrate
from chan_rt.calibration.feeds import Samples
from chan_rt.calibration.plan import Plan, find_layers
from chan_rt.calibration.ranges import TensorRange
from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.config import BertConfig, ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.bundle import export_bundle
from chan_rt.export.engines import build_engine, find_target, plan
from chan_rt.export.int8 import add_int8, export_int8
from chan_rt.export.parity import check_parity
from chan_rt.runtime.contract import MANIFEST, Manifest, sha256_file, verified, write_manifest
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.errors import BundleError, InputError, ParityError
from chan_rt.runtime.text import (
    BERT_SPECIALS,
    BertTokenizer,
    ScanTokenizer,
    bert_tokenizer_json,
    build_scan_vocabulary,
)

WORDS = [f"w{index}" for index in range(30)]
IMAGES, REGIONS, WIDTH = 40, 9, 48


@pytest.fixture(scope="module")
def sample() -> CaptionedImages:
    rng = np.random.default_rng(0)
    regions = rng.gamma(0.7, 1.0, (IMAGES, REGIONS, WIDTH)).astype(np.float32)
    captions = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(2 * IMAGES)]
    return CaptionedImages.from_arrays(regions, captions, np.repeat(np.arange(IMAGES), 2))


@pytest.fixture(scope="module")
def world(sample: CaptionedImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and its bundle, calibrated."""
    root = tmp_path_factory.mktemp("int8")
    vocabulary = build_scan_vocabulary(WORDS, 1)
    tokenizer = ScanTokenizer(vocabulary["word2idx"])
    torch.manual_seed(0)
    model = ChanModel(ModelConfig(WIDTH, 64, vocab_size=tokenizer.vocab_size, word_dim=24)).eval()
    assert model.region_encoder.attention is not None
    # a trained layer's channels differ in size, which scales along the wrong axis must show
    model.region_encoder.attention.value.weight.data *= torch.linspace(1, 40, 64)[:, None]
    checkpoint.save(root / "checkpoint", model, {"vocab.json": json.dumps(vocabulary).encode()}, {})
    export_bundle(root / "checkpoint", root / "bundle", max_words=40)
    calibrate(root / "bundle", Samples(sample.regions, IMAGES, tokenizer.encode(sample.captions)), "minmax")
    return root


@pytest.fixture
def bundle(world: Path, tmp_path: Path) -> Path:
    shutil.copytree(world / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


def passes(precisions: Sequence[str]) -> list[str]:
    return []


def int8_folders(bundle: Path) -> list[Path]:
    return list((bundle / "graphs").glob("*int8*"))


def test_graphs_join_the_manifest_and_its_hashes_hold(bundle: Path) -> None:
    seen = []
    exported = add_int8(bundle, lambda precisions: seen.extend(precisions) or [])
    assert seen == ["int8", "int8_x86"]
    assert {(item.name, item.precision) for item in exported} == {
        ("region_encoder", "int8"),
        ("region_encoder", "int8_x86"),
        ("text_encoder", "int8_x86"),
    }
    manifest = Manifest.load(bundle)
    for item in exported:
        spec = manifest.graph(item.name, item.precision)
        assert verified(bundle, spec.file, spec.sha256).stat().st_size == item.size
    assert manifest.resolve("text_encoder", "int8") == "fp16"
    assert manifest.graph("text_encoder", "int8_x86").ranges["W"].max == 40  # as the bundle was exported


def test_same_ranges_give_the_same_graphs(bundle: Path) -> None:
    first = [item.spec for item in add_int8(bundle, passes)]
    assert [item.spec for item in add_int8(bundle, passes)] == first
    assert len(int8_folders(bundle)) == 1


def test_one_precision_leaves_the_other_alone(bundle: Path) -> None:
    add_int8(bundle, passes, ["int8"])
    add_int8(bundle, passes, ["int8_x86"])
    manifest = Manifest.load(bundle)
    for precision in ("int8", "int8_x86"):
        spec = manifest.graph("region_encoder", precision)
        verified(bundle, spec.file, spec.sha256)


def test_a_miss_leaves_the_bundle_as_it_was_unless_forced(bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()
    with pytest.raises(ParityError, match="parity missed: scores off"):
        add_int8(bundle, lambda precisions: ["scores off"])
    assert (bundle / MANIFEST).read_bytes() == before
    assert int8_folders(bundle) == []
    add_int8(bundle, lambda precisions: ["scores off"], force=True)
    assert "int8" in Manifest.load(bundle).graphs["region_encoder"]


def test_ctrl_c_during_the_proof_leaves_the_bundle_as_it_was(bundle: Path) -> None:
    before = (bundle / MANIFEST).read_bytes()

    def interrupted(precisions: Sequence[str]) -> list[str]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        add_int8(bundle, interrupted)
    assert (bundle / MANIFEST).read_bytes() == before
    assert int8_folders(bundle) == []


def test_a_plan_decides_what_stays_float(bundle: Path) -> None:
    manifest = Manifest.load(bundle)
    exclude = {
        graph: tuple(find_layers(onnx.load(bundle / manifest.graph(graph, "fp32").file), "x86"))
        for graph in ("region_encoder", "text_encoder", "hard_alignment", "alignment_map")
    }
    with pytest.raises(InputError, match="leaves nothing to quantize"):
        add_int8(bundle, passes, plan=Plan(exclude))
    one = exclude["region_encoder"][0]
    plan = Plan({**exclude, "region_encoder": tuple(name for name in exclude["region_encoder"] if name != one)})
    (item,) = add_int8(bundle, passes, ["int8"], plan)
    nodes = {node.name: node for node in onnx.load(bundle / item.spec.file).graph.node}
    assert nodes[one].input[0].endswith("/dq")
    assert not any(name.endswith("/dq") for name in nodes[exclude["region_encoder"][1]].input)


def test_a_bundle_without_calibration_says_how(bundle: Path) -> None:
    write_manifest(bundle, replace(Manifest.load(bundle), calibration={}))
    with pytest.raises(BundleError, match="run: chan calibrate"):
        add_int8(bundle, passes)


def test_unknown_precision_is_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match="int8 precisions are int8, int8_x86, got fp8"):
        add_int8(bundle, passes, ["fp8"])


def test_tensorrt_rtx_builds_it_in_int8(bundle: Path) -> None:
    add_int8(bundle, passes)
    built = build_engine(bundle, "region_encoder", "int8", find_target("tensorrt_rtx"))
    matrix = built.record.layers["matrix"]
    assert matrix["Int8"] >= 5, matrix


@pytest.mark.parametrize("profiles", [(), ("B=1", "B=2:8:16", "I=1:4:8,C=1", "I=1,C=1:4:8")], ids=["default", "own"])
def test_tensorrt_rtx_builds_every_graph_at_every_precision(bundle: Path, profiles: tuple[str, ...]) -> None:
    add_int8(bundle, passes, ["int8"])
    target = find_target("tensorrt_rtx")
    built = [
        build_engine(bundle, graph, precision, target, chosen)
        for graph, precision, chosen in plan(bundle, profiles=profiles)
    ]
    found = {(one.record.graph, one.record.precision): one.record for one in built}
    graphs = Manifest.load(bundle).graphs
    wanted = {(graph, name) for graph, held in graphs.items() for name in held if name != "int8_x86"}
    assert set(found) == wanted
    assert {precision for _, precision in wanted} == {"fp32", "fp16", "int8"}
    for (graph, precision), record in found.items():
        assert len(record.profiles) >= 2, (graph, precision)
        kind = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}[precision]
        assert record.layers["by_precision"].get(kind), (graph, precision, record.layers["by_precision"])


def test_tensorrt_rtx_builds_a_bert_in_int8(tmp_path: Path, sample: CaptionedImages) -> None:
    """Every product with weights reads int8; attention's two products of activations stay float."""
    pieces = [*BERT_SPECIALS, *WORDS]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces) + "\n")
    tokenizer_json = bert_tokenizer_json(tmp_path / "vocab.txt")
    torch.manual_seed(0)
    bert = BertConfig(len(pieces), hidden=64, layers=2, heads=2, intermediate=128, positions=16)
    model = ChanModel(ModelConfig(WIDTH, 64, region_encoder="basic", text_encoder="bert", bert=bert)).eval()
    checkpoint.save(tmp_path / "checkpoint", model, {"tokenizer.json": tokenizer_json.encode()}, {})
    bundle = tmp_path / "bundle"
    export_bundle(tmp_path / "checkpoint", bundle)
    tokens = BertTokenizer(tokenizer_json).encode(sample.captions)
    calibrate(bundle, Samples(sample.regions, IMAGES, tokens), "minmax")
    (spec,) = (item.spec for item in add_int8(bundle, passes, ["int8"]) if item.name == "text_encoder")
    nodes = onnx.load(verified(bundle, spec.file, spec.sha256)).graph.node
    weighted = [node for node in nodes if node.op_type in ("MatMul", "Gemm") and node.input[1].endswith("/dq")]
    assert len(weighted) == 2 * 6 + 1  # query, key, value, output and two of the feed-forward a layer; the projection
    built = build_engine(bundle, "text_encoder", "int8", find_target("tensorrt_rtx"))
    products = {one["name"]: one["precision"] for one in built.record.layers["each"] if one["type"] == "gemm"}
    assert {name for name, precision in products.items() if precision != "Int8"} == {
        name for name in products if "attention/qk" in name or "attention/attended" in name
    }
    for layer in (0, 1):
        for part in ("attention/value", "attention/output", "intermediate", "output"):
            assert any(f"layer{layer}/{part}" in name for name in products)
    assert any("projection" in name for name in products)


def misses_by_part(world: Path, bundle: Path, sample: CaptionedImages) -> dict[str, tuple[str, ...]]:
    report = check_parity(bundle, world / "checkpoint", sample, ("onnxruntime",), ("int8_x86",))
    return {check.part: check.misses for check in report.stages[0].checks}


def change_ranges(bundle: Path, change: Callable[[dict[str, dict]], None]) -> None:
    """Edit the region encoder's calibrated ranges and make the manifest's hash agree."""
    record = json.loads((bundle / RANGES_FILE).read_text())
    change(record["graphs"]["region_encoder"]["tensors"])
    (bundle / RANGES_FILE).write_text(json.dumps(record))
    write_manifest(bundle, replace(Manifest.load(bundle), calibration={RANGES_FILE: sha256_file(bundle / RANGES_FILE)}))


def saturate(tensors: dict[str, dict]) -> None:
    tensors["regions"] |= {"low": 0.0, "high": tensors["regions"]["high"] / 20}


def swap(tensors: dict[str, dict]) -> None:
    """The features' range and that of the attended rows, which are far smaller."""
    first, second = sorted(("regions", next(name for name in tensors if name.endswith("attention/rows"))))
    tensors[first], tensors[second] = tensors[second], tensors[first]


def test_a_sound_calibration_passes_every_graph(world: Path, bundle: Path, sample: CaptionedImages) -> None:
    add_int8(bundle, passes)
    found = misses_by_part(world, bundle, sample)
    # ranks of 40 random images say nothing; the graphs' own checks do
    assert {part: misses for part, misses in found.items() if part not in ("matcher", "gallery") and misses} == {}


@pytest.mark.parametrize("fault", [saturate, swap])
def test_faulty_ranges_are_caught(
    world: Path, bundle: Path, sample: CaptionedImages, fault: Callable[..., None]
) -> None:
    change_ranges(bundle, fault)
    add_int8(bundle, passes)
    assert misses_by_part(world, bundle, sample)["region_encoder"]


def test_scales_along_the_wrong_axis_are_caught(
    world: Path, bundle: Path, sample: CaptionedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = qdq.output_axis

    def wrong(node: onnx.NodeProto, index: int, rank: int) -> int:
        # 64 x 64: the wrong axis has as many channels, so only the numbers can tell
        return 0 if node.name.endswith("attention/value") else right(node, index, rank)

    monkeypatch.setattr(qdq, "output_axis", wrong)
    add_int8(bundle, passes, ["int8_x86"])
    assert misses_by_part(world, bundle, sample)["region_encoder"]


def test_range_records_survive(bundle: Path) -> None:
    record = json.loads((bundle / RANGES_FILE).read_text())
    assert TensorRange(**record["graphs"]["region_encoder"]["tensors"]["regions"]).count == IMAGES * REGIONS * WIDTH


def test_constant_features_are_blamed_for_a_miss_and_not_the_plan(bundle: Path, world: Path) -> None:
    """More layers in float32 would not help: no choice of a region can be compared."""
    before = (bundle / MANIFEST).read_bytes()
    alike = CaptionedImages.from_arrays(np.full((4, REGIONS, WIDTH), 0.5, np.float32), WORDS[:4], np.arange(4))
    with pytest.raises(ParityError) as raised:
        export_int8(bundle, world / "checkpoint", alike, ["int8_x86"])
    assert "same_region_clear could not be measured" in str(raised.value)
    assert "because all regions of 4 images have the same features. Compare on features of real" in str(raised.value)
    assert "float32" not in str(raised.value)
    assert (bundle / MANIFEST).read_bytes() == before
    assert int8_folders(bundle) == []
    assert export_int8(bundle, world / "checkpoint", alike, ["int8_x86"], force=True)
