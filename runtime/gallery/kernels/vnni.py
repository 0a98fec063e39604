"""The scan written for one instruction: vpdpbusd multiplies 64 bytes by 64 bytes and adds fours of them into 16 sums.

A lane holds a query vector. Four bytes of a gallery vector are broadcast to every lane and meet the same four of each
query vector; after a vector's last byte the lanes hold its inner products with all of them, and the maximum over a
row's vectors is a vertical one: no product ever leaves the registers, and each byte of the gallery is read once, where
it lies mapped. MatMulInteger copies what it reads and writes every product out.

The fine copy's float32 products are here too. Their lanes run along a vector instead, so that float16 is widened as it
is loaded; rows are read where they lie.

The code is made by LLVM (through llvmlite) when a process first searches.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import BackendError
from ...extras import needs
from .base import KernelName, Over, PackedQueries
from .layout import LANE, OFFSET, PLANE, stored_width

SUMS = 12  # registers of sums at a time: vpdpbusd takes 5 cycles, and two start in one
AHEAD = 36  # vectors from the one multiplied to the one fetched: a hardware prefetcher does not cross a page
_STEP = 4  # bytes of a vector that one instruction multiplies


class _Instructions(NamedTuple):
    """An instruction set that has vpdpbusd: LLVM's flag of it, and the 32-bit lanes of its registers."""

    name: str
    flag: str
    lanes: int


_INSTRUCTIONS = (_Instructions("AVX-512 VNNI", "avx512vnni", 16), _Instructions("AVX-VNNI", "avxvnni", 8))


@dataclass(frozen=True)
class Shape:
    """How many query vectors meet a gallery vector at once: `groups` registers of lanes, of each plane."""

    planes: int
    groups: int

    @property
    def registers(self) -> int:
        """Number of registers of sums that a gallery vector takes."""
        return self.planes * self.groups

    @property
    def suffix(self) -> str:
        """Suffix of the names of the functions for this shape."""
        return f"{self.planes}_{self.groups}"

    @property
    def vectors(self) -> int:
        """Number of gallery vectors that are multiplied at a time."""
        return SUMS // self.registers


SHAPES = (Shape(1, 1), Shape(1, 2), Shape(2, 1))


