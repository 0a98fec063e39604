"""A gallery in a GPU's memory by a TensorRT engine of the whole alignment and its top k: half precision, not certified.

It is here to be compared with the kernels (bench/gpu.py): one call scores a chunk of rows, and its k best come back.
TensorRT does not say how it sums int8 products, so a proof could not rest on it; at int8 there are only the kernels.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.backends.base import Array as AnyArray
from ..runtime.backends.device import Device
from ..runtime.backends.tensorrt import TensorRTBackend
from ..runtime.counts import counted
from ..runtime.errors import InputError, TensorError
from ..runtime.gallery.cuda.memory import Arena, gib
from ..runtime.gallery.cuda.resident import Listed, Queries
from ..runtime.gallery.proof.rows import Part


@dataclass(eq=False)
class _Chunk:
    """Rows of a part on the device, padded to the engine's sizes; `tensors` by the engine's input names."""

    rows: int
    lengths: NDArray[np.int32]
    tensors: dict[str, Any]
    address: int  # of the lengths
    sent: NDArray[np.int32] | None = None  # lengths as they are on the device: zero where a row is not allowed


class EngineScan:
    """A `ResidentScan` by an engine that `bench.resident_engine` built.

    Device memory: the rows as half, padded to the engine's number of regions and each part to its number of rows, for
    as long as they are held; the engine's scratch memory, which its profiles bound.

    Args:
        backend: the engine, open; closed with this.
        device: where it runs.
    """

    certified = False

    def __init__(self, backend: TensorRTBackend, device: Device) -> None:
        self.name = f"{backend.name} float16"
        self._backend = backend
        self._device = device
        shapes = {tensor.name: tensor.shape for tensor in (*backend.spec.inputs, *backend.spec.outputs)}
        self._dim = int(shapes["region_embeddings"][2])
        self._k = int(shapes["best_scores"][1])
        self._rows, self._regions = backend.ranges["I"].max, backend.ranges["R"].max
        self._captions, self._words = backend.ranges["C"].max, backend.ranges["W"].max
        self._arena = Arena(device)
        self._turn = threading.Lock()
        self._tensors: dict[tuple[str, tuple[int, ...]], tuple[int, Any]] = {}

    def require(self, parts: Sequence[Part]) -> None:
        """See `ResidentScan.require`."""
        rows = sum(len(part.starts) - 1 for part in parts)
        size = 2 * rows * self._regions * self._dim
        self._arena.require(size, f"{counted(rows, 'row needs', 'rows need')} {gib(size)} at float16")

    def hold(self, part: Part) -> list[_Chunk]:
        """See `ResidentScan.hold`; uploaded anew at each call.

        Raises:
            InputError: a row has more vectors than the engine takes.
            TensorError: a value that float16 cannot hold.
            BackendError: the device's memory does not suffice.
        """
        counts = np.diff(part.starts)
        if counts.max(initial=0) > self._regions:
            raise InputError(f"the engine takes rows of at most {self._regions} vectors, got {counts.max()}")
        with self._turn:
            self._device.activate()
            edges = [*range(0, len(counts), self._rows), len(counts)]
            return [self._chunk(part, counts, first, last) for first, last in pairwise(edges)]

    def gather(self, held: Sequence[list[_Chunk]]) -> Sequence[list[_Chunk]]:
        """See `ResidentScan.gather`: they stay as they are, a call for each chunk."""
        return held

    def shortlist(
        self,
        rows: Sequence[list[_Chunk]],
        queries: Queries,
        k: int,
        allowed: NDArray[np.bool_],
        floors: NDArray[np.float64],
    ) -> list[Listed]:
        """See `ResidentScan.shortlist`.

        Raises:
            InputError: k is larger than the engine's, or a query longer than it takes.
            TensorError: a query that float16 cannot hold.
        """
        if k > self._k:
            raise InputError(f"k must be at most the engine's {self._k}, got {k}")
        if any(len(query) > self._words for query in queries):
            longest = max(map(len, queries))
            raise InputError(f"the engine takes queries of at most {self._words} vectors, got {longest}")
        chunks = [chunk for part in rows for chunk in part]
        found: list[Listed] = []
        with self._turn:
            self._device.activate()
            self._mask(chunks, allowed)
            for begin in range(0, len(queries), self._captions):
                found += self._batch(chunks, queries[begin : begin + self._captions], k, allowed)
        return found

    def decider(self, rows: Sequence[list[_Chunk]]) -> None:
        """See `ResidentScan.decider`: an engine decides nothing."""

    def close(self) -> None:
        """See `ResidentScan.close`; what `hold` returned must be dropped, too."""
        with self._turn:
            self._tensors.clear()
            self._backend.close()
            self._arena.close()

    def _chunk(self, part: Part, counts: NDArray[np.int64], first: int, last: int) -> _Chunk:
        lengths = np.zeros(self._rows, np.int32)
        lengths[: last - first] = counts[first:last]
        address, vectors = self._device.export((self._rows, self._regions, self._dim), np.dtype(np.float16))
        step = max(1, self._rows // 16)
        for begin in range(0, self._rows, step):
            padded = np.zeros((min(step, self._rows - begin), self._regions, self._dim), np.float16)
            for i in range(max(0, min(len(padded), last - first - begin))):
                fine = part.fine(first + begin + i)
                padded[i, : len(fine)] = _half(fine, "vectors")
            self._arena.write(address + begin * self._regions * self._dim * 2, padded)
        place, lengths_tensor = self._device.export((self._rows,), np.dtype(np.int32))
        tensors = {"region_embeddings": vectors, "region_lengths": lengths_tensor}
        return _Chunk(last - first, lengths, tensors, place)

    def _mask(self, chunks: Sequence[_Chunk], allowed: NDArray[np.bool_]) -> None:
        base = 0
        for chunk in chunks:
            lengths = chunk.lengths.copy()
            lengths[: chunk.rows] *= allowed[base : base + chunk.rows]
            if chunk.sent is None or not np.array_equal(chunk.sent, lengths):
                self._arena.write(chunk.address, lengths)
                chunk.sent = lengths
            base += chunk.rows

    def _batch(self, chunks: Sequence[_Chunk], queries: Queries, k: int, allowed: NDArray[np.bool_]) -> list[Listed]:
        count, longest = len(queries), max(map(len, queries))
        words = np.zeros((count, longest, self._dim), np.float16)
        for i, query in enumerate(queries):
            words[i, : len(query)] = _half(query, "queries")
        feeds = {
            "word_embeddings": self._filled("word_embeddings", words),
            "word_lengths": self._filled("word_lengths", np.array([len(query) for query in queries], np.int32)),
        }
        shape = (count, self._k)
        scores_at, scores = self._tensor("best_scores", shape, np.float32)
        images_at, images = self._tensor("best_images", shape, np.int32)
        out = {"best_scores": scores, "best_images": images}
        rows, values, base = [], [], 0
        for chunk in chunks:
            self._backend.run_on_device({**chunk.tensors, **feeds}, out)
            found = self._arena.fetch("best_images", images_at, count * self._k, np.int32).reshape(shape)
            value = self._arena.fetch("best_scores", scores_at, count * self._k, np.float32).reshape(shape)
            self._arena.wait()
            rows.append(np.where(found < chunk.rows, found.astype(np.int64) + base, -1))
            values.append(value.astype(np.float64))
            base += chunk.rows
        return [
            _best(np.concatenate([each[i] for each in rows]), np.concatenate([each[i] for each in values]), k, allowed)
            for i in range(count)
        ]

    def _filled(self, name: str, array: AnyArray) -> Any:
        address, tensor = self._tensor(name, array.shape, array.dtype)
        self._arena.write(address, array)
        return tensor

    def _tensor(self, name: str, shape: tuple[int, ...], dtype: Any) -> tuple[int, Any]:
        """Device memory of this name and shape, kept for calls like this one."""
        if (name, shape) not in self._tensors:
            self._tensors[name, shape] = self._device.export(shape, np.dtype(dtype))
        return self._tensors[name, shape]


def _best(rows: NDArray[np.int64], values: NDArray[np.float64], k: int, allowed: NDArray[np.bool_]) -> Listed:
    """The k best allowed rows, in order of their numbers."""
    valid = (rows >= 0) & allowed[rows]
    rows, values = rows[valid], values[valid]
    best = np.lexsort((rows, -values))[:k]
    best = best[np.argsort(rows[best])]
    return Listed(rows[best], values[best], np.zeros(len(best)), -np.inf)


def _half(values: NDArray[np.floating], name: str) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        raise TensorError(name, "must fit float16 for an engine of half precision", float(np.abs(values).max()))
    return half
