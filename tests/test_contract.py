"""The manifest survives a round trip, and what it cannot understand is refused with the reason."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from chan_rt.runtime.contract import (
    AlignmentConfig,
    GraphSpec,
    Manifest,
    Preprocess,
    Range,
    TensorSpec,
    TokenizerSpec,
    sha256_file,
    verified,
)
from chan_rt.runtime.errors import BundleError


@pytest.fixture
def manifest() -> Manifest:
    spec = GraphSpec(
        file="graphs/fp32/region_encoder.onnx",
        sha256="0" * 64,
        opset=20,
        inputs=(TensorSpec("regions", "float32", ("B", "R", 8)), TensorSpec("region_lengths", "int32", ("B",))),
        outputs=(TensorSpec("region_embeddings", "float32", ("B", "R", 4)),),
        ranges={"B": Range(1, 8, 64), "R": Range(1, 36, 100)},
    )
    return Manifest(
        model={"region_dim": 8, "embed_dim": 4},
        alignment=AlignmentConfig(),
        graphs={"region_encoder": {"fp32": spec}},
        tokenizer=TokenizerSpec("scan", {"tokenizer/vocab.json": "1" * 64}),
        preprocess=Preprocess(384, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 6),
    )


def test_round_trip(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Manifest.from_json(replace(manifest, preprocess=None).to_json()).preprocess is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema is 99"),
        ({"alignment": {"coding": "ABC"}}, "coding must be one of"),
        ({"surprise": 1}, "surprise"),
        ({"graphs": {"x": {"fp32": {"file": "a"}}}}, "sha256"),
    ],
)
def test_refuses_what_it_does_not_understand(manifest: Manifest, change: dict, message: str) -> None:
    raw = json.loads(manifest.to_json()) | change
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(raw))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{}", "the manifest cannot be understood"), (b"\xff\xfe", "cannot be understood"), (b'{"schema": 9}', "is 9")],
)
def test_what_cannot_be_understood_is_named_by_its_path(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=message) as raised:
        Manifest.load(tmp_path)
    assert str(raised.value).startswith(str(tmp_path / "manifest.json"))


def test_missing_precision_says_what_there_is(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match="it has fp32"):
        manifest.graph("region_encoder", "int8")


@pytest.mark.parametrize("sizes", [(0, 1, 2), (2, 1, 3), (1, 4, 3)])
def test_range_is_ordered(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(BundleError, match="min <= opt <= max"):
        Range(*sizes)


def test_verified_finds_altered_missing_and_escaping_files(tmp_path) -> None:
    inside = tmp_path / "bundle"
    inside.mkdir()
    (inside / "a").write_bytes(b"abc")
    (tmp_path / "secret").write_bytes(b"abc")
    good = sha256_file(inside / "a")
    assert verified(inside, "a", good) == (inside / "a").resolve()
    for file, sha256, message in [("a", "0" * 64, "altered"), ("b", good, "missing"), ("../secret", good, "outside")]:
        with pytest.raises(BundleError, match=message):
            verified(inside, file, sha256)


def test_int8_and_the_backbone_fall_back_and_nothing_else_does(manifest: Manifest) -> None:
    spec = manifest.graph("region_encoder", "fp32")
    graphs = {
        "backbone": {"fp32": spec},
        "region_encoder": {"fp32": spec, "fp16": spec, "int8": spec},
        "text_encoder": {"fp32": spec, "fp16": spec, "int8_x86": spec},
        "hard_alignment": {"fp32": spec},
    }
    many = replace(manifest, graphs=graphs)
    assert many.resolve("region_encoder", "int8") == "int8"
    assert many.resolve("text_encoder", "int8") == "fp16"
    assert many.resolve("region_encoder", "int8_x86") == "fp32"
    assert many.resolve("hard_alignment", "int8") == "fp32"
    assert many.resolve("backbone", "fp16") == "fp32"
    with pytest.raises(BundleError, match="hard_alignment is not in this bundle at precision 'fp16'"):
        many.resolve("hard_alignment", "fp16")
    with pytest.raises(BundleError, match="region_encoder is not in this bundle at precision 'int8'"):
        manifest.resolve("region_encoder", "int8")


def test_a_bundle_left_between_two_renames_is_brought_back(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / ".bundle.x1/old").mkdir(parents=True)
    (tmp_path / ".bundle.x1/old/manifest.json").write_text(manifest.to_json())
    assert Manifest.load(tmp_path / "bundle") == manifest
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
