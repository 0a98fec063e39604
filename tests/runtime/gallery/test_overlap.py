"""Many queries on a GPU: it computes the next of them while the CPU pools and sorts, and no end leaves work behind.

The device is made of host memory, and numpy stands for the kernels: what is queued is done when somebody waits. With
CHAN_TEST_KERNELS=cuda the tests run on this machine's GPU.
"""

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime.backends.fake import FakeDevice
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import BackendError
from chan_rt.runtime.gallery.compiled import CompiledSearch
from chan_rt.runtime.gallery.cuda import ResidentSearch, SplitScan
from chan_rt.runtime.gallery.cuda import decide as decide_module
from chan_rt.runtime.gallery.cuda import memory as memory_module
from chan_rt.runtime.gallery.cuda import search as search_module
from chan_rt.runtime.gallery.cuda.memory import Arena
from chan_rt.runtime.gallery.cuda.scan import KernelScan
from chan_rt.runtime.gallery.cuda.turns import Turns

from .test_decide import assert_equal, made_queries, needs_core, searches
from .test_resident import KERNELS, SLOW, made_up, make_parts, open_scan

pytestmark = [needs_core, pytest.mark.skipif(SLOW, reason="what is queued when, not what it computes")]
DIM, ROWS, K = 24, 40, 5
EVERYTHING = np.ones(ROWS, bool)
LETTER = memory_module._LETTER
QUERIES = made_queries((5, 12, 3, 20, 1, 9, 40, 2, 17, 70, 6), DIM)  # of every kind that has launches of its own


class Opened:
    """A search of made-up rows that takes `turn` queries at a time, and the CPU's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, turn: int = 3) -> None:
        monkeypatch.setattr(search_module, "_TURN", turn)
        self.scan: KernelScan
        self.device: FakeDevice
        self.scan, self.device = open_scan("int8", DIM, AlignmentConfig())
        parts = make_parts(made_up("plain", 3, ROWS, 5, DIM), (10,))
        self.ours: ResidentSearch
        self.compiled: CompiledSearch
        self.ours, self.compiled = searches(parts, "images", AlignmentConfig(), self.scan)

    def assert_answers(self) -> None:
        """Its rankings are the CPU's, and it gives everything back."""
        assert_equal(self.ours.rank(QUERIES, K, EVERYTHING), self.compiled.rank(QUERIES, K))
        del self.ours
        self.scan.close()
        assert self.device.empty


def around(monkeypatch: pytest.MonkeyPatch, before: Callable[[int], None]) -> None:
    """Call a function, with the number of the call, whenever the CPU is about to pool."""
    real, calls = search_module.best_of, 0

    def best_of(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        before(calls)
        return real(*arguments)

    monkeypatch.setattr(search_module, "best_of", best_of)


@pytest.mark.parametrize("turn", [1, 3, 512])
@pytest.mark.parametrize(("gpus", "letter"), [(1, LETTER), (3, LETTER), (1, 256)], ids=["1", "3", "sent ahead"])
def test_rankings_come_in_the_order_of_the_queries(
    turn: int, gpus: int, letter: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "_TURN", turn)
    monkeypatch.setattr(memory_module, "_LETTER", letter)
    opened = [open_scan("int8", DIM, AlignmentConfig()) for _ in range(gpus)]
    scans = [scan for scan, _ in opened]
    scan = SplitScan(scans) if gpus > 1 else scans[0]
    parts = make_parts(made_up("near", 3, ROWS, 5, DIM), (10, 25))
    ours, compiled = searches(parts, "images", AlignmentConfig(), scan)
    expected = compiled.rank(QUERIES, K)
    assert_equal(ours.rank(QUERIES, K, EVERYTHING), expected)
    floors = np.array([ranking.scores[2] for ranking in expected])
    assert_equal(ours.rank(QUERIES, K, EVERYTHING, floors), compiled.rank(QUERIES, K, EVERYTHING, floors))
    assert ours.rank([], K, EVERYTHING) == []
    del ours
    scan.close()
    assert all(device.empty for _, device in opened)


@pytest.mark.skipif(KERNELS == "cuda", reason="a GPU may be done with them by then")
def test_the_next_queries_are_queued_before_the_cpu_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, begun = Opened(monkeypatch), []
    around(monkeypatch, lambda _: begun.append((opened.device.launched.count("quantize"), opened.device.under_way)))
    opened.ours.rank(made_queries((5,) * 10, DIM), K, EVERYTHING)
    assert begun == [(2, True), (3, True), (4, True), (4, False)]


def test_lists_as_long_as_the_last_ones_are_decided_without_another_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide_module, "_AHEAD", 0)
    opened, queries = Opened(monkeypatch), made_queries((5,) * 3, DIM)
    waits: list[int] = []
    wait = Arena.wait
    monkeypatch.setattr(Arena, "wait", lambda self: waits.append(wait(self)))
    for expected in (2, 1, 1):
        waits.clear()
        assert_equal(opened.ours.rank(queries, K, EVERYTHING), opened.compiled.rank(queries, K))
        assert len(waits) == expected
    opened.ours.rank(queries, ROWS, EVERYTHING)  # longer lists
    assert len(waits) == 1 + 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, BackendError])
