"""A writer that is killed at a chosen line: run as `python kill_child.py GALLERY SEED LINE`.

It adds, replaces, deletes, renames, compacts and prepares in an order drawn from SEED, and rebalances the gallery where
it is in shards. It prints a line of JSON before and after each change; at the LINE-th line executed inside the gallery
package it kills itself with SIGKILL. LINE 0 runs to the end and prints how many lines there were.
"""

import json
import os
import random
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from chan_rt.runtime import gallery
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.gallery import folder_writer
from chan_rt.runtime.gallery.store.rows import Relabel

PACKAGE = str(Path(gallery.__file__).parent)
DIM = 16


def rows_of(version: int, count: int) -> Embeddings:
    """Embeddings whose first value says their version."""
    rng = np.random.default_rng(version)
    lengths = rng.integers(1, 4, count).astype(np.int32)
    vectors = rng.standard_normal((count, 3, DIM)).astype(np.float32)
    vectors[:, :, 0] = version
    vectors[np.arange(3) >= lengths[:, None]] = 0
    return Embeddings(vectors, lengths)


def main(path: str, seed: int, kill_at: int) -> None:
    """Change the gallery until the kill."""
    choose = random.Random(seed)
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            lines += 1
            if lines == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    def say(phase: str, change: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps({"phase": phase, **change}) + "\n")
        sys.stdout.flush()

    folder_writer.SEGMENT_BYTES = 3000
    live: dict[str, int] = {}
    kinds = ["add", "add", "overwrite", "delete", "relabel", "compact", "prepare"]
    with gallery.open_for_writing(path) as writer:
        if isinstance(writer, gallery.ShardedWriter):
            kinds += ["rebalance", "rebalance"]
            live.update({row.id: 0 for row in writer.rows()})
        sys.settrace(trace)
        for version in range(1, 9):
            kind = choose.choice(kinds)
            some = choose.sample(sorted(live), min(len(live), choose.randint(1, 4)))
            if kind == "add" or not some:
                ids = [f"{version}-{i}" for i in range(choose.randint(1, 30))]
                say("begin", {"kind": "add", "ids": ids, "version": version})
                writer.add(ids, rows_of(version, len(ids)), [{"version": version}] * len(ids))
                live.update(dict.fromkeys(ids, version))
                say("done", {"kind": "add", "ids": ids, "version": version})
            elif kind == "overwrite":
                say("begin", {"kind": "add", "ids": some, "version": version})
                writer.add(some, rows_of(version, len(some)), [{"version": version}] * len(some), overwrite=True)
                live.update(dict.fromkeys(some, version))
                say("done", {"kind": "add", "ids": some, "version": version})
            elif kind == "relabel":
                new = [f"{id}'" for id in some]
                say("begin", {"kind": "relabel", "ids": some, "new": new})
                writer.relabel(Relabel(a, b, {"version": live[a]}) for a, b in zip(some, new, strict=True))
                for a, b in zip(some, new, strict=True):
                    live[b] = live.pop(a)
                say("done", {"kind": "relabel", "ids": some, "new": new})
            elif kind == "delete":
                say("begin", {"kind": "delete", "ids": some})
                writer.delete(some)
                for id in some:
                    del live[id]
                say("done", {"kind": "delete", "ids": some})
            else:
                say("begin", {"kind": kind})
                if isinstance(writer, gallery.ShardedWriter) and kind == "rebalance":
                    writer.rebalance(min(choose.randint(1, 5), max(1, len(writer))))
                else:
                    writer.compact() if kind == "compact" else writer.prepare()
                say("done", {"kind": kind})
        sys.settrace(None)
    sys.stdout.write(json.dumps({"lines": lines}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