class Code:
    """Machine code of the scan; raises BackendError where LLVM or the instruction is missing.

    Args:
        lanes: 16 (AVX-512 VNNI), 8 (AVX-VNNI) or None for the most this CPU has.
    """

    def __init__(self, weight: float, lanes: int | None = None) -> None:
        with needs("llvmlite", "the vnni scan"):
            import llvmlite.binding as llvm
        features = llvm.get_host_cpu_features()
        wanted = [sets for sets in _INSTRUCTIONS if lanes is None or sets.lanes == lanes]
        found = [sets.lanes for sets in wanted if features.get(sets.flag, False)]
        if not found:
            missing = " and no ".join(sets.name for sets in wanted)
            raise BackendError(f"this CPU has no {missing} instructions; use the onnxruntime or numpy scan")
        self.lanes = found[0]
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        module = llvm.parse_assembly(str(_Source(self.lanes, weight).module))
        module.verify()
        target = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3
        )
        self._engine = llvm.create_mcjit_compiler(module, target)  # owns the code that the functions run
        self._engine.finalize_object()
        address = self._engine.get_function_address
        self._products = {size: ctypes.CFUNCTYPE(None, *_ROW_ARGUMENTS)(address(f"products_{size}")) for size in (2, 4)}
        self._functions = {
            (name, shape): ctypes.CFUNCTYPE(None, *_ARGUMENTS)(address(f"{name}_{shape.suffix}"))
            for name in ("over_row", "over_query")
            for shape in SHAPES
        }

    def tile(self, shape: Shape) -> int:
        """Number of query vectors in one tile."""
        return self.lanes * shape.groups

    def tiles(self, vectors: NDArray[np.int8], shape: Shape) -> tuple[NDArray[np.int8], NDArray[np.int32]]:
        """Lay out the planes of query vectors [P, Q, S], Q a multiple of `tile(shape)`, as the code reads them.

        Returns:
            int8 [tiles, S / 4, P, groups, lanes, 4] at a cache line's boundary, and the sums that the lanes begin with,
            int32 [tiles, P x groups, lanes]: what the offset of the stored codes adds, taken off.
        """
        planes, count, width = vectors.shape
        tiles = count // self.tile(shape)
        each = vectors.reshape(planes, tiles, shape.groups, self.lanes, width // _STEP, _STEP)
        laid = _aligned(shape.registers * tiles * self.lanes * width).view(np.int8)
        laid = laid.reshape(tiles, width // _STEP, planes, shape.groups, self.lanes, _STEP)
        laid[...] = each.transpose(1, 4, 0, 2, 3, 5)
        begin = each.sum(axis=(4, 5), dtype=np.int32) * -OFFSET
        return laid, np.ascontiguousarray(begin.transpose(1, 0, 2, 3).reshape(tiles, shape.registers, self.lanes))

    def over_row(
        self,
        stored: NDArray[np.uint8],
        starts: NDArray[np.int64],
        shape: Shape,
        laid: NDArray[np.int8],
        begin: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        """Maxima over the vectors of each row: [rows, Q]; row i is stored[starts[i]:starts[i + 1]], none empty."""
        out = np.empty((len(starts) - 1, len(laid) * self.tile(shape)), np.float32)
        self._call("over_row", shape, stored, starts, laid, begin, len(starts) - 1, len(laid), out)
        return out

    def over_query(
        self,
        stored: NDArray[np.uint8],
        starts: NDArray[np.int64],
        shape: Shape,
        laid: NDArray[np.int8],
        begin: NDArray[np.int32],
    ) -> NDArray[np.float32]:
        """Maxima over the vectors of each query: [V, queries]; query i is the tiles starts[i] up to starts[i + 1]."""
        out = np.empty((len(stored), len(starts) - 1), np.float32)
        self._call("over_query", shape, stored, starts, laid, begin, len(stored), len(starts) - 1, out)
        return out

    def products(self, rows: Sequence[NDArray[np.floating]], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """Inner products in float32 of the vectors of rows [L_i, D], all float32 or all float16, with a query's [Q, D]:
        [sum of L_i, Q].
        """
        count, dim = query.shape
        width = -(-dim // self.lanes) * self.lanes
        padded = _aligned(4 * count * width).view(np.float32).reshape(count, width)
        padded[:, :dim], padded[:, dim:] = query, 0
        if dim % self.lanes:  # the code reads whole registers
            rows = [np.pad(row, ((0, 0), (0, width - dim))) for row in rows]
        places = np.array([row.ctypes.data for row in rows], np.int64)
        starts = np.cumsum([0] + [len(row) for row in rows], dtype=np.int64)
        out = np.empty((starts[-1], count), np.float32)
        arrays = (array.ctypes.data for array in (places, starts, padded, out))
        self._products[rows[0].itemsize](*arrays, width, len(rows), count)
        return out

    def _call(
        self,
        name: str,
        shape: Shape,
        stored: NDArray[np.uint8],
        starts: NDArray[np.int64],
        laid: NDArray[np.int8],
        begin: NDArray[np.int32],
        outer: int,
        inner: int,
        out: NDArray[np.float32],
    ) -> None:
        starts = np.ascontiguousarray(starts, np.int64)
        if not (stored.flags.c_contiguous and stored.shape[1] % LANE == 0):
            raise ValueError("stored codes must lie in one piece, padded")
        arrays = (array.ctypes.data for array in (stored, starts, laid, begin, out))
        self._functions[name, shape](*arrays, stored.shape[1], outer, inner)


# stored, starts, laid, begin, out; then width, and the counts of the outer and the inner loop
_ARGUMENTS = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 3
# places, starts, query, out; then width, rows, query vectors
_ROW_ARGUMENTS = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3


def _aligned(size: int) -> NDArray[np.uint8]:
    memory = np.empty(size + LANE, np.uint8)
    start = -memory.ctypes.data % LANE
    return memory[start : start + size]


class _Source:
    """LLVM's intermediate representation of the scan (https://llvm.org/docs/LangRef.html)."""

    def __init__(self, lanes: int, weight: float) -> None:
        from llvmlite import ir

        self.ir, self.lanes = ir, lanes
        self.i64, self.pointer = ir.IntType(64), ir.PointerType()
        self.sums, self.floats = ir.VectorType(ir.IntType(32), lanes), ir.VectorType(ir.FloatType(), lanes)
        self.bytes = ir.VectorType(ir.IntType(8), lanes * _STEP)
        self.weight = ir.Constant(self.floats, [weight] * lanes)
        self.least = ir.Constant(self.floats, [float("-inf")] * lanes)
        self.module = ir.Module("scan")
        product = ir.FunctionType(self.sums, [self.sums, self.bytes, self.bytes])
        self.vpdpbusd = ir.Function(self.module, product, f"llvm.x86.avx512.vpdpbusd.{lanes * 32}")
        fused = ir.FunctionType(self.floats, [self.floats] * 3)
        self.fma = ir.Function(self.module, fused, f"llvm.fma.v{lanes}f32")
        fetch = ir.FunctionType(ir.VoidType(), [self.pointer] + [ir.IntType(32)] * 3)
        self.prefetch = ir.Function(self.module, fetch, "llvm.prefetch.p0")
        for shape in SHAPES:
            self._over_row(shape)
            self._over_query(shape)
        for size, value in ((2, ir.HalfType()), (4, ir.FloatType())):
            self._products_of_rows(size, value)

    def _function(self, name: str, pointers: int) -> tuple[Any, list[Any]]:
        kind = self.ir.FunctionType(self.ir.VoidType(), [self.pointer] * pointers + [self.i64] * 3)
        function = self.ir.Function(self.module, kind, name)
        return self.ir.IRBuilder(function.append_basic_block()), list(function.args)

    def _over_row(self, shape: Shape) -> None:
        """for tile: for row: out[row, tile] = max over the row's vectors of its products with the tile"""
        b, (stored, starts, laid, begin, out, width, rows, tiles) = self._function(f"over_row_{shape.suffix}", 5)
        with self._loop(b, tiles) as (tile, _):
            query, sums = self._tile(b, laid, begin, width, tile, shape)
            with self._loop(b, rows) as (row, _):
                first, end = self._span(b, starts, row)
                with self._loop(b, end, first, shape.vectors, [self.least] * shape.groups) as (vector, carried):
                    last = b.sub(end, self._int(1))
                    for found in self._maxima(b, stored, width, vector, last, query, sums, shape):
                        carried[:] = [self._larger(b, *pair) for pair in zip(found, carried, strict=True)]
                place = b.mul(b.add(b.mul(row, tiles), tile), self._int(shape.groups))
                for i, maxima in enumerate(carried):
                    b.store(maxima, b.gep(out, [b.add(place, self._int(i))], source_etype=self.floats), align=4)
        b.ret_void()

    def _over_query(self, shape: Shape) -> None:
        """for query: for vectors: out[vector, query] = max over the query's tiles, and over their lanes"""
        b, (stored, starts, laid, begin, out, width, vectors, queries) = self._function(f"over_query_{shape.suffix}", 5)
        last = b.sub(vectors, self._int(1))
        with self._loop(b, queries) as (query, _):
            first, end = self._span(b, starts, query)
            with self._loop(b, vectors, step=shape.vectors) as (vector, _):
                with self._loop(b, end, first, carried=[self.least] * shape.vectors) as (tile, carried):
                    tiled, sums = self._tile(b, laid, begin, width, tile, shape)
                    for i, found in enumerate(self._maxima(b, stored, width, vector, last, tiled, sums, shape)):
                        for group in found:
                            carried[i] = self._larger(b, group, carried[i])
                for i, maxima in enumerate(carried):
                    place = b.add(b.mul(self._smaller(b, b.add(vector, self._int(i)), last), queries), query)
                    value = self._fold(b, maxima, self._larger)
                    b.store(value, b.gep(out, [place], source_etype=self.ir.FloatType()), align=4)
        b.ret_void()

    def _products_of_rows(self, size: int, value: Any) -> None:
        """for row: for its vectors, four at a time: for query vectors, six at a time: out[vector, query vector]"""
        b, (places, starts, queries, out, width, rows, count) = self._function(f"products_{size}", 4)
        ir, single = self.ir, self.ir.FloatType()
        loaded = ir.VectorType(value, self.lanes)
        last_query = b.sub(count, self._int(1))
        zero = ir.Constant(self.floats, [0.0] * self.lanes)
        following = b.mul(width, self._int(4))
        with self._loop(b, rows) as (row, _):
            place = b.inttoptr(b.load(b.gep(places, [row], source_etype=self.i64), typ=self.i64), self.pointer)
            first, end = self._span(b, starts, row)
            length = b.sub(end, first)
            last = b.sub(length, self._int(1))
            with self._loop(b, length, step=4) as (vector, _), self._loop(b, count, step=6) as (word, _):
                mine = [self._smaller(b, b.add(vector, self._int(i)), last) for i in range(4)]
                theirs = [self._smaller(b, b.add(word, self._int(i)), last_query) for i in range(6)]
                left = [b.gep(place, [b.mul(number, width)], source_etype=value) for number in mine]
                right = [b.gep(queries, [b.mul(number, width)], source_etype=single) for number in theirs]
                with self._loop(b, width, step=self.lanes, carried=[zero] * 24) as (at, carried):
                    values = [b.load(b.gep(p, [at], source_etype=value), typ=loaded, align=size) for p in left]
                    for p in left:
                        self._fetch(b, b.gep(p, [b.add(at, following)], source_etype=value))
                    if size == 2:
                        values = [b.fpext(each, self.floats) for each in values]
                    for j, p in enumerate(right):
                        other = b.load(b.gep(p, [at], source_etype=single), typ=self.floats, align=self.lanes * 4)
                        for i, each in enumerate(values):
                            carried[i * 6 + j] = b.call(self.fma, [each, other, carried[i * 6 + j]])
                for i, number in enumerate(mine):
                    here = b.mul(b.add(first, number), count)
                    for j, other in enumerate(theirs):
                        total = self._fold(b, carried[i * 6 + j], lambda b, one, other: b.fadd(one, other))
                        b.store(total, b.gep(out, [b.add(here, other)], source_etype=single), align=4)
        b.ret_void()

    def _span(self, b: Any, starts: Any, i: Any) -> tuple[Any, Any]:
        """starts[i], starts[i + 1]"""
        places = (i, b.add(i, self._int(1)))
        return tuple(b.load(b.gep(starts, [place], source_etype=self.i64), typ=self.i64) for place in places)

    def _fold(self, b: Any, values: Any, combine: Callable[[Any, Any, Any], Any]) -> Any:
        """All lanes combined into one."""
        lanes = self.lanes
        indices = self.ir.VectorType(self.ir.IntType(32), lanes)
        while lanes > 1:
            lanes //= 2
            turned = [(lane + lanes) % self.lanes for lane in range(self.lanes)]
            values = combine(b, values, b.shuffle_vector(values, values, self.ir.Constant(indices, turned)))
        return b.extract_element(values, self._int(0))

    def _tile(self, b: Any, laid: Any, begin: Any, width: Any, tile: Any, shape: Shape) -> tuple[Any, list[Any]]:
        """Where a tile's vectors begin, and the sums its lanes begin with."""
        count = shape.registers
        size = b.mul(width, self._int(count * self.lanes))
        query = b.gep(laid, [b.mul(tile, size)], source_etype=self.ir.IntType(8))
        places = [b.add(b.mul(tile, self._int(count)), self._int(i)) for i in range(count)]
        return query, [
            b.load(b.gep(begin, [place], source_etype=self.sums), typ=self.sums, align=4) for place in places
        ]

    def _maxima(
        self, b: Any, stored: Any, width: Any, vector: Any, last: Any, query: Any, sums: list[Any], shape: Shape
    ) -> list[list[Any]]:
        """Products of `shape.vectors` vectors from `vector` on, none past `last` (it is repeated), with a tile's: for
        each vector one register a group.
        """
        byte, count = self.ir.IntType(8), shape.registers
        numbers = [self._smaller(b, b.add(vector, self._int(i)), last) for i in range(shape.vectors)]
        rows = [b.gep(stored, [b.mul(number, width)], source_etype=byte) for number in numbers]
        ahead = b.mul(width, self._int(AHEAD))
        with self._loop(b, width, step=LANE, carried=sums * shape.vectors) as (at, carried):
            for row in rows:
                self._fetch(b, b.gep(row, [b.add(at, ahead)], source_etype=byte))
            for offset in range(0, LANE, _STEP):
                here = b.add(at, self._int(offset))
                before = b.mul(here, self._int(count * self.lanes))
                places = [b.add(before, self._int(i * self.lanes * _STEP)) for i in range(count)]
                weights = [
                    b.load(b.gep(query, [place], source_etype=byte), typ=self.bytes, align=self.lanes * _STEP)
                    for place in places
                ]
                for i, row in enumerate(rows):
                    four = self._broadcast(b, b.gep(row, [here], source_etype=byte))
                    for j, weight in enumerate(weights, count * i):
                        carried[j] = b.call(self.vpdpbusd, [carried[j], four, weight])
        floats = [b.sitofp(value, self.floats) for value in carried]
        each = [floats[begin : begin + count] for begin in range(0, len(floats), count)]
        if shape.planes == 1:
            return each
        return [[b.fadd(b.fmul(high, self.weight), low)] for high, low in each]

    def _fetch(self, b: Any, place: Any) -> None:
        """Bring a cache line nearer; past the end of memory it does nothing."""
        b.call(self.prefetch, [place, *(self.ir.Constant(self.ir.IntType(32), v) for v in (0, 3, 1))])

    def _broadcast(self, b: Any, place: Any) -> Any:
        """Four bytes in every lane."""
        undefined = self.ir.Constant(self.sums, self.ir.Undefined)
        value = b.load(place, typ=self.ir.IntType(32), align=4)
        lanes = b.shuffle_vector(
            b.insert_element(undefined, value, self._int(0)), undefined, self.ir.Constant(self.sums, [0] * self.lanes)
        )
        return b.bitcast(lanes, self.bytes)

    def _larger(self, b: Any, one: Any, other: Any) -> Any:
        return b.select(b.fcmp_ordered(">", one, other), one, other)

    def _smaller(self, b: Any, one: Any, other: Any) -> Any:
        return b.select(b.icmp_signed("<", one, other), one, other)

    def _int(self, value: int) -> Any:
        return self.ir.Constant(self.i64, value)

    @contextmanager
    def _loop(
        self, b: Any, end: Any, begin: Any = None, step: int = 1, carried: list[Any] | None = None
    ) -> Iterator[tuple[Any, list[Any]]]:
        """`for index in range(begin, end, step)`, run at least once; yields the index and the values carried.

        What the body leaves in the list of carried values goes into the next round, and is there after the loop.
        """
        before, body = b.block, b.append_basic_block("loop")
        begin = self._int(0) if begin is None else begin
        b.branch(body)
        b.position_at_end(body)
        index = b.phi(self.i64)
        index.add_incoming(begin, before)
        phis = [b.phi(value.type) for value in carried or []]
        for phi, value in zip(phis, carried or [], strict=True):
            phi.add_incoming(value, before)
        values = list(phis)
        yield index, values
        following = b.add(index, self._int(step))
        index.add_incoming(following, b.block)
        for phi, value in zip(phis, values, strict=True):
            phi.add_incoming(value, b.block)
        after = b.append_basic_block("after")
        b.cbranch(b.icmp_signed("<", following, end), body, after)
        b.position_at_end(after)


class VnniKernel:
    """vpdpbusd on one thread, by the code above."""

    name: KernelName = "vnni"
    block_bytes = 64 << 20  # no product is written out

    def __init__(self, lanes: int | None = None) -> None:
        self._code = Code(PLANE, lanes)

    def pack(self, planes: NDArray[np.int8], starts: NDArray[np.int64], over: Over) -> PackedQueries:
        """See Kernel; laid: the code's shape, the tiles, what their lanes begin with, and each query's first tile."""
        depth, count, dim = planes.shape
        lengths = np.diff(starts) if over == "query" else np.array([count])
        shape = min(
            (shape for shape in SHAPES if shape.planes == depth),
            key=lambda shape: (int(np.sum(-(-lengths // self._code.tile(shape)))) * shape.groups, -shape.groups),
        )
        tile = self._code.tile(shape)
        tile_starts = np.r_[0, np.cumsum(-(-lengths // tile))]
        if over == "row":
            places = np.arange(-(-count // tile) * tile).clip(max=count - 1)
        else:  # lanes past a query's end repeat its last vector: a maximum does not mind
            first = np.repeat(starts[:-1] - tile_starts[:-1] * tile, np.diff(tile_starts) * tile)
            last = np.repeat(starts[1:] - 1, np.diff(tile_starts) * tile)
            places = np.minimum(np.arange(tile_starts[-1] * tile) + first, last)
        padded = np.zeros((depth, len(places), stored_width(dim)), np.int8)
        padded[:, :, :dim] = planes[:, places]
        return PackedQueries(depth, starts, over, (shape, *self._code.tiles(padded, shape), tile_starts))

    def maxima(self, stored: NDArray[np.uint8], starts: NDArray[np.int64], query: PackedQueries) -> NDArray[np.float32]:
        """See Kernel."""
        shape, tiles, begin, tile_starts = query.laid
        if query.over == "row":
            return self._code.over_row(stored, starts, shape, tiles, begin)[:, : query.starts[-1]]
        return self._code.over_query(stored, tile_starts, shape, tiles, begin)

    def products(self, rows: Sequence[NDArray[np.floating]], query: NDArray[np.float32]) -> NDArray[np.float32]:
        """See Kernel."""
        return self._code.products(rows, query)

    def roundings(self, dim: int) -> int:
        """See Kernel: each lane's fused multiply-adds, then halves of the lanes are added."""
        return -(-dim // self._code.lanes) + (self._code.lanes - 1).bit_length()
