"""Encode images and captions, score them and explain scores with the graphs of a bundle: on NumPy arrays, no torch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .backends import CPU_BACKEND, Array, Backend, open_graph, open_graphs
from .backends.on_device import OnDevice
from .backends.placement import Placement
from .backends.table import ON_DEVICE
from .blocks import Block, cut_rows, follow_each_other, groups, padded, padded_width, pieces, run_rows, take_rows
from .checks import as_list
from .contract import AlignmentConfig, Manifest, Preprocess
from .counts import counted
from .directions import read_directions
from .embeddings import Embeddings, Kind, check_embeddings
from .errors import BackendError, BundleError, EngineError, InputError, TensorError
from .explanation import Explanation, WordMatch, shares
from .gallery.all_scores import all_scores, can_score
from .gallery.compiled import CoreThreads
from .gpu import device_index, examine_gpu
from .halves import as_float32
from .pictures.load import Picture, load_pixels
from .regions import PictureBackbone, Regions, with_grid_boxes
from .tensor_checks import as_lengths, check_array, check_finite, check_lengths
from .text import Tokenizer, checked_captions, load_tokenizer, pad_rows

_log = logging.getLogger(__name__)
NEEDED = ("region_encoder", "text_encoder", "hard_alignment")
# Similarities [I, R, C, W] of one block: 64 MiB of float32.
BLOCK = 1 << 24
OWN_BATCH = 2  # pictures that a backbone of the caller is given at once


class Matcher:
    """Encodes, scores and explains with the graphs of one bundle.

    May be used from several threads at once where its backend's `run` may (onnxruntime: yes); nothing else is shared.
    Close it, best by `with`.

    Attributes:
        manifest: of the bundle.
        alignment: how similarities become scores.
        backend: the name of the backend that scores, also where `auto` was asked for.
        placement: the name of each graph's backend.
        precision: as asked for.
        backend_report: where `auto` was asked for, each better backend and why it was passed over.
        placement_report: where `auto` was asked for and took a GPU, what was measured to place the graphs.
    """

    def __init__(
        self,
        bundle: str | Path,
        manifest: Manifest,
        tokenizer: Tokenizer,
        backends: Mapping[str, Backend],
        precision: str,
        threads: int | None = None,
        backbone: PictureBackbone | None = None,
        gpu: int = 0,
    ) -> None:
        """For tests and for those who open backends themselves; otherwise use `Matcher.open`."""
        missing = [graph for graph in NEEDED if graph not in backends]
        if missing:
            raise BundleError(f"a matcher needs the graphs {', '.join(missing)}, which were not given")
        _check_vocabulary(manifest, tokenizer)
        self.manifest = manifest
        self.alignment: AlignmentConfig = manifest.alignment
        self.tokenizer = tokenizer
        self.backend = backends["hard_alignment"].name
        self.precision = precision
        self.backend_report: Mapping[str, str] = {}
        self.placement_report: Placement | None = None
        self._bundle = Path(bundle).resolve()  # graphs opened later are found after a change of the working directory
        self._threads = threads
        self._gpu = gpu
        self._core_threads = CoreThreads(threads)
        self._backbone = backbone
        self._backends = dict(backends)
        self.placement: Mapping[str, str] = {graph: backend.name for graph, backend in backends.items()}
        self._closed = False
        self._opening = threading.Lock()

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        backend: str = "auto",
        precision: str = "fp32",
        threads: int | None = None,
        backbone: PictureBackbone | None = None,
        batch: int = 1,
        device: str = "cuda",
    ) -> Matcher:
        """Open a bundle, every file checked by its hash.

        Args:
            bundle: folder that `chan export` wrote.
            backend: `tensorrt`, `tensorrt_rtx`, `onnxruntime_cuda`, `onnxruntime_rtx`, `onnxruntime`, or `auto`: the
                first of these on which the graphs really run here.
            precision: `fp32`, `fp16`, `int8` (TensorRT) or `int8_x86` (onnxruntime on the CPU); of int8, a graph that
                has no such form runs at the next finer one (`Manifest.resolve`).
            threads: CPU threads of onnxruntime; None for one per CPU this process may use.
            backbone: what turns pictures into regions in place of the bundle's own backbone.
            batch: how many images or captions a call will usually have. Where a GPU is at hand, `auto` runs each graph
                there or on the CPU, where calls of that size are faster; it measures once (`placement`).
            device: the GPU of a backend that runs on one: `cuda`, the first that CUDA shows, or `cuda:N`.

        Raises:
            BundleError: no bundle, an altered file, or no graph at that precision.
            BackendError: the backend cannot run here.
            InputError: device names no GPU, several, one that is not there, or one beside the backend of the CPU.
        """
        gpu = _gpu_index(device, backend)
        manifest = Manifest.load(bundle)
        tokenizer = load_tokenizer(bundle, manifest.tokenizer)
        precisions = {graph: manifest.resolve(graph, precision) for graph in NEEDED}
        opened = open_graphs(backend, bundle, manifest, precisions, threads=threads, batch=batch, gpu=gpu)
        matcher = cls(bundle, manifest, tokenizer, opened.backends, precision, threads, backbone, gpu)
        matcher.backend_report = opened.passed_over
        matcher.placement_report = opened.placement
        _log.info("opened %s with %s at %s", bundle, matcher.backend, precision)
        return matcher

    @property
    def preprocess(self) -> Preprocess:
        """How the backbone reads pictures.

        Raises:
            BundleError: there is no backbone.
        """
        if self._backbone is not None:
            return self._backbone.preprocess
        if self.manifest.preprocess is None:
            raise BundleError(
                "this bundle starts from region features: it has no backbone. Encode features (encode_images; "
                "`chan index BUNDLE DATA`), or give or export the backbone that they were made with (--backbone)"
            )
        return self.manifest.preprocess

    @property
    def max_words(self) -> int:
        """The largest number of words of a caption (W), the marks of its start and end included."""
        return self._open("text_encoder").ranges["W"].max

    def encode_images(self, regions: Array, lengths: Array | None = None) -> Embeddings:
        """Encode the regions of B images.

        Args:
            regions: [B, R, F] float32; what lies past an image's length is ignored.
            lengths: [B] integers, how many regions each image has; None where all have R.

        Raises:
            TensorError: an array breaks its rule: dtype, rank, width, finite values, lengths, at most as many regions
                as the graph takes.
        """
        width = self.manifest.region_dim
        check_array("regions", regions, np.float32, ("B", "R", width))
        sizes = np.full(len(regions), regions.shape[1]) if lengths is None else lengths
        sizes = as_lengths("region_lengths", sizes)
        check_lengths("region_lengths", sizes, regions.shape[:2])
        check_finite("regions", regions, sizes)
        return self._encode("region_encoder", regions, sizes, "regions", "R", "images")

    def encode_images_on_device(self, regions: Any, lengths: Any, out: Any | None = None) -> Any:
        """Encode the regions of B images that lie on the matcher's GPU; neither they nor the result visit the host.

        Tensors are of any library that supports DLPack, such as torch. What it has queued on its current stream comes
        first, and when the call returns, the result is there. The values are not looked at, for that would be a visit.

        Args:
            regions: [B, R, F] float32, dense; what lies past an image's length is ignored.
            lengths: [B] int32 from 1 to R, how many regions each image has; others give wrong vectors.
            out: [B, R, D], where to write the result; None for memory of its own, which takes time to allocate.

        Returns:
            out, or a DLPack tensor (`torch.from_dlpack` reads it): [B, R, D] float32, at precision fp16 float16; exact
            zeros past each image's length.

        Raises:
            TensorError: a dtype or a shape breaks its rule, also one that the graph does not take in one piece, or a
                tensor does not begin at a multiple of 256 bytes.
            BackendError: the backend takes no such tensors, a tensor lies elsewhere or is not dense, or CUDA failed.
        """
        backend = self._open("region_encoder")
        if not isinstance(backend, OnDevice):
            raise BackendError(
                f"the region encoder runs with {backend.name}, which takes no tensors of GPU memory: open the bundle "
                f"with one of the backends {', '.join(ON_DEVICE)}, or pass arrays to encode_images"
            )
        output = backend.spec.outputs[0].name
        feeds = {tensor.name: given for tensor, given in zip(backend.spec.inputs, (regions, lengths), strict=True)}
        return backend.run_on_device(feeds, None if out is None else {output: out})[output]

    @property
    def pictures_at_once(self) -> int:
        """How many pictures the backbone is given together; BundleError where the bundle has none."""
        if self._backbone is None and self.preprocess is not None:  # it raises the error of a missing backbone
            return self._open("backbone").ranges["B"].max
        return OWN_BATCH

    def encode_pictures(self, pictures: Sequence[Picture]) -> Embeddings:
        """Encode picture files or open Pillow images with the bundle's backbone.

        The backbone runs at the matcher's precision where the bundle has it so, otherwise at the next finer.

        Returns:
            Embeddings with `boxes`, where the backbone returns a box for each region.

        Raises:
            BundleError: the bundle has no backbone.
            InputError: one path in place of a list, no pictures, or one that cannot be read.
            BackendError: the backbone returned numbers that break its rules (`runtime.regions`).
        """
        preprocess = self.preprocess
        pictures = as_list("pictures", pictures)
        if not pictures:
            raise InputError("pictures must hold at least one picture, got none")
        if self._backbone is not None:
            own = self._backbone
            steps = range(0, len(pictures), OWN_BATCH)
            return Embeddings.concatenate(
                [self.encode_regions(_own_regions(own, pictures[start : start + OWN_BATCH])) for start in steps]
            )
        backbone = self._open("backbone")
        parts = []
        for rows in pieces(len(pictures), backbone.ranges["B"]):
            pixels = load_pixels(pictures[rows], preprocess)
            try:
                regions = Regions.of_outputs(run_rows(backbone, {"pixels": pixels}), preprocess, len(pixels))
            except TensorError as error:
                raise BackendError(f"the bundle's backbone on {backbone.name} failed: {error}") from error
            parts.append(self.encode_regions(regions))
        return Embeddings.concatenate(parts)

    def encode_regions(self, regions: Regions) -> Embeddings:
        """Encode the regions of pictures, as a backbone returns them, and keep their boxes.

        Raises:
            TensorError: as in `encode_images`.
        """
        return replace(self.encode_images(regions.features, regions.lengths), boxes=regions.boxes)

    def encode_texts(self, captions: Sequence[str]) -> Embeddings:
        """Encode the words of captions, their start and end marks included.

        Captions are run in groups of similar length, so that little is computed on padding.

        Raises:
            InputError: no captions, one without a word, or not a string.
            TensorError: a caption of more words than the graph takes.
        """
        captions = checked_captions(captions)
        rows = self.tokenizer.rows(captions)
        limit = self.max_words
        for number, row in enumerate(rows):
            if len(row) > limit:
                raise TensorError(
                    f"token_ids[{number}]",
                    f"a caption must have at most {counted(limit, 'word')}, start and end included "
                    f"({captions[number][:40]!r}...)",
                    len(row),
                )
        batch = pad_rows(rows)
        return self._encode("text_encoder", batch.ids, batch.lengths, "token_ids", "W", "captions")

    def score(self, images: Embeddings, texts: Embeddings) -> NDArray[np.float32]:
        """Score every image with every caption, block by block in bounded memory; returns [I, C].

        Where onnxruntime's float32 graph would run on the CPU, the compiled core computes the same scores sooner.

        Raises:
            TensorError: captions where images belong or the reverse; embeddings of another width, NaN or infinite,
                or longer than the graph takes.
            BackendError: a score is not finite, or the graph cannot be run.
        """
        _check_kinds(images, texts)
        if self._core_scores():
            self._check_pair("hard_alignment", images, texts)
            scores = all_scores(images, texts, self.alignment, self._core_threads)
        else:
            scores = np.empty((len(images), len(texts)), np.float32)
            for image_rows, text_rows, outputs in self._align("hard_alignment", images, texts):
                scores[np.ix_(image_rows, text_rows)] = outputs["scores"]
        if not np.isfinite(scores.sum(dtype=np.float64)) and not np.isfinite(scores).all():
            image, text = (int(index) for index in np.argwhere(~np.isfinite(scores))[0])
            raise BackendError(
                f"{self.backend} at {self.precision} returned the score {scores[image, text]} for image {image} and "
                f"caption {text}: {self._way_out()}"
            )
        return scores

    def align(self, images: Embeddings, texts: Embeddings) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Find each word's most similar region, for every image and caption.

        Returns:
            word_scores [I, C, W] float32, 0 past the caption's length; word_regions [I, C, W] int32, -1 there; ties go
            to the lower region. W is that of `texts`.

        Raises:
            TensorError: as in `score`.
        """
        _check_kinds(images, texts)
        shape = (len(images), *texts.vectors.shape[:2])
        word_scores, word_regions = np.zeros(shape, np.float32), np.full(shape, -1, np.int32)
        for image_rows, text_rows, outputs in self._align("alignment_map", images, texts):
            words = np.arange(min(shape[2], outputs["word_scores"].shape[2]))
            block = np.ix_(image_rows, text_rows, words)
            word_scores[block] = outputs["word_scores"][:, :, : len(words)]
            word_regions[block] = outputs["word_regions"][:, :, : len(words)]
        return word_scores, word_regions

    def explain(self, image: Embeddings, caption: str) -> Explanation:
        """Explain a score: the region of an image that each word of a caption chose.

        With VHA coding these choices are the score: each word's similarity to its best region is pooled. With THA and
        VSA the regions choose, and the score is pooled over regions; shown is still each word's most similar region,
        and the share is that of `explanation.shares`.

        Args:
            image: one row of `encode_images` or `encode_pictures`.
            caption: one caption.

        Raises:
            InputError: more than one image, or a caption without a word.
        """
        if not isinstance(image, Embeddings):
            kind = type(image).__name__
            raise InputError(f"image must be a row of what encode_images or encode_pictures returned, got {kind}")
        if len(image) != 1:
            raise InputError(f"image must be one row of embeddings, got {len(image)}: pass images[row]")
        text = self.encode_texts([caption])
        score = float(self.score(image, text)[0, 0])
        word_scores, word_regions = self.align(image, text)
        similarities = [float(similarity) for similarity in word_scores[0, 0]]
        parts = shares(image.vectors[0, : image.lengths[0]], text.vectors[0], similarities, self.alignment)
        words, known = self.tokenizer.tokens(caption), self.tokenizer.known(caption)
        grid = self.manifest.preprocess.grid if self.manifest.preprocess is not None and image.boxes is None else None
        grid = grid if grid is not None and grid * grid == image.lengths[0] else None
        matches = zip(words, word_regions[0, 0].tolist(), similarities, parts.tolist(), known, strict=True)
        boxes = None if image.boxes is None else tuple(map(tuple, image.boxes[0, : image.lengths[0]].tolist()))
        return Explanation(score, tuple(WordMatch(*match) for match in matches), grid, boxes)

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a caption that the vocabulary lacks, each once: the model takes all of them for one word.

        For a BERT model these are the words without wordpieces, as `[UNK]`.

        Raises:
            InputError: the caption has no word.
        """
        pairs = zip(self.tokenizer.tokens(caption), self.tokenizer.known(caption), strict=True)
        return list(dict.fromkeys(word for word, known in pairs if not known))

    def directions(self, kind: Kind) -> NDArray[np.float32] | None:
        """The directions [r, D] of the embeddings of a kind, where the bundle was calibrated; see `read_directions`."""
        return read_directions(self._bundle, self.manifest, kind)

    def close(self) -> None:
        """Close every graph; closing twice does no harm."""
        with self._opening:
            self._closed = True
            self._core_threads.close()
            for backend in self._backends.values():
                backend.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, graph: str) -> Backend:
        """A graph of the bundle; one that not every use needs is opened when the first does.

        Raises:
            BackendError: the matcher is closed, or the graph cannot be opened.
        """
        with self._opening:
            if self._closed:
                raise BackendError("this matcher is closed; open it again with Matcher.open")
            if graph not in self._backends:
                precision = self.manifest.resolve(graph, self.precision)
                self._backends[graph] = self._open_graph(graph, precision)
            return self._backends[graph]

    def _open_graph(self, graph: str, precision: str) -> Backend:
        """Open a graph with the backend at work; a backbone without a usable engine with onnxruntime."""
        what = self._bundle, self.manifest, graph, precision
        try:
            return open_graph(self.backend, *what, threads=self._threads, gpu=self._gpu)
        except EngineError as error:
            if graph != "backbone":
                raise
            _log.warning("the backbone runs with onnxruntime: %s", error)
            return open_graph(CPU_BACKEND, *what, threads=self._threads)

    def _encode(
        self, graph: str, rows: Array, lengths: NDArray[np.int32], tensor: str, symbol: str, kind: Kind
    ) -> Embeddings:
        """Run an encoder over rows [B, L, ...], similar lengths together, and put its output back in order."""
        backend = self._open(graph)
        width, spec_inputs, output = rows.shape[1], backend.spec.inputs, backend.spec.outputs[0].name
        limit, step = backend.ranges[symbol], backend.step if symbol == "W" else 1
        if lengths.max() > limit.max:
            row = int(lengths.argmax())
            raise TensorError(f"{tensor}[{row}]", f"{symbol} must be at most {limit.max}", int(lengths[row]))
        result = np.empty((len(rows), width, self.manifest.embed_dim), np.float32)
        order = np.argsort(lengths, kind="stable")
        for piece in pieces(len(rows), backend.ranges["B"]):
            chosen = order[piece]
            longest = int(lengths[chosen].max())
            feeds = {
                spec_inputs[0].name: cut_rows(
                    take_rows(rows, chosen), lengths[chosen], padded_width(longest, limit, step)
                ),
                spec_inputs[1].name: lengths[chosen],
            }
            vectors = as_float32(run_rows(backend, feeds)[output])
            if vectors.shape == result.shape and follow_each_other(chosen):
                result = vectors  # all rows, in their order: a copy would take as long as encoding them on a GPU
            else:
                result[chosen, :longest], result[chosen, longest:] = vectors[:, :longest], 0
        encoded = Embeddings(result, lengths, kind)
        try:
            check_finite(output, encoded.vectors, lengths)
        except TensorError as error:
            raise BackendError(f"{backend.name} at {self.precision} failed: {error}; {self._way_out()}") from error
        return encoded

    def _way_out(self) -> str:
        """What to do where a graph returned NaN or an infinity."""
        if self.precision != "fp32":
            return "use precision fp32"
        return "its inputs or the model's weights are too large for float32"

    def _core_scores(self) -> bool:
        """Whether the compiled core scores in place of the graph: it computes what the float32 one does on the CPU."""
        return (
            self.backend == CPU_BACKEND
            and self.manifest.resolve("hard_alignment", self.precision) == "fp32"
            and can_score(self.alignment)
        )

    def _check_pair(self, graph: str, images: Embeddings, texts: Embeddings) -> Backend:
        """The graph that takes these images and captions; the errors are those of `score`."""
        backend = self._open(graph)
        ranges = backend.ranges
        _check_embeddings("region_embeddings", images, self.manifest.embed_dim, ("R", ranges["R"].max))
        _check_embeddings("word_embeddings", texts, self.manifest.embed_dim, ("W", ranges["W"].max))
        return backend

    def _align(
        self, graph: str, images: Embeddings, texts: Embeddings
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], dict[str, Array]]]:
        """Run a graph of (images, captions) in blocks: rows of images, rows of captions, outputs."""
        backend = self._check_pair(graph, images, texts)
        ranges = backend.ranges
        dtypes = {tensor.name: tensor.dtype for tensor in backend.spec.inputs}
        captions = [
            Block.of(texts, rows, dtypes["word_embeddings"], ranges["W"], backend.step)
            for rows in groups(texts.lengths, ranges["C"], ranges["C"].opt)
        ]
        area = max(block.vectors.shape[0] * block.vectors.shape[1] for block in captions)
        most = max(1, BLOCK // (area * int(images.lengths.max())))
        for image_rows in groups(images.lengths, ranges["I"], most):
            image = Block.of(images, image_rows, dtypes["region_embeddings"], ranges["R"])
            for caption in captions:
                feeds = {
                    "region_embeddings": padded(image.vectors, ranges["I"].min),
                    "region_lengths": padded(image.lengths, ranges["I"].min),
                    "word_embeddings": padded(caption.vectors, ranges["C"].min),
                    "word_lengths": padded(caption.lengths, ranges["C"].min),
                }
                outputs = backend.run(feeds)
                here = {name: array[: len(image.rows), : len(caption.rows)] for name, array in outputs.items()}
                yield image.rows, caption.rows, here


def _gpu_index(device: str, backend: str) -> int:
    """The number of the GPU that `Matcher.open` is asked for; InputError where there is none of that name."""
    index = device_index(device)
    if device != "cuda":
        if backend == CPU_BACKEND:
            raise InputError(f"device must be cuda with the backend {backend}, which uses no GPU, got {device!r}")
        examine_gpu().only(index)
    return index


def _own_regions(backbone: PictureBackbone, pictures: Sequence[Picture]) -> Regions:
    """The regions of pictures with their boxes, also those of a grid: the bundle does not know the grid."""
    regions = backbone.regions(load_pixels(pictures, backbone.preprocess))
    grid = backbone.preprocess.grid
    return regions if grid is None else with_grid_boxes(regions, grid)


def _check_vocabulary(manifest: Manifest, tokenizer: Tokenizer) -> None:
    """Refuse ids past the embedding: one backend raises an error for them, another returns wrong numbers."""
    sizes = manifest.model.get("bert") or manifest.model
    rows = sizes.get("vocab_size")
    if rows is not None and tokenizer.vocab_size > rows:
        raise BundleError(
            f"tokenizer: its ids must be below the {counted(rows, 'row')} of the word embedding, got "
            f"{counted(tokenizer.vocab_size, 'id')}"
        )


def _check_kinds(images: Embeddings, texts: Embeddings) -> None:
    check_embeddings("images", images)
    check_embeddings("texts", texts)
    if images.kind == "captions":
        raise TensorError("images", "must be of images, and the captions come second: swap the two", "captions")
    if texts.kind == "images":
        raise TensorError("texts", "must be of captions, and the images come first", "images")


def _check_embeddings(tensor: str, embeddings: Embeddings, dim: int, limit: tuple[str, int]) -> None:
    if embeddings.dim != dim:
        raise TensorError(tensor, f"D must be {dim}", embeddings.dim)
    symbol, most = limit
    if embeddings.lengths.max() > most:
        row = int(embeddings.lengths.argmax())
        raise TensorError(f"{tensor}[{row}]", f"{symbol} must be at most {most}", int(embeddings.lengths[row]))
    check_finite(tensor, embeddings.vectors, embeddings.lengths)
