"""A faithful bundle passes; every planted fault is caught, and the part at fault is the first one named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from chan_rt.chan_ref.backbones.base import Backbone
from chan_rt.export.alignment import hard_alignment
from chan_rt.export.bundle import export_bundle
from chan_rt.export.engines import build_engine, find_target, plan
from chan_rt.export.parity import run as parity
from chan_rt.export.parity import runners
from chan_rt.export.parity.reference import pictures_of
from chan_rt.export.parity.report import Report
from chan_rt.export.parity.run import check_parity, record_verdict
from chan_rt.export.parity.table import table
from chan_rt.runtime import backends
from chan_rt.runtime.backends import Backend
from chan_rt.runtime.backends.probe import BackendReport
from chan_rt.runtime.backends.table import FLAVORS
from chan_rt.runtime.contract import AlignmentConfig, Manifest, sha256_file, write_manifest
from chan_rt.runtime.data.images import CaptionedImages, open_sample
from chan_rt.runtime.doctor import examine
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import BackendError, BundleError, InputError, ParityError
from chan_rt.runtime.gallery import Gallery, SearchResult
from chan_rt.runtime.gpu import Gpu, GpuReport, examine_gpu
from chan_rt.runtime.matcher import Matcher

IMAGES = 20  # two blocks, the second one short
Edit = Callable[[onnx.ModelProto], onnx.ModelProto | None]


@pytest.fixture(scope="module")
def world(tiny_backbone: Backbone, save_model: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, its bundle with a backbone, and data with pictures: 20 images of 4 regions, five captions each."""
    root = tmp_path_factory.mktemp("parity")
    save_model(root / "checkpoint")
    export_bundle(root / "checkpoint", root / "bundle", backbone=tiny_backbone)
    rng = np.random.default_rng(0)
    (root / "data" / "precomp").mkdir(parents=True)
    np.save(root / "data" / "precomp" / "test_ims.npy", rng.standard_normal((IMAGES, 4, 13)).astype(np.float32))
    captions = [" ".join(f"w{word}" for word in rng.integers(0, 28, rng.integers(2, 9))) for _ in range(5 * IMAGES)]
    (root / "data" / "precomp" / "test_caps.txt").write_text("\n".join(captions) + "\n")
    (root / "data" / "precomp" / "test_ids.txt").write_text("".join(f"{row}\n" for row in range(IMAGES)))
    for row in range(IMAGES):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(root / "data" / f"{row}.png")
    (root / "data" / "id_mapping.json").write_text(json.dumps({str(row): f"{row}.png" for row in range(IMAGES)}))
    return root


@pytest.fixture(scope="module")
def sample(world: Path) -> CaptionedImages:
    return open_sample(world / "data", "test", 500)


