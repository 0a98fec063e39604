"""Damage to the files of a gallery."""

from pathlib import Path


def flip(path: Path, place: int, bit: int = 0) -> None:
    """Change one bit of a file's byte."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1 << bit
    path.write_bytes(data)
