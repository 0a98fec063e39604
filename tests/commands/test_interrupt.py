"""Ctrl-C in the middle of a command: the exit status is 130, and nothing is broken or left half written."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click._termui_impl import ProgressBar
from click.testing import Result

from chan_rt.export.bundle import export_bundle
from chan_rt.runtime.gallery import Gallery, verify_gallery

from ..run_chan import chan, ok

IMAGES = 600


@pytest.fixture(scope="module")
def world(make_world: Callable[..., Path]) -> Path:
    return make_world(IMAGES, "test")


def hashes(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def interrupted(monkeypatch: pytest.MonkeyPatch, call: int, *arguments: object) -> Result:
    """Run a command that is sent SIGINT when it shows progress for the `call`-th time."""
    calls = []

    def update(*_: object) -> None:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(ProgressBar, "update", update)
        result = chan(*arguments)
    assert len(calls) == call, result.output
    assert result.exit_code == 130, result.output
    assert "Interrupted." in result.stderr
    assert "Traceback" not in result.output
    return result


def test_export_leaves_no_bundle_and_keeps_the_old_one(world: Path, tmp_path: Path, monkeypatch) -> None:
    command = ("export", world / "checkpoint", "-o", tmp_path / "bundle", "--precision", "fp32", "--no-backbone")
    interrupted(monkeypatch, 2, *command)
    assert list(tmp_path.iterdir()) == []
    export_bundle(world / "checkpoint", tmp_path / "bundle", ("fp32",))
    before = hashes(tmp_path)
    interrupted(monkeypatch, 2, *command, "--force")
    assert hashes(tmp_path) == before


def test_index_keeps_what_was_committed(world: Path, tmp_path: Path, monkeypatch) -> None:
    gallery = tmp_path / "gallery"
    command = ("index", world / "bundle", world / "data", "-o", gallery)
    # the first time is before anything is encoded, then it is shown four times for a commit, and now within the third
    interrupted(monkeypatch, 10, *command)
    assert verify_gallery(gallery) == []
    with Gallery.open(gallery) as opened:
        assert len(opened) == 512
    done = ok(*command, "--json")
    assert json.loads(done)["encoded"] == IMAGES - 512
    assert verify_gallery(gallery) == []


@pytest.mark.parametrize(
    "command",
    [
        lambda world: ("calibrate", world / "bundle", world / "data", "--split", "test", "--samples", 20),
        lambda world: ("evaluate", world / "bundle", world / "data"),
        lambda world: ("parity", world / "bundle", "--checkpoint", world / "checkpoint", "--data", world / "data",
                       "--samples", 20, "--html", world / "page.html", "--record"),
    ],
    ids=["calibrate", "evaluate", "parity"],
)  # fmt: skip
def test_commands_that_read_a_bundle_leave_it_whole(
    world: Path, command: Callable[[Path], tuple[object, ...]], monkeypatch
) -> None:
    before = hashes(world)
    interrupted(monkeypatch, 1, *command(world))
    after = hashes(world)
    assert {name: after.get(name) for name in before} == before
    new = set(after) - set(before)
    assert all(name.startswith("bundle/calibration/") for name in new), "what a calibration continues from"
    assert not any("partial" in name for name in new)


def test_the_process_ends_with_130(world: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal; from click._termui_impl import ProgressBar\n"
        "ProgressBar.update = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "from chan_rt.cli import main; main(prog_name='chan')"
    )
    arguments = ["index", world / "bundle", world / "data", "-o", tmp_path / "gallery"]
    ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.splitlines()[-1] == "Interrupted."
