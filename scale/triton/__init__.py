"""A model repository for NVIDIA Triton: a bundle's graphs, and the search of a gallery. docs/triton.md has the rules.

from chan_rt.scale.triton import check_repository, write_repository

write_repository("bundle", "repository", gallery="gallery")
"""

from .check import ModelCheck, check_repository
from .configs import Served
from .repository import WrittenModel, write_repository

__all__ = ["ModelCheck", "Served", "WrittenModel", "check_repository", "write_repository"]
