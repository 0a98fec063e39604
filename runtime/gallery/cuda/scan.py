"""A gallery in a GPU's memory: which rows could be among the best k for a query.

int8 holds the gallery's codes. The GPU computes every row's score from them, in the numbers of bounds.py, and lists the
rows whose interval reaches the k-th largest lower bound it knows of; the CPU certifies those (estimate.py). To list, it
uses an interval a little wider than the CPU's: (1) of bounds.py alone, which is linear in the numbers a row stores. The
threshold is the k-th largest of the groups' largest lower bounds: rows in different groups, so at most the k-th largest
lower bound of all.

float16 holds a half-precision copy instead: twice the bytes, nothing proven, nothing to certify.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...backends.device import Device
from ...contract import AlignmentConfig
from ...errors import BackendError, TensorError
from ..kernels.layout import OFFSET
from ..proof.bounds import QuantizedQuery, Reach, int8_radius, no_axes
from ..proof.pooling import Float64Array
from ..proof.rows import Part
from .kernels import GROUPS, ROWS_A_GROUP, ROWS_A_PROGRAM, WORD_TILES, KernelRecord
from .memory import INSTEAD, Arena, gib

CAPACITY = 4096  # rows a query's list holds; where more qualify, all scores are taken to the CPU
_QUERIES = 512  # queries of one launch: their vectors and lists stay within some tens of MiB
_BLOCK = GROUPS * ROWS_A_GROUP
_PIECE = 8 << 20  # bytes of a part that are made ready for the upload at a time

Listed = tuple[NDArray[np.int64], Float64Array]  # rows that could be among the best, in order, and their scores


class ResidentScan(Protocol):
    """Rows on a GPU. Any number of threads may use one; their calls take turns.

    Attributes:
        name: what runs, for messages and benchmarks.
        certified: whether every row of the true top k is listed; otherwise the k rows of the best scores are.
    """

    name: str
    certified: bool

    def hold(self, part: Part) -> Any:
        """A part on the device; uploaded once, and freed when nothing refers to what this returned."""

    def shortlist(
        self, held: Sequence[Any], queries: Sequence[QuantizedQuery], k: int, allowed: NDArray[np.bool_]
    ) -> list[Listed]:
        """For each query the rows, numbered on from part to part, that could be among the allowed ones' best k."""

    def close(self) -> None:
        """Free all device memory; twice does no harm."""


@dataclass(eq=False)
class _Held:
    """A part on the device."""

    part: Part
    rows: int
    vectors: int = 0
    starts: int = 0
    scale: int = 0
    error: int = 0
    norm: int = 0


