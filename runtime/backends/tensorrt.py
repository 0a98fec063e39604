"""TensorRT and TensorRT-RTX engines, without torch: one implementation, parameterized by flavor."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..contract import GraphSpec, Range
from ..errors import BackendError, EngineError, TensorError
from .base import Array, Backend, Feeds, check_feeds
from .buckets import cut, shape_of, splittable, symbol_ranges, union
from .device import CudaDevice, Device
from .engine_staleness import find_engine
from .lane import Lane
from .loading import RuntimeCache, check_engine, context_maker, load_engine, load_library
from .on_device import check_tensors
from .sidecar import EngineRecord
from .table import Flavor

__all__ = ["TensorRTBackend", "find_engine", "open_file"]

# What a batch axis may be at most before it is cut into parts: anything an array can hold.
_ANY = 2**62


def open_file(file: Path, spec: GraphSpec, threads: int | None, gpu: int = 0) -> Backend:
    """Open an engine of TensorRT on a GPU; `threads` concerns CPU backends only."""
    return TensorRTBackend("tensorrt", file, spec, gpu=gpu)


class TensorRTBackend(Backend):
    """An engine on the GPU.

    `run` may be called from several threads: each call takes one of `contexts` lanes, and waits while all are taken.
    A request larger along a batch axis than every profile is cut into parts that fit, one after the other.

    Args:
        flavor: tensorrt or tensorrt_rtx.
        engine_path: the engine, from `find_engine`, its sidecar beside it.
        spec: the graph's inputs and outputs.
        contexts: how many requests may run at once; each has its own buffers.
        warm_up: run every profile at its tuned-for sizes, so that the first request finds kernels and memory ready.
        gpu: which GPU, as CUDA counts them.
        loaded: the engine already deserialized, and its device; None loads `engine_path` on that GPU.

    Raises:
        BackendError: the flavor cannot run here; the message names what is missing and what would help.
        EngineError: the engine is foreign, stale or cannot be loaded.
    """

    step = 8

    def __init__(
        self,
        flavor: Flavor,
        engine_path: Path,
        spec: GraphSpec,
        *,
        contexts: int = 1,
        warm_up: bool = True,
        gpu: int = 0,
        loaded: tuple[Any, Device] | None = None,
    ) -> None:
        if contexts < 1:
            raise BackendError(f"contexts must be positive, got {contexts}")
        self.name = flavor
        self.spec = spec
        self.record = EngineRecord.from_file(engine_path.with_suffix(".json"))
        self._log: list[str] = []
        self._cache: RuntimeCache | None = None
        if self.record.onnx_sha256 != spec.sha256:
            raise EngineError(f"{engine_path.name} is stale: the bundle's graph changed since it was built")
        if loaded is None:
            library, found = load_library(flavor, self.record, gpu)
            device: Device = CudaDevice(gpu)
            self._runtime, engine = load_engine(library, flavor, engine_path, self.record, self._log)
            new_context, self._cache = context_maker(library, flavor, engine, engine_path, found, self._failure)
        else:
            engine, device = loaded
            new_context = engine.create_execution_context
        self._engine = engine
        self._profiles = symbol_ranges(spec, self.record.profiles)
        check_engine(engine, spec, len(self._profiles), engine_path)
        self._union = union(self._profiles)
        cuttable = splittable(spec)
        self._accepted = {
            symbol: Range(limit.min, limit.opt, _ANY) if symbol in cuttable else limit
            for symbol, limit in self._union.items()
        }
        # TensorRT-RTX records graphs itself, once its kernels for the shape are compiled.
        capture = flavor == "tensorrt"
        # Last in, first out: the lane used last is the warmest. None stands for a closed backend.
        self._lanes: queue.LifoQueue[Lane | None] = queue.LifoQueue()
        self._all: list[Lane] = []
        self._closing = threading.Lock()
        try:
            for _ in range(contexts):
                lane = Lane(spec, device, new_context, capture=capture, failure=self._failure)
                self._all.append(lane)
                self._lanes.put(lane)
            if warm_up:
                self.warm_up()
        except BaseException:
            with suppress(BackendError):  # the first failure is the one to report
                self.close()
            raise

    @property
    def ranges(self) -> Mapping[str, Range]:
        """Over all profiles, the sizes each symbol may take; batch axes beyond theirs are cut into parts."""
        return self._union

    @property
    def smallest(self) -> Mapping[str, int]:
        """See `Backend.smallest`: of one profile, because another's smallest may be too large beside it."""
        each = [{symbol: limits.min for symbol, limits in profile.items()} for profile in self._profiles]
        return min(each, key=lambda sizes: prod(sizes.values()))

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See `Backend.run`; a size outside every profile, along an axis that cannot be cut, is a TensorError."""
        sizes = check_feeds(self.spec, self._accepted, feeds)
        outputs = {t.name: np.empty(shape_of(t, sizes), t.dtype) for t in self.spec.outputs}
        parts = list(cut(self.spec, self._profiles, sizes))
        with self._lane() as lane:
            for part in parts:
                part_sizes = {symbol: rows.stop - rows.start for symbol, rows in part.slices.items()}
                part_feeds = {t.name: feeds[t.name][_rows(t.shape, part.slices)] for t in self.spec.inputs}
                part_outputs = {t.name: outputs[t.name][_rows(t.shape, part.slices)] for t in self.spec.outputs}
                lane.run(part.profile, part_sizes, part_feeds, part_outputs)
        return outputs

    def run_on_device(self, feeds: Mapping[str, Any], out: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """See `OnDevice`; nothing is copied. Such a request is not cut: TensorError where it fits no single profile.

        The lane's stream waits for what is queued on the caller's, and the call for the lane's.
        """
        sizes = check_tensors(self.spec, self._union, feeds)
        part, *more = cut(self.spec, self._profiles, sizes)
        if more:
            raise TensorError(self.spec.inputs[0].name, "tensors on the device must fit one profile", sizes)
        with self._lane() as lane:
            return lane.run_on_device(part.profile, sizes, feeds, out or {})

    def warm_up(self) -> None:
        """Run every profile, in every lane, at its tuned-for sizes: to make room, to be seen, to be recorded."""
        lanes = [self._take() for _ in self._all]
        try:
            for lane, _, (index, profile) in product(lanes, range(3), enumerate(self._profiles)):
                sizes = {symbol: limits.opt for symbol, limits in profile.items()}
                feeds = {t.name: np.ones(shape_of(t, sizes), t.dtype) for t in self.spec.inputs}
                outputs = {t.name: np.empty(shape_of(t, sizes), t.dtype) for t in self.spec.outputs}
                lane.run(index, sizes, feeds, outputs)
        finally:
            for lane in lanes:
                self._lanes.put(lane)
        if self._cache is not None:
            self._cache.save()

    @property
    def allocations(self) -> int:
        """How often the lanes allocated memory so far; constant once they are warm."""
        return sum(lane.allocations for lane in self._all)

    @property
    def graphs(self) -> int:
        """How many CUDA graphs the lanes recorded so far."""
        return sum(lane.graphs for lane in self._all)

    def close(self) -> None:
        """Wait for the requests under way, then free everything; requests that still wait are refused."""
        with self._closing:
            if self._engine is None:
                return
            try:
                with ExitStack() as closing:  # goes on past an error: after some errors every call of CUDA fails
                    for lane in [self._take() for _ in self._all]:
                        closing.callback(lane.close)
                    if self._cache is not None:
                        closing.callback(self._cache.save)
            finally:
                self._all = []
                self._engine = self._cache = None
                self._lanes.put(None)

    def _take(self) -> Lane:
        lane = self._lanes.get()
        if lane is None:
            self._lanes.put(None)  # for the next one who waits
            raise BackendError(f"{self.name} was closed")
        return lane

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        lane = self._take()
        try:
            yield lane
        finally:
            self._lanes.put(lane)

    def _failure(self) -> str:
        """The errors that the library has logged since the last call."""
        said = "; ".join(self._log)
        self._log.clear()
        return said


def _rows(shape: tuple[int | str, ...], slices: Mapping[str, slice]) -> tuple[slice, ...]:
    """How a part of a request indexes a tensor: only batch axes are ever less than whole."""
    return tuple(slices[axis] if isinstance(axis, str) else slice(None) for axis in shape)
