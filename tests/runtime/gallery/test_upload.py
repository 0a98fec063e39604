"""A new segment on its way to a GPU: searches of what is there go on meanwhile, and their answers are right.

The device is made of host memory, and numpy stands for the kernels. With CHAN_TEST_KERNELS=cuda the tests run on this
machine's GPU.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import BackendError, GpuMemoryError
from chan_rt.runtime.gallery.cuda import SplitScan
from chan_rt.runtime.gallery.cuda import held as held_module
from chan_rt.runtime.gallery.cuda import search as search_module
from chan_rt.runtime.gallery.cuda.resident import hold_all

from .test_decide import assert_equal, made_queries, needs_core, searches
from .test_resident import SLOW, made_up, make_parts, open_scan
from .test_resident_levels import fallen, plan_of

pytestmark = [needs_core, pytest.mark.skipif(SLOW, reason="what waits for what, not what it computes")]
DIM, ROWS, K = 150, 60, 5  # the narrowest stored width that has levels is 192
EVERYTHING = np.ones(ROWS, bool)
LONG = 20  # seconds; what waits so long is stuck
ALIGNMENT = AlignmentConfig()


class Paused:
    """A thread whose copies to devices wait, each until it is let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, devices: list[Any], work: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self.copies = 0
        self._here, self._go, self._free = threading.Semaphore(0), threading.Semaphore(0), False
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        for device in devices:
            monkeypatch.setattr(device, "copy_in", self._copying(device.copy_in))

    def _copying(self, real: Callable[..., None]) -> Callable[..., None]:
        def copy_in(*arguments: Any) -> None:
            if threading.current_thread() is self._thread and not self._free:
                self.copies += 1
                self._here.release()
                assert self._go.acquire(timeout=2 * LONG)
            real(*arguments)

        return copy_in

    def _run(self, work: Callable[[], Any]) -> None:
        try:
            self.result = work()
        except BaseException as error:
            self.error = error
        self._free = True
        self._here.release()

    def steps(self) -> Iterator[int]:
        """The number of each copy while it waits; the work has ended after the last one."""
        self._thread.start()
        while True:
            assert self._here.acquire(timeout=LONG)
            if self._free:
                self._thread.join(LONG)
                return
            yield self.copies
            self._go.release()

    def let_go(self) -> None:
        """Let all further copies pass, and wait for the end."""
        self._free = True
        self._go.release()
        self._thread.join(LONG)


def in_time(work: Callable[[], Any]) -> Any:
    """What a function returns on another thread, which must not wait long."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()), daemon=True)
    thread.start()
    thread.join(LONG)
    assert found, "it waits for the upload"
    return found[0]


@contextmanager
def opened(gpus: int = 1, capacity: int = 1 << 30) -> Iterator[tuple[Any, list[Any]]]:
    """A scan and its devices, which are empty afterwards."""
    several = [open_scan("int8", DIM, ALIGNMENT, capacity) for _ in range(gpus)]
    scan: Any = several[0][0] if gpus == 1 else SplitScan([each for each, _ in several])
    yield scan, [device for _, device in several]
    scan.close()
    assert all(device.empty for _, device in several)


@pytest.mark.parametrize("gpus", [1, 2])
def test_searches_go_on_at_any_moment_of_an_upload(gpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes, the numbers beside them, a new plan's axes and first level, fine copies: a search at each copy."""
    monkeypatch.setattr(held_module, "LEAST", 0)
    rng = np.random.default_rng(0)
    rows, queries = fallen(rng, made_up("plain", 3, ROWS + 40, 9, DIM)), fallen(rng, made_queries((5, 12, 3), DIM))
    old = make_parts(rows[:ROWS], (20,), plan=plan_of(rows, queries))
    new = make_parts(rows[ROWS:], (25,), plan=plan_of(rows[ROWS:], queries))
    with opened(gpus) as (scan, devices):
        before, compiled = searches(old, "images", ALIGNMENT, scan)
        expected = [compiled.rank([query], K) for query in queries]
        upload = Paused(monkeypatch, devices, lambda: searches([*old, *new], "images", ALIGNMENT, scan))
        for step in upload.steps():
            which = step % len(queries)
            found = in_time(partial(before.rank, [queries[which]], K, EVERYTHING))
            assert_equal(found, expected[which])
        assert upload.copies >= 2 + 8 + 2 + 2, "codes, numbers, axes and fine copies at least"
        after, compiled = upload.result
        everything = np.ones(len(rows), bool)
        assert_equal(after.rank(queries, K, everything), compiled.rank(queries, K))
        del before, after, upload


def test_an_upload_goes_on_while_a_search_has_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = make_parts(made_up("plain", 3, ROWS, 5, DIM)), make_parts(made_up("plain", 4, 20, 5, DIM))
    queries = made_queries((5, 12, 3, 20), DIM)
    with opened() as (scan, _):
        ours, compiled = searches(old, "images", ALIGNMENT, scan)
        monkeypatch.setattr(search_module, "_TURN", 1)
        real, held = search_module.best_of, []

        def best_of(*arguments: Any) -> Any:
            if not held:
                assert scan._turns.lock.locked()
                held.append(in_time(lambda: hold_all(scan, [*old, *new])))
            return real(*arguments)

        monkeypatch.setattr(search_module, "best_of", best_of)
        assert_equal(ours.rank(queries, K, EVERYTHING), compiled.rank(queries, K))
        assert [rows.count for rows in held] == [ROWS + 20]
        del ours, held[:]


def test_room_is_asked_for_before_the_upload_while_a_search_has_its_turn() -> None:
    old, new = make_parts(made_up("plain", 3, ROWS, 5, DIM)), make_parts(made_up("plain", 4, 2000, 5, DIM), (700, 1500))
    with opened(capacity=700_000) as (scan, (device,)):
        held = hold_all(scan, old)
        before = device.copied_in
        with scan._turns.lock, pytest.raises(GpuMemoryError, match=r"^2000 rows need 0\.00 GiB at int8 .* are free;"):
            hold_all(scan, [*old, *new])
        assert device.copied_in == before
        del held


def test_a_close_waits_for_the_part_on_its_way_and_lets_no_other_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = make_parts(made_up("plain", 3, ROWS, 5, DIM), (20, 40))
    with opened() as (scan, devices):
        upload = Paused(monkeypatch, devices, lambda: hold_all(scan, parts))
        closing = threading.Thread(target=scan.close, daemon=True)
        for _ in upload.steps():
            closing.start()
            while not scan._closed:
                pass
            assert closing.is_alive()
            break
        upload.let_go()
        closing.join(LONG)
        assert upload.copies == 1
        assert devices[0].empty
    assert isinstance(upload.error, BackendError)
    assert "the gallery was closed" in str(upload.error)


def test_two_uploads_of_one_part_upload_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    (part,) = make_parts(made_up("plain", 3, ROWS, 5, DIM))
    with opened() as (scan, devices):
        first = Paused(monkeypatch, devices, lambda: scan.hold(part))
        second: list[Any] = []
        thread = threading.Thread(target=lambda: second.append(scan.hold(part)), daemon=True)
        for _ in first.steps():
            thread.start()
        thread.join(LONG)
        assert second == [first.result]
        assert len(devices[0].memory) == 1
        second.clear()
        del first
