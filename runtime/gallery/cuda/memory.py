"""Device memory that a scan keeps between calls, and the pinned memory values pass through on their way."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...backends.device import Device
from ...errors import BackendError, GpuMemoryError

INSTEAD = (
    "search with device='cpu', spread the gallery over several GPUs, as by device='cuda:0,1', or compact or split it"
)
_STAGING = 32 << 20  # bytes of pinned memory that an upload passes through at a time
_LETTER = 1 << 19  # bytes of a call's small arrays, which are copied to the device together
_APART = 256  # bytes; each array begins at a multiple of it


def gib(size: int) -> str:
    """A number of bytes, for messages."""
    return f"{size / 2**30:.2f} GiB"


class Arena:
    """One stream of a device and everything allocated for it; `close` frees whatever is left.

    Attributes:
        allocations: how often device memory was allocated; constant once calls are warm.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.stream = device.create_stream()
        self.allocations = 0
        self._addresses: set[int] = set()
        self._rooms: dict[str, tuple[int, int]] = {}
        self._hosts: dict[str, NDArray[np.uint8]] = {}
        self._ahead: dict[str, Sequence[NDArray[Any]]] = {}  # what lies in pinned memory before it is sent
        self._written = self._posted = 0  # bytes of the letter, and how many of them are on their way
        self._closed = False

    def keep(self, owner: object, arrays: Sequence[NDArray[Any]], what: str) -> list[int]:
        """Addresses of copies of arrays on the device, freed with their owner or with the arena.

        Raises:
            GpuMemoryError: the device has not room for them; the message names `what` they are, and says what to do.
                What was allocated is freed.
        """
        addresses: list[int] = []
        try:
            for array in arrays:
                addresses.append(self._malloc(array.nbytes))
                self.write(addresses[-1], array)
        except GpuMemoryError as error:
            self._free(addresses)
            need = f"{what} need {gib(sum(each.nbytes for each in arrays))} of the GPU's memory"
            raise self._lacking(need, error) from error
        except BaseException:
            self._free(addresses)
            raise
        weakref.finalize(owner, self._free, addresses)
        return addresses

    def room(self, owner: object, size: int) -> int:
        """Address of `size` fresh bytes, freed with their owner or with the arena."""
        address = self._malloc(size)
        weakref.finalize(owner, self._free, [address])
        return address

    def upload(self, owner: object, size: int, pieces: Iterable[NDArray[Any]], need: str) -> int:
        """Address of `size` bytes that pieces fill, freed with their owner or with the arena.

        Raises:
            GpuMemoryError: the device has not room for them; the message begins with `need`, and says what to do.
        """
        try:
            address = at = self.room(owner, size)
            for piece in pieces:
                self.write(at, piece)
                at += piece.nbytes
        except GpuMemoryError as error:
            raise self._lacking(f"{need} of the GPU's memory", error) from error
        return address

    def require(self, size: int, need: str) -> None:
        """GpuMemoryError, which begins with `need`, if so many bytes are not free."""
        if size > self.device.free_memory():
            raise self._lacking(f"{need} of the GPU's memory", None)

    def _lacking(self, need: str, error: GpuMemoryError | None, instead: str = INSTEAD) -> GpuMemoryError:
        reason = "" if error is None else f": {error}"
        return GpuMemoryError(f"{need}, {gib(self.device.free_memory())} are free{reason}; {instead}")

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array to the device, through pinned memory, and wait for it."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for begin in range(0, len(data), _STAGING):
            piece = data[begin : begin + _STAGING]
            self.device.copy_in(address + begin, self._pinned("staging", piece), self.stream)
            self.device.synchronize(self.stream)

    def scratch(self, name: str, size: int) -> int:
        """Address of at least `size` bytes under this name, for the call under way; grown when needed.

        Raises:
            GpuMemoryError: the message gives how much is needed, how much is free and what to do.
        """
        self._check_open()
        address, capacity = self._rooms.get(name, (0, 0))
        if size > capacity:
            self._rooms.pop(name, None)  # before it is freed: where there is no room for more, nothing must point there
            self._free([address])
            capacity = max(256, 1 << (size - 1).bit_length()) if size < 1 << 26 else size
            try:
                address = self._malloc(capacity)
            except GpuMemoryError as error:
                need = f"a search needs {gib(capacity)} of the GPU's memory for its {name} beside the gallery"
                raise self._lacking(need, error, f"{INSTEAD}, or ask fewer queries at once") from error
            self._rooms[name] = address, capacity
        return address

    def begin(self) -> None:
        """Begin a call; nothing of an earlier one is under way."""
        self._written = self._posted = 0

    def send(self, name: str, array: NDArray[Any]) -> int:
        """Address of a copy of an array for the call under way; what is queued after `flush` finds it there.

        A small one lies among others, and a large one in the scratch of this name.
        """
        address, host, alone = self._outgoing(name, array.nbytes)
        host[...] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        if alone:
            self.device.copy_in(address, host, self.stream)
        return address

    def send_rows(self, name: str, arrays: Sequence[NDArray[Any]], width: int) -> int:
        """`send` of rows [n_i, D] of some arrays of one type, one after another, with zeros up to `width` values."""
        size = _rows_bytes(arrays, width)
        if self._ahead.get(name) is arrays:
            del self._ahead[name]
            ahead = f"{name} ahead"
            filled, spare = self._hosts.pop(ahead), self._hosts.pop(name, None)
            self._hosts[name] = filled
            if spare is not None:
                self._hosts[ahead] = spare
            address, host, alone = self.scratch(name, size), filled[:size], True
        else:
            address, host, alone = self._outgoing(name, size)
            _fill(host, arrays, width)
        if alone:
            self.device.copy_in(address, host, self.stream)
        return address

    def send_ahead(self, name: str, arrays: Sequence[NDArray[Any]], width: int) -> None:
        """Fill pinned memory for the next `send_rows` of these arrays, the same object, while the device computes.

        It may be called for other arrays before, which then are copied as ever.
        """
        size = _rows_bytes(arrays, width)
        if size > _LETTER and self._ahead.get(name) is not arrays:
            self._ahead.pop(name, None)
            _fill(self._host(f"{name} ahead", size)[:size], arrays, width)
            self._ahead[name] = arrays

    def flush(self) -> None:
        """Queue the copy of the small arrays that were sent since the last time."""
        if self._posted < self._written:
            piece = slice(self._posted, self._written)
            address = self.scratch("letter", _LETTER) + self._posted
            self.device.copy_in(address, self._hosts["letter"][piece], self.stream)
            self._posted = self._written

    def fetch(self, name: str, address: int, count: int, dtype: Any) -> NDArray[Any]:
        """Queue a copy of `count` values from the device; they are there once `wait` returned, until the next fetch."""
        size = count * np.dtype(dtype).itemsize
        host = self._host(f"{name} fetched", size)[:size]
        self.device.copy_out(host, address, self.stream)
        return host.view(dtype)

    def wait(self) -> None:
        """Wait for all that was queued; its errors are raised here. Once the arena is closed, nothing is."""
        if not self._closed:
            self.device.synchronize(self.stream)

    def close(self) -> None:
        """Free everything; twice does no harm."""
        if self._closed:
            return
        self._closed = True
        self.device.activate()
        with ExitStack() as freeing:  # what cannot be freed does not keep the rest
            freeing.callback(self.device.destroy_stream, self.stream)
            for host in self._hosts.values():
                freeing.callback(self.device.free_host, host)
            for address in list(self._addresses):
                freeing.callback(self._free, [address])
            self._hosts.clear()
            self._ahead.clear()
            self._rooms.clear()

    def _outgoing(self, name: str, size: int) -> tuple[int, NDArray[np.uint8], bool]:
        """An address on the device, pinned memory to be filled for it, and whether that is copied alone."""
        if self._written + size > _LETTER:
            return self.scratch(name, size), self._host(name, size)[:size], True
        begin = self._written
        address, host = self.scratch("letter", _LETTER) + begin, self._host("letter", _LETTER)
        self._written = -(-(begin + size) // _APART) * _APART
        return address, host[begin : begin + size], False

    def _pinned(self, name: str, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        host = self._host(name, len(data))[: len(data)]
        host[...] = data
        return host

    def _host(self, name: str, size: int) -> NDArray[np.uint8]:
        self._check_open()
        host = self._hosts.get(name)
        if host is None or len(host) < size:
            if host is not None:
                self.device.free_host(self._hosts.pop(name))
            host = self._hosts[name] = self.device.malloc_host(max(256, 1 << (size - 1).bit_length()))
        return host

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError("the gallery was closed")

    def _malloc(self, size: int) -> int:
        self._check_open()
        address = self.device.malloc(max(size, 16))
        self._addresses.add(address)
        self.allocations += 1
        return address

    def _free(self, addresses: Sequence[int]) -> None:
        for address in addresses:
            try:
                self._addresses.remove(address)
            except KeyError:  # another thread frees it, or the arena was closed
                continue
            self.device.free(address)


def _rows_bytes(arrays: Sequence[NDArray[Any]], width: int) -> int:
    """What rows of so many values take."""
    return sum(map(len, arrays)) * width * arrays[0].dtype.itemsize


def _fill(host: NDArray[np.uint8], arrays: Sequence[NDArray[Any]], width: int) -> None:
    """Write arrays' rows one after another, with zeros up to so many values."""
    rows = host.view(arrays[0].dtype).reshape(-1, width)
    dim = arrays[0].shape[1]
    np.concatenate(arrays, out=rows[:, :dim])
    rows[:, dim:] = 0
