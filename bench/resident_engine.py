"""The other way to scan a gallery on a GPU: a TensorRT engine of `alignment.best_images`, for rows held as half."""

from __future__ import annotations

from pathlib import Path

from ..export.alignment import best_images
from ..export.builder import OPSET
from ..export.bundle import write_graph
from ..export.engines import BuiltEngine, build_engine, find_target
from ..export.precision import to_half
from ..export.profiles import choose_profiles
from ..runtime.backends.table import Flavor
from ..runtime.contract import (
    AlignmentConfig,
    GraphSpec,
    Manifest,
    Range,
    TensorSpec,
    TokenizerSpec,
    sha256_file,
    write_manifest,
)

GRAPH, PRECISION = "best_images", "fp16"


def build_resident_engine(
    folder: Path,
    flavor: Flavor,
    alignment: AlignmentConfig,
    dim: int,
    *,
    rows: int = 8192,
    regions: int = 36,
    captions: int = 64,
    words: int = 64,
    k: int = 100,
) -> tuple[GraphSpec, BuiltEngine]:
    """Write the graph to FOLDER, a bundle of that one graph, and build its engine there, or find it in the cache.

    Args:
        folder: made where it is not there.
        flavor: tensorrt or tensorrt_rtx.
        alignment: how similarities become scores.
        dim: D.
        rows: images of a call; bounds its scratch memory, some 4 `rows` x `regions` x `captions` x `words` bytes.
        regions: the most an image has.
        captions, words: the most a call takes, and the most a caption has.
        k: images it finds for each caption.

    Raises:
        EngineError: the flavor cannot build here, or the graph does not build.
    """
    file = f"graphs/{PRECISION}/{GRAPH}.onnx"
    write_graph(folder / file, to_half(best_images(alignment, dim, k)))
    spec = GraphSpec(
        file,
        sha256_file(folder / file),
        OPSET,
        (
            TensorSpec("region_embeddings", "float16", ("I", "R", dim)),
            TensorSpec("region_lengths", "int32", ("I",)),
            TensorSpec("word_embeddings", "float16", ("C", "W", dim)),
            TensorSpec("word_lengths", "int32", ("C",)),
        ),
        (TensorSpec("best_scores", "float32", ("C", k)), TensorSpec("best_images", "int32", ("C", k))),
        {
            "I": Range(rows, rows, rows),
            "R": Range(regions, regions, regions),
            "C": Range(1, captions, captions),
            "W": Range(1, min(16, words), words),
        },
    )
    graphs = {GRAPH: {PRECISION: spec}}
    write_manifest(folder, Manifest({"embed_dim": dim}, alignment, graphs, TokenizerSpec("scan", {})))
    profiles = choose_profiles(spec, [{"C": Range(1, 1, 1)}, {}])
    return spec, build_engine(folder, GRAPH, PRECISION, find_target(flavor), profiles)
