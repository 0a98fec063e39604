"""Galleries beyond one machine: in object storage, with a cache of them on the disk. docs/scale.md has the commands.

from chan_rt.scale import cached_gallery, pull_gallery, push_gallery

push_gallery("gallery", "s3://bucket/gallery")
with Gallery.open(cached_gallery("s3://bucket/gallery")) as gallery:
    ...
"""

from .cache import cached_gallery
from .pull import pull_gallery
from .push import Pushed, push_gallery

__all__ = ["Pushed", "cached_gallery", "pull_gallery", "push_gallery"]
