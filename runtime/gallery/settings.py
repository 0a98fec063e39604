"""What is fixed when a gallery is made: what its rows are, whose embeddings they hold, and how they score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from operator import index
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..checks import check_choice
from ..contract import AlignmentConfig, Manifest
from ..errors import ChanError, GalleryError, InputError

Kind = Literal["images", "captions"]
Precision = Literal["float32", "fixed16", "float16", "none"]
# As it is stored; of fixed16 the lower bytes, whose upper ones are the codes (proof/fixed16.py).
FINE_DTYPES: Mapping[str, type[np.generic]] = {"float32": np.float32, "fixed16": np.uint8, "float16": np.float16}
MIN_TEMPERATURE = 1e-6  # below it, and above its inverse, scores leave what float64 can order
NO_MODEL = ""  # the model of embeddings that came from elsewhere: nobody knows it
MAX_DIM = 32768  # (255 + 128) * 127 * 32768 < 2^31: an int32 cannot overflow


@dataclass(frozen=True)
class GallerySettings:
    """The choices a gallery keeps for life.

    Attributes:
        kind: `images` (rows hold regions) or `captions` (rows hold words).
        dim: D, width of the embeddings.
        alignment: how similarities become scores.
        model: fingerprint of the model that encodes rows and queries; embeddings of another are refused. NO_MODEL for
            embeddings that came from elsewhere.
        fine: precision of the fine copy exact search ranks by; `none` keeps the int8 codes only, a fifth of the
            bytes, and nothing can be certified.
        bundle: the bundle's folder, absolute, or None for embeddings that came from elsewhere.
        precision: the bundle's precision rows were encoded at, or None.
    """

    kind: Kind
    dim: int
    alignment: AlignmentConfig
    model: str
    fine: Precision = "float32"
    bundle: str | None = None
    precision: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dim", index(self.dim))
        check_choice("kind", self.kind, get_args(Kind))
        check_choice("fine", self.fine, get_args(Precision))
        if not 1 <= self.dim <= MAX_DIM:
            raise InputError(f"dim must be from 1 to {MAX_DIM}, got {self.dim}")
        for name in ("attention_temperature", "pooling_temperature"):
            value = getattr(self.alignment, name)
            if not MIN_TEMPERATURE <= value <= 1 / MIN_TEMPERATURE:
                raise InputError(f"{name} must be from {MIN_TEMPERATURE} to {1 / MIN_TEMPERATURE:.0e}, got {value}")

    def check_model(self, model: str, path: Path) -> None:
        """GalleryError unless `model` is the fingerprint of the model the gallery at `path` was made with."""
        if model != self.model and self.model == NO_MODEL:
            raise GalleryError(
                f"{path} holds embeddings of no known model: those of a bundle cannot be compared with them"
            )
        if model != self.model and model == NO_MODEL:
            raise GalleryError(
                f"{path} was made with a bundle: embeddings of no known model cannot be compared with its"
            )
        if model != self.model:
            raise GalleryError(
                f"{path} was made with another model (fingerprint {self.model[:12]}, the bundle's is {model[:12]}): "
                "their embeddings cannot be compared. Index again with this bundle"
            )

    def check_rows(self, asked: GallerySettings, path: Path) -> None:
        """GalleryError or InputError unless the gallery at `path` takes rows of the settings `asked`.

        `GalleryWriter.check` says which.
        """
        self.check_model(asked.model, path)
        mine_by_name, asked_by_name = ({**asdict(one), **asdict(one.alignment)} for one in (self, asked))
        for name in ("kind", "fine", "dim", *asdict(asked.alignment)):
            if mine_by_name[name] != asked_by_name[name]:
                raise InputError(f"{name} must be this gallery's {mine_by_name[name]}, got {asked_by_name[name]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Any) -> GallerySettings:
        """Read `to_dict`'s data.

        Raises:
            ValueError: a key is missing, unknown, or its value is of another type or out of range.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(raw, dict) or raw.keys() != set(names):
            raise ValueError(f"settings must be an object with {', '.join(names)}")
        alignment = raw["alignment"]
        kinds = {"coding": str, "pooling": str, "attention_temperature": float, "pooling_temperature": float}
        if not isinstance(alignment, dict) or not alignment.keys() <= kinds.keys():
            raise ValueError(f"settings.alignment must be an object with {', '.join(kinds)}")
        for name, value in alignment.items():
            if not isinstance(value, (int, float) if kinds[name] is float else str) or isinstance(value, bool):
                raise ValueError(f"settings.{name} must be a {'number' if kinds[name] is float else 'text'}")
        if type(raw["dim"]) is not int:
            raise ValueError("settings.dim must be an integer")
        for name in ("kind", "model", "fine", "bundle", "precision"):
            if not isinstance(raw[name], str) and not (raw[name] is None and name in ("bundle", "precision")):
                raise ValueError(f"settings.{name} must be text")
        try:
            return cls(**{**raw, "alignment": AlignmentConfig(**alignment)})
        except ChanError as error:
            raise ValueError(f"settings: {error}") from error


def fingerprint(manifest: Manifest, precision: str) -> str:
    """Hex sha256 of all that decides a bundle's embeddings and scores at one precision: its graphs, tokenizer,
    alignment.

    Adding another precision, engines or calibration to the bundle does not change it.
    """
    graphs = {
        name: by_precision[precision].sha256
        for name, by_precision in manifest.graphs.items()
        if name in ("region_encoder", "text_encoder") and precision in by_precision
    }
    facts = {
        "graphs": graphs,
        "precision": precision,
        "tokenizer": dict(manifest.tokenizer.files),
        "alignment": asdict(manifest.alignment),
        "embed_dim": manifest.embed_dim,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
