"""A backbone whose regions have boxes: from a module or an ONNX file to drawings, galleries, pages and the server."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from chan_rt.chan_ref.backbones.base import Backbone
from chan_rt.chan_ref.backbones.choose import open_backbone
from chan_rt.export import engines
from chan_rt.export.backbone import backbone as graph_of
from chan_rt.export.bundle import export_bundle
from chan_rt.export.check import check_graph, make_cases
from chan_rt.export.region_match import match_regions
from chan_rt.runtime.backends import open_graph
from chan_rt.runtime.contract import Manifest, Preprocess, sha256_file, write_manifest
from chan_rt.runtime.data.regions import open_features
from chan_rt.runtime.errors import BackendError, BundleError, EngineError, InputError
from chan_rt.runtime.gallery import Gallery
from chan_rt.runtime.indexing.sources import encode_named
from chan_rt.runtime.matcher import Matcher

from ..run_chan import chan, ok

SIZE, REGIONS, DIM = 24, 3, 12
PREPROCESS = Preprocess(SIZE, (0.5,) * 3, (0.25,) * 3, None)


class Boxed(torch.nn.Module):
    """Three regions whose boxes depend on the picture: pixels [B, 3, 24, 24] -> [B, 3, 12], [B, 3, 4]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.cells = torch.nn.Conv2d(3, DIM, 8, stride=8)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        regions = self.cells(pixels).flatten(2).transpose(1, 2)[:, :REGIONS]
        place = regions[:, :, :2].sigmoid() / 2
        return regions, torch.cat([place, 0.5 * place + 0.1], dim=2)


class Ragged(Boxed):
    """Likewise, with only two regions where the picture is dark."""

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        regions, boxes = super().forward(pixels)
        return regions, boxes, torch.where(pixels.mean((1, 2, 3)) < 0, 2, 3).to(torch.int32)


def make() -> Backbone:
    """For `MODULE:FUNCTION`."""
    return Backbone(Boxed().eval().requires_grad_(False), PREPROCESS, "test:boxed")


def make_ragged() -> Backbone:
    return Backbone(Ragged().eval().requires_grad_(False), PREPROCESS, "test:ragged")


class Scored(Ragged):
    """Likewise, with the scores of five classes."""

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        regions, boxes, lengths = super().forward(pixels)
        scores = regions[:, :, :5].sigmoid()
        return {"class_scores": scores, "regions": regions, "boxes": boxes, "region_lengths": lengths}


def make_scored() -> Backbone:
    return Backbone(Scored().eval().requires_grad_(False), PREPROCESS, "test:scored")


