"""The choices of a training run, and what each of its epochs leaves in the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..runtime.checks import check_choice
from ..runtime.contract import AlignmentConfig
from ..runtime.errors import CheckpointError, InputError
from ..runtime.evaluation.metrics import Recalls
from .config import RegionEncoderKind, TextEncoderKind

LossKind = Literal["hinge", "infonce"]


@dataclass(frozen=True)
class TrainConfig:
    """Every choice of a run; the defaults are the published GRU model's.

    Attributes:
        embed_dim: D.
        word_dim: width of the word embedding (`bigru`).
        region_encoder: `basic` or `selfattention`.
        text_encoder: `bigru` or `bert`.
        bert: folder of pretrained BERT weights (`bert`).
        alignment: coding, pooling and their temperatures.
        loss: `hinge` (margin 0.05: all violations for `warmup_epochs`, then each query's hardest) or `infonce`.
        warmup_epochs: small data need more than the published 1: a model not yet far from chance collapses when only
            the hardest negatives pull at it (seen as a loss of twice the margin and recalls of chance).
        epochs, batch_size: batch_size 0 stands for the published one: 384 for `bigru`, 128 for `bert`.
        learning_rate, drop_epoch: AdamW's, a tenth of it from epoch `drop_epoch` on (counted from 0).
        bert_learning_rate, bert_weight_decay: those of BERT's own weights.
        region_drop: share of the regions dropped.
        word_drop: share of the words changed: half masked, a tenth random, the rest removed.
        min_count: a word enters the vocabulary when it occurs this often.
        seed: of everything random.
    """

    embed_dim: int = 1024
    word_dim: int = 300
    region_encoder: RegionEncoderKind = "selfattention"
    text_encoder: TextEncoderKind = "bigru"
    bert: str | None = None
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    loss: LossKind = "hinge"
    warmup_epochs: int = 1
    epochs: int = 25
    batch_size: int = 0
    learning_rate: float = 5e-4
    drop_epoch: int = 15
    bert_learning_rate: float = 5e-5
    bert_weight_decay: float = 1e-4
    region_drop: float = 0.2
    word_drop: float = 0.2
    min_count: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, get_args(LossKind))
        if (self.text_encoder == "bert") != (self.bert is not None):
            raise InputError(
                "bert, the folder of pretrained weights, must be given exactly when text_encoder is 'bert'"
            )
        for name in ("embed_dim", "word_dim", "epochs", "learning_rate", "bert_learning_rate", "min_count"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("batch_size", "drop_epoch", "warmup_epochs", "bert_weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("region_drop", "word_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    @property
    def pairs_per_step(self) -> int:
        """The batch size in force."""
        return self.batch_size or (384 if self.text_encoder == "bigru" else 128)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TrainConfig:
        """Read `asdict`'s data."""
        try:
            return cls(**{**raw, "alignment": AlignmentConfig(**raw["alignment"])})
        except (TypeError, KeyError, InputError) as error:
            raise CheckpointError(f"the run's options cannot be understood: {error!r}") from error


@dataclass(frozen=True)
class EpochLog:
    """One finished epoch, as a line of log.jsonl: the mean loss a pair, and the recalls on the validation images."""

    epoch: int
    loss: float
    learning_rate: float
    i2t: Recalls
    t2i: Recalls
    rsum: float
    best: bool

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> EpochLog:
        """Read `asdict`'s data."""
        try:
            return cls(**{**raw, "i2t": Recalls(**raw["i2t"]), "t2i": Recalls(**raw["t2i"])})
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"the run's log cannot be understood: {error!r}") from error
