"""Splits made from the content of the pictures."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..errors import InputError

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Shares:
    """Shares of the pictures that are kept for validation and for the test; the others are trained on.

    Attributes:
        dev: share of dev, in [0, 1).
        test: share of test, in [0, 1).
        seed: another seed makes other splits of the same shares.
    """

    dev: float = 0.1
    test: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dev", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"the share of {name} must be in [0, 1), got {getattr(self, name)}")
        if self.dev + self.test >= 1:
            raise InputError(f"the shares of dev and test must leave some for train, got {self.dev} and {self.test}")

    def split_of(self, content: str) -> str:
        """The split of a picture, from the SHA-256 of its file alone.

        So the same pictures are split in the same way on every machine and in any order, and a picture stays in its
        split when others are added or removed. The sizes of the splits are the shares on average only.
        """
        digest = hashlib.sha256(f"{self.seed} {content}".encode()).digest()
        place = int.from_bytes(digest[:8]) / 2**64
        if place < self.test:
            return "test"
        return "dev" if place < self.test + self.dev else "train"
