"""Ctrl-C at every line from the moment of a commit on: the change is there whole or not at all, and nothing is lost."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime import gallery as package
from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.embeddings import Embeddings
from chan_rt.runtime.errors import GalleryError
from chan_rt.runtime.gallery import (
    Gallery,
    GallerySettings,
    GalleryWriter,
    ShardedWriter,
    open_for_writing,
    repair_gallery,
    split_gallery,
    verify_gallery,
)

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # files that were open at the interruption
PACKAGE = str(Path(package.__file__).parent)
MOMENT = {"publish", "write_manifest"}  # the functions that make a commit the newest one
GIVES_LOCK_BACK = {  # where the end of the process would do that
    *(
        "repair_gallery",
        "RowWriter.__exit__",
        "RowWriter.close",
        "FolderWriter.close",
        "WriterLock.release",
        "WriterLock.__del__",
    )
}
DIM = 16


def embeddings(seed: int, count: int) -> Embeddings:
    vectors = np.random.default_rng(seed).standard_normal((count, 2, DIM))
    return Embeddings(vectors.astype(np.float32), np.full(count, 2, np.int32))


@pytest.fixture(scope="module")
def galleries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `one`, a gallery of 13 rows, and `many`, which has them in 3 shards; some rows are deleted."""
    root = tmp_path_factory.mktemp("galleries")
    with GalleryWriter.create(root / "one", GallerySettings("images", DIM, AlignmentConfig(), "m")) as writer:
        writer.add([str(i) for i in range(12)], embeddings(0, 12), [{"n": i} for i in range(12)])
        writer.add(["12", "13"], embeddings(1, 2), [{"n": 12}, {"n": 13}])
        writer.delete(["3"])
    split_gallery(root / "one", root / "many", 3)
    for name, row in (("one", "13"), ("many", "0")):
        with open_for_writing(root / name) as writer:
            writer.delete([row])
    return root


def rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    assert verify_gallery(path) == []
    with Gallery.open(path, threads=1) as opened:
        return [(row.id, dict(row.metadata)) for row in opened.rows()]


def interrupted(change: Callable[[], object], line: int) -> int:
    """Make a change, with Ctrl-C at the `line`-th line from the moment of its commit on (0 for none).

    Returns:
        The number of those lines that ran.
    """
    lines, begun = 0, False

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines, begun
        if not frame.f_code.co_filename.startswith(PACKAGE) or frame.f_code.co_qualname in GIVES_LOCK_BACK:
            return None
        begun = begun or frame.f_code.co_name in MOMENT
        if begun and event == "line":
            lines += 1
            if lines == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        change()
    except KeyboardInterrupt:
        assert lines == line
    finally:
        sys.settrace(before)
    return lines


def damage(path: Path) -> None:
    """Flip a byte of the largest file of each folder of segments."""
    for folder in path.rglob("segments"):
        file = max(folder.iterdir(), key=lambda one: one.stat().st_size)
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)


CHANGES: dict[str, Callable[[GalleryWriter | ShardedWriter], object]] = {
    "add": lambda writer: writer.add(["5", "new"], embeddings(2, 2), [{"n": -1}, {"n": -2}], overwrite=True),
    "delete": lambda writer: writer.delete(["1", "11"]),
    "compact": lambda writer: writer.compact(),
    "prepare": lambda writer: writer.prepare(),
    "rebalance": lambda writer: writer.rebalance(2) if isinstance(writer, ShardedWriter) else None,
}


some_or_all = pytest.mark.parametrize(
    "most", [20, pytest.param(10_000, marks=pytest.mark.nightly)], ids=["some", "all"]
)
either = pytest.mark.parametrize("start", ["one", "many"])


@pytest.fixture(autouse=True)
def memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power cut is tested here, so nothing waits for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def spread(lines: int, most: int) -> list[int]:
    """`most` of the numbers from 1 to `lines`, evenly spread."""
    return sorted({1 + i * lines // most for i in range(most)}) if lines > most else list(range(1, lines + 1))


@some_or_all
@either
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_there_whole_or_not_at_all(
    galleries: Path, tmp_path: Path, start: str, name: str, most: int
) -> None:
    def changed(path: Path, line: int) -> int:
        shutil.copytree(galleries / start, path)
        with open_for_writing(path) as writer:
            return interrupted(lambda: CHANGES[name](writer), line)

    lines = changed(tmp_path / "whole", 0)
    assert lines > 40 or (start, name) == ("one", "rebalance")
    possible = rows(galleries / start), rows(tmp_path / "whole")
    for line in spread(lines, most):
        path = tmp_path / f"at {line}"
        assert changed(path, line) >= line
        found = rows(path)
        assert found in possible, f"line {line}: neither before nor after the change"
        with open_for_writing(path):  # sweeps what is left over
            pass
        assert rows(path) == found
        shutil.rmtree(path)


@some_or_all
@either
@pytest.mark.parametrize("name", CHANGES)
def test_the_same_writer_goes_on_after_ctrl_c(
    galleries: Path, tmp_path: Path, start: str, name: str, most: int
) -> None:
    """It knows whether its own change was made, and takes it for no one else's. Only other shards need to be opened."""

    def changed(path: Path, line: int) -> int:
        shutil.copytree(galleries / start, path)
        with open_for_writing(path) as writer:
            lines = interrupted(lambda: CHANGES[name](writer), line)
            found = rows(path)
            if start == "one":
                assert [(row.id, dict(row.metadata)) for row in writer.rows()] == found, f"line {line}"
            refused = ""
            try:
                writer.add(["later"], embeddings(3, 1), [{"n": 99}])
                found.append(("later", {"n": 99}))
            except GalleryError as error:
                refused = str(error)
            assert rows(path) == found, f"line {line}"
            if refused:
                assert (start, name) == ("many", "rebalance"), f"line {line}"
                assert re.search("(a change of its shards was interrupted|this writer is closed); open", refused)
        return lines

    lines = changed(tmp_path / "whole", 0)
    for line in spread(lines, most):
        changed(tmp_path / f"at {line}", line)
        shutil.rmtree(tmp_path / f"at {line}")


@some_or_all
@either
def test_a_repair_can_be_made_again(galleries: Path, tmp_path: Path, start: str, most: int) -> None:
    shutil.copytree(galleries / start, tmp_path / "damaged")
    damage(tmp_path / "damaged")
    shutil.copytree(tmp_path / "damaged", tmp_path / "whole")
    lines = interrupted(lambda: repair_gallery(tmp_path / "whole"), 0)
    for line in spread(lines, most):
        path = tmp_path / f"at {line}"
        shutil.copytree(tmp_path / "damaged", path)
        interrupted(lambda path=path: repair_gallery(path), line)
        repair_gallery(path)
        assert rows(path) == rows(tmp_path / "whole"), f"line {line}"
        shutil.rmtree(path)
