"""Encoded images or captions on disk, and exact search over them.

`GalleryWriter` changes a gallery, `Gallery` searches it; docs/architecture.md has the idea, bounds.py the proof.
"""

from .gallery import Gallery, Hit, SearchResult
from .settings import GallerySettings, fingerprint
from .writer import GalleryWriter

__all__ = ["Gallery", "GallerySettings", "GalleryWriter", "Hit", "SearchResult", "fingerprint"]
