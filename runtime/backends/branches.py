"""A graph of several recurrences, each on a core of its own.

One step of a recurrence is a product of a few rows, some 50 us at 1024-d: too short to be shared by two threads that
must be woken for it. The recurrences of a bidirectional GRU, however, need each other only at their end. So the graph
is cut (`onnx_cut`), and every piece runs on one thread. Batches of many rows are cut, too, for more threads.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..contract import GraphSpec
from ..forks import now_and_after_fork
from ..onnx_cut import Cut, cut_at_scans
from .base import Array, Feeds

Result = TypeVar("Result")
# A thread gets this many rows or more: for fewer, reading the weights takes as long.
ROWS = 8


def find_branches(file: Path, spec: GraphSpec, threads: int) -> Cut | None:
    """Cut a graph into branches for several threads.

    Args:
        file: an ONNX file.
        spec: of the graph.
        threads: how many may run at once.

    Returns:
        None for one thread, for a graph without branches, and where the rows are not the first axis of every tensor.
    """
    axes = {tensor.shape[0] if tensor.shape else 1 for tensor in (*spec.inputs, *spec.outputs)}
    if threads < 2 or len(axes) != 1 or not all(isinstance(axis, str) for axis in axes):
        return None
    try:
        with file.open("rb") as opened:
            return cut_at_scans(memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)))
    except ValueError:  # empty, or no ONNX model: onnxruntime reports what is wrong with it
        return None


class BranchedSession:
    """What `OnnxRuntimeBackend` needs of an onnxruntime session, from a session for each piece of a graph.

    `run` may be called from several threads at once.

    Args:
        cut: the pieces.
        threads: how many run at once, the caller's included.
        open_piece: opens a session, on one thread, of a serialized model.
    """

    def __init__(self, cut: Cut, threads: int, open_piece: Callable[[bytes], Any]) -> None:
        self._branches = [open_piece(model) for model in cut.branches]
        self._made = cut.made
        self._rest = open_piece(cut.rest)
        self._threads = threads
        now_and_after_fork(self._prepare)

    def _prepare(self) -> None:
        """Have threads of this process's own; they start when they are first needed."""
        self._pool = ThreadPoolExecutor(self._threads - 1, "chan-branches")

    def run(self, outputs: Sequence[str], feeds: Feeds) -> list[Array]:
        """The outputs of the whole graph."""
        rows = len(next(iter(feeds.values())))
        parts = max(1, min(self._threads, rows // ROWS))
        cuts = [slice(rows * part // parts, rows * (part + 1) // parts) for part in range(parts)]
        pieces: list[dict[str, Array]] = [{name: array[cut] for name, array in feeds.items()} for cut in cuts]
        calls = [
            partial(session.run, names, piece)
            for piece in pieces
            for session, names in zip(self._branches, self._made, strict=True)
        ]
        names = [name for made in self._made for name in made]
        states = [array for made in self._run_all(calls) for array in made]
        found = self._run_all(
            [
                partial(self._rest.run, outputs, piece | _named(names, states[part * len(names) :]))
                for part, piece in enumerate(pieces)
            ]
        )
        return found[0] if parts == 1 else [np.concatenate(arrays) for arrays in zip(*found, strict=True)]

    def _run_all(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of some calls, in their order. The caller makes those that no other thread has begun."""
        futures = [self._pool.submit(call) for call in calls[1:]]
        results = [calls[0]()]
        rest: list[Result] = []
        for call, future in zip(reversed(calls[1:]), reversed(futures), strict=True):
            rest.append(call() if future.cancel() else future.result())
        return results + rest[::-1]

    def get_inputs(self) -> list[Any]:
        """The inputs of the whole graph: each branch has all of them."""
        return list(self._branches[0].get_inputs())

    def get_outputs(self) -> list[Any]:
        """The outputs of the whole graph."""
        return list(self._rest.get_outputs())

    def get_providers(self) -> list[str]:
        """The execution providers of the pieces, which are the same."""
        return list(self._rest.get_providers())

    def disable_fallback(self) -> None:
        """Never open a piece anew with other providers."""
        for session in (*self._branches, self._rest):
            session.disable_fallback()


def _named(names: Sequence[str], arrays: Sequence[Array]) -> dict[str, Array]:
    return dict(zip(names, arrays, strict=False))
