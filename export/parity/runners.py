"""Who computes and on what: the torch reference and a bundle's graphs behind one interface, and the sample for both.

A sample is cut into blocks of images, each with the captions of its images; embeddings wait on disk between blocks, so
memory is bounded by a few blocks and one score matrix whatever the sample's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch

from ...chan_ref import alignment
from ...chan_ref.model import ChanModel
from ...runtime.backends import open_graph
from ...runtime.backends.base import Backend
from ...runtime.contract import Manifest
from ...runtime.data.images import CaptionedImages, spread
from ...runtime.embeddings import Embeddings
from ...runtime.text import TokenBatch

COMPARED = ("region_encoder", "text_encoder", "hard_alignment", "alignment_map")
PICTURES = 16  # looked at by the backbone, which costs a hundred times what a caption does
IMAGES_PER_BLOCK = 16
CAPTIONS_PER_BLOCK = 80


class Runner(Protocol):
    """The graphs of a bundle between features and scores, as functions of numpy arrays."""

    def encode_regions(self, regions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """[B, R, F], [B] -> [B, R, D]."""

    def encode_words(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """[B, W], [B] -> [B, W, D]."""

    def score(self, images: Embeddings, captions: Embeddings) -> np.ndarray:
        """Scores [I, C]."""

    def align(self, images: Embeddings, captions: Embeddings) -> tuple[np.ndarray, np.ndarray]:
        """Similarity [I, C, W] of each word with the region it chooses, and that region's index."""


class TorchRunner:
    """The reference: the checkpoint's own model in float32 on the CPU."""

    def __init__(self, model: ChanModel) -> None:
        self._model = model.eval()

    def encode_regions(self, regions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        with torch.inference_mode():
            return self._model.encode_regions(torch.from_numpy(regions), torch.from_numpy(lengths)).numpy()

    def encode_words(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        with torch.inference_mode():
            return self._model.encode_words(torch.from_numpy(ids), torch.from_numpy(lengths)).numpy()

    def score(self, images: Embeddings, captions: Embeddings) -> np.ndarray:
        """See `Runner`."""
        with torch.inference_mode():
            return self._model.score(*_tensors(images, captions)).numpy()

    def align(self, images: Embeddings, captions: Embeddings) -> tuple[np.ndarray, np.ndarray]:
        """See `Runner`."""
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
    """A bundle's graphs on one backend, every file's hash checked.

    Args:
        bundle: the bundle's folder.
        manifest: of the bundle.
        backend: a name of `runtime.backends.BACKENDS`.
        precision: as it is asked for; `Manifest.resolve` says what each graph has in its place.
    """

    def __init__(self, bundle: Path, manifest: Manifest, backend: str, precision: str) -> None:
        self._graphs: dict[str, Backend] = {}
        try:
            for graph in COMPARED:
                form = manifest.resolve(graph, precision)
                self._graphs[graph] = open_graph(backend, bundle, manifest, graph, form)
            if precision in manifest.graphs.get("backbone", {}):
                self._graphs["backbone"] = open_graph(backend, bundle, manifest, "backbone", precision)
        except BaseException:
            self.close()
            raise

    @property
    def has_backbone(self) -> bool:
        """Whether the bundle reads pictures at this precision; where not, its backbone stays at fp32."""
        return "backbone" in self._graphs

    def look(self, pixels: np.ndarray) -> np.ndarray:
        """Regions [B, R, F] of pixels [B, 3, H, W]."""
        return self._run("backbone", {"pixels": pixels})["regions"]

    def encode_regions(self, regions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        return self._run("region_encoder", {"regions": regions, "region_lengths": lengths})["region_embeddings"]

    def encode_words(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """See `Runner`."""
        return self._run("text_encoder", {"token_ids": ids, "token_lengths": lengths})["word_embeddings"]

    def score(self, images: Embeddings, captions: Embeddings) -> np.ndarray:
        """See `Runner`."""
        return self._run("hard_alignment", _alignment_feeds(images, captions))["scores"]

    def align(self, images: Embeddings, captions: Embeddings) -> tuple[np.ndarray, np.ndarray]:
        """See `Runner`."""
        outputs = self._run("alignment_map", _alignment_feeds(images, captions))
        return outputs["word_scores"], outputs["word_regions"]

    def close(self) -> None:
        """Close every graph."""
        for graph in self._graphs.values():
            graph.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

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


def image_blocks(sample: CaptionedImages) -> list[slice]:
    """Consecutive images."""
    return _slices(0, sample.num_images, IMAGES_PER_BLOCK)


def captions_of(sample: CaptionedImages, images: slice) -> list[slice]:
    """The captions of a block of images, in pieces."""
    first, last = np.searchsorted(sample.image_of_caption, [images.start, images.stop])
    return _slices(int(first), int(last), CAPTIONS_PER_BLOCK)


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def pictures_of(sample: CaptionedImages) -> tuple[Path, ...]:
    """Files of at most PICTURES of the images, spread evenly; empty where one of these has no file.

    Raises:
        InputError: the data folder's id_mapping.json cannot be read.
    """
    files = sample.pictures()
    chosen = [files[position] for position in spread(sample.num_images, PICTURES)]
    found = tuple(file for file in chosen if file is not None)
    return found if len(found) == len(chosen) else ()


def describe(sample: CaptionedImages) -> dict[str, str | int]:
    """Where a sample is from and its size, for the report."""
    origin = {} if sample.files is None else {"data": str(sample.files.root), "split": sample.files.split}
    return {**origin, "images": sample.num_images, "captions": sample.num_captions}


class EmbeddingStore:
    """Blocks of embeddings in files of a folder, by the block's first row."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder

    def put(self, block: slice, embedded: Embeddings) -> None:
        """Keep a block."""
        np.savez(self._folder / f"{block.start}.npz", vectors=embedded.vectors, lengths=embedded.lengths)

    def get(self, block: slice) -> Embeddings:
        """A block that was put."""
        with np.load(self._folder / f"{block.start}.npz") as stored:
            return Embeddings(stored["vectors"], stored["lengths"])


def token_block(tokens: TokenBatch, block: slice) -> tuple[np.ndarray, np.ndarray]:
    """Ids and lengths of some captions, padded to the longest of them."""
    lengths = tokens.lengths[block]
    return np.ascontiguousarray(tokens.ids[block, : int(lengths.max())]), lengths


def cut_short(lengths: np.ndarray) -> np.ndarray:
    """Lengths drawn from 1 to each of `lengths`, always the same: real rows past them become padding."""
    return np.random.default_rng(0).integers(1, lengths + 1).astype(np.int32)
