"""What is fixed when a gallery is made: what its rows are, whose embeddings they hold, and how they score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..checks import check_choice
from ..contract import AlignmentConfig, Manifest
from ..errors import GalleryError, InputError

Kind = Literal["images", "captions"]
Precision = Literal["float32", "float16", "none"]
MAX_DIM = 32768  # (255 + 128) * 127 * 32768 < 2^31: an int32 cannot overflow


@dataclass(frozen=True)
class GallerySettings:
    """The choices a gallery keeps for life.

    Attributes:
        kind: `images` (rows hold regions) or `captions` (rows hold words).
        dim: D, width of the embeddings.
        alignment: how similarities become scores.
        model: fingerprint of the model that encodes rows and queries; embeddings of another are refused.
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
        check_choice("kind", self.kind, get_args(Kind))
        check_choice("fine", self.fine, get_args(Precision))
        if not 1 <= self.dim <= MAX_DIM:
            raise InputError(f"dim must be from 1 to {MAX_DIM}, got {self.dim}")

    def check_model(self, model: str, path: Path) -> None:
        """GalleryError unless `model` is the fingerprint of the model the gallery at `path` was made with."""
        if model != self.model:
            raise GalleryError(
                f"{path} was made with another model (fingerprint {self.model[:12]}, the bundle's is {model[:12]}): "
                "their embeddings cannot be compared. Index again with this bundle"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> GallerySettings:
        """Read `to_dict`'s data."""
        try:
            return cls(**{**raw, "alignment": AlignmentConfig(**raw["alignment"])})
        except (TypeError, KeyError, InputError) as error:
            raise GalleryError(f"the gallery's settings cannot be understood: {error!r}") from error


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
