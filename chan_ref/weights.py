"""Tensors as safetensors, read and written as any other file: by any path, with the umask, and errors of the disk."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..runtime.files import is_utf8


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, mapped.

    safetensors itself refuses a path that is not UTF-8; such a file is opened here, and has a name that is.

    Raises:
        SafetensorError, OSError: it cannot be read.
    """
    if is_utf8(path):
        return load_file(path)
    with open(path, "rb") as file:
        return load_file(f"/dev/fd/{file.fileno()}")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write PATH; tensors may be on any device.

    safetensors itself writes files that only their owner reads, and its error is no OSError.

    Raises:
        OSError: the disk is full, the folder is read-only, ...; the error names PATH.
    """
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        code = int(found[1]) if found else errno.EIO
        raise OSError(code, os.strerror(code) if found else str(error), str(path)) from error
    path.chmod(mode)
