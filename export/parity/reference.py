"""What the torch model makes of a sample, computed once for all stages."""

from __future__ import annotations

from pathlib import Path

from ...chan_ref.backbones.base import Backbone
from ...chan_ref.checkpoint import Checkpoint
from ...chan_ref.inference import open_tokenizer
from ...runtime.data.images import CaptionedImages, spread
from ...runtime.embeddings import Embeddings
from ...runtime.evaluation.metrics import evaluate
from ...runtime.text import pad_rows
from .blocks import EmbeddingStore, Tick, caption_blocks, image_blocks, score_all, steps_of, token_block
from .constant import Constant
from .independent import read_independently
from .runners import TorchRunner

PICTURES = 16  # that the backbone is run on: each costs a hundred times what a caption does


class Reference:
    """Everything the torch model computes for a sample: embeddings on disk, scores in memory.

    Args:
        path: of the checkpoint, whose tokenizer is the reference's.
        checkpoint: loaded.
        backbone: of the bundle; None leaves it unchecked.
        sample: images and captions.
        scratch: an empty folder to keep embeddings in.
        tick: called with blocks done and blocks in all.

    Attributes:
        pictures: files of some of the images, for the backbone.
        rows: token ids of each caption.
        readings: of the captions, by packages that share no code with this one.
        scores: [I, C].
        recalls: of the scores.
        constant: what the region features cannot show because they do not differ; empty where they do.
    """

    def __init__(
        self,
        path: Path,
        checkpoint: Checkpoint,
        backbone: Backbone | None,
        sample: CaptionedImages,
        scratch: Path,
        tick: Tick,
    ) -> None:
        self.sample = sample
        self.pictures = pictures_of(sample)
        self.backbone = backbone if self.pictures else None
        self.runner = TorchRunner(checkpoint.model)
        self.rows = open_tokenizer(checkpoint, path).rows(sample.captions)
        self.tokens = pad_rows(self.rows)
        self.readings = read_independently(checkpoint, sample.captions)
        self.images = EmbeddingStore(scratch / "images")
        self.captions = EmbeddingStore(scratch / "captions")
        blocks = caption_blocks(sample)
        constant = Constant()
        done, total = 0, steps_of(sample)
        for block in image_blocks(sample):
            regions, lengths = sample.regions(block)
            constant.add(regions, lengths)
            self.images.put(block, Embeddings(self.runner.encode_regions(regions, lengths), lengths))
            tick(done := done + 1, total)
        self.constant = constant.note()
        for block in blocks:
            ids, lengths = token_block(self.tokens, block)
            self.captions.put(block, Embeddings(self.runner.encode_words(ids, lengths), lengths))
            tick(done := done + 1, total)

        def scored() -> None:
            nonlocal done
            tick(done := done + 1, total)

        self.scores = score_all(sample, self.images, self.captions, self.runner.score, scored)
        self.recalls = evaluate(self.scores, sample.image_of_caption)


def pictures_of(sample: CaptionedImages) -> tuple[Path, ...]:
    """Files of at most PICTURES of the images, spread evenly; empty where one of these has no file.

    Raises:
        InputError: the data folder's id_mapping.json cannot be read.
    """
    files = sample.pictures()
    chosen = [files[position] for position in spread(sample.num_images, PICTURES)]
    found = tuple(file for file in chosen if file is not None)
    return found if len(found) == len(chosen) else ()
