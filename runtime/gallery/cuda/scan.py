"""The scan of a gallery in a GPU's memory: which rows could be among the best k for a query.

The GPU computes rows' scores from int8 codes, in the numbers of bounds.py, and how far the true scores can be from
them, by the narrow bound (1'), whose numbers lie beside the codes (held.py). k rows reach the k-th largest lower bound,
so that is the threshold: every row whose upper bound reaches it is listed. Where the fine copy is on the GPU as well,
the true scores of a few rows raise the threshold, and those of the listed rows are decided (decide.py). Elsewhere the
CPU ranks the lists (search.py, estimate.py). In a large gallery the first level of its plan leaves out most rows before
any of this (levels.py). All of it is queued at once, and the CPU waits once.

float16 holds a half-precision copy instead: twice the bytes, nothing proven, nothing to certify.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...backends.device import Device
from ...contract import AlignmentConfig
from ...errors import BackendError
from ...forks import now_and_after_fork
from ..proof.pooling import Float64Array
from ..proof.rows import Part
from .decide import Codes, Decided, Decider, join
from .fine import Fine, FineHolder
from .held import HeldPart, HeldRows, RowHolder
from .kernels import PICKS, KernelRecord
from .list_queue import ListQueue, Truth
from .lists import DeviceLists
from .memory import Arena
from .pieces import levels_for, pieces_of, slot_of
from .queries import QuerySender, SentQueries
from .resident import Decide, Listed, Queries
from .turns import Turns

T = TypeVar("T")


class KernelScan:
    """A `ResidentScan` by the compiled kernels of kernels.py.

    Device memory: the codes (or the half copy) and 49 bytes a row, for as long as they are held; for a call 8 bytes for
    each pair of row and query (the ranker's turns keep them below 128 MiB), 80 KiB of lists a query, and the queries.

    Uploads have a stream, page-locked memory and a lock of their own, so searches of what is there go on beside them.

    Attributes:
        left: int32 [queries], how many rows the first level left in the last launch; None where it was not read.

    Raises:
        BackendError: CUDA does not take a kernel.
    """

    def __init__(
        self, record: KernelRecord, code: dict[str, bytes], device: Device, dim: int, alignment: AlignmentConfig
    ) -> None:
        self.name = f"triton {record.precision}"
        self.certified = record.precision == "int8"
        self.left: NDArray[np.int32] | None = None
        self._alignment = alignment
        self._record = record
        self._device = device
        device.activate()
        self._arena, self._uploads = Arena(device), Arena(device)
        self._rows = RowHolder(self._uploads, record, dim)
        self._fine = FineHolder(self._uploads, record.width, dim)
        self._sender = QuerySender(self._arena, self._launch, self.certified, record.width, dim, alignment)
        self._decider = Decider(self._arena, self._launch, alignment)
        self._queue = ListQueue(self._arena, self._launch, record, self._sender, alignment)
        self._turns = Turns(self._arena)
        self._kernels: dict[str, Any] = {}
        self._known: weakref.WeakValueDictionary[int, HeldPart] = weakref.WeakValueDictionary()
        self._closed = False
        now_and_after_fork(self._make_lock)
        try:
            for name, function in record.functions.items():
                self._kernels[name] = device.load_kernel(code[name], function.symbol, function.shared, function.hidden)
        except BaseException:
            self.close()
            raise

    def _make_lock(self) -> None:
        self._upload_lock = threading.Lock()  # taken before that of `_turns`, where both are

    @contextmanager
    def _upload(self) -> Iterator[None]:
        """A thread's turn to upload."""
        with self._upload_lock:
            if self._closed:
                raise BackendError("the gallery was closed")
            self._device.activate()
            yield

    @property
    def allocations(self) -> int:
        """How often device memory was allocated so far."""
        return self._arena.allocations + self._uploads.allocations

    def require(self, parts: Sequence[Part]) -> None:
        """See `ResidentScan.require`."""
        with self._upload():
            self._rows.require([part for part in parts if id(part) not in self._known])

    def hold(self, part: Part) -> HeldPart:
        """See `ResidentScan.hold`.

        Raises:
            BackendError: the device has too little memory; the message gives how much is needed and what to do.
            TensorError: a value that float16 cannot hold.
        """
        with self._upload():
            held = self._known.get(id(part))
            if held is None:
                held = self._rows.upload(part)
                self._known[id(part)] = held  # the part lives as long as what holds it, so its id is its own
            return held

    def gather(self, held: Sequence[HeldPart], least: int | None = None) -> HeldRows:
        """See `ResidentScan.gather`.

        least: bytes of codes from which on the first level of a plan is read before them; None for LEAST of levels.py.

        Raises:
            GpuMemoryError: the device has too little memory.
        """
        with self._upload():
            return self._rows.gather(held, least)

    def shortlist(
        self, rows: HeldRows, queries: Queries, k: int, allowed: NDArray[np.bool_], floors: Float64Array
    ) -> list[Listed]:
        """See `ResidentScan.shortlist`."""
        found: dict[int, Listed] = {}
        self._in_pieces(
            rows,
            queries,
            k,
            allowed,
            floors,
            max(1, len(queries)),
            lambda lists, _: self._fetch(lists, rows),
            lambda piece, listed: found.update(zip(piece, listed, strict=True)),
        )
        return [found[i] for i in range(len(queries))]

    def decider(self, rows: HeldRows) -> Decide | None:
        """See `ResidentScan.decider`: None where the fine copies do not fit, and at float16, which proves nothing.

        Raises:
            GpuMemoryError: the device has too little memory after all.
            GalleryCorrupt: bytes of a fine copy are not those that were committed.
        """
        if not self.certified:
            return None
        with self._upload():
            fine = self._fine.hold([each.part for each in rows.held])
        return None if fine is None else partial(self._decide, rows, fine)

    def _decide(
        self,
        rows: HeldRows,
        fine: Fine,
        queries: Queries,
        k: int,
        allowed: NDArray[np.bool_],
        floors: Float64Array,
        turn: int,
        use: Callable[[Decided], None],
    ) -> None:
        """See `Decide`."""
        bounds = rows.error, rows.norm, rows.blocks, rows.plans
        held = Codes(rows.base, rows.places, rows.scale, rows.lengths, *bounds, rows.count, len(rows.coded.columns))

        def take(lists: DeviceLists, sent: SentQueries) -> Callable[[], Decided]:
            longest = max(sent.lengths)
            first = self._decider.decide(fine, held, lists, sent, k, longest)

            def decided() -> Decided:
                several = [first()]
                for which in np.flatnonzero(several[0].found > lists.capacity).tolist():
                    threshold = self._arena.fetch("threshold", lists.thresholds + 8 * which, 1, np.float64)
                    self._arena.wait()
                    long = self._queue.again(lists, rows, which, threshold)
                    more = self._decider.decide(fine, held, long, sent.alone(which), k, longest)
                    self._arena.wait()
                    again = more()
                    several.append(replace(again, queries=np.full_like(again.queries, which)))
                return join(several)

            return decided

        def numbered(piece: list[int], decided: Decided) -> None:
            use(replace(decided, numbers=np.array(piece)))

        truth = partial(self._raise_by_truth, fine, held)
        self._in_pieces(rows, queries, k, allowed, floors, turn, take, numbered, truth)

    def _in_pieces(
        self,
        rows: HeldRows,
        queries: Queries,
        k: int,
        allowed: NDArray[np.bool_],
        floors: Float64Array,
        turn: int,
        take: Callable[[DeviceLists, SentQueries], Callable[[], T]],
        use: Callable[[list[int], T], None],
        truth: Truth | None = None,
    ) -> None:
        """Queue the lists of some queries at a time; while the GPU computes, use what came of those before.

        The next queries are brought to pinned memory then, too.

        Between two launches others have their turn.

        Args:
            rows, queries, k, allowed, floors: as of `shortlist`.
            turn: how many queries at most at a time.
            take: queues what needs their lists; what it returns is called once that is done and before others queue,
                unless the lists are worth nothing.
            use: is given the queries' numbers, and what that returned.
            truth: as of `ListQueue.queue`.
        """
        k = max(1, min(k, rows.count))  # a number that a kernel takes
        last: tuple[list[int], T] | None = None
        pieces = [(piece, [queries[i] for i in piece]) for piece in pieces_of(queries, turn)]
        for number, (piece, own) in enumerate(pieces, 1):
            if last is not None and self._turns.awaited:  # others go first
                use(*last)
                last = None
            with self._turns.search():
                for levels in levels_for(rows, own):
                    self._arena.begin()
                    sent = self._sender.send(own, slot_of(own) if levels is None else None)
                    lists = self._queue.queue(rows, sent, k, allowed, floors[piece], levels, truth)
                    candidates = self._fetch_candidates(lists)
                    finish = take(lists, sent)
                    if number < len(pieces):
                        self._sender.send_ahead(pieces[number][1])
                    if last is not None:
                        use(*last)
                        last = None
                    self._arena.wait()
                    if self._fit(lists, candidates):
                        break
                last = piece, finish()
        if last is not None:
            use(*last)

    def _raise_by_truth(
        self,
        fine: Fine,
        held: Codes,
        lists: DeviceLists,
        sent: SentQueries,
        k: int,
        picked: int,
        picks: int,
    ) -> None:
        """Queue that each query's threshold becomes the k-th largest true score of its picked rows, or stays.

        The GPU pools similarities in float64, as the CPU does, and (2) of bounds.py holds for both. So the GPU's score
        less twice as much is no more than the CPU's.
        """
        longest = max(sent.lengths)
        few = lists._replace(capacity=picks, found=lists.picked, rows=picked)
        maxima = self._decider.similarities(fine, held, few, sent, longest)
        addresses = maxima, lists.picked, sent.starts, sent.margins, lists.thresholds
        name = next(f"reach_{most}" for most in PICKS if most >= picks)
        temperature = float(self._alignment.pooling_temperature)
        self._launch(name, lists.queries, addresses, k, picks, longest, temperature)

    def fetch_bounds(self, rows: HeldRows) -> Float64Array:
        """The first level's bounds of all rows [N], of the last search if that was for one query and read it."""
        with self._turns.search():
            found = self._arena.fetch("bounds", self._queue.upper, rows.count, np.float64)
            self._arena.wait()
            return found.copy()

    def close(self) -> None:
        """See `ResidentScan.close`; it waits for the part that is being uploaded, and no other is begun."""
        self._closed = True
        with self._upload_lock, self._turns.lock, ExitStack() as closing:
            closing.callback(self._uploads.close)
            closing.callback(self._arena.close)
            self._device.activate()
            while self._kernels:
                self._device.unload_kernel(self._kernels.popitem()[1])

    def _fetch_candidates(self, lists: DeviceLists) -> NDArray[np.int32]:
        """Queue how many candidates there are: [queries]."""
        if not lists.candidates:
            return np.zeros(lists.queries, np.int32)
        return self._arena.fetch("candidates", lists.candidates, lists.queries, np.int32)

    def _fit(self, lists: DeviceLists, candidates: NDArray[np.int32]) -> bool:
        """Whether there was room for all candidates, which were fetched."""
        self.left = candidates.copy() if lists.candidates else None
        return bool((candidates <= lists.room).all())

    def _fetch(self, lists: DeviceLists, rows: HeldRows, name: str = "lists") -> Callable[[], list[Listed]]:
        """Queue copies of lists; what it returns reads them once they are there. Too long ones are made again."""
        count, capacity = lists.queries, lists.capacity
        head = self._arena.fetch(f"{name} head", lists.thresholds, 12 * count, np.uint8)
        data = self._arena.fetch(name, lists.radii, 20 * count * capacity, np.uint8)

        def fetched() -> list[Listed]:
            thresholds, counts = head[: 8 * count].view(np.float64), head[8 * count :].view(np.int32).tolist()
            radii, scores = data[: 16 * count * capacity].view(np.float64).reshape(2, count, capacity)
            listed = data[16 * count * capacity :].view(np.int32).reshape(count, capacity)
            found = []
            for which, size in enumerate(counts):
                if size > capacity:
                    long = self._queue.again(lists, rows, which, thresholds[which : which + 1])
                    of_long = self._fetch(long, rows, "long list")
                    self._arena.wait()
                    found += of_long()
                    continue
                order = np.argsort(listed[which, :size])
                own = listed[which, order].astype(np.int64)
                found.append(Listed(own, scores[which, order], radii[which, order], float(thresholds[which])))
            return found

        return fetched

    def _launch(self, name: str, blocks: int, addresses: Sequence[int], *numbers: float) -> None:
        function = self._record.functions[name]
        if blocks:
            self._arena.flush()
            kernel, stream = self._kernels[name], self._arena.stream
            self._device.launch_kernel(kernel, blocks, function.threads, addresses, numbers, stream)
