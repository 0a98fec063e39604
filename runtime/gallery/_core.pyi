"""The extension module that core/module.cpp makes."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

INTERFACE: int

def features() -> list[str]:
    """Names of the instruction sets that work on this CPU, the best first."""

def widen(half: NDArray[Any], out: NDArray[Any]) -> None:
    """Write the float32 of each float16 to `out`, of as many values; both C-contiguous."""

def narrow(values: NDArray[Any], half: NDArray[Any]) -> None:
    """Write the nearest float16 of each float32 to `half`, of as many values; both C-contiguous."""

def untouched(
    watched: tuple[tuple[bytes, tuple[bytes, ...], bytes], ...],
    newest: bytes = ...,
    line: bytes = ...,
    absent: bytes | None = None,
) -> bool:
    """Whether files are as they were seen, and where it is asked for, whether a gallery's newest commit is a known one.

    Args:
        watched: (folder, names, seen) each: files of a folder, and for each 40 bytes: device, inode, size, and times of
            modification and change in nanoseconds, as 8 bytes each.
        newest, line: path of a regular file, and what it begins with if the commit is that one.
        absent: path of what must not be there.
    """

class Threads:
    """Threads that searches share."""

    def __init__(self, count: int) -> None: ...
    def forget(self) -> None:
        """Let go of threads that a fork left behind in the parent process."""

class Search:
    """A gallery's rows as compiled code reads them; see compiled.py for what the dictionaries hold."""

    def __init__(
        self, plan: dict[str, Any], parts: list[dict[str, Any]], check: Callable[[int, int, int], None]
    ) -> None: ...
    def best(
        self,
        queries: NDArray[Any],
        starts: NDArray[Any],
        k: int,
        allowed: NDArray[Any] | None,
        floors: NDArray[Any],
        threads: Threads,
    ) -> list[tuple[Any, ...]]:
        """For each query: rows, counts, maxima and winners as bytes, then rows read at each level, and one that
        contradicts itself, or -1.
        """
    def above(
        self,
        queries: NDArray[Any],
        starts: NDArray[Any],
        query_thresholds: NDArray[Any],
        row_thresholds: NDArray[Any],
        threads: Threads,
    ) -> tuple[bytes, bytes, bytes]:
        """For all queries one after another: how many rows reach a threshold, which, and their scores.

        int64, int64 and float64; see `CompiledSearch.above`.
        """
    def scores(self, queries: NDArray[Any], starts: NDArray[Any], rows: NDArray[Any], threads: Threads) -> bytes:
        """The score of each query with one row, float64."""
    def all_scores(self, queries: NDArray[Any], starts: NDArray[Any], threads: Threads, out: NDArray[Any]) -> None:
        """The score of each row with each query, float32 [rows, queries], from the rows' fine copies alone."""
