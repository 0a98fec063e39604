"""Forks many times while other threads search, and exits with the number of children that hang or find other rows.

Arguments: the gallery's folder, a file of queries [C, W, D] (.npy), the scan kernel, the number of forks.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import Gallery

PATIENCE = 30.0  # seconds a child may take


def succeeds(child: int) -> bool:
    """Whether a child ends, in time and well."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def main(folder: Path, vectors: np.ndarray, scan: str, forks: int) -> int:
    queries = Embeddings(vectors, np.full(len(vectors), vectors.shape[1], np.int32))
    stop, failed = threading.Event(), 0
    with Gallery.open(folder, scan=scan, threads=3) as gallery:

        def search() -> list[list[str]]:
            return [[hit.id for hit in result.hits] for result in gallery.search(queries, 5)]

        def search_on() -> None:
            while not stop.is_set():
                search()

        expected = search()
        threads = [threading.Thread(target=search_on) for _ in range(2)]
        for thread in threads:
            thread.start()
        for i in range(forks):
            time.sleep(0.001 * (i % 7))  # at various points of the searches
            child = os.fork()
            if child == 0:
                os._exit(0 if search() == expected else 1)
            failed += not succeeds(child)
            if failed == 2:
                break
        stop.set()
        for thread in threads:
            thread.join()
    return failed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), np.load(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
