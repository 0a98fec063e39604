"""CHAN at inference: everything a service needs, on numpy arrays, without torch.

    from chan_rt.runtime import Matcher

    with Matcher.open("bundle") as matcher:
        images = matcher.encode_pictures(["cat.png", "dog.png"])
        texts = matcher.encode_texts(["a cat on a mat"])
        scores = matcher.score(images, texts)  # [I, C]

Names are imported on first use, so that one of them costs no more than it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .backends import Backend, open_backend
    from .contract import AlignmentConfig, Manifest
    from .embeddings import Embeddings
    from .errors import (
        BackendError,
        BundleError,
        ChanError,
        CheckpointError,
        EngineError,
        GalleryCorrupt,
        GalleryError,
        GalleryLocked,
        InputError,
        MissingExtra,
        ParityError,
        TensorError,
    )
    from .evaluation.metrics import Metrics, evaluate
    from .explanation import Explanation, WordMatch
    from .matcher import Matcher
    from .text import BertTokenizer, ScanTokenizer, TokenBatch

__all__ = [
    "AlignmentConfig",
    "Backend",
    "BackendError",
    "BertTokenizer",
    "BundleError",
    "ChanError",
    "CheckpointError",
    "Embeddings",
    "EngineError",
    "Explanation",
    "GalleryCorrupt",
    "GalleryError",
    "GalleryLocked",
    "InputError",
    "Manifest",
    "Matcher",
    "Metrics",
    "MissingExtra",
    "ParityError",
    "ScanTokenizer",
    "TensorError",
    "TokenBatch",
    "WordMatch",
    "evaluate",
    "open_backend",
]

_MODULES = {
    "AlignmentConfig": "contract",
    "Backend": "backends",
    "BertTokenizer": "text",
    "Embeddings": "embeddings",
    "Explanation": "explanation",
    "Manifest": "contract",
    "Matcher": "matcher",
    "Metrics": "evaluation.metrics",
    "ScanTokenizer": "text",
    "TokenBatch": "text",
    "WordMatch": "explanation",
    "evaluate": "evaluation.metrics",
    "open_backend": "backends",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
