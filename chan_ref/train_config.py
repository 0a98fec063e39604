"""The choices of a training run, and the line of the log that each epoch adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..runtime.checks import check_choice
from ..runtime.contract import AlignmentConfig
from ..runtime.errors import CheckpointError, InputError, reason_of, shortened
from ..runtime.evaluation.metrics import Recalls
from .config import RegionEncoderKind, TextEncoderKind

TEMPERATURE = 0.01  # of infonce, as published
LossKind = Literal["hinge", "infonce"]
BertTuning = Literal["all", "frozen"]


@dataclass(frozen=True)
class TrainConfig:
    """Every choice of a run; the defaults are the published GRU model's.

    Attributes:
        embed_dim: width of the embeddings (D).
        word_dim: width of the word embedding (`bigru`).
        region_encoder: `basic` or `selfattention`.
        text_encoder: `bigru` or `bert`.
        bert: folder of pretrained BERT weights (`bert`).
        alignment: coding, pooling and their temperatures.
        loss: `hinge` (all violations for `warmup_epochs`, then each query's hardest) or `infonce`, both of margin 0.05.
        loss_temperature: temperature of `infonce`; the published value is 0.01.
        warmup_epochs: epochs in which `hinge` counts all violations. The published value is 1; small data need more,
            because a model that is still near chance collapses when it learns from the hardest negatives alone.
        epochs: number of passes over all pairs.
        patience: stop after so many epochs in a row without a better validation rsum; 0 never stops early.
        batch_size: pairs per step; 0 uses the published value, 384 for `bigru` and 128 for `bert`.
        learning_rate: learning rate of AdamW.
        drop_epoch: from this epoch on (counted from 0) the learning rates are a tenth.
        bert_learning_rate: learning rate of the weights of BERT (`bert`).
        bert_tuning: `all` trains every weight of BERT, as published; `frozen` keeps them, and trains only what follows.
        bert_weight_decay: weight decay of all weights of a model with BERT, as published; one without has AdamW's 0.01.
        region_drop: share of the regions that are dropped.
        word_drop: share of the words that are changed: half masked, a tenth random, the rest removed.
        min_count: number of occurrences from which a word enters the vocabulary (`bigru`).
        bf16: compute the encoders' matrix products in bfloat16; weights, scores and losses stay in float32.
        seed: seed of every random choice.
        start: folder of a checkpoint that is trained further; None begins with a new model. The checkpoint then decides
            the encoders, their widths and the alignment, whatever is given here.
    """

    embed_dim: int = 1024
    word_dim: int = 300
    region_encoder: RegionEncoderKind = "selfattention"
    text_encoder: TextEncoderKind = "bigru"
    bert: str | None = None
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    loss: LossKind = "hinge"
    loss_temperature: float = TEMPERATURE
    warmup_epochs: int = 1
    epochs: int = 25
    patience: int = 0
    batch_size: int = 0
    learning_rate: float = 5e-4
    drop_epoch: int = 15
    bert_tuning: BertTuning = "all"
    bert_learning_rate: float = 5e-5
    bert_weight_decay: float = 1e-4
    region_drop: float = 0.2
    word_drop: float = 0.2
    min_count: int = 4
    bf16: bool = False
    seed: int = 0
    start: str | None = None

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, get_args(LossKind))
        check_choice("bert_tuning", self.bert_tuning, get_args(BertTuning))
        if self.start is not None and self.bert is not None:
            raise InputError(f"bert must not be given with start, whose text encoder is kept, got {self.bert}")
        if self.text_encoder == "bert" and self.bert is None and self.start is None:
            raise InputError("text_encoder 'bert' needs bert, the folder of a pretrained model (--bert FOLDER)")
        if self.text_encoder != "bert" and self.bert is not None:
            raise InputError(
                f"bert is for text_encoder 'bert' only, got {self.bert} for {self.text_encoder!r} (--text-encoder bert)"
            )
        if self.bert is None and self.start is None and self.bert_tuning != "all":
            raise InputError(f"bert_tuning must be 'all' without bert, got {self.bert_tuning!r}")
        positive = ("embed_dim", "word_dim", "epochs", "learning_rate", "bert_learning_rate", "loss_temperature")
        for name in (*positive, "min_count"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("batch_size", "drop_epoch", "warmup_epochs", "patience", "bert_weight_decay", "seed"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "bert_learning_rate"):
            if getattr(self, name) > 1e30:  # AdamW computes with ten times as much, which float32 must hold
                raise InputError(f"{name} must be at most 1e30, got {getattr(self, name)}")
        if self.seed >= 2**63:
            raise InputError(f"seed must be below 2^63, got {shortened(str(self.seed), 40)}")
        for name in ("region_drop", "word_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    @property
    def pairs_per_step(self) -> int:
        """Return the number of pairs per step; the published one if `batch_size` is 0."""
        return self.batch_size or (384 if self.text_encoder == "bigru" else 128)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> TrainConfig:
        """Read the data that `dataclasses.asdict` returns; CheckpointError if a key is missing or unknown."""
        try:
            return cls(**{**raw, "alignment": AlignmentConfig(**raw["alignment"])})
        except (TypeError, KeyError, InputError) as error:
            raise CheckpointError(f"the run's options cannot be understood: {reason_of(error)}") from error


@dataclass(frozen=True)
class EpochLog:
    """A line of log.jsonl: the mean loss per pair of one epoch, and its recalls on the validation images.

    Attributes:
        collapsed: whether the model gives all pairs one score: its hinge loss is twice the margin, and its recalls are
            those of chance.
    """

    epoch: int
    loss: float
    learning_rate: float
    i2t: Recalls
    t2i: Recalls
    rsum: float
    best: bool
    collapsed: bool = False

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> EpochLog:
        """Read the data that `dataclasses.asdict` returns; CheckpointError if a key is missing or unknown."""
        try:
            return cls(**{**raw, "i2t": Recalls(**raw["i2t"]), "t2i": Recalls(**raw["t2i"])})
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"the run's log cannot be understood: {reason_of(error)}") from error
