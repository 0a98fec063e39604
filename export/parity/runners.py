"""Who computes: the torch reference and the graphs of a bundle, by methods of the same names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch

from ...chan_ref import alignment
from ...chan_ref.model import ChanModel
from ...runtime.backends import open_graph
from ...runtime.backends.base import Backend
from ...runtime.contract import Manifest
from ...runtime.embeddings import Embeddings

COMPARED = ("region_encoder", "text_encoder", "hard_alignment", "alignment_map")


class TorchRunner:
    """The reference: the checkpoint's own model in float32 on the CPU."""

    def __init__(self, model: ChanModel) -> None:
        self._model = model.eval()

    def encode_regions(self, regions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """[B, R, F], [B] -> [B, R, D]."""
        with torch.inference_mode():
            return self._model.encode_regions(torch.from_numpy(regions), torch.from_numpy(lengths)).numpy()

    def encode_words(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """[B, W], [B] -> [B, W, D]."""
        with torch.inference_mode():
            return self._model.encode_words(torch.from_numpy(ids), torch.from_numpy(lengths)).numpy()

    def score(self, images: Embeddings, captions: Embeddings) -> np.ndarray:
        """Scores [I, C]."""
        with torch.inference_mode():
            return self._model.score(*_tensors(images, captions)).numpy()

    def align(self, images: Embeddings, captions: Embeddings) -> tuple[np.ndarray, np.ndarray]:
        """Similarity [I, C, W] of each word with the region it chooses, and that region's index."""
        word_scores, word_regions = alignment.align(*_tensors(images, captions))
        return word_scores.numpy(), word_regions.numpy()

    def margins(self, images: Embeddings, captions: Embeddings) -> np.ndarray:
        """How far each word's best region is ahead of its second, [I, C, W]; Inf where there is only one region."""
        regions, region_lengths, words, _ = _tensors(images, captions)
        hidden = ~alignment.length_mask(region_lengths, regions.shape[1])
        s = alignment.similarities(regions, words).masked_fill(hidden[:, None, :, None], -torch.inf)
        if s.shape[2] == 1:
            return np.full((s.shape[0], s.shape[1], s.shape[3]), np.inf, np.float32)
        best = s.topk(2, dim=2).values
        return (best[:, :, 0] - best[:, :, 1]).numpy()


def _tensors(images: Embeddings, captions: Embeddings) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    arrays = (images.vectors, images.lengths, captions.vectors, captions.lengths)
    regions, region_lengths, words, word_lengths = (torch.from_numpy(array) for array in arrays)
    return regions, region_lengths, words, word_lengths


class GraphRunner:
    """The graphs of a bundle, each by itself; they belong to the caller, who closes them.

    Args:
        graphs: those of `COMPARED`, and `backbone` where it is to be run.
    """

    def __init__(self, graphs: Mapping[str, Backend]) -> None:
        self._graphs = graphs

    @property
    def has_backbone(self) -> bool:
        """Whether a backbone was given."""
        return "backbone" in self._graphs

    def encode_pixels(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """The backbone's outputs for pixels [B, 3, S, S], by name."""
        return self._run("backbone", {"pixels": pixels})

    def encode_regions(self, regions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """As `TorchRunner`."""
        return self._run("region_encoder", {"regions": regions, "region_lengths": lengths})["region_embeddings"]

    def encode_words(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """As `TorchRunner`."""
        return self._run("text_encoder", {"token_ids": ids, "token_lengths": lengths})["word_embeddings"]

    def score(self, images: Embeddings, captions: Embeddings) -> np.ndarray:
        """As `TorchRunner`."""
        return self._run("hard_alignment", _alignment_feeds(images, captions))["scores"]

    def align(self, images: Embeddings, captions: Embeddings) -> tuple[np.ndarray, np.ndarray]:
        """As `TorchRunner`."""
        outputs = self._run("alignment_map", _alignment_feeds(images, captions))
        return outputs["word_scores"], outputs["word_regions"]

    def _run(self, name: str, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        graph = self._graphs[name]
        dtypes = {tensor.name: tensor.dtype for tensor in graph.spec.inputs}
        return graph.run({tensor: array.astype(dtypes[tensor], copy=False) for tensor, array in feeds.items()})


def _alignment_feeds(images: Embeddings, captions: Embeddings) -> dict[str, np.ndarray]:
    return {
        "region_embeddings": images.vectors,
        "region_lengths": images.lengths,
        "word_embeddings": captions.vectors,
        "word_lengths": captions.lengths,
    }


class GraphPool:
    """The graphs of a bundle on one backend, each opened once however many precisions share it.

    Args:
        bundle: the bundle's folder.
        manifest: of the bundle.
        backend: a name of `runtime.backends.BACKENDS`.
        gpu: the number of the GPU that it runs on, where it runs on one.
    """

    def __init__(self, bundle: Path, manifest: Manifest, backend: str, gpu: int = 0) -> None:
        self._bundle, self._manifest, self._backend, self._gpu = bundle, manifest, backend, gpu
        self._open: dict[tuple[str, str], Backend] = {}

    def graphs(self, precision: str) -> dict[str, Backend]:
        """The graphs that run at a requested precision, by name; `Manifest.resolve` chooses the form of each graph.

        The backbone is among them only where it has a form of its own at this precision: elsewhere it stays at fp32.

        Raises:
            BundleError: no such graph, or a file that was altered.
            BackendError: a graph cannot be opened.
        """
        forms: dict[str, str] = {graph: self._manifest.resolve(graph, precision) for graph in COMPARED}
        if precision in self._manifest.graphs.get("backbone", {}):
            forms["backbone"] = precision
        for graph, form in forms.items():
            if (graph, form) not in self._open:
                self._open[graph, form] = open_graph(
                    self._backend, self._bundle, self._manifest, graph, form, gpu=self._gpu
                )
        return {graph: self._open[graph, form] for graph, form in forms.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for graph in self._open.values():
            graph.close()
