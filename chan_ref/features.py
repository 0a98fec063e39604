"""Compute region features of pictures, 36 grid regions each, and write them as `ims.npy` of the precomp layout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.contract import Preprocess
from ..runtime.errors import InputError
from ..runtime.files import atomic_file, write_file
from ..runtime.pictures.load import Picture, load_pixels
from .backbone import GRID, REGION_DIM, GridBackbone, load_backbone

# Activations of more than two pictures pass 32 MB, which glibc maps and unmaps anew each time: a picture took 140 ms of
# CPU in batches of 16, and takes 63 in batches of 2.
_BATCH = 2
_Item = TypeVar("_Item")


class Encoder:
    """Encodes pictures as regions, in batches. The backbone is loaded once."""

    def __init__(self) -> None:
        backbone, preprocess = load_backbone()
        self.preprocess: Preprocess = preprocess
        # Depthwise convolutions run about twice as fast in this layout on a CPU.
        self.backbone: GridBackbone = backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, pictures: Sequence[Picture]) -> NDArray[np.float32]:
        """Compute the regions [B, 36, 1280] float32 of B pictures.

        Raises:
            InputError: a picture cannot be read (the message names it).
        """
        pixels = torch.from_numpy(load_pixels(pictures, self.preprocess))
        with torch.inference_mode():
            regions: torch.Tensor = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        found: NDArray[np.float32] = regions.numpy()
        return found

    def encode_to(self, path: Path, pictures: Iterable[Picture], count: int) -> Iterator[int]:
        """Write regions [count, 36, 1280] float32 to an npy file, batch by batch.

        Yields:
            Number of pictures of each batch, after it is written. The file gets its name after the last batch.

        Raises:
            InputError: a picture cannot be read, or there are more or fewer than `count`.
        """
        done = 0
        with atomic_file(path) as beside:
            rows = np.lib.format.open_memmap(beside, "w+", np.float32, (count, GRID * GRID, REGION_DIM))
            for batch in batches(pictures, _BATCH):
                if done + len(batch) > count:
                    raise InputError(f"pictures must have {count} items, got more")
                rows[done : done + len(batch)] = self.encode(batch)
                done += len(batch)
                yield len(batch)
            if done != count:
                raise InputError(f"pictures must have {count} items, got {done}")
            rows.flush()
            del rows


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yield consecutive lists of `size` items; the last list may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def write_features(files: Sequence[Path], out: Path, force: bool = False) -> Iterator[int]:
    """Encode picture files into OUT/ims.npy, with their paths by row in OUT/names.txt.

    Args:
        files: picture files; each becomes one row.
        out: the folder to write to; created if needed.
        force: replace features that OUT already holds.

    Yields:
        Number of pictures finished since the last time.

    Raises:
        InputError: a picture cannot be read, a path contains a line break, or OUT holds features and `force` is False.
    """
    if (out / "ims.npy").exists() and not force:
        raise InputError(f"{out / 'ims.npy'} already exists: choose another folder, or replace it with --force")
    broken = next((file for file in files if "\n" in str(file)), None)
    if broken is not None:
        raise InputError(f"a picture's path must not contain a line break, got {str(broken)!r}")
    encoder = Encoder()
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield from encoder.encode_to(out / "ims.npy", files, len(files))
    except BaseException:
        if made:
            out.rmdir()
        raise
    write_file(out / "names.txt", "".join(f"{file}\n" for file in files))
