"""Optimization profiles: which shapes an engine is tuned for, from the manifest's ranges or the user's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..runtime.backends.sidecar import InputRange, Profile
from ..runtime.contract import GraphSpec, Range
from ..runtime.errors import BundleError, InputError


def batch_symbols(spec: GraphSpec) -> list[str]:
    """Symbols that head an input's shape: B for an encoder, I and C for the alignment."""
    return list(dict.fromkeys(axis for tensor in spec.inputs for axis in tensor.shape[:1] if isinstance(axis, str)))


def default_profiles(spec: GraphSpec) -> list[Profile]:
    """One profile for each batch symbol at 1, for latency, and one over the whole ranges, for throughput."""
    ranges = [
        {**spec.ranges, symbol: Range(1, 1, 1)}
        for symbol in batch_symbols(spec)
        if spec.ranges[symbol].min == 1 < spec.ranges[symbol].max
    ]
    return [_profile(spec, one) for one in [*ranges, dict(spec.ranges)]]


def choose_profiles(spec: GraphSpec, wanted: Sequence[Mapping[str, Range]]) -> list[Profile]:
    """One profile for each of `wanted`; symbols it does not name keep the manifest's range.

    Raises:
        InputError: a range goes beyond the manifest's, which is what the graph was exported and proven for.
    """
    for ranges in wanted:
        for symbol, range_ in ranges.items():
            allowed = spec.ranges[symbol]
            if range_.min < allowed.min or range_.max > allowed.max:
                raise InputError(
                    f"profile: {symbol} must stay within {allowed.min}..{allowed.max} of the manifest, "
                    f"got {range_.min}:{range_.opt}:{range_.max}"
                )
    return [_profile(spec, {**spec.ranges, **ranges}) for ranges in wanted]


def parse_profile(text: str) -> dict[str, Range]:
    """Read `SYMBOL=MIN:OPT:MAX[,SYMBOL=...]`, `SYMBOL=N` for a fixed size; InputError shows the form."""
    ranges = {}
    try:
        for part in text.split(","):
            symbol, _, sizes = part.partition("=")
            numbers = [int(size) for size in sizes.split(":")]
            if not symbol or len(numbers) not in (1, 3):
                raise ValueError(part)
            ranges[symbol.strip()] = Range(*numbers) if len(numbers) == 3 else Range(*numbers * 3)
    except (ValueError, BundleError) as error:
        raise InputError(f"profile must read SYMBOL=MIN:OPT:MAX[,SYMBOL=...], got {text!r} ({error})") from error
    return ranges


def _profile(spec: GraphSpec, ranges: Mapping[str, Range]) -> Profile:
    def shape(axes: Sequence[int | str], bound: str) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else getattr(ranges[axis], bound) for axis in axes)

    return {
        t.name: InputRange(shape(t.shape, "min"), shape(t.shape, "opt"), shape(t.shape, "max")) for t in spec.inputs
    }
