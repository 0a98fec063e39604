"""Commands of `chan gallery` that work for long show how far they are, and Ctrl-C leaves nothing broken."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.commands import gallery, gallery_shards, gallery_storage
from chan_rt.runtime import AlignmentConfig, Embeddings, Gallery, GalleryWriter, split_gallery, verify_gallery
from chan_rt.runtime.gallery import open_for_writing

from ..run_chan import COMMAND, ok

DIM = 128  # wide enough for levels
ROWS = 600

COMMANDS: dict[str, tuple[str, ...]] = {
    "verify one": ("verify", "one"),
    "verify many": ("verify", "many"),
    "compact one": ("compact", "one"),
    "compact many": ("compact", "many"),
    "prepare one": ("prepare", "one", "--queries", "queries.npy"),
    "prepare many": ("prepare", "many"),
    "split": ("split", "one", "-o", "new", "--shards", "3"),
    "merge": ("merge", "many", "-o", "new"),
    "rebalance": ("rebalance", "many", "--shards", "2"),
    "push": ("push", "one", "file:///{}/store"),
    "pull": ("pull", "file:///{}/stored", "-o", "new"),
}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the gallery `one`, the same rows in shards in `many`, and what was pushed of it in `stored`."""
    pytest.importorskip("obstore", reason="obstore is not installed")
    from chan_rt.scale import push_gallery

    monkeypatch.chdir(tmp_path)
    vectors = np.random.default_rng(0).standard_normal((ROWS, 2, DIM)).astype(np.float32)
    with GalleryWriter.create("one", dim=DIM, alignment=AlignmentConfig.maxsim()) as writer:
        writer.add(range(ROWS), Embeddings.from_rows(list(vectors)))
    push_gallery("one", f"file://{tmp_path}/stored")
    split_gallery("one", "many", 3)
    for name in ("one", "many"):
        with open_for_writing(name) as writer:
            writer.delete(["7", "400"])
    np.save("queries.npy", vectors[:8])
    return tmp_path


def words(name: str, desk: Path) -> list[str]:
    return [word.replace("/{}", str(desk)) for word in COMMANDS[name]]


def rows(path: Path) -> list[str]:
    assert verify_gallery(path) == []
    with Gallery.open(path, threads=1) as opened:
        return [row.id for row in opened.rows()]


@pytest.mark.parametrize("name", COMMANDS)
def test_progress_goes_up_to_the_end(desk: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shown: list[tuple[int, int]] = []

    @contextmanager
    def progress_bar(label: str, length: int) -> Iterator[Callable[..., None]]:
        assert label == COMMANDS[name][0]
        yield lambda done, total: shown.append((done, total))

    for module in (gallery, gallery_shards, gallery_storage):
        monkeypatch.setattr(module, "progress_bar", progress_bar)
    ok("gallery", *words(name, desk))
    assert len(shown) > 1 or name == "compact one", "one file is one step"
    assert shown == sorted(shown)
    assert len({total for _, total in shown}) == 1
    assert shown[-1][0] == shown[-1][1] > 0


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_leaves_nothing_broken_and_the_command_can_run_again(desk: Path, name: str) -> None:
    kept = {name: rows(desk / name) for name in ("one", "many")}
    arguments = words(name, desk)
    code = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from click._termui_impl import ProgressBar\n"
        "ProgressBar.update = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "from chan_rt.cli import main; main(prog_name='chan')"
    )
    command = [sys.executable, "-c", code, "gallery", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=desk, timeout=120, check=False)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.splitlines()[-1] == "Interrupted."
    assert {name: rows(desk / name) for name in kept} == kept
    assert not (desk / "new").exists(), "a part of a gallery"
    ok("gallery", *arguments)
    assert {name: rows(desk / name) for name in kept} == kept
    if (desk / "new").exists():
        assert set(rows(desk / "new")) >= set(kept["one"])


def test_nothing_is_shown_where_there_is_no_terminal(desk: Path) -> None:
    command = [*COMMAND, "gallery", "verify", "one"]

    def run(stderr: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=120, check=True)

    assert run(subprocess.PIPE).stderr == ""
    reader, writer = pty.openpty()
    run(writer)
    os.close(writer)
    try:
        shown = os.read(reader, 100_000).decode()
    finally:
        os.close(reader)
    assert "verify" in shown
    assert "100%" in shown
