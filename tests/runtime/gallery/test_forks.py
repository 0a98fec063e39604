"""A process forked while other threads search can search, too: no lock or thread of its parent's is waited for."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from chan_rt.runtime import forks
from chan_rt.runtime.forks import now_and_after_fork
from chan_rt.runtime.gallery import Gallery, GalleryWriter, scanner
from chan_rt.runtime.gallery.kernels.base import Kernel
from chan_rt.runtime.gallery.kernels.matrix import OnnxruntimeKernel
from chan_rt.runtime.gallery.kernels.pool import Pool

from .conftest import need_scan

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),  # of Python 3.12: that it may do what is tested
]
CHILD = Path(__file__).with_name("fork_child.py")


def in_child(work: Callable[[], bool]) -> int:
    """Do some work in a forked child, which an alarm ends after 20 seconds; 0 if it returns True."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        signal.alarm(20)
        os._exit(0 if work() else 1)
    finally:
        os._exit(2)


def test_many_forks_beside_searches(kernel: Kernel, tmp_path: Path, make_embeddings, make_settings) -> None:
    folder, queries = tmp_path / "g", make_embeddings(2, 6, 12, even=True, dim=64)
    with GalleryWriter.create(folder, make_settings(dim=64)) as writer:
        writer.add([str(i) for i in range(400)], make_embeddings(1, 400, dim=64))
        writer.prepare(queries)
    np.save(tmp_path / "queries.npy", queries.vectors)
    command = [sys.executable, str(CHILD), str(folder), str(tmp_path / "queries.npy"), kernel.name, "40"]
    assert subprocess.run(command, timeout=300).returncode == 0


def test_a_pool_runs_in_a_child_whatever_its_parents_threads_held() -> None:
    pool, done = Pool(3), []
    pool.run([lambda: None] * 6)  # its threads are started

    def work() -> bool:
        pool.run([lambda: done.append(1)] * 6)
        return len(done) == 6

    with pool._executor._shutdown_lock:
        assert in_child(work) == 0
    pool.run([lambda: done.append(1)] * 6)
    pool.close()
    assert len(done) == 6, "the parent's pool goes on"


def test_a_gallery_is_searched_in_a_child_though_threads_held_its_locks(
    gallery_path: Path, make_embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanner, "_PATIENCE", 600)
    queries = make_embeddings(99, 1)
    with Gallery.open(gallery_path) as gallery:
        expected = [hit.id for hit in gallery.search(queries, 4)[0].hits]
        locked, done = threading.Event(), threading.Event()

        def hold() -> None:
            with gallery._lock, ExitStack() as held:
                while gallery._scanner.turns._slots.acquire(blocking=False):
                    held.callback(gallery._scanner.turns._slots.release)
                locked.set()
                done.wait(60)

        thread = threading.Thread(target=hold)
        thread.start()
        locked.wait(10)
        status = in_child(lambda: [hit.id for hit in gallery.search(queries, 4)[0].hits] == expected)
        done.set()
        thread.join()
    assert status == 0


def test_a_fork_renews_what_lives_and_forgets_what_does_not() -> None:
    class Counter:
        made = 0

        def make(self) -> None:
            self.made += 1

    one, other = Counter(), Counter()
    now_and_after_fork(one.make)
    known = len(forks._methods)
    now_and_after_fork(other.make)
    assert (one.made, other.made) == (1, 1)
    del other
    assert len(forks._methods) == known
    assert in_child(lambda: one.made == 2) == 0
    assert one.made == 1


def test_a_child_never_calls_a_session_of_its_parent() -> None:
    need_scan("onnxruntime")
    kernel = OnnxruntimeKernel()
    stored, starts = np.full((3, 64), 130, np.uint8), np.array([0, 1, 3])
    query = kernel.pack(np.full((1, 2, 64), 3, np.int8), np.array([0, 2]), "row")
    expected = kernel.maxima(stored, starts, query)
    kernel._sessions.clear()  # a call would end in a KeyError
    assert in_child(lambda: np.array_equal(kernel.maxima(stored, starts, query), expected)) == 0
