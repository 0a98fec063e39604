"""Encoded images or captions on disk, and exact search over them.

`GalleryWriter` changes a gallery and `ShardedWriter` one in shards (`RowWriter` is either), `Gallery` searches both;
docs/architecture.md has the idea, bounds.py the proof.
"""

from .gallery import Gallery
from .repair import Repair, repair_gallery
from .result import Hit, SearchResult
from .row_writer import RowWriter
from .settings import GallerySettings, fingerprint
from .sharded.arrange import merge_gallery, split_gallery
from .sharded.open import open_for_writing
from .sharded.writer import ShardedWriter
from .store.catalogue import is_gallery
from .verify import verify_gallery
from .writer import GalleryWriter

__all__ = [
    "Gallery",
    "GallerySettings",
    "GalleryWriter",
    "Hit",
    "Repair",
    "RowWriter",
    "SearchResult",
    "ShardedWriter",
    "fingerprint",
    "is_gallery",
    "merge_gallery",
    "open_for_writing",
    "repair_gallery",
    "split_gallery",
    "verify_gallery",
]