class KernelScan:
    """A `ResidentScan` by the compiled kernels of kernels.py.

    Device memory: the codes (or the half copy) and 20 bytes a row, for as long as they are held; for a call 8 bytes for
    each pair of row and query (the ranker's turns keep them below 128 MiB), 48 KiB of lists a query, and the queries.

    Raises:
        BackendError: CUDA does not take a kernel.
    """

    def __init__(
        self, record: KernelRecord, code: dict[str, bytes], device: Device, dim: int, alignment: AlignmentConfig
    ) -> None:
        self.name = f"triton {record.precision}"
        self.certified = record.precision == "int8"
        self._dim = dim
        self._width = record.width
        self._alignment = alignment
        self._record = record
        self._device = device
        device.activate()
        self._arena = Arena(device)
        self._turn = threading.Lock()
        self._kernels: dict[str, Any] = {}
        self._known: weakref.WeakValueDictionary[int, _Held] = weakref.WeakValueDictionary()
        try:
            for name, function in record.functions.items():
                self._kernels[name] = device.load_kernel(code[name], function.symbol, function.shared)
        except BaseException:
            self.close()
            raise

    @property
    def allocations(self) -> int:
        """How often device memory was allocated so far."""
        return self._arena.allocations

    def hold(self, part: Part) -> _Held:
        """See `ResidentScan.hold`.

        Raises:
            BackendError: the device has too little memory; the message gives how much is needed and what to do.
            TensorError: a value that float16 cannot hold.
        """
        with self._turn:
            held = self._known.get(id(part))
            if held is None:
                held = _Held(part, len(part.starts) - 1)
                self._device.activate()
                self._upload(held)
                self._known[id(part)] = held  # the part lives as long as what holds it, so its id is its own
            return held

    def shortlist(
        self, held: Sequence[_Held], queries: Sequence[QuantizedQuery], k: int, allowed: NDArray[np.bool_]
    ) -> list[Listed]:
        """See `ResidentScan.shortlist`."""
        found: list[Listed] = []
        with self._turn:
            self._device.activate()
            for begin in range(0, len(queries), _QUERIES):
                found += self._list(held, queries[begin : begin + _QUERIES], k, allowed)
        return found

    def close(self) -> None:
        """See `ResidentScan.close`."""
        with self._turn:
            try:
                self._device.activate()
                while self._kernels:
                    self._device.unload_kernel(self._kernels.popitem()[1])
            finally:
                self._arena.close()

    # -- upload

    def _upload(self, held: _Held) -> None:
        part = held.part
        count = int(part.starts[-1])
        size = count * self._width * (1 if self.certified else 2)
        try:
            held.vectors = self._arena.room(held, size)
            at = held.vectors
            for piece in self._pieces(part):
                self._arena.write(at, piece)
                at += piece.nbytes
            scale = part.scale if self.certified else np.ones(held.rows, np.float32)
            held.starts, held.scale, held.error, held.norm = self._arena.keep(
                held, [np.ascontiguousarray(part.starts, np.int64), scale, part.error, part.norm]
            )
        except BackendError as error:
            need = f"{held.rows} rows need {gib(size)} of the GPU's memory at {self._record.precision}"
            room = f"{gib(self._device.free_memory())} are free"
            raise type(error)(f"{need}, {room}: {error}; {INSTEAD}") from error

    def _pieces(self, part: Part) -> Iterator[NDArray[Any]]:
        """The part's vectors as the kernels read them, some rows at a time: [vectors, width]."""
        rows = len(part.starts) - 1
        longest = int(np.diff(part.starts).max(initial=1))
        step = max(1, _PIECE // (longest * self._width * 2))
        for first in range(0, rows, step):
            last = min(first + step, rows)
            if self.certified:
                yield part.codes(first, last) ^ np.uint8(OFFSET)  # two's complement again
                continue
            fine = np.concatenate([part.fine(row) for row in range(first, last)])
            padded = np.zeros((len(fine), self._width), np.float16)
            with np.errstate(over="ignore"):
                padded[:, : self._dim] = fine
            if not np.isfinite(padded).all():
                raise TensorError("vectors", "must fit float16 to be held so on a GPU", float(np.abs(fine).max()))
            yield padded

    # -- search

    def _list(
        self, held: Sequence[_Held], queries: Sequence[QuantizedQuery], k: int, allowed: NDArray[np.bool_]
    ) -> list[Listed]:
        arena, count = self._arena, len(queries)
        stride = len(allowed)
        bases = np.cumsum([0] + [each.rows for each in held])
        groups = np.cumsum([0] + [-(-each.rows // ROWS_A_GROUP) for each in held])
        scores = arena.scratch("scores", 8 * count * stride)
        maxima = arena.scratch("maxima", 8 * count * int(groups[-1]))
        terms = arena.send("terms", np.array([self._terms(query) for query in queries]))
        self._score(held, bases, queries, allowed, scores)
        for each, base, group in zip(held, bases, groups, strict=False):
            bounds = (scores + 8 * int(base), each.error, each.norm, terms, maxima + 8 * int(group))
            blocks = -(-each.rows // _BLOCK) * count
            self._launch("group_maxima", blocks, bounds, each.rows, stride, int(groups[-1]), count)
        largest = arena.fetch("maxima", maxima, count * int(groups[-1]), np.float64)
        arena.wait()
        thresholds = _kth_largest(largest.reshape(count, -1), k)

        capacity = min(CAPACITY, stride)
        found = arena.send("found", np.zeros(count, np.int32))
        rows = arena.scratch("rows", 4 * count * capacity)
        values = arena.scratch("values", 8 * count * capacity)
        tops = arena.send("thresholds", thresholds)
        for each, base in zip(held, bases, strict=False):
            addresses = (scores + 8 * int(base), each.error, each.norm, terms, tops, found, rows, values)
            blocks = -(-each.rows // _BLOCK) * count
            self._launch("shortlist", blocks, addresses, int(base), each.rows, stride, capacity, count)
        fetched = arena.fetch("found", found, count, np.int32)
        arena.wait()
        counts = fetched.copy()
        fetch = partial(self._fetch, scores, rows, values, stride, capacity)
        return [fetch(which, int(number)) for which, number in enumerate(counts)]

    def _fetch(self, scores: int, rows: int, values: int, stride: int, capacity: int, which: int, count: int) -> Listed:
        """One query's list; where it overflowed, every row with its score."""
        arena = self._arena
        if count > capacity:
            every = arena.fetch("scores", scores + 8 * which * stride, stride, np.float64)
            arena.wait()
            listed = np.flatnonzero(every > -np.inf)
            return listed, every[listed]
        first = which * capacity
        found = arena.fetch("rows", rows + 4 * first, count, np.int32)
        values_found = arena.fetch("values", values + 8 * first, count, np.float64)
        arena.wait()
        order = np.argsort(found)
        return found[order].astype(np.int64), values_found[order]

    def _score(
        self,
        held: Sequence[_Held],
        bases: NDArray[np.int64],
        queries: Sequence[QuantizedQuery],
        allowed: NDArray[np.bool_],
        scores: int,
    ) -> None:
        """Queue the scan of every part."""
        arena = self._arena
        lengths = [query.count for query in queries]
        words = sum(lengths)
        planes, scale = self._planes(queries, words)
        mask = arena.send("allowed", allowed)
        vectors = arena.send("query", planes)
        starts = arena.send("word_starts", np.cumsum([0, *lengths]).astype(np.int32))
        scales = arena.send("word_scale", scale)
        tile = next((size for size in WORD_TILES if size >= max(lengths)), WORD_TILES[-1])
        for each, base in zip(held, bases, strict=False):
            place = mask + int(base), scores + 8 * int(base)
            addresses = (each.vectors, each.starts, each.scale, place[0], vectors, starts, scales, place[1])
            temperature = float(self._alignment.pooling_temperature)
            blocks = -(-each.rows // ROWS_A_PROGRAM) * len(queries)
            numbers = (each.rows, len(allowed), words, len(queries), temperature)
            self._launch(f"scan_{tile}", blocks, addresses, *numbers)

    def _planes(self, queries: Sequence[QuantizedQuery], words: int) -> tuple[NDArray[Any], Float64Array]:
        """The queries' vectors as the kernel reads them, [planes, words, width], and each one's scale [words]."""
        if self.certified:
            planes = np.zeros((2, words, self._width), np.int8)
            planes[:, :, : self._dim] = np.concatenate([query.planes for query in queries], axis=1)
            return planes, np.concatenate([query.scale for query in queries])
        exact = np.concatenate([query.vectors for query in queries])
        peak = np.abs(exact).max(axis=1)
        scale = np.where(peak > 0, peak, 1.0)  # a query of any size fits float16, and keeps its precision
        half = np.zeros((1, words, self._width), np.float16)
        half[0, :, : self._dim] = exact / scale[:, None]
        return half, scale

    def _terms(self, query: QuantizedQuery) -> tuple[float, float, float]:
        """The widest a row's interval can be: constant, per unit of its error, per unit of its norm.

        `int8_radius` by (1) is affine in a row's two numbers, so three of its values determine it.
        """
        if not self.certified:
            return 0.0, 0.0, 0.0
        error, norm = np.array([[0, 1, 0], [0, 0, 1]], np.float32)
        axes, unmeasured = no_axes(query.dim), np.zeros((3, 0), np.float32)
        change = Reach([query], axes, axes).change(error, norm, unmeasured, unmeasured)[0]
        constant, by_error, by_norm = int8_radius(change, error, norm, query, query.count, 0.0, self._alignment)
        slack = 1 + 1e-9  # of these few float64 operations, and of the kernels' with them
        return float(constant * slack), float((by_error - constant) * slack), float((by_norm - constant) * slack)

    def _launch(self, name: str, blocks: int, addresses: Sequence[int], *numbers: float) -> None:
        function = self._record.functions[name]
        arguments: list[np.generic] = [np.uint64(address) for address in addresses]
        arguments += [np.float64(each) if isinstance(each, float) else np.int32(each) for each in numbers]
        arguments += [np.uint64(0)] * function.hidden
        if blocks:
            self._device.launch_kernel(self._kernels[name], blocks, function.threads, arguments, self._arena.stream)


def _kth_largest(values: Float64Array, k: int) -> Float64Array:
    """The k-th largest of each row [queries, n]; -inf where there are fewer."""
    if k > values.shape[1]:
        return np.full(len(values), -np.inf)
    return np.ascontiguousarray(np.partition(values, values.shape[1] - k, axis=1)[:, values.shape[1] - k])
