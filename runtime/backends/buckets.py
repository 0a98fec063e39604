"""Which profile a request runs under, and how a request larger than every profile is cut into parts that fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import prod

from ..contract import GraphSpec, Range, TensorSpec
from ..errors import EngineError, TensorError
from .sidecar import Profile

Sizes = Mapping[str, int]
SymbolRanges = Mapping[str, Range]


@dataclass(frozen=True)
class Part:
    """Rows `slices[symbol]` of a request, to run under one profile."""

    profile: int
    slices: Mapping[str, slice]


def shape_of(tensor: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    """A tensor's shape for these sizes of its symbols."""
    return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in tensor.shape)


def symbol_ranges(spec: GraphSpec, profiles: Sequence[Profile]) -> list[SymbolRanges]:
    """Each profile by symbol in place of by input; EngineError where two inputs disagree or an input is missing."""
    found: list[SymbolRanges] = []
    for profile in profiles:
        ranges: dict[str, Range] = {}
        for tensor in spec.inputs:
            if tensor.name not in profile:
                raise EngineError(f"the engine has no profile for the input {tensor.name}: build it again")
            own = profile[tensor.name]
            for axis, (low, opt, high) in zip(tensor.shape, zip(own.min, own.opt, own.max, strict=True), strict=True):
                if isinstance(axis, str) and ranges.setdefault(axis, Range(low, opt, high)) != Range(low, opt, high):
                    raise EngineError(f"the engine's inputs disagree about {axis}: build it again")
        found.append(ranges)
    return found


def splittable(spec: GraphSpec) -> frozenset[str]:
    """Symbols along which a request may be cut: never but an input's first axis, and one axis of each output."""
    heads = {tensor.shape[0] for tensor in spec.inputs if tensor.shape}
    return frozenset(
        symbol
        for symbol in heads
        if isinstance(symbol, str)
        and all(symbol not in tensor.shape[1:] for tensor in spec.inputs)
        and all(tensor.shape.count(symbol) == 1 for tensor in spec.outputs)
    )


def union(profiles: Sequence[SymbolRanges]) -> dict[str, Range]:
    """Per symbol, from the smallest of all minima to the largest of all maxima."""
    return {
        symbol: Range(
            min(profile[symbol].min for profile in profiles),
            profiles[-1][symbol].opt,
            max(profile[symbol].max for profile in profiles),
        )
        for symbol in profiles[0]
    }


def cut(spec: GraphSpec, profiles: Sequence[SymbolRanges], sizes: Sizes) -> Iterator[Part]:
    """The parts a request runs in: one under the tightest profile that admits it, or as few as possible.

    Parts are of nearly equal size, so that none falls below a profile's minimum when it can be helped.

    Raises:
        TensorError: no profile admits the sizes along the axes that cannot be cut.
    """
    batches = splittable(spec)
    best: tuple[tuple[int, int, int], dict[str, list[slice]]] | None = None
    for index, profile in enumerate(profiles):
        slices = {symbol: _slices(profile[symbol], size, symbol in batches) for symbol, size in sizes.items()}
        if not all(slices.values()):
            continue
        volume = prod(profile[symbol].max for symbol in sizes)
        rank = (prod(map(len, slices.values())), volume, index)
        if best is None or rank < best[0]:
            best = rank, slices
    if best is None:
        raise _misfit(spec, profiles, sizes, batches)
    (_, _, index), slices = best
    for choice in product(*slices.values()):
        yield Part(index, dict(zip(slices, choice, strict=True)))


def _slices(allowed: Range, size: int, may_cut: bool) -> list[slice]:
    """The fewest, most even slices of range(size) that `allowed` admits; none where there are none."""
    count = -(-size // allowed.max) if size else 1
    if (count > 1 and not may_cut) or size // count < allowed.min:
        return []
    bounds = [size * part // count for part in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _misfit(spec: GraphSpec, profiles: Sequence[SymbolRanges], sizes: Sizes, batches: frozenset[str]) -> TensorError:
    """Name the tensor that has an axis no profile admits, or the first one where only the combination is at fault."""
    for tensor in spec.inputs:
        for axis in tensor.shape:
            if isinstance(axis, str) and not any(_slices(p[axis], sizes[axis], axis in batches) for p in profiles):
                limits = " or ".join(dict.fromkeys(f"{p[axis].min}..{p[axis].max}" for p in profiles))
                return TensorError(tensor.name, f"{axis} must be within the engine's profiles, {limits}", sizes[axis])
    shown = " or ".join(
        "(" + ", ".join(f"{symbol} {own.min}..{own.max}" for symbol, own in profile.items()) + ")"
        for profile in profiles
    )
    found = ", ".join(f"{symbol} {size}" for symbol, size in sizes.items())
    return TensorError(spec.inputs[0].name, f"sizes must fit one of the engine's profiles, {shown}", found)
