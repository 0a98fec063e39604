"""What decides whether two embeddings may be compared."""

from dataclasses import fields, replace

import pytest

from chan_rt.runtime.contract import AlignmentConfig, GraphSpec, Manifest, TokenizerSpec
from chan_rt.runtime.gallery.settings import fingerprint


def graph(sha256: str) -> GraphSpec:
    return GraphSpec("graph.onnx", sha256, 18, (), (), {})


MANIFEST = Manifest(
    model={"embed_dim": 256},
    alignment=AlignmentConfig("VHA", "LSE", 0.1, 0.1),
    graphs={
        "region_encoder": {"fp32": graph("a"), "fp16": graph("b")},
        "text_encoder": {"fp32": graph("c"), "fp16": graph("d")},
        "alignment": {"fp32": graph("e")},
    },
    tokenizer=TokenizerSpec("wordpiece", {"vocab.txt": "f"}),
)


def with_graph(name: str, precision: str, sha256: str) -> Manifest:
    return replace(MANIFEST, graphs={**MANIFEST.graphs, name: {**MANIFEST.graphs[name], precision: graph(sha256)}})


@pytest.mark.parametrize(
    "changed",
    [
        with_graph("region_encoder", "fp32", "other"),
        with_graph("text_encoder", "fp32", "other"),
        replace(MANIFEST, tokenizer=TokenizerSpec("wordpiece", {"vocab.txt": "other"})),
        replace(MANIFEST, tokenizer=TokenizerSpec("wordpiece", {"vocab.txt": "f", "more.txt": "g"})),
        replace(MANIFEST, model={"embed_dim": 128}),
        *(
            replace(MANIFEST, alignment=replace(MANIFEST.alignment, **{field.name: other}))
            for field, other in zip(fields(AlignmentConfig), ("THA", "Max", 0.2, 0.3), strict=True)
        ),
    ],
)
def test_whatever_decides_embeddings_or_scores_changes_the_fingerprint(changed: Manifest) -> None:
    assert fingerprint(changed, "fp32") != fingerprint(MANIFEST, "fp32")


@pytest.mark.parametrize(
    "changed",
    [
        with_graph("region_encoder", "fp16", "other"),
        with_graph("alignment", "fp32", "other"),
        replace(MANIFEST, calibration={"ranges.json": "a"}, tools={"torch": "2"}, parity={"numpy/fp32": {}}),
    ],
)
def test_what_decides_neither_does_not(changed: Manifest) -> None:
    assert fingerprint(changed, "fp32") == fingerprint(MANIFEST, "fp32")


def test_each_precision_has_a_fingerprint_of_its_own() -> None:
    same = with_graph("region_encoder", "fp16", "a")
    same = replace(same, graphs={**same.graphs, "text_encoder": {"fp32": graph("c"), "fp16": graph("c")}})
    assert fingerprint(same, "fp16") != fingerprint(same, "fp32")
