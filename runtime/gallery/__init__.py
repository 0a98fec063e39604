"""Encoded images or captions on disk, and exact search over them.

`GalleryWriter` changes a gallery, `Gallery` searches it; docs/architecture.md has the idea, bounds.py the proof.
"""

from .gallery import Gallery
from .repair import Repair, repair_gallery
from .result import Hit, SearchResult
from .settings import GallerySettings, fingerprint
from .store.catalogue import is_gallery
from .verify import verify_gallery
from .writer import GalleryWriter

__all__ = [
    "Gallery",
    "GallerySettings",
    "GalleryWriter",
    "Hit",
    "Repair",
    "SearchResult",
    "fingerprint",
    "is_gallery",
    "repair_gallery",
    "verify_gallery",
]
