"""The interface every backend has, and the checks all of them make before they run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..contract import GraphSpec, Range
from ..errors import TensorError

Array: TypeAlias = NDArray[Any]
Feeds: TypeAlias = Mapping[str, Array]


class Backend(ABC):
    """One graph, ready to run.

    Whoever opens a backend closes it, best by `with`. Each backend documents whether `run` may be called from several
    threads at once; a Matcher relies on it.

    Attributes:
        name: as in `open_backend`.
        spec: the graph's inputs and outputs.
        step: the number of words is best rounded up to a multiple of it, so that few different sizes occur where each
            is recorded on its own.
    """

    name: str
    spec: GraphSpec
    step = 1

    @property
    def ranges(self) -> Mapping[str, Range]:
        """Sizes that each symbol of the inputs may take here: the manifest's, unless an engine was built for fewer."""
        return self.spec.ranges

    @property
    def smallest(self) -> Mapping[str, int]:
        """Sizes that the symbols may take together, as small as any."""
        return {symbol: limits.min for symbol, limits in self.ranges.items()}

    @abstractmethod
    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run the graph and return every output by name.

        There must be one array for each input, of exactly the dtype and shape of the spec.

        The arrays returned belong to the caller.

        Raises:
            TensorError: a feed is missing, unknown, or of the wrong dtype, rank or size.
            BackendError: the library failed.
        """

    def close(self) -> None:
        """Release memory and handles; closing twice does no harm."""
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_feeds(spec: GraphSpec, ranges: Mapping[str, Range], feeds: Feeds) -> dict[str, int]:
    """Compare feeds with a graph's inputs and return the size of each symbol; TensorError names what does not fit."""
    sizes: dict[str, int] = {}
    for name in feeds:
        if all(name != tensor.name for tensor in spec.inputs):
            raise TensorError(name, f"must be one of the inputs {', '.join(t.name for t in spec.inputs)}", repr(name))
    for tensor in spec.inputs:
        if tensor.name not in feeds:
            raise TensorError(tensor.name, "must be given", "nothing")
        array = feeds[tensor.name]
        if array.dtype != np.dtype(tensor.dtype):
            raise TensorError(tensor.name, f"dtype must be {tensor.dtype}", array.dtype)
        if array.ndim != len(tensor.shape):
            raise TensorError(tensor.name, f"shape must be {show(tensor.shape)}", list(array.shape))
        for expected, size in zip(tensor.shape, array.shape, strict=True):
            if isinstance(expected, int):
                fits = size == expected
            else:
                limit = ranges.get(expected)
                if limit is not None and not limit.min <= size <= limit.max:
                    rule = f"{expected} must be between {limit.min} and {limit.max}"
                    raise TensorError(tensor.name, rule, size)
                fits = sizes.setdefault(expected, size) == size
            if not fits:
                rule = f"shape must be {show(tensor.shape)}" + (f" where {_sizes(sizes)}" if sizes else "")
                raise TensorError(tensor.name, rule, list(array.shape))
    return sizes


def show(shape: tuple[int | str, ...]) -> str:
    """A shape in symbols, as in `[B, R, 2048]`."""
    return f"[{', '.join(map(str, shape))}]"


def _sizes(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{symbol} = {size}" for symbol, size in sizes.items())
