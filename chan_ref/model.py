"""The whole CHAN model: a region encoder, a text encoder and the hard alignment of their embeddings."""

from __future__ import annotations

from torch import Tensor, nn

from . import alignment
from .config import ModelConfig
from .encoders import BertTextEncoder, BiGRUTextEncoder, RegionEncoder


class ChanModel(nn.Module):
    """Encodes images and captions, and scores each image with each caption.

    Args:
        config: sizes and choices; available as `.config`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.region_encoder = RegionEncoder(config)
        self.text_encoder = BiGRUTextEncoder(config) if config.text_encoder == "bigru" else BertTextEncoder(config)

    def encode_regions(self, regions: Tensor, region_lengths: Tensor) -> Tensor:
        """Encode regions: [B, R, F], [B] -> [B, R, D]; see `RegionEncoder`."""
        embeddings: Tensor = self.region_encoder(regions, region_lengths)
        return embeddings

    def encode_words(self, token_ids: Tensor, token_lengths: Tensor) -> Tensor:
        """Encode captions: [B, W], [B] -> [B, W, D]; see `BiGRUTextEncoder` and `BertTextEncoder`."""
        embeddings: Tensor = self.text_encoder(token_ids, token_lengths)
        return embeddings

    def score(
        self, region_embeddings: Tensor, region_lengths: Tensor, word_embeddings: Tensor, word_lengths: Tensor
    ) -> Tensor:
        """Score embeddings: [I, R, D], [I], [C, W, D], [C] -> [I, C]; see `alignment.score`."""
        return alignment.score(region_embeddings, region_lengths, word_embeddings, word_lengths, self.config.alignment)

    def forward(self, regions: Tensor, region_lengths: Tensor, token_ids: Tensor, token_lengths: Tensor) -> Tensor:
        """Score raw inputs: [I, R, F], [I], [C, W], [C] -> [I, C]."""
        return self.score(
            self.encode_regions(regions, region_lengths),
            region_lengths,
            self.encode_words(token_ids, token_lengths),
            token_lengths,
        )