def make_nothing() -> Backbone:
    raise RuntimeError("no weights")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of every awkward kind."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    photo = Image.fromarray(rng.integers(0, 255, (60, 90, 3), dtype=np.uint8))
    photo.save(folder / "a.png")
    photo.convert("RGBA").save(folder / "alpha.png")
    photo.convert("L").save(folder / "gray.png")
    Image.new("RGB", (1, 1), "red").save(folder / "one.png")
    Image.new("RGB", (4000, 3), "white").save(folder / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(folder / "turned.jpg", exif=exif, quality=95)
    return folder


@pytest.fixture(scope="module", params=[make, make_ragged], ids=["boxed", "ragged"])
def world(
    request: pytest.FixtureRequest, make_small_model: Callable[..., Any], tmp_path_factory: Any
) -> tuple[Any, ...]:
    """The backbone, a bundle that has it, and one that has none."""
    small = make_small_model()
    bundle = tmp_path_factory.mktemp("boxed") / "bundle"
    backbone = request.param()
    export_bundle(small.bundle.parent / "checkpoint", bundle, ("fp32", "fp16"), backbone)
    return backbone, bundle, small.bundle


def test_the_bundle_has_boxes(world: tuple[Any, ...], pictures: Path) -> None:
    backbone, bundle, _ = world
    manifest = Manifest.load(bundle)
    assert (manifest.backbone, manifest.preprocess) == (backbone.name, PREPROCESS)
    outputs = manifest.graph("backbone", "fp32").outputs
    assert [(tensor.name, tensor.shape) for tensor in outputs][:2] == [
        ("regions", ("B", REGIONS, DIM)), ("boxes", ("B", REGIONS, 4))
    ]  # fmt: skip
    files = sorted(pictures.iterdir())
    with Matcher.open(bundle) as matcher:
        encoded = matcher.encode_pictures(files)
        alone = matcher.encode_pictures(files[2:3])
    with Matcher.open(world[2], backbone=backbone) as matcher:
        own = matcher.encode_pictures(files)
    assert encoded.boxes is not None
    assert own.boxes is not None
    assert alone.boxes is not None
    np.testing.assert_allclose(encoded.boxes, own.boxes, atol=1e-5)
    np.testing.assert_allclose(encoded.vectors, own.vectors, atol=1e-5)
    np.testing.assert_allclose(alone.boxes[0], encoded.boxes[2, : alone.boxes.shape[1]], atol=1e-5)
    assert ((encoded.boxes >= 0) & (encoded.boxes <= 1)).all()


def test_boxes_travel_with_the_gallery(world: tuple[Any, ...], pictures: Path, tmp_path: Path) -> None:
    backbone, bundle, bare = world
    ok("index", bundle, pictures, "-o", tmp_path / "gallery")
    ok("index", bare, pictures, "-o", tmp_path / "own", "--backbone",
        f"{__name__}:{'make' if 'boxed' in backbone.name else 'make_ragged'}")  # fmt: skip
    for name in ("gallery", "own"):
        with Gallery.open(tmp_path / name) as gallery:
            rows = gallery.find([f"{pictures.name}/a.png"])
            boxes = rows[0].metadata["boxes"]
        assert len(boxes) in ((REGIONS,) if "boxed" in backbone.name else (2, 3))
        page = tmp_path / f"{name}.html"
        ok("search", tmp_path / name, "a red strawberry", "--html", page)
        text = page.read_text().replace(" ", "")
        assert any(json.dumps(box).replace(" ", "") in text for box in boxes)
        assert '"boxes"' not in text


def test_an_explanation_has_the_boxes(world: tuple[Any, ...], pictures: Path, tmp_path: Path) -> None:
    backbone, bundle, _ = world
    out = tmp_path / "drawn.png"
    found = json.loads(
        ok("explain", bundle, pictures / "a.png", "a red strawberry", "-o", out, "--html", tmp_path / "page.html",
            "--json")
    )  # fmt: skip
    pixels = np.asarray(Image.open(out).convert("RGB"))
    assert pixels.shape[0] > 60
    own = make().regions if "boxed" in backbone.name else make_ragged().regions
    from chan_rt.runtime.pictures.load import load_pixels

    boxes = own(load_pixels([pictures / "a.png"], PREPROCESS)).boxes
    assert boxes is not None
    assert found["grid"] is None
    for word in found["words"]:
        np.testing.assert_allclose(word["box"], boxes[0, word["region"]], atol=1e-5)


def test_moved_and_unchanged_pictures_keep_their_boxes(world: tuple[Any, ...], pictures: Path, tmp_path: Path) -> None:
    _, bundle, _ = world
    folder = tmp_path / "in"
    folder.mkdir()
    Image.open(pictures / "a.png").save(folder / "a.png")
    gallery = tmp_path / "gallery"

    def boxes(name: str) -> Any:
        with Gallery.open(gallery) as opened:
            return opened.find([f"in/{name}"])[0].metadata.get("boxes")

    ok("index", bundle, folder, "-o", gallery)
    first = boxes("a.png")
    (folder / "a.png").rename(folder / "b.png")
    assert "1 renamed" in ok("index", bundle, folder, "-o", gallery)
    assert boxes("b.png") == first
    ok("index", bundle, folder, "-o", gallery)
    assert boxes("b.png") == first


def test_features_with_boxes_are_written_and_continued(
    world: tuple[Any, ...], pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"{__name__}:{'make' if 'boxed' in world[0].name else 'make_ragged'}"
    ok("features", pictures, "-o", tmp_path / "out", "--backbone", name)
    with np.load(tmp_path / "out" / "ims.npz") as held:
        spans, boxes, features = held["pos_boxes"], held["boxes"], held["features"]
    names = (tmp_path / "out" / "names.txt").read_text().split("\n")[:-1]
    backbone = open_backbone(name)
    from chan_rt.runtime.pictures.load import load_pixels

    for file, (start, end) in zip(names, spans, strict=True):
        regions = backbone.regions(load_pixels([file], PREPROCESS))
        assert end - start == regions.lengths[0]
        assert regions.boxes is not None
        np.testing.assert_allclose(features[start:end], regions.features[0, : end - start], atol=1e-5)
        np.testing.assert_allclose(boxes[start:end], regions.boxes[0, : end - start], atol=1e-6)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ims.npz", "names.txt"]


class _FailsInTheDark(Boxed):
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        regions, boxes = super().forward(pixels)
        dark = (pixels.amax(dim=(1, 2, 3)) < -1.9)[:, None, None]
        return torch.where(dark, torch.nan, regions), boxes


def make_failing() -> Backbone:
    return Backbone(_FailsInTheDark().eval(), PREPROCESS, "test:dark")


def test_the_picture_that_a_backbone_fails_for_is_named_and_what_was_finished_is_kept(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("RGB", (30, 30), "black" if number == 3 else "white").save(tmp_path / f"{number}.png")
    arguments = ["features", str(tmp_path), "-o", str(tmp_path / "out"), "--backbone", f"{__name__}:make_failing"]
    result = chan(*arguments)
    assert result.exit_code == 1
    assert re.search(r"Error: \S+/2.png, \S+/3.png: the backbone .* regions\[1, 0, 0\]: must be finite", result.output)
    Image.new("RGB", (30, 30), "red").save(tmp_path / "3.png")
    assert chan(*arguments).exit_code == 0
    assert len((tmp_path / "out/names.txt").read_text().splitlines()) == 5


@pytest.mark.parametrize("own", [True, False], ids=["beside", "bundle"])
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_picture_that_cannot_be_indexed_is_named_and_what_was_committed_is_kept(
    make_small_model: Callable[..., Any], tmp_path: Path, own: bool, scheme: str
) -> None:
    """Also where the backbone is the bundle's own, and where the pictures are in object storage."""
    (tmp_path / "in").mkdir()
    for number in range(5):
        Image.new("RGB", (30, 30), "black" if number == 3 else "white").save(tmp_path / f"in/{number}.png")
    bundle = make_small_model().bundle
    if not own:
        bundle = tmp_path / "bundle"
        export_bundle(make_small_model().bundle.parent / "checkpoint", bundle, ("fp32",), make_failing())
    arguments = ["index", bundle, f"{scheme}{tmp_path / 'in'}", "-o", tmp_path / "g"]
    if own:
        arguments += ["--backbone", f"{__name__}:make_failing"]
    result = chan(*arguments)
    assert result.exit_code == 1
    assert re.search(r"Error: \S+/3.png: the b\S+ .* regions\[0, 0, 0\]: must be finite", result.output)
    Image.new("RGB", (30, 30), "red").save(tmp_path / "in/3.png")
    ok(*arguments)
    with Gallery.open(tmp_path / "g") as gallery:
        assert len(gallery) == 5


@pytest.mark.parametrize(("count", "message"), [(1, "^0.png: out of order"), (3, "^out of order")])
def test_a_backbone_that_fails_for_every_picture_is_no_fault_of_the_first(count: int, message: str) -> None:
    def refuse(pictures: list[Any]) -> None:
        raise BackendError("out of order")

    broken: Any = SimpleNamespace(encode_pictures=refuse)
    with pytest.raises(BackendError, match=message):
        encode_named(broken, dict.fromkeys(range(count), Image.new("RGB", (1, 1))), ["0.png", "1.png", "2.png"])


def test_an_onnx_file_is_a_backbone(world: tuple[Any, ...], pictures: Path, tmp_path: Path) -> None:
    backbone, bundle, bare = world
    model = onnx.load(bundle / "graphs/fp32/backbone.onnx")
    for item in [*model.graph.output, *model.graph.node]:
        if isinstance(item, onnx.NodeProto):
            item.output[:] = ["feat" if name == "regions" else name for name in item.output]
            item.input[:] = ["feat" if name == "regions" else name for name in item.input]
        elif item.name == "regions":
            item.name = "feat"
    onnx.save(model, tmp_path / "own.onnx")
    about = {"mean": [0.5] * 3, "std": [0.25] * 3, "outputs": {"regions": "feat"}}
    (tmp_path / "own.json").write_text(json.dumps(about))
    own = open_backbone(f"onnx:{tmp_path / 'own.onnx'}")
    pixels = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    expected, found = backbone.regions(pixels), own.regions(pixels)
    np.testing.assert_allclose(found.features, expected.features, atol=1e-5)
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-6)
    _, exported = export_bundle(bare.parent / "checkpoint", tmp_path / "bundle", ("fp32", "fp16"), own)
    assert max(one.error for one in exported if one.precision == "fp32") < 1e-5
    with Matcher.open(tmp_path / "bundle", precision="fp16") as matcher:
        assert matcher.encode_pictures([pictures / "a.png"]).boxes is not None


@pytest.mark.parametrize("form", ["corners", "corners_in_pixels"])
def test_corners_of_an_onnx_file_become_fractions(form: str, tmp_path: Path) -> None:
    class Corners(Boxed):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            regions, boxes = super().forward(pixels)
            corners = torch.cat([boxes[:, :, :2], boxes[:, :, :2] + boxes[:, :, 2:]], dim=2)
            return regions, corners * (SIZE if form == "corners_in_pixels" else 1)

    _save(Corners().eval(), tmp_path / "x.onnx")
    (tmp_path / "x.json").write_text(json.dumps({"mean": [0.5] * 3, "std": [0.25] * 3, "boxes": form}))
    pixels = np.random.default_rng(1).normal(size=(2, 3, SIZE, SIZE)).astype(np.float32)
    found = open_backbone(f"onnx:{tmp_path / 'x.onnx'}").regions(pixels)
    np.testing.assert_allclose(found.boxes, make().regions(pixels).boxes, atol=1e-6)


def _save(module: torch.nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer's own
        program = _traced(module)
    assert program is not None
    onnx.save(program.model_proto, path)


def _traced(module: torch.nn.Module) -> Any:
    return torch.onnx.export(
        module, (torch.zeros(2, 3, SIZE, SIZE),), input_names=["x"], output_names=["regions", "boxes"],
        dynamic_shapes=({0: torch.export.Dim("n")},), dynamo=True, verbose=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    _save(Boxed().eval(), folder / "x.onnx")
    return folder / "x.onnx"


RIGHT = {"mean": [0.5] * 3, "std": [0.25] * 3}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (None, r"x.json must describe the preprocessing of x.onnx"),
        ("[]", "must be an object"),
        ("{", "JSON"),
        ({"mean": [0.5] * 3}, "std"),
        ({**RIGHT, "mean": [0.5]}, "mean"),
        ({**RIGHT, "std": [0.0, 1.0, 1.0]}, "std must be positive"),
        ({**RIGHT, "grid": 0}, "grid"),
        ({**RIGHT, "boxes": "polygons"}, "boxes"),
        ({**RIGHT, "outputs": {"regions": "gone"}}, "must have an output 'gone'"),
        ({**RIGHT, "outputs": {"masks": "regions"}}, "outputs must be of regions, boxes, region_lengths, got 'masks'"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(about: Any, message: str, saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.onnx"
    file.write_bytes(saved.read_bytes())
    if about is not None:
        (tmp_path / "x.json").write_text(about if isinstance(about, str) else json.dumps(about))
    with pytest.raises(InputError, match=message):
        open_backbone(f"onnx:{file}")


def test_what_is_no_onnx_graph_of_a_backbone_is_refused(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(RIGHT))
    file = tmp_path / "x.onnx"
    for place, got in ((file, "nothing there"), (tmp_path, "a folder")):
        with pytest.raises(InputError, match=f"{place} must be an ONNX file, got {got}"):
            open_backbone(f"onnx:{place}")
    file.write_bytes(b"no graph")
    with pytest.raises(InputError, match="cannot be read as an ONNX file"):
        open_backbone(f"onnx:{file}")
    for axis, size in ((0, 1), (1, 4), (2, 20)):
        model = onnx.load(saved)
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
        onnx.save(model, file)
        with pytest.raises(InputError, match=r"must have one input \[B, 3, S, S\] float32 with B dynamic and S fixed"):
            open_backbone(f"onnx:{file}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "backbone must be efficientnet-lite0"),
        ("timm:", "backbone must be efficientnet-lite0"),
        ("timm", "backbone must be efficientnet-lite0.*, got 'timm'"),
        (":make", "backbone must be efficientnet-lite0.*, got ':make'"),
        ("sys:exit", "backbone sys:exit failed: SystemExit: "),
        ("", "backbone must be efficientnet-lite0"),
        ("no_such_module:make", "must name a function of a module that Python finds"),
        (f"{__name__}:missing", "must name a function of a module that Python finds"),
        (f"{__name__}:make_nothing", "failed: RuntimeError: no weights"),
        ("json:JSONDecoder", "must return a chan_rt.chan_ref.backbones.base.Backbone, got JSONDecoder"),
        ("..:x", "must name a function"),
    ],
)
def test_a_name_that_is_no_backbone_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_backbone(name)


class _Returns(torch.nn.Module):
    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, pixels: torch.Tensor) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (RuntimeError("out of memory"), r"fails for pixels \[1, 3, 24, 24\]: out of memory"),
        (None, "must return regions"),
        ({"regions": 1}, "got int as 'regions'"),
        ({"regions": [1.0]}, "got list as 'regions'"),
        ({"regions": torch.zeros(1, 3, 4), "scores": torch.zeros(1)}, "among .*class_scores, got Tensor as 'scores'"),
        ({"boxes": torch.zeros(1, 3, 4)}, "must return regions, got a dictionary with boxes"),
        ({}, "must return regions, got a dictionary with nothing"),
        ((torch.ones(1, 3, DIM), None), "must return tensors, got NoneType as boxes"),
        ((), "must return regions"),
        ((torch.ones(1),) * 4, "must return regions"),
        (torch.ones(1, 3, DIM), "boxes: must be returned"),
        ((torch.full((1, 3, DIM), torch.nan), torch.full((1, 3, 4), 0.5)), "must be finite"),
        ((torch.ones(1, 3, DIM), torch.full((1, 3, 4), 2.0)), "fractions of the picture"),
        ((torch.ones(1, 0, DIM), torch.ones(1, 0, 4)), "none of them 0"),
    ],
)
def test_a_hostile_module_is_named(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Backbone(_Returns(value), PREPROCESS, "hostile").regions(np.zeros((1, 3, SIZE, SIZE), np.float32))


def test_a_backbone_of_another_width_is_refused(make_small_model: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"to \[2, 3, 13\], what this model reads, got \[2, 3, 12\]"):
        graph_of(make(), 13)
    with pytest.raises(InputError, match="max_regions must be at least the 3 regions of the backbone, got 2"):
        export_bundle(make_small_model().bundle.parent / "checkpoint", tmp_path / "x", backbone=make(), max_regions=2)


class _Frozen(Boxed):
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        regions, _ = super().forward(pixels)
        return regions, torch.full((1, REGIONS, 4), 0.25).expand(len(pixels), -1, -1)


def test_a_module_that_makes_the_batch_a_constant_is_named() -> None:
    frozen = Backbone(_Frozen().eval().requires_grad_(False), PREPROCESS, "test:frozen")
    with pytest.raises(BundleError, match=r"test:frozen must take any number of pictures.*len\(pixels\)"):
        graph_of(frozen, DIM)


def test_a_graph_that_finds_other_regions_is_refused(tmp_path: Path) -> None:
    model = graph_of(make(), DIM)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("weight"):
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values[::-1].copy(), tensor.name))
    (tmp_path / "fp32").mkdir()
    onnx.save(model, tmp_path / "fp32/backbone.onnx")
    cases = make_cases("backbone", None, make())  # type: ignore[arg-type]
    with pytest.raises(BundleError, match=r"finds \d+ % of the torch reference's regions|differs from the torch"):
        check_graph(tmp_path / "fp32/backbone.onnx", "fp32", cases)


def test_regions_are_matched_by_place() -> None:
    rng = np.random.default_rng(0)
    boxes = rng.uniform(0.1, 0.4, (2, 6, 4)).astype(np.float32)
    features = rng.normal(size=(2, 6, 5)).astype(np.float32)
    order = np.array([3, 1, 0, 5, 4, 2])
    other = {"regions": features[:, order], "boxes": boxes[:, order].copy()}
    matched = match_regions({"regions": features, "boxes": boxes}, other)
    assert matched.found == 100
    np.testing.assert_array_equal(matched.reference, matched.candidate)
    other["boxes"][0, :3, 0] += 0.5
    matched = match_regions({"regions": features, "boxes": boxes}, other)
    assert matched.found == 75
    np.testing.assert_array_equal(matched.reference, matched.candidate)
    lengths = {"region_lengths": np.array([2, 6])}
    assert match_regions({"regions": features, "boxes": boxes, **lengths}, {**other, **lengths}).found < 100


def test_a_backbone_that_does_not_fit_in_half_stays_at_fp32(
    make_small_model: Callable[..., Any], tmp_path: Path
) -> None:
    odd = make()
    with torch.no_grad():
        odd.module.cells.bias[0] = 1e6  # type: ignore[union-attr, operator]
    manifest, _ = export_bundle(make_small_model().bundle.parent / "checkpoint", tmp_path / "x", backbone=odd)
    assert list(manifest.graphs["backbone"]) == ["fp32"]
    assert manifest.resolve("backbone", "fp16") == "fp32"


def test_the_model_of_a_bundle_is_never_imported(world: tuple[Any, ...], tmp_path: Path) -> None:
    from chan_rt.export.backbone import backbone_of

    named = replace(Manifest.load(world[1]), backbone="os:getcwd")
    assert backbone_of(named) is None


def test_a_backbone_that_does_not_build_is_left_out_and_said(
    world: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[str] = []

    def build(bundle: Path, graph: str, *rest: Any) -> str:
        tried.append(graph)
        if graph == "backbone":
            raise EngineError("backbone at fp32 does not build: NonMaxSuppression is not supported")
        return graph

    monkeypatch.setattr(engines, "build_engine", build)
    monkeypatch.setattr(engines, "find_target", lambda *arguments: None)
    built = engines.build_engines(world[1], "tensorrt_rtx", (), ["fp32"])
    assert built == [graph for graph in tried if graph != "backbone"]
    assert len(built) == 4
    assert "the backbone gets no engine, onnxruntime will run it" in caplog.text
    assert "NonMaxSuppression is not supported" in caplog.text
    with pytest.raises(EngineError, match="NonMaxSuppression"):
        engines.build_engines(world[1], "tensorrt_rtx", ["backbone"], ["fp32"])


def test_a_backbone_without_an_engine_runs_with_onnxruntime(
    world: tuple[Any, ...], pictures: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def open_it(backend: str, bundle: Path, manifest: Manifest, graph: str, precision: str, **options: Any) -> Any:
        if backend == "tensorrt_rtx":
            raise EngineError("no engine of backbone at fp32")
        return open_graph(backend, bundle, manifest, graph, precision, **options)

    with Matcher.open(world[1]) as matcher:
        expected = matcher.encode_pictures([pictures / "a.png"])
        other = Matcher(world[1], matcher.manifest, matcher.tokenizer, matcher._backends, "fp32")
        del other._backends["backbone"]
        other.backend = "tensorrt_rtx"
        monkeypatch.setattr("chan_rt.runtime.matcher.open_graph", open_it)
        found = other.encode_pictures([pictures / "a.png"])
        np.testing.assert_array_equal(found.vectors, expected.vectors)
        assert "the backbone runs with onnxruntime: no engine of backbone" in caplog.text
        with pytest.raises(EngineError):
            other._open("alignment_map")
        other.close()


def test_class_scores_are_stored_with_the_features_and_not_in_a_bundle(
    make_small_model: Callable[..., Any], pictures: Path, tmp_path: Path
) -> None:
    ok("features", pictures, "-o", tmp_path / "out", "--backbone", f"{__name__}:make_scored")
    ok("features", pictures, "-o", tmp_path / "plain", "--backbone", f"{__name__}:make_ragged")
    with np.load(tmp_path / "out/ims.npz") as held, np.load(tmp_path / "plain/ims.npz") as plain:
        scores, features, spans = held["class_scores"], held["features"], held["pos_boxes"]
        assert {name: held[name].tobytes() for name in plain} == {name: plain[name].tobytes() for name in plain}
    assert scores.shape == (len(features), 5)
    real = np.concatenate([np.arange(start, end) for start, end in spans])
    np.testing.assert_allclose(scores[real], 1 / (1 + np.exp(-features[real, :5])), atol=1e-6)
    store = open_features(tmp_path / "out/ims.npz")  # those of a split may have them
    assert store.region_dim == DIM

    checkpoint = make_small_model().bundle.parent / "checkpoint"
    export_bundle(checkpoint, tmp_path / "bundle", ("fp32",), make_scored())
    export_bundle(checkpoint, tmp_path / "ragged", ("fp32",), make_ragged())
    outputs = [item.name for item in Manifest.load(tmp_path / "bundle").graph("backbone", "fp32").outputs]
    assert outputs == ["regions", "boxes", "region_lengths"]
    with Matcher.open(tmp_path / "bundle") as one, Matcher.open(tmp_path / "ragged") as other:
        files = [pictures / "a.png"]
        np.testing.assert_array_equal(one.encode_pictures(files).vectors, other.encode_pictures(files).vectors)


def test_a_detector_is_refused_before_tensorrt_rtx_builds_it(world: tuple[Any, ...], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(world[1], bundle)
    manifest = Manifest.load(bundle)
    spec = manifest.graph("backbone", "fp32")
    model = onnx.load(bundle / spec.file)
    model.graph.node.append(onnx.helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["kept"], name="nms"))
    onnx.save(model, bundle / spec.file)
    changed = replace(spec, sha256=sha256_file(bundle / spec.file))
    backbones = {**manifest.graphs["backbone"], "fp32": changed}
    write_manifest(bundle, replace(manifest, graphs={**manifest.graphs, "backbone": backbones}))
    target: Any = SimpleNamespace(flavor="tensorrt_rtx")
    with pytest.raises(EngineError, match="TensorRT-RTX does not build it: onnxruntime runs the backbone beside"):
        engines.build_engine(bundle, "backbone", "fp32", target)
    assert not (bundle / "engines").exists()