@pytest.mark.parametrize("call", [1, 2, 5])
def test_nothing_is_under_way_after_an_error_of_the_cpu(
    error: type[BaseException], call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Opened(monkeypatch)

    def fail(number: int) -> None:
        if number == call:
            raise error("here")

    around(monkeypatch, fail)
    with pytest.raises(error, match="here"):
        opened.ours.rank(QUERIES, K, EVERYTHING)
    assert not opened.device.under_way
    opened.assert_answers()


@pytest.mark.parametrize("what", ["launch_kernel", "copy_in", "copy_out", "synchronize"])
def test_nothing_is_under_way_after_an_error_of_the_device(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call fails, and whatever lies in memory that the next search writes."""
    kind = type(Opened(monkeypatch).device)
    real = getattr(kind, what)
    monkeypatch.setattr(memory_module, "_LETTER", 1024)
    for turn in range(1000):
        opened, left = Opened(monkeypatch), turn

        def call(self: FakeDevice, *arguments: Any) -> Any:
            nonlocal left
            left -= (what, arguments) != ("synchronize", (0,))  # by which memory is given back
            if left == -1:
                left -= 1
                raise KeyboardInterrupt
            return real(self, *arguments)

        failed = False
        with monkeypatch.context() as patched:
            patched.setattr(kind, what, call)
            try:
                opened.ours.rank(QUERIES[:7], K, EVERYTHING)
            except KeyboardInterrupt:
                failed = True
        assert not opened.device.under_way
        if turn % 7 == 0 or not failed:
            opened.assert_answers()
        if not failed:
            break
    assert turn > 3


def test_others_search_between_the_turns_of_many_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, single, ended = Opened(monkeypatch), made_queries((5,), DIM), []
    expected = opened.compiled.rank(single, K)

    def search() -> None:
        assert_equal(opened.ours.rank(single, K, EVERYTHING), expected)
        ended.append("one")

    thread = threading.Thread(target=search)

    def before(call: int) -> None:
        if threading.current_thread() is thread:
            return
        if call == 1:  # this thread has its turn
            thread.start()
            while not opened.scan._turns.awaited:
                pass
        elif not ended:
            thread.join(20)
            assert ended == ["one"]

    around(monkeypatch, before)
    found = opened.ours.rank(QUERIES, K, EVERYTHING)
    ended.append("many")
    assert ended == ["one", "many"]
    assert_equal(found, opened.compiled.rank(QUERIES, K))
    opened.assert_answers()


def test_a_close_between_two_turns_ends_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    monkeypatch.setattr(Turns, "awaited", True)
    around(monkeypatch, lambda call: opened.scan.close() if call == 2 else None)
    with pytest.raises(BackendError, match="the gallery was closed"):
        opened.ours.rank(QUERIES, K, EVERYTHING)
    assert opened.device.empty


def test_rows_sent_ahead_are_filled_in_while_others_are_on_their_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_module, "_LETTER", 256)
    filled: list[object] = []
    fill = memory_module._fill
    monkeypatch.setattr(memory_module, "_fill", lambda host, arrays, width: filled.append(fill(host, arrays, width)))
    device = FakeDevice({})
    arena = Arena(device)
    rng = np.random.default_rng(0)
    pieces = [[rng.random((rows, 30), np.float32) for rows in (2, 3, count)] for count in (1, 4, 40, 2, 2)]

    def sent(address: int, arrays: list[np.ndarray]) -> None:
        expected = np.pad(np.concatenate(arrays), ((0, 0), (0, 2)))
        arena.wait()
        np.testing.assert_array_equal(device.memory[address].view(np.float32)[: expected.size], expected.reshape(-1))

    for number, piece in enumerate(pieces):
        arena.begin()
        address = arena.send_rows("rows", piece, 32)
        if number + 1 < len(pieces):
            arena.send_ahead("rows", pieces[number + 1], 32)  # the first copy is still queued
            arena.send_ahead("rows", pieces[number + 1], 32)
        sent(address, piece)
    assert len(filled) == len(pieces)
    arena.send_ahead("rows", pieces[0], 32)
    for piece in (pieces[1], pieces[0], [each * 2 for each in pieces[0]]):  # others come first, then what was ahead
        sent(arena.send_rows("rows", piece, 32), piece)
    assert len(filled) == len(pieces) + 3
    arena.send_ahead("rows", [np.ones((1, 30), np.float32)], 32)
    assert len(filled) == len(pieces) + 3, "small ones go by the letter"
    arena.send_ahead("rows", pieces[2], 32)
    arena.close()
    assert device.empty


def test_nothing_waits_on_a_stream_that_was_given_back() -> None:
    device = FakeDevice({})
    arena = Arena(device)
    arena.close()
    arena.wait()
    with pytest.raises(AssertionError, match="destroyed"):
        device.synchronize(arena.stream)


def test_a_close_during_a_turn_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Opened(monkeypatch)
    closing = threading.Thread(target=opened.scan.close)
    around(monkeypatch, lambda call: closing.start() if call == 1 else None)
    try:
        found = opened.ours.rank(QUERIES, K, EVERYTHING)
    except BackendError:
        found = None  # it came before the next turn
    closing.join()
    assert opened.device.empty
    if found is not None:
        assert_equal(found, opened.compiled.rank(QUERIES, K))


def test_an_error_of_one_of_several_gpus_leaves_nothing_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_TURN", 2)
    opened = [open_scan("int8", DIM, AlignmentConfig()) for _ in range(3)]
    split = SplitScan([scan for scan, _ in opened])
    ours, compiled = searches(
        make_parts(made_up("plain", 3, ROWS, 5, DIM), (10, 25)), "images", AlignmentConfig(), split
    )
    device, left = opened[1][1], 40
    real = device.launch_kernel

    def launch(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise BackendError("CUDA: cuLaunchKernel failed")
        real(*arguments)

    monkeypatch.setattr(device, "launch_kernel", launch)
    with pytest.raises(BackendError, match="cuLaunchKernel failed"):
        ours.rank(QUERIES, K, EVERYTHING)
    assert not any(device.under_way for _, device in opened)
    assert_equal(ours.rank(QUERIES, K, EVERYTHING), compiled.rank(QUERIES, K))
    split.close()


def test_an_interrupt_at_any_line_of_a_turn_leaves_nobody_waiting() -> None:
    """Otherwise every later search would believe that others wait, or end with an error of its own."""
    code, lines = Turns.search.__wrapped__.__code__, set()
    for stop in range(1, 100):
        turns, left = Turns(Arena(FakeDevice({}))), stop

        def trace(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal left
            left -= event == "line"
            if event == "line" and left == 0:
                lines.add(frame.f_lineno)
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(lambda frame, *_: trace if frame.f_code is code else None)
        try:
            with suppress(KeyboardInterrupt), turns.search():
                pass
        finally:
            sys.settrace(before)
        assert not turns.awaited
        if left > 0:
            break
    assert len(lines) > 5
