"""Calibration: deterministic, resumable, bound to graphs and data; its int8 graphs compute what float32 did."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from chan_rt.calibration import calibrate as module
from chan_rt.calibration.calibrate import RANGES_FILE, STATE_FILE, Calibration, calibrate, load_calibration
from chan_rt.calibration.feeds import Samples
from chan_rt.calibration.plan import Plan, find_layers, products_of_activations, to_int8
from chan_rt.calibration.sensitivity import Sensitivity
from chan_rt.runtime.contract import GraphSpec, Manifest, Preprocess, sha256_file, verified, write_manifest
from chan_rt.runtime.directions import DIRECTIONS_FILE, read_directions
from chan_rt.runtime.errors import BundleError, InputError
from chan_rt.runtime.onnx_session import open_session
from chan_rt.runtime.text import TokenBatch


def test_ranges_are_recorded_and_read_back(bundle: Path, samples: Samples) -> None:
    found = calibrate(bundle, samples, "mse")
    assert load_calibration(bundle, Manifest.load(bundle)) == found
    assert set(found.graphs) == {"region_encoder", "text_encoder", "hard_alignment", "alignment_map"}
    regions = found.graphs["region_encoder"][1]["regions"]
    values = samples.regions(slice(None))[0]
    assert (regions.minimum, regions.maximum) == (pytest.approx(values.min()), pytest.approx(values.max()))
    assert regions.count == values.size
    assert not (bundle / STATE_FILE).exists()


def test_directions_have_the_second_moment_of_the_embeddings(bundle: Path, samples: Samples) -> None:
    calibrate(bundle, samples, "minmax")
    manifest = Manifest.load(bundle)
    encoders = (
        ("captions", "text_encoder", samples.caption_feeds()),
        ("images", "region_encoder", samples.image_feeds()),
    )
    for kind, graph, batches in encoders:
        session = onnxruntime.InferenceSession(bundle / manifest.graph(graph, "fp32").file)
        pieces = []
        for feeds in (read() for read in batches):
            vectors = session.run(None, dict(feeds))[0]
            lengths = feeds["token_lengths" if kind == "captions" else "region_lengths"]
            pieces += [row[:length] for row, length in zip(vectors, lengths, strict=True)]
        exact = np.concatenate(pieces).astype(np.float64)
        moment = exact.T @ exact
        found = read_directions(bundle, manifest, kind)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found.T @ found, moment / np.trace(moment), atol=1e-6)
        assert (np.diff(np.linalg.norm(found, axis=1)) <= 1e-6).all(), "the largest first"


def test_same_samples_give_the_same_file(bundle: Path, samples: Samples) -> None:
    calibrate(bundle, samples, "entropy")
    first = (bundle / RANGES_FILE).read_bytes()
    calibrate(bundle, samples, "entropy")
    assert (bundle / RANGES_FILE).read_bytes() == first


def test_interrupted_calibration_resumes_to_the_same_file(
    bundle: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate(bundle, samples, "mse")
    whole = [(bundle / name).read_bytes() for name in (RANGES_FILE, DIRECTIONS_FILE)]
    monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", 0.0)

    def interrupt(graph: str, done: int, total: int) -> None:
        if graph == "text_encoder" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(bundle, samples, "mse", progress=interrupt)
    assert (bundle / STATE_FILE).exists()
    seen = []
    calibrate(bundle, samples, "mse", progress=lambda graph, done, total: seen.append((graph, done)))
    assert ("region_encoder", 1) not in seen
    assert ("text_encoder", 1) not in seen
    assert [(bundle / name).read_bytes() for name in (RANGES_FILE, DIRECTIONS_FILE)] == whole


def test_other_samples_do_not_resume_a_state(bundle: Path, samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAVE_EVERY_SECONDS", 0.0)

    def interrupt(graph: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(bundle, replace(samples, num_images=32), "mse", progress=interrupt)
    found = calibrate(bundle, samples, "mse")
    assert found.graphs["region_encoder"][1]["regions"].count == samples.regions(slice(None))[0].size


def test_a_changed_graph_is_refused(bundle: Path, samples: Samples) -> None:
    found = calibrate(bundle, samples, "mse")
    with pytest.raises(InputError, match="region_encoder changed since it was calibrated"):
        found.ranges("region_encoder", "0" * 64)
    (bundle / RANGES_FILE).write_text("{}")
    with pytest.raises(BundleError, match="altered"):
        load_calibration(bundle, Manifest.load(bundle))


def test_a_bundle_that_was_never_calibrated_says_how(bundle: Path) -> None:
    with pytest.raises(BundleError, match="run: chan calibrate"):
        load_calibration(bundle, Manifest.load(bundle))


def test_too_few_samples_are_refused(samples: Samples) -> None:
    with pytest.raises(InputError, match="at least 16 images, got 3"):
        replace(samples, num_images=3)
    few = TokenBatch(samples.tokens.ids[:5], samples.tokens.lengths[:5])
    with pytest.raises(InputError, match="at least 16 captions, got 5"):
        replace(samples, tokens=few)


def test_nan_in_a_sample_is_refused(bundle: Path, samples: Samples) -> None:
    def poisoned(part: slice) -> tuple[np.ndarray, np.ndarray]:
        regions, lengths = samples.regions(part)
        return np.where(regions > 5, np.nan, regions).astype(np.float32), lengths

    with pytest.raises(InputError, match="every calibration value must be finite"):
        calibrate(bundle, replace(samples, regions=poisoned), "mse")


@pytest.fixture
def calibration(bundle: Path, samples: Samples) -> Calibration:
    return calibrate(bundle, samples, "mse")


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = open_session(model.SerializeToString())
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("scheme", ["tensorrt", "x86"])
@pytest.mark.parametrize("graph", ["region_encoder", "text_encoder"])
def test_int8_encoders_stay_close(bundle, samples, calibration, scheme, graph) -> None:
    spec = Manifest.load(bundle).graph(graph, "fp32")
    model = onnx.load(verified(bundle, spec.file, spec.sha256))
    int8 = to_int8(model, calibration.ranges(graph, spec.sha256), scheme, products_of_activations(model))
    onnx.checker.check_model(int8)
    reads = samples.image_feeds() if graph == "region_encoder" else samples.caption_feeds()
    for read in reads:
        found, expected = run(int8, dict(read())), run(model, dict(read()))
        assert (found * expected).sum(-1).min() > 0.995  # rows are unit vectors: this is their cosine
    if graph == "region_encoder" or scheme == "x86":
        assert int8.ByteSize() < 0.5 * model.ByteSize()


def test_excluded_gru_stays_float(bundle: Path, calibration: Calibration) -> None:
    spec = Manifest.load(bundle).graph("text_encoder", "fp32")
    model = onnx.load(verified(bundle, spec.file, spec.sha256))
    layers = find_layers(model, "x86")
    assert [name for name in layers if name.endswith("gru")] == layers
    int8 = to_int8(model, calibration.ranges("text_encoder", spec.sha256), "x86", (layers[0],))
    kinds = [node.op_type for node in int8.graph.node]
    assert (kinds.count("GRU"), kinds.count("Scan")) == (1, 1)


class TestSensitivity:
    @pytest.fixture
    def study(self, bundle, samples, calibration) -> Sensitivity:
        return Sensitivity(bundle, calibration, samples, np.arange(60) % 40)

    def test_every_layer_is_measured_alone(self, study: Sensitivity) -> None:
        groups = study.groups(by_scope=False)
        assert {group.graph for group in groups} == {"region_encoder", "text_encoder"}
        assert all(len(group.layers) == 1 for group in groups)
        effects = [study.measure(group) for group in groups]
        assert all(0.99 < effect.cosine < 1 for effect in effects)
        assert all(effect.score_error > 0 and effect.bytes_saved > 0 and effect.speedup > 0 for effect in effects)

    def test_scopes_join_their_layers(self, study: Sensitivity) -> None:
        by_layer, by_scope = study.groups(by_scope=False), study.groups(by_scope=True)
        assert len(by_scope) < len(by_layer)
        assert {name for group in by_scope for name in group.layers} == {group.name for group in by_layer}

    def test_search_keeps_within_the_limit_and_its_plan_round_trips(self, study: Sensitivity, tmp_path: Path) -> None:
        effects = [study.measure(group) for group in study.groups(by_scope=False)]
        everything = study.search(effects, max_rsum_drop=600.0)
        assert everything.quantized == everything.total == len(effects)
        limited = study.search(effects, max_rsum_drop=0.0)
        assert limited.rsum_change >= 0
        (tmp_path / "plan.json").write_text(limited.plan.to_json())
        read_back = Plan.from_file(tmp_path / "plan.json")
        assert {graph: set(nodes) for graph, nodes in read_back.exclude.items()} == {
            graph: set(nodes) for graph, nodes in limited.plan.exclude.items()
        }

    def test_negative_limit_and_broken_plan_are_refused(self, study: Sensitivity, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="must not be negative, got -1"):
            study.search([], max_rsum_drop=-1)
        (tmp_path / "plan.json").write_text("[]")
        with pytest.raises(InputError, match="not a plan written by chan sensitivity"):
            Plan.from_file(tmp_path / "plan.json")


def test_a_backbone_of_zeros_is_left_out_and_the_encoders_are_calibrated(
    bundle: Path, samples: Samples, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As of a network with random weights, whose last norms of residual blocks begin as zeros."""
    weights = numpy_helper.from_array(np.zeros((4, 3, 8, 8), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["pixels", "w"], ["c"], name="c", strides=[8, 8]),
        helper.make_node("Relu", ["c"], ["regions"], name="r"),
    ]
    shapes = [("pixels", ["B", 3, 16, 16]), ("regions", ["B", 4, 2, 2])]
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes]
    # the output of the graph is never quantized, so a second layer reads the zeros
    nodes[1].output[0] = "z"
    nodes.append(helper.make_node("Conv", ["z", "v"], ["regions"], name="d"))
    second = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "v")
    graph = helper.make_graph(nodes, "backbone", values[:1], values[1:], [weights, second])
    file = bundle / "graphs/fp32/backbone.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), file)
    manifest = Manifest.load(bundle)
    spec = GraphSpec("graphs/fp32/backbone.onnx", sha256_file(file), 20, (), (), {})
    pictured = replace(
        manifest,
        graphs={**manifest.graphs, "backbone": {"fp32": spec}},
        preprocess=Preprocess(16, (0.5,) * 3, (0.5,) * 3, 2),
    )
    write_manifest(bundle, pictured)
    files = []
    for number in range(16):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (20, 20), (number, 9, 99)).save(files[-1])
    found = calibrate(bundle, replace(samples, pictures=tuple(files)), "minmax")
    assert set(found.graphs) == {"region_encoder", "text_encoder", "hard_alignment", "alignment_map"}
    assert "the backbone is not calibrated, and will not be quantized: calibration saw only zeros in" in caplog.text


def test_pictures_enter_the_hash_in_any_order(samples: Samples, tmp_path: Path) -> None:
    files = []
    for number in range(3):
        files.append(tmp_path / f"{number}.png")
        Image.new("RGB", (9, 9), (number, 9, 99)).save(files[-1])
    hashes = [replace(samples, pictures=tuple(chosen)).sha256() for chosen in (files, files[::-1], files[:2], ())]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert hashes[3] == samples.sha256()