@pytest.fixture
def bundle(world: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    shutil.copytree(world / "bundle", tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def check(world: Path, sample: CaptionedImages, tiny_backbone: Backbone) -> Callable[..., Report]:
    def run(bundle: Path, *precisions: str) -> Report:
        return check_parity(bundle, world / "checkpoint", sample, (), precisions, tiny_backbone)

    return run


def first_miss(report: Report) -> str:
    """`backend/precision part`, as the page and the table name it first."""
    assert not report.passed
    return report.misses()[0].split(":")[0]


def edit_graph(bundle: Path, graph: str, edit: Edit, precision: str = "fp32") -> None:
    """Change an ONNX file and make the manifest's hash agree, as a faulty export would."""
    manifest = Manifest.load(bundle)
    spec = manifest.graph(graph, precision)
    model = onnx.load(bundle / spec.file)
    (bundle / spec.file).write_bytes((edit(model) or model).SerializeToString())
    changed = replace(spec, sha256=sha256_file(bundle / spec.file))
    graphs = {**manifest.graphs, graph: {**manifest.graphs[graph], precision: changed}}
    write_manifest(bundle, replace(manifest, graphs=graphs))


def change_weight(name: str, amount: float) -> Edit:
    """Add to the first number of the weight whose name ends so."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(item for item in model.graph.initializer if item.name.endswith(name))
        array = numpy_helper.to_array(tensor).copy()
        array.flat[array.size // 2] += array.dtype.type(amount)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return edit


def drop_mask(name: str, keep: int) -> Edit:
    """Replace the Where whose name ends so by the input it would choose for a valid row."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(item for item in model.graph.node if item.op_type == "Where" and item.name.endswith(name))
        shape = helper.make_node("Identity", [node.input[keep]], list(node.output), name=node.name)
        node.CopyFrom(shape)

    return edit


def transpose_scores(model: onnx.ModelProto) -> None:
    node = next(item for item in model.graph.node if "scores" in item.output)
    node.output[0] = "untransposed"
    model.graph.node.append(helper.make_node("Transpose", ["untransposed"], ["scores"], perm=[1, 0]))


def swap_heads_and_regions(model: onnx.ModelProto) -> None:
    """The attention's output joined without bringing the regions back in front of the heads: the shape still fits."""
    node = next(item for item in model.graph.node if item.name.endswith("/joined"))
    node.attribute[0].CopyFrom(helper.make_attribute("perm", [0, 1, 2, 3]))


def swap_words_and_regions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Each region chooses a word where each word must choose a region."""
    return hard_alignment(AlignmentConfig(coding="THA"), 16)


def test_a_faithful_bundle_passes(world: Path, check: Callable[..., Report]) -> None:
    report = check(world / "bundle")
    assert report.misses() == []
    assert report.passed
    assert [(stage.name, stage.status) for stage in report.stages] == [
        ("onnxruntime/fp32", "passed"),
        ("onnxruntime/fp16", "passed"),
    ]
    for stage in report.stages:
        assert [item.part for item in stage.checks] == [
            "tokenizer", "nltk_tokenizer", "backbone", "region_encoder", "text_encoder", "hard_alignment",
            "alignment_map", "matcher", "gallery",
        ]  # fmt: skip
        assert all(item.tolerances for item in stage.checks)
        assert stage.recalls is not None
    exact, half = (stage.checks[-2].found.measures["max_abs"] for stage in report.stages)
    assert 0 < exact < half, "fp16 must have been computed in fp16"
    assert report.stages[0].recalls == report.reference
    assert report.sample["images"] == IMAGES
    assert report.notes == ()


def test_each_graph_is_opened_once(bundle: Path, check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where two precisions share a graph: of int8_x86 the bundle has its region encoder alone."""
    manifest = Manifest.load(bundle)
    encoder = {**manifest.graphs["region_encoder"], "int8_x86": manifest.graph("region_encoder", "fp32")}
    write_manifest(bundle, replace(manifest, graphs={**manifest.graphs, "region_encoder": encoder}))
    opened: list[tuple[str, str]] = []
    open_backend = backends.open_backend

    def note(name: str, file: Path, *arguments: object, **options: object) -> Backend:
        opened.append((name, f"{file.parent.name}/{file.name}"))
        return open_backend(name, file, *arguments, **options)

    monkeypatch.setattr(backends, "open_backend", note)
    assert check(bundle, "fp32", "int8_x86").passed
    assert len(opened) == 6, "five graphs at fp32, and the region encoder's other form"
    assert {file for _, file in opened} == {f"fp32/{name}.onnx" for name in manifest.graphs}


@pytest.mark.parametrize(
    ("graph", "edit"),
    [
        ("backbone", change_weight("convolution/weight", 0.5)),
        ("region_encoder", change_weight("projection/weight", 0.02)),
        ("region_encoder", drop_mask("attention/masked_keys", 1)),
        ("region_encoder", drop_mask("normalize/zero_padding", 1)),
        ("region_encoder", swap_heads_and_regions),
        ("text_encoder", change_weight("forward/recurrence", 0.02)),
        ("text_encoder", drop_mask("normalize/zero_padding", 1)),
        ("hard_alignment", drop_mask("masked_regions", 1)),
        ("hard_alignment", drop_mask("pool/masked", 1)),
        ("hard_alignment", transpose_scores),
        ("hard_alignment", swap_words_and_regions),
        ("alignment_map", drop_mask("masked_regions", 1)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__qualname__.split(".")[0],
)
def test_a_planted_fault_is_named(bundle: Path, check: Callable[..., Report], graph: str, edit: Edit) -> None:
    edit_graph(bundle, graph, edit)
    assert first_miss(check(bundle, "fp32")) == f"onnxruntime/fp32 {graph}"


def test_one_changed_weight_is_seen_through_the_noise_of_half(bundle: Path, check: Callable[..., Report]) -> None:
    edit_graph(bundle, "region_encoder", change_weight("projection/weight", 0.1), "fp16")
    report = check(bundle)
    assert report.stages[0].status == "passed"
    assert first_miss(report) == "onnxruntime/fp16 region_encoder"


def test_a_vocabulary_off_by_one_is_named(bundle: Path, check: Callable[..., Report]) -> None:
    manifest = Manifest.load(bundle)
    file = next(iter(manifest.tokenizer.files))
    raw = json.loads((bundle / file).read_text())
    words = sorted(raw["word2idx"], key=raw["word2idx"].get)
    shifted = [*words[:4], words[-1], *words[4:-1]]
    raw = {"word2idx": {w: i for i, w in enumerate(shifted)}, "idx2word": dict(enumerate(shifted)), "idx": len(words)}
    (bundle / file).write_text(json.dumps(raw))
    tokenizer = replace(manifest.tokenizer, files={file: sha256_file(bundle / file)})
    write_manifest(bundle, replace(manifest, tokenizer=tokenizer))
    report = check(bundle, "fp32")
    assert first_miss(report) == "onnxruntime/fp32 tokenizer"
    parts = {item.part: bool(item.misses) for item in report.stages[0].checks}
    assert not parts["text_encoder"], "fed the reference's ids, the text encoder is innocent"
    assert parts["matcher"]


def test_a_graph_that_makes_nan_misses(bundle: Path, check: Callable[..., Report]) -> None:
    edit_graph(bundle, "region_encoder", change_weight("projection/bias", float("nan")))
    report = check(bundle, "fp32")
    assert first_miss(report) == "onnxruntime/fp32 region_encoder"
    assert "nonfinite is" in report.misses()[0]
    assert "matcher: broke off" in report.misses()[-1]
    assert json.loads(report.to_json())["stages"][0]["recalls"] is None


def test_a_search_that_skips_the_best_hit_is_named(
    world: Path, check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    search = Gallery.search

    def skip_best(gallery: Gallery, queries: Embeddings, k: int) -> list[SearchResult]:
        return [replace(result, hits=result.hits[1:]) for result in search(gallery, queries, k + 1)]

    monkeypatch.setattr(Gallery, "search", skip_best)
    assert first_miss(check(world / "bundle", "fp32")) == "onnxruntime/fp32 gallery"


def test_a_flipped_bit_is_refused_before_anything_runs(bundle: Path, check: Callable[..., Report]) -> None:
    file = bundle / Manifest.load(bundle).graph("text_encoder", "fp32").file
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"text_encoder.onnx was altered"):
        check(bundle, "fp32")


def test_the_report_is_json_and_the_verdict_goes_into_the_manifest(bundle: Path, check: Callable[..., Report]) -> None:
    report = check(bundle, "fp32")
    raw = json.loads(report.to_json())
    assert raw["passed"] is True
    assert raw["stages"][0]["checks"][-2]["measures"]["rsum_change"] == 0
    assert raw["reference"]["rsum"] == report.reference.rsum
    record_verdict(bundle, report)
    manifest = Manifest.load(bundle)
    verdict = manifest.parity["onnxruntime/fp32"]
    assert verdict["passed"] is True
    assert verdict["graphs"]["text_encoder"] == manifest.graph("text_encoder", "fp32").sha256
    edit_graph(bundle, "text_encoder", change_weight("forward/weight", 1.0))
    record_verdict(bundle, check(bundle, "fp32"))
    assert Manifest.load(bundle).parity["onnxruntime/fp32"]["passed"] is False


def test_the_same_check_leaves_the_same_manifest_wherever_and_whenever(
    world: Path, check: Callable[..., Report], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = []
    for name in ("first", "second"):
        shutil.copytree(world / "bundle", tmp_path / name)
        monkeypatch.setattr(parity, "time", SimpleNamespace(perf_counter=iter([0.0, float(len(name))]).__next__))
        report = check(tmp_path / name, "fp32")
        hashes.append(json.loads(report.to_json())["sha256"])
        record_verdict(tmp_path / name, report)
        assert Manifest.load(tmp_path / name).parity["onnxruntime/fp32"]["report_sha256"] == hashes[-1]
    assert hashes[0] == hashes[1]
    assert (tmp_path / "first/manifest.json").read_bytes() == (tmp_path / "second/manifest.json").read_bytes()


def test_an_engine_that_cannot_run_is_listed_and_refused_when_asked_for(
    bundle: Path, world: Path, sample: CaptionedImages, check: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    build_engine(bundle, "hard_alignment", "fp32", find_target("tensorrt_rtx"))
    cannot = {"tensorrt_rtx": "there is no GPU"}
    monkeypatch.setattr(parity, "_cannot_run", lambda backend, gpu: cannot.get(backend))
    report = check(bundle, "fp32")
    assert report.passed
    engine = report.stages[1]
    assert (engine.name, engine.status) == ("tensorrt_rtx/fp32", "not run")
    assert engine.reason == "built, not run: there is no GPU"
    record_verdict(bundle, report)
    assert "tensorrt_rtx/fp32" not in Manifest.load(bundle).parity
    with pytest.raises(BackendError, match="tensorrt_rtx cannot run here: there is no GPU"):
        check_parity(bundle, world / "checkpoint", sample, ["tensorrt_rtx"])


def test_everything_runs_on_the_gpu_that_is_named(
    world: Path, sample: CaptionedImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = Gpu("NVIDIA A100", (8, 0), 80 << 30), Gpu("NVIDIA L4", (8, 9), 24 << 30)
    asked: list[Any] = []
    real, checked = runners.open_graph, Matcher.__init__

    def matcher(self: Matcher, *given: Any, **how: Any) -> None:
        asked.append(how["gpu"])
        checked(self, *given, **how)

    def examine(backend: str, gpu: GpuReport) -> BackendReport:
        asked.append((backend, gpu.first, [each.name for each in gpu.gpus]))
        return BackendReport(backend, "1", True, None)

    monkeypatch.setattr(parity, "examine_gpu", lambda: GpuReport(gpus, "580.1", "13.0"))
    monkeypatch.setattr(parity, "examine_backend", examine)
    monkeypatch.setattr(runners, "open_graph", lambda *given, gpu: (asked.append(gpu), real(*given))[1])
    monkeypatch.setattr(Matcher, "__init__", matcher)
    how: dict[str, Any] = {"backends": ["onnxruntime"], "precisions": ["fp32"]}
    check_parity(world / "bundle", world / "checkpoint", sample, **how, device="cuda:1")
    assert asked == [("onnxruntime", 1, ["NVIDIA L4"]), *[1] * len((*runners.COMPARED, "backbone", "matcher"))]
    with pytest.raises(
        InputError, match=r"cuda:2 is not there: CUDA shows cuda:0 \(NVIDIA A100\), cuda:1 \(NVIDIA L4\)"
    ):
        check_parity(world / "bundle", world / "checkpoint", sample, **how, device="cuda:2")
    with pytest.raises(InputError, match="must be one GPU"):
        check_parity(world / "bundle", world / "checkpoint", sample, **how, device="cuda:0,1")


def test_what_cannot_be_checked_is_an_error_or_a_note(
    world: Path, sample: CaptionedImages, save_model: Callable[..., None], tmp_path: Path
) -> None:
    report = check_parity(world / "bundle", world / "checkpoint", sample, precisions=["fp32"])
    assert report.notes == ("the backbone was not checked: its torch network was not given",)
    save_model(tmp_path / "other", alignment=AlignmentConfig(pooling="Mean"))
    with pytest.raises(ParityError, match=r"not of one model: alignment is .*'Mean'.* and .*'LSE'"):
        check_parity(world / "bundle", tmp_path / "other", sample)
    with pytest.raises(BundleError, match="not in this bundle at precision 'int8'"):
        check_parity(world / "bundle", world / "checkpoint", sample, precisions=["int8"])
    with pytest.raises(ParityError, match="has no engines of tensorrt"):
        check_parity(world / "bundle", world / "checkpoint", sample, backends=["tensorrt"])
    with pytest.raises(InputError, match="samples must be positive, got 0"):
        open_sample(world / "data", "test", 0)
    with pytest.raises(InputError, match="there must be at least one image and one caption, got 0 and 0"):
        sample.take(np.array([], int))
    with pytest.raises(InputError):
        open_sample(world / "data", "dev", 10)


def test_the_sample_is_spread_evenly_with_all_captions_of_its_images(world: Path) -> None:
    few = open_sample(world / "data", "test", 3)
    assert few.image_of_caption.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    lines = (world / "data" / "precomp" / "test_caps.txt").read_text().splitlines()
    assert few.captions == lines[:5] + lines[45:50] + lines[95:]
    stored = np.load(world / "data" / "precomp" / "test_ims.npy")
    np.testing.assert_array_equal(few.regions(slice(0, 3))[0], stored[[0, 9, 19]])
    assert [path.name for path in pictures_of(few)] == ["0.png", "9.png", "19.png"]


def test_captions_that_are_too_long_are_cut_and_noted(world: Path) -> None:
    regions = np.random.default_rng(1).standard_normal((2, 4, 13)).astype(np.float32)
    sample = CaptionedImages.from_arrays(regions, ["w1 w2", " ".join(["w3"] * 150)], np.array([0, 1]))
    report = check_parity(world / "bundle", world / "checkpoint", sample, ["onnxruntime"], ["fp32"])
    assert "captions that were cut to 128 words: 1" in report.notes
    assert report.passed, report.misses()


def test_features_that_are_the_same_everywhere_are_named(world: Path) -> None:
    rng = np.random.default_rng(2)
    captions = [f"w{row} w{row + 1}" for row in range(6)]

    def note(features: np.ndarray) -> str:
        sample = CaptionedImages.from_arrays(features.astype(np.float32), captions, np.arange(6))
        report = check_parity(world / "bundle", world / "checkpoint", sample, ["onnxruntime"], ["fp32"])
        lines = table(replace(report, sample={**report.sample, "data": "data", "split": "test"}))
        assert (f"Not checked: {report.constant}" in lines) == bool(report.constant)
        assert not report.constant or not any(line.startswith("One image") for line in lines)
        return report.constant

    advice = ". Compare on features of real pictures: chan features makes them"
    both = "how images rank and which region a word chooses, because "
    assert note(np.zeros((6, 4, 13))) == f"{both}all region features of 6 images are zero{advice}"
    assert note(np.full((6, 4, 13), 0.5)) == f"{both}all regions of 6 images have the same features{advice}"
    same = np.repeat(rng.standard_normal((1, 4, 13)), 6, axis=0)
    assert note(same) == f"how images rank, because 6 images have the same region features{advice}"
    same = np.repeat(rng.standard_normal((6, 1, 13)), 4, axis=1)
    why = "in each of 6 images all regions have the same features"
    assert note(same) == f"which region a word chooses, because {why}{advice}"
    assert note(rng.standard_normal((6, 4, 13))) == ""


@pytest.mark.gpu
@pytest.mark.skipif(not examine_gpu().gpus, reason="no NVIDIA GPU")
def test_every_backend_that_runs_on_the_gpu_keeps_parity(
    bundle: Path, world: Path, sample: CaptionedImages, tiny_backbone: Backbone
) -> None:
    running = [report.name for report in examine().backends if report.runs]
    if running == ["onnxruntime"]:
        pytest.skip("no library that uses the GPU is installed")
    for flavor in set(running) & set(FLAVORS):
        for graph, precision, profiles in plan(bundle):
            build_engine(bundle, graph, precision, find_target(flavor), profiles)
    report = check_parity(bundle, world / "checkpoint", sample, running, (), tiny_backbone)
    assert report.misses() == []
    assert {stage.backend for stage in report.stages} == set(running)
