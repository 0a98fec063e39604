"""A backend made of a Python function, for tests of whatever uses a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ..contract import GraphSpec, Range
from .base import Array, Backend, Feeds, check_feeds


class FakeBackend(Backend):
    """Answers `run` with a function of the feeds, after the checks a real backend makes.

    Args:
        spec: the graph it stands for.
        compute: feeds -> outputs by name.
        ranges: as of an engine built for fewer sizes; None for the spec's.

    Attributes:
        calls: the shapes of every call's feeds, in order.
        closed: whether `close` was called.
    """

    def __init__(
        self,
        spec: GraphSpec,
        compute: Callable[[Feeds], dict[str, Array]],
        ranges: Mapping[str, Range] | None = None,
    ) -> None:
        self.name = "fake"
        self.spec = spec
        self.calls: list[dict[str, tuple[int, ...]]] = []
        self.closed = False
        self._compute = compute
        self._ranges = spec.ranges if ranges is None else ranges

    @property
    def ranges(self) -> Mapping[str, Range]:
        """The ranges it was given."""
        return self._ranges

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """See `Backend.run`."""
        check_feeds(self.spec, self.ranges, feeds)
        self.calls.append({name: array.shape for name, array in feeds.items()})
        return self._compute(feeds)

    def close(self) -> None:
        """Remember it."""
        self.closed = True
