"""Measure what int8 costs and saves layer by layer, and find a plan that keeps the cost within a limit.

Each layer (or each group of layers under one scope) is quantized alone; the rest stays float32. Measured against the
float32 graphs on the same samples: the least cosine of an embedding, the largest change of a score, the change of rsum,
the bytes saved in the file and the time saved per call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from ..runtime.contract import Manifest, verified
from ..runtime.errors import InputError
from ..runtime.evaluation.metrics import evaluate
from ..runtime.onnx_session import open_session
from .calibrate import Calibration
from .feeds import Samples
from .plan import Plan, find_layers, products_of_activations, to_int8
from .qdq import Scheme

ENCODERS = ("region_encoder", "text_encoder")
_TIMED_CALLS = 7
_SCORE_BLOCK = 64


@dataclass(frozen=True)
class Group:
    """Layers of one graph that are quantized together."""

    graph: str
    name: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Effect:
    """The effect of quantizing one group alone.

    Attributes:
        group: the layers.
        cosine: least cosine between a float32 embedding and its quantized one.
        score_error: largest absolute change of a score.
        rsum_change: rsum of the quantized model less rsum of float32, in points.
        bytes_saved: bytes that the ONNX file becomes smaller.
        speedup: median time of a float32 call over that of a quantized one, on this machine.
    """

    group: Group
    cosine: float
    score_error: float
    rsum_change: float
    bytes_saved: int
    speedup: float


@dataclass(frozen=True)
class Found:
    """The outcome of the greedy search.

    Attributes:
        plan: the layers that stay float32.
        rsum_change: change of rsum with the whole plan, in points.
        quantized: number of groups in int8.
        total: number of all groups.
    """

    plan: Plan
    rsum_change: float
    quantized: int
    total: int


class Sensitivity:
    """Measures int8 variants of a bundle's encoders on samples.

    Args:
        bundle: folder of the bundle; it must have float32 graphs.
        calibration: the ranges of these graphs.
        samples: images and captions to measure on; they should not be those of the calibration.
        image_of_caption: position of each caption's image in the samples, int64 [C].
        scheme: whose int8 to measure.
        threads: number of threads of onnxruntime; None for one per CPU this process may use.
    """

    def __init__(
        self,
        bundle: Path,
        calibration: Calibration,
        samples: Samples,
        image_of_caption: np.ndarray,
        scheme: Scheme = "x86",
        threads: int | None = None,
    ) -> None:
        self._samples = samples
        self._image_of_caption = image_of_caption
        self._scheme = scheme
        self._threads = threads
        manifest = Manifest.load(bundle)
        self._models: dict[str, onnx.ModelProto] = {}
        self._ranges = {}
        for graph in ENCODERS:
            spec = manifest.graph(graph, "fp32")
            self._models[graph] = onnx.load(verified(bundle, spec.file, spec.sha256))
            self._ranges[graph] = calibration.ranges(graph, spec.sha256)
        spec = manifest.graph("hard_alignment", "fp32")
        self._alignment = self._session(onnx.load(verified(bundle, spec.file, spec.sha256)))
        self._float = {graph: self._session(model) for graph, model in self._models.items()}
        self._embeddings = {graph: self._embed(graph, session) for graph, session in self._float.items()}
        self._scores = self._score(self._embeddings)
        self._rsum = self._rsum_of(self._scores)

    def groups(self, by_scope: bool) -> list[Group]:
        """Return the groups that can be quantized alone: every layer, or every scope of layers."""
        found: dict[tuple[str, str], list[str]] = {}
        for graph in ENCODERS:
            fixed = set(products_of_activations(self._models[graph]))
            for layer in find_layers(self._models[graph], self._scheme):
                if layer not in fixed:
                    name = layer.rpartition("/")[0] if by_scope else layer
                    found.setdefault((graph, name or layer), []).append(layer)
        return [Group(graph, name, tuple(layers)) for (graph, name), layers in found.items()]

    def measure_all(
        self, groups: Sequence[Group], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Effect]:
        """Measure the effect of quantizing each group alone; the most harmful first."""
        effects = []
        for group in groups:
            effects.append(self.measure(group))
            progress(len(effects), len(groups))
        return sorted(effects, key=lambda effect: -effect.score_error)

    def measure(self, group: Group) -> Effect:
        """Measure the effect of quantizing one group alone."""
        model = self._quantized(group.graph, set(group.layers))
        session = self._session(model)
        embeddings = self._embed(group.graph, session)
        scores = self._score({**self._embeddings, group.graph: embeddings})
        return Effect(
            group=group,
            cosine=_least_cosine(embeddings, self._embeddings[group.graph]),
            score_error=float(np.abs(scores - self._scores).max()),
            rsum_change=self._rsum_of(scores) - self._rsum,
            bytes_saved=self._models[group.graph].ByteSize() - model.ByteSize(),
            speedup=self._speedup(group.graph, session),
        )

    def search(
        self,
        effects: Sequence[Effect],
        max_rsum_drop: float,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Found:
        """Quantize one group after another, the least harmful first, and keep each one that stays within a limit.

        Args:
            effects: the effect of every group.
            max_rsum_drop: points of rsum that all groups in int8 together may lose, not negative.
            progress: called with the number of groups tried and the number of all groups.

        Raises:
            InputError: `max_rsum_drop` is negative.
        """
        if max_rsum_drop < 0:
            raise InputError(f"max_rsum_drop must not be negative, got {max_rsum_drop}")
        chosen: dict[str, set[str]] = {graph: set() for graph in ENCODERS}
        quantized, change = 0, 0.0
        embeddings = dict(self._embeddings)
        for tried, effect in enumerate(sorted(effects, key=lambda item: item.score_error), start=1):
            graph = effect.group.graph
            layers = chosen[graph] | set(effect.group.layers)
            candidate = self._embed(graph, self._session(self._quantized(graph, layers)))
            drop = self._rsum_of(self._score({**embeddings, graph: candidate})) - self._rsum
            if drop >= -max_rsum_drop:
                chosen[graph], embeddings[graph] = layers, candidate
                quantized, change = quantized + 1, drop
            progress(tried, len(effects))
        exclude = {graph: self._excluded(graph, layers) for graph, layers in chosen.items()}
        return Found(Plan(exclude), change, quantized, len(effects))

    def _excluded(self, graph: str, layers: set[str]) -> tuple[str, ...]:
        return tuple(name for name in find_layers(self._models[graph], self._scheme) if name not in layers)

    def _quantized(self, graph: str, layers: set[str]) -> onnx.ModelProto:
        return to_int8(self._models[graph], self._ranges[graph], self._scheme, self._excluded(graph, layers))

    def _session(self, model: onnx.ModelProto) -> Any:
        return open_session(model.SerializeToString(), self._threads, purpose="measuring sensitivity")

    def _embed(self, graph: str, session: Any) -> np.ndarray:
        """Return the embeddings [N, L, D] of every sample, zeros past each length, in the samples' order."""
        if graph == "region_encoder":
            batches, feeds, lengths = self._samples.image_rows(), self._samples.images, self._samples.region_lengths
        else:
            batches, feeds = self._samples.caption_rows(), self._samples.captions
            lengths = self._samples.tokens.lengths
        width = next(item.shape[-1] for item in session.get_outputs())
        embeddings = np.zeros((len(lengths), int(lengths.max()), width), np.float32)
        for rows in batches:
            found = session.run(None, dict(feeds(rows)))[0]
            embeddings[rows, : found.shape[1]] = found
        return embeddings

    def _score(self, embeddings: Mapping[str, np.ndarray]) -> np.ndarray:
        regions, words = embeddings["region_encoder"], embeddings["text_encoder"]
        region_lengths = self._samples.region_lengths
        scores = np.empty((len(regions), len(words)), np.float32)
        for i in range(0, len(regions), _SCORE_BLOCK):
            for c in range(0, len(words), _SCORE_BLOCK):
                rows, columns = slice(i, i + _SCORE_BLOCK), slice(c, c + _SCORE_BLOCK)
                feeds = {
                    "region_embeddings": regions[rows],
                    "region_lengths": region_lengths[rows],
                    "word_embeddings": words[columns],
                    "word_lengths": self._samples.tokens.lengths[columns],
                }
                scores[rows, columns] = self._alignment.run(["scores"], feeds)[0]
        return scores

    def _rsum_of(self, scores: np.ndarray) -> float:
        return evaluate(scores, self._image_of_caption).rsum

    def _speedup(self, graph: str, session: Any) -> float:
        reads = self._samples.image_feeds() if graph == "region_encoder" else self._samples.caption_feeds()
        feeds = dict(reads[len(reads) // 2]())
        times: dict[str, list[float]] = {"float": [], "int8": []}
        for _ in range(_TIMED_CALLS):
            for name, timed in (("float", self._float[graph]), ("int8", session)):
                start = time.perf_counter()
                timed.run(None, feeds)
                times[name].append(time.perf_counter() - start)
        return statistics.median(times["float"]) / statistics.median(times["int8"])


def _least_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the least cosine between rows [.., D], without rows of zeros (padding)."""
    norms = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return float(((found * expected).sum(-1)[norms > 0] / norms[norms > 0]).min())
