"""Who computes and on what: the torch reference and a bundle's graphs behind one interface, and the sample for both.

A sample is cut into blocks of images, each with the captions of its images; embeddings wait on disk between blocks, so
memory is bounded by a few blocks and one score matrix whatever the sample's size.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import torch

from ...calibration.feeds import choose_rows
from ...chan_ref import alignment
from ...chan_ref.data import PrecompSplit
from ...chan_ref.model import ChanModel
from ...runtime.backends import open_graph
from ...runtime.backends.base import Backend
from ...runtime.contract import Manifest
from ...runtime.embeddings import Embeddings
from ...runtime.errors import InputError, ParityError
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


@dataclass(frozen=True)
class Sample:
    """Images and all their captions, positions counted within the sample.

    Attributes:
        regions: function of a slice of images: (float32 [n, R, F], int32 [n]).
        captions: [C].
        image_of_caption: int64 [C], ascending.
        num_images: I.
        pictures: files of some of the images, for the backbone; empty where the data has none.
        source: what the sample was taken from, for the report.
    """

    regions: Callable[[slice], tuple[np.ndarray, np.ndarray]]
    captions: list[str]
    image_of_caption: np.ndarray
    num_images: int
    pictures: tuple[Path, ...] = ()
    source: Mapping[str, str | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.num_images < 1 or not self.captions:
            raise ParityError(f"parity needs images and captions, got {self.num_images} and {len(self.captions)}")

    def image_blocks(self) -> list[slice]:
        """Consecutive images."""
        return _slices(0, self.num_images, IMAGES_PER_BLOCK)

    def caption_blocks(self, images: slice) -> list[slice]:
        """The captions of a block of images, in pieces."""
        first, last = np.searchsorted(self.image_of_caption, [images.start, images.stop])
        return _slices(int(first), int(last), CAPTIONS_PER_BLOCK)


def _slices(start: int, stop: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, stop)) for at in range(start, stop, size)]


def open_sample(data: str | Path, split: str, samples: int, bundle: str | Path | None = None) -> Sample:
    """`samples` images spread evenly over a split of precomputed features, with all their captions.

    Raises:
        InputError: the split cannot be read, or its features are not as wide as `bundle` reads them.
        BundleError: `bundle` is none.
        ParityError: samples below 1, or a split without images.
    """
    if samples < 1:
        raise ParityError(f"samples must be positive, got {samples}")
    source = PrecompSplit.open(data, split)  # type: ignore[arg-type]  # it checks the name
    if bundle is not None:
        source.check_width(Manifest.load(bundle).region_dim, bundle)
    rows = choose_rows(source.num_images, samples)
    chosen = np.nonzero(np.isin(source.image_of_caption, rows))[0]
    return Sample(
        regions=lambda part: source.regions(rows[part]),
        captions=[source.captions[row] for row in chosen],
        image_of_caption=np.searchsorted(rows, source.image_of_caption[chosen]),
        num_images=len(rows),
        pictures=_pictures(source, rows),
        source={"data": str(data), "split": split, "images": len(rows), "captions": len(chosen)},
    )


def _pictures(source: PrecompSplit, rows: np.ndarray) -> tuple[Path, ...]:
    """Files of at most PICTURES of the images, by DATA/id_mapping.json (id -> file); empty where they are not there."""
    mapping = source.folder.parent / "id_mapping.json"
    if source.image_ids is None or not mapping.is_file():
        return ()
    try:
        files = json.loads(mapping.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{mapping} must be JSON: {error}") from error
    if not isinstance(files, dict):
        raise InputError(f"{mapping} must map image ids to files, got {type(files).__name__}")
    ids = [source.image_ids[row] for row in rows[choose_rows(len(rows), PICTURES)]]
    paths = tuple(mapping.parent / str(files[name]) for name in ids if name in files)
    return paths if len(paths) == len(ids) and all(path.is_file() for path in paths) else ()


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
