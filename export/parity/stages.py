"""The checks of one stage: each graph fed what the reference has at that place, then the whole way end to end.

The first block is run a second time with shorter lengths and real rows past them. That tests the masks also where every
image has the same number of regions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ...chan_ref.backbones.base import Backbone
from ...runtime.embeddings import Embeddings
from ...runtime.gallery import Gallery, GallerySettings, GalleryWriter
from ...runtime.matcher import Matcher
from ...runtime.pictures.load import load_pixels
from ...runtime.regions import Regions
from ..region_match import match_regions
from .blocks import (
    EmbeddingStore,
    Tick,
    caption_blocks,
    cut_short,
    image_blocks,
    own_pairs,
    score_all,
    steps_of,
    token_block,
)
from .independent import Encode
from .measures import TOP, ChoiceMeter, ErrorMeter, compare_lists, compare_scores
from .reference import Reference
from .report import Measured
from .runners import GraphRunner

PICTURES_PER_BLOCK = 2  # larger batches are no faster on a CPU and take far more memory
OTHER_BLOCKS = 3  # of captions that another text encoder reads
QUERIES = 200  # captions that are searched for in the gallery, spread evenly
SCATTER = 4000  # score pairs kept for the plot


class StageRun:
    """One stage at work.

    Args:
        reference: of the sample.
        graphs: each graph by itself.
        matcher: the whole of them as a service uses it.
        scratch: an empty folder to keep embeddings in.
        tick: called with blocks done and blocks in all.
    """

    def __init__(
        self,
        reference: Reference,
        graphs: GraphRunner,
        matcher: Matcher,
        scratch: Path,
        tick: Tick,
    ) -> None:
        self._reference = reference
        self._sample = reference.sample
        self._runner = reference.runner
        self._graphs, self._matcher = graphs, matcher
        self._scratch = scratch
        self._images, self._captions = EmbeddingStore(scratch / "images"), EmbeddingStore(scratch / "captions")
        self._tick = tick
        self._done = 0

    def checks(self) -> dict[str, Callable[[], Measured]]:
        """Each part's check, in the order of the data."""
        parts: dict[str, Callable[[], Measured]] = {"tokenizer": self._tokenizer}
        readings = self._reference.readings
        if readings.tokenizer:
            parts[readings.tokenizer] = self._other_tokenizer
        if self._reference.backbone is not None and self._graphs.has_backbone:
            boxed = self._reference.backbone.preprocess.grid is None
            check = self._detector if boxed else self._backbone
            parts["detector" if boxed else "backbone"] = partial(check, self._reference.backbone)
        parts |= {"region_encoder": self._region_encoder, "text_encoder": self._text_encoder}
        if readings.encode is not None:
            parts[readings.text_encoder] = partial(self._other_text_encoder, readings.encode)
        return parts | {
            "hard_alignment": self._hard_alignment,
            "alignment_map": self._alignment_map,
            "matcher": self._end_to_end,
            "gallery": self._gallery,
        }

    def _tokenizer(self) -> Measured:
        found = self._matcher.tokenizer.rows(self._sample.captions)
        return Measured({"different_ids": sum(a != b for a, b in zip(self._reference.rows, found, strict=True))})

    def _other_tokenizer(self) -> Measured:
        found = self._matcher.tokenizer.rows(self._sample.captions)
        return Measured({"different_ids": self._reference.readings.different(found)})

    def _backbone(self, backbone: Backbone) -> Measured:
        meter = ErrorMeter("regions")
        for pixels in self._pixels(backbone):
            meter.add(backbone.regions(pixels).features, self._graphs.encode_pixels(pixels)["regions"])
        return _measured(meter)

    def _detector(self, backbone: Backbone) -> Measured:
        """The regions that both find, and how many these are."""
        meter, found = ErrorMeter("regions"), []
        for pixels in self._pixels(backbone):
            expected, candidate = backbone.outputs(pixels), self._graphs.encode_pixels(pixels)
            Regions.of_outputs(candidate, backbone.preprocess, len(pixels))  # its boxes are inside the picture
            matched = match_regions(expected, candidate)
            meter.add(matched.reference, matched.candidate)
            found.append(matched.found)
        measured = _measured(meter)
        return replace(measured, measures={**measured.measures, "regions_found": float(np.mean(found))})

    def _pixels(self, backbone: Backbone) -> Iterator[np.ndarray]:
        pictures = self._reference.pictures
        step = PICTURES_PER_BLOCK if backbone.preprocess.grid is not None else 1
        for start in range(0, len(pictures), step):
            yield load_pixels(pictures[start : start + step], backbone.preprocess)

    def _region_encoder(self) -> Measured:
        meter = ErrorMeter("region_embeddings")
        for block in image_blocks(self._sample):
            regions, lengths = self._sample.regions(block)
            expected = self._reference.images.get(block).vectors
            meter.add_padded(expected, self._graphs.encode_regions(regions, lengths), lengths)
            if block.start == 0:
                short = cut_short(lengths)
                expected = self._runner.encode_regions(regions, short)
                meter.add_padded(expected, self._graphs.encode_regions(regions, short), short)
            self._step()
        return _measured(meter, padded=True)

    def _text_encoder(self) -> Measured:
        meter = ErrorMeter("word_embeddings")
        for block in caption_blocks(self._sample):
            ids, lengths = token_block(self._reference.tokens, block)
            expected = self._reference.captions.get(block).vectors
            meter.add_padded(expected, self._graphs.encode_words(ids, lengths), lengths)
            if block.start == 0:
                short = cut_short(lengths)
                expected = self._runner.encode_words(ids, short)
                meter.add_padded(expected, self._graphs.encode_words(ids, short), short)
            self._step()
        return _measured(meter, padded=True)

    def _other_text_encoder(self, encode: Encode) -> Measured:
        """Some of the captions, because another BERT takes as long as the first."""
        meter = ErrorMeter("word_embeddings")
        blocks = caption_blocks(self._sample)
        for block in blocks[:: -(-len(blocks) // OTHER_BLOCKS)]:
            ids, lengths = token_block(self._reference.tokens, block)
            real = np.arange(ids.shape[1]) < lengths[:, None]
            expected = np.where(real[:, :, None], encode(ids, lengths), np.float32(0))
            meter.add_padded(expected, self._graphs.encode_words(ids, lengths), lengths)
        return _measured(meter, padded=True)

    def _hard_alignment(self) -> Measured:
        meter = ErrorMeter("scores")
        for images, captions in _alignment_feeds(self._reference):
            meter.add(self._runner.score(images, captions), self._graphs.score(images, captions))
        return _measured(meter)

    def _alignment_map(self) -> Measured:
        meter, choices = ErrorMeter("word_scores"), ChoiceMeter()
        for images, captions in _alignment_feeds(self._reference):
            expected, expected_regions = self._runner.align(images, captions)
            found, found_regions = self._graphs.align(images, captions)
            # Each caption's similarities as rows of one number, so that its padding is checked as well.
            lengths = np.tile(captions.lengths, len(images))
            meter.add_padded(_as_rows(expected), _as_rows(found), lengths)
            choices.add(expected_regions, found_regions, self._runner.margins(images, captions))
        found_all = _measured(meter, padded=True)
        # The cosine of single numbers has no meaning.
        errors = {name: value for name, value in found_all.measures.items() if not name.startswith("cosine")}
        return replace(found_all, measures=errors | choices.measures())

    def _end_to_end(self) -> Measured:
        sample, reference = self._sample, self._reference
        images, captions = self._images, self._captions
        for block in image_blocks(sample):
            images.put(block, self._matcher.encode_images(*sample.regions(block)))
        for block in caption_blocks(sample):
            captions.put(block, self._matcher.encode_texts(sample.captions[block]))
        choices = ChoiceMeter()
        for rows, columns in own_pairs(sample):
            _, found = self._matcher.align(images.get(rows), captions.get(columns))
            feeds = reference.images.get(rows), reference.captions.get(columns)
            choices.add(self._runner.align(*feeds)[1], found, self._runner.margins(*feeds))
        scores = score_all(sample, images, captions, self._matcher.score, self._step)
        measures, meter, recalls = compare_scores(reference.scores, scores, sample.image_of_caption)
        pairs = _scatter(reference.scores, scores, sample.image_of_caption)
        return Measured(measures | choices.measures(), tuple(meter.histogram()), recalls, pairs)

    def _gallery(self) -> Measured:
        """The exact search over what the matcher encoded, each caption's top 10 against the reference's scores."""
        settings = GallerySettings("images", self._matcher.manifest.embed_dim, self._matcher.alignment, model="parity")
        with GalleryWriter.create(self._scratch / "gallery", settings) as writer:
            for block in image_blocks(self._sample):
                writer.add([str(row) for row in range(block.start, block.stop)], self._images.get(block))
        step = -(-len(self._sample.captions) // QUERIES)
        queried, results = [], []
        with Gallery.open(self._scratch / "gallery") as gallery:
            for block in caption_blocks(self._sample):
                rows = [row for row in range(block.start, block.stop) if row % step == 0]
                if rows:
                    words = self._captions.get(block)[[row - block.start for row in rows]]
                    results += gallery.search(words, TOP)
                    queried += rows
        hits = np.array([[int(hit.id) for hit in result.hits] for result in results])
        scores = self._reference.scores.T[queried]
        meter = ErrorMeter("scores")
        found = np.array([[hit.score for hit in result.hits] for result in results])
        meter.add(np.take_along_axis(scores, hits, axis=1), found)
        measured = _measured(meter)
        uncertified = sum(not result.certified for result in results)
        lists = compare_lists(scores, hits)
        return replace(measured, measures={**measured.measures, **lists, "uncertified": uncertified})

    def _step(self) -> None:
        self._done += 1
        self._tick(self._done, steps_of(self._sample))


def _measured(meter: ErrorMeter, padded: bool = False) -> Measured:
    measures = meter.measures()
    if not padded:
        del measures["padding"]
    return Measured(measures, tuple(meter.histogram()))


def _as_rows(word_scores: np.ndarray) -> np.ndarray:
    """[I, C, W] -> [I C, W, 1]."""
    return word_scores.reshape(-1, word_scores.shape[-1], 1)


def _alignment_feeds(reference: Reference) -> Iterator[tuple[Embeddings, Embeddings]]:
    for rows, columns in own_pairs(reference.sample):
        images, captions = reference.images.get(rows), reference.captions.get(columns)
        yield images, captions
        if columns.start == 0:
            yield (
                Embeddings(images.vectors, cut_short(images.lengths)),
                Embeddings(captions.vectors, cut_short(captions.lengths)),
            )


def _scatter(reference: np.ndarray, candidate: np.ndarray, image_of_caption: np.ndarray) -> np.ndarray:
    """Half true pairs, half any, as many as the plot needs: [n, 2]; always the same ones."""
    rng = np.random.default_rng(0)
    columns = np.arange(reference.shape[1])
    own = rng.permutation(columns)[: SCATTER // 2]
    rows = np.concatenate([image_of_caption[own], rng.integers(0, reference.shape[0], len(own))])
    columns = np.concatenate([own, rng.integers(0, reference.shape[1], len(own))])
    return np.stack([reference[rows, columns], candidate[rows, columns]], axis=1)
