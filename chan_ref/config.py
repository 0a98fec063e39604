"""Configuration of a CHAN model. It is frozen, so a model always matches its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from ..runtime.contract import AlignmentConfig
from ..runtime.errors import CheckpointError, InputError, reason_of

RegionEncoderKind = Literal["basic", "selfattention"]
TextEncoderKind = Literal["bigru", "bert"]


@dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder (bert-base-uncased by default)."""

    vocab_size: int = 30522
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    intermediate: int = 3072
    positions: int = 512
    segments: int = 2
    layer_norm_eps: float = 1e-12

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden", "layers", "heads", "intermediate", "positions", "segments"):
            _require_size(f"bert {name}", getattr(self, name))
        if not isinstance(self.layer_norm_eps, float) or not 0 < self.layer_norm_eps < 1:
            raise CheckpointError(f"bert layer_norm_eps must be a small positive number, got {self.layer_norm_eps!r}")
        if self.hidden % self.heads:
            raise CheckpointError(f"bert hidden must be a multiple of heads, got {self.hidden} and {self.heads}")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a CHAN model; the defaults are the published GRU model's.

    Attributes:
        region_dim: F, width of a region's feature vector.
        embed_dim: D, width of region and word embeddings.
        region_encoder: `basic` (linear) or `selfattention` (linear, then x + MHA(LN(x))).
        attention_heads: heads of `selfattention`.
        text_encoder: `bigru` or `bert`.
        vocab_size: rows of the word embedding (`bigru`).
        word_dim: width of the word embedding (`bigru`).
        bert: sizes of the BERT encoder (`bert`); None for `bigru`.
        normalize_regions, normalize_words: divide each embedding by its L2 norm + 1e-8.
        alignment: how similarities become scores.
    """

    region_dim: int = 2048
    embed_dim: int = 1024
    region_encoder: RegionEncoderKind = "selfattention"
    attention_heads: int = 8
    text_encoder: TextEncoderKind = "bigru"
    vocab_size: int = 0
    word_dim: int = 300
    bert: BertConfig | None = None
    normalize_regions: bool = True
    normalize_words: bool = True
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)

    def __post_init__(self) -> None:
        if self.region_encoder not in get_args(RegionEncoderKind):
            raise CheckpointError(f"region_encoder must be basic or selfattention, got {self.region_encoder!r}")
        if self.text_encoder not in get_args(TextEncoderKind):
            raise CheckpointError(f"text_encoder must be bigru or bert, got {self.text_encoder!r}")
        if (self.text_encoder == "bert") != (self.bert is not None):
            rule = "must be given" if self.bert is None else "must not be given"
            raise CheckpointError(f"bert (sizes of the BERT encoder) {rule} for text_encoder {self.text_encoder!r}")
        for name in ("region_dim", "embed_dim", "attention_heads"):
            _require_size(name, getattr(self, name))
        for name in ("normalize_regions", "normalize_words"):
            if type(getattr(self, name)) is not bool:
                raise CheckpointError(f"{name} must be true or false, got {getattr(self, name)!r}")
        if self.text_encoder == "bigru":
            _require_size("vocab_size", self.vocab_size)
            _require_size("word_dim", self.word_dim)
        if self.region_encoder == "selfattention" and self.embed_dim % self.attention_heads:
            raise CheckpointError(
                f"embed_dim must be a multiple of attention_heads, got {self.embed_dim} and {self.attention_heads}"
            )

    @property
    def max_words(self) -> int | None:
        """The largest number of wordpieces of a caption that BERT has positions for; None for a GRU."""
        return None if self.bert is None else self.bert.positions

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read the data that `to_dict` returns.

        Raises:
            CheckpointError: a key is unknown or missing, or a value breaks its rule.
        """
        try:
            fields = dict(raw)
            fields["alignment"] = AlignmentConfig(**fields["alignment"])
            if fields.get("bert") is not None:
                fields["bert"] = BertConfig(**fields["bert"])
            return cls(**fields)
        except (TypeError, ValueError, KeyError, InputError) as error:
            raise CheckpointError(f"the model configuration cannot be understood: {reason_of(error)}") from error


def _require_size(name: str, value: object) -> None:
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{name} must be a positive integer, got {value!r}")
