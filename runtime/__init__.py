"""CHAN at inference: everything a service needs, on numpy arrays, without torch.

    from chan_rt.runtime import Matcher

    with Matcher.open("bundle") as matcher:
        images = matcher.encode_pictures(["cat.png", "dog.png"])
        texts = matcher.encode_texts(["a cat on a mat"])
        scores = matcher.score(images, texts)  # [I, C]

    from chan_rt.runtime import open_gallery_with_matcher

    with open_gallery_with_matcher("gallery") as (gallery, matcher):
        (result,) = gallery.search(matcher.encode_texts(["a cat on a mat"]), k=10)

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
        GalleryIncomplete,
        GalleryLocked,
        GalleryMissing,
        GpuMemoryError,
        InputError,
        MissingExtra,
        ParityError,
        TensorError,
    )
    from .evaluation.metrics import Metrics, evaluate
    from .explanation import Explanation, WordMatch
    from .gallery import (
        Gallery,
        GallerySettings,
        GalleryWriter,
        Hit,
        Repair,
        SearchResult,
        ShardedWriter,
        merge_gallery,
        open_for_writing,
        repair_gallery,
        split_gallery,
        verify_gallery,
    )
    from .gallery.prepare import Preparation
    from .gallery.store.rows import Relabel, Row
    from .indexing.data_sources import open_source
    from .indexing.embedding_source import EmbeddingSource, embedding_source, read_embeddings
    from .indexing.index import IndexResult, index_source, prepare_search
    from .indexing.index_embeddings import IndexedEmbeddings, index_embeddings, prepare_embeddings
    from .indexing.metadata_file import read_metadata, with_metadata
    from .indexing.sources import Source, picture_source, text_source
    from .matcher import Matcher
    from .session import embedding_settings, gallery_settings, open_gallery_with_matcher, open_matcher, open_writer
    from .skipped import SkippedItem
    from .text import BertTokenizer, ScanTokenizer, TokenBatch

__all__ = [
    "AlignmentConfig",
    "Backend",
    "BackendError",
    "BertTokenizer",
    "BundleError",
    "ChanError",
    "CheckpointError",
    "EmbeddingSource",
    "Embeddings",
    "EngineError",
    "Explanation",
    "Gallery",
    "GalleryCorrupt",
    "GalleryError",
    "GalleryIncomplete",
    "GalleryLocked",
    "GalleryMissing",
    "GallerySettings",
    "GalleryWriter",
    "GpuMemoryError",
    "Hit",
    "IndexResult",
    "IndexedEmbeddings",
    "InputError",
    "Manifest",
    "Matcher",
    "Metrics",
    "MissingExtra",
    "ParityError",
    "Preparation",
    "Relabel",
    "Repair",
    "Row",
    "ScanTokenizer",
    "SearchResult",
    "ShardedWriter",
    "SkippedItem",
    "Source",
    "TensorError",
    "TokenBatch",
    "WordMatch",
    "embedding_settings",
    "embedding_source",
    "evaluate",
    "gallery_settings",
    "index_embeddings",
    "index_source",
    "merge_gallery",
    "open_backend",
    "open_for_writing",
    "open_gallery_with_matcher",
    "open_matcher",
    "open_source",
    "open_writer",
    "picture_source",
    "prepare_embeddings",
    "prepare_search",
    "read_embeddings",
    "read_metadata",
    "repair_gallery",
    "split_gallery",
    "text_source",
    "verify_gallery",
    "with_metadata",
]

_MODULES = {
    "AlignmentConfig": "contract",
    "Backend": "backends",
    "BertTokenizer": "text",
    "EmbeddingSource": "indexing.embedding_source",
    "Embeddings": "embeddings",
    "Explanation": "explanation",
    "Gallery": "gallery",
    "GallerySettings": "gallery",
    "GalleryWriter": "gallery",
    "GpuMemoryError": "errors",
    "Hit": "gallery",
    "IndexResult": "indexing.index",
    "IndexedEmbeddings": "indexing.index_embeddings",
    "Manifest": "contract",
    "Matcher": "matcher",
    "Metrics": "evaluation.metrics",
    "Preparation": "gallery.prepare",
    "ScanTokenizer": "text",
    "Relabel": "gallery.store.rows",
    "Repair": "gallery",
    "Row": "gallery.store.rows",
    "SearchResult": "gallery",
    "ShardedWriter": "gallery",
    "SkippedItem": "skipped",
    "Source": "indexing.sources",
    "TokenBatch": "text",
    "WordMatch": "explanation",
    "embedding_settings": "session",
    "embedding_source": "indexing.embedding_source",
    "evaluate": "evaluation.metrics",
    "gallery_settings": "session",
    "index_embeddings": "indexing.index_embeddings",
    "index_source": "indexing.index",
    "open_backend": "backends",
    "open_gallery_with_matcher": "session",
    "open_matcher": "session",
    "open_source": "indexing.data_sources",
    "open_writer": "session",
    "picture_source": "indexing.sources",
    "prepare_embeddings": "indexing.index_embeddings",
    "prepare_search": "indexing.index",
    "read_embeddings": "indexing.embedding_source",
    "read_metadata": "indexing.metadata_file",
    "text_source": "indexing.sources",
    "merge_gallery": "gallery",
    "open_for_writing": "gallery",
    "repair_gallery": "gallery",
    "split_gallery": "gallery",
    "verify_gallery": "gallery",
    "with_metadata": "indexing.metadata_file",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
