"""Which kernel scans here: the one that was named, or the first that works."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Literal

from ...checks import check_choice
from ...errors import BackendError
from .base import Kernel, KernelName
from .matrix import NumpyKernel, OnnxruntimeKernel

_KERNELS: dict[KernelName, Callable[[], Kernel]] = {
    "onnxruntime": OnnxruntimeKernel,
    "numpy": NumpyKernel,
}


@cache
def open_kernel(name: KernelName | Literal["auto"] = "auto") -> Kernel:
    """The named kernel; `auto` is the first of onnxruntime and numpy that works on this machine.

    Raises:
        BackendError: why the named kernel does not work here.
        InputError: there is no kernel of that name.
    """
    if name == "auto":
        with suppress(BackendError):
            return OnnxruntimeKernel()
        return NumpyKernel()
    check_choice("scan", name, ("auto", *_KERNELS))
    return _KERNELS[name]()
