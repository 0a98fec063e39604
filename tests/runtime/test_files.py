"""Files and folders appear under their names complete or not at all, with the mode that the umask gives."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime import files
from chan_rt.runtime.data.npy import new_npy
from chan_rt.runtime.files import atomic_file, atomic_folder, exchange, publish, recover, reserve, write_file


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_what_is_no_file_gets_the_bytes_and_is_not_replaced(tmp_path: Path) -> None:
    """As root, a file for `--output-json /dev/null` would take the device's place for every program."""
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE)
    write_file(tmp_path / "pipe", b"some bytes")
    assert reader.communicate(timeout=30)[0] == b"some bytes"
    assert _names(tmp_path) == ["pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    code = (
        "from chan_rt.runtime.files import write_file; print('before', flush=True); write_file('/dev/stdout', 'x\\n')"
    )
    for kept in (tmp_path / "log", None):  # a file's own place is not taken either
        with open(kept or os.devnull, "w") as out:
            subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert Path(os.devnull).is_char_device()
    assert (tmp_path / "log").read_text().endswith("x\n")
    assert _names(tmp_path) == ["log", "pipe"]


@pytest.mark.parametrize("data", [b"\x00new\r\n", "new é\n"])
def test_a_file_is_written_whole_and_leaves_nothing_beside(tmp_path: Path, data: bytes | str) -> None:
    for _ in range(2):  # new, then replaced
        write_file(tmp_path / "made" / "out.json", data)
        assert (tmp_path / "made" / "out.json").read_bytes() == (data if isinstance(data, bytes) else data.encode())
        assert _names(tmp_path / "made") == ["out.json"]


@pytest.mark.parametrize("there", [False, True])
def test_a_link_to_a_folder_stays_a_link(tmp_path: Path, there: bool) -> None:
    target, link = tmp_path / "disk" / "bundle", tmp_path / "bundle"
    if there:
        target.mkdir(parents=True)
        (target / "old").touch()
    link.symlink_to(Path("disk", "bundle"))
    for name in ("first", "second"):
        with atomic_folder(link) as fresh:
            assert fresh.is_relative_to(target.parent)  # not on the disk of the link
            (fresh / name).touch()
        assert link.is_symlink()
        assert _names(target) == [name]
    assert _names(tmp_path) == ["bundle", "disk"]
    assert _names(tmp_path / "disk") == ["bundle"]


def test_modes_are_those_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_file(tmp_path / "file", b"")
        with atomic_folder(tmp_path / "folder") as fresh:
            (fresh / "inner").write_bytes(b"")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"file": 0o644, "folder": 0o755, "inner": 0o644}


def test_the_path_beside_has_the_suffix_that_decides_a_format(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "sheet.tar.png") as beside:
        assert (beside.parent, beside.suffix) == (tmp_path, ".png")
        assert beside.name.startswith(".sheet.tar.")
        beside.write_bytes(b"")


@pytest.mark.parametrize("interruption", [OSError("disk full"), KeyboardInterrupt()])
def test_an_interrupted_block_leaves_the_old_content(tmp_path: Path, interruption: BaseException) -> None:
    write_file(tmp_path / "file", "old")
    with atomic_folder(tmp_path / "folder") as fresh:
        (fresh / "inner").write_text("old")

    def interrupted_file() -> None:
        with atomic_file(tmp_path / "file") as beside:
            beside.write_text("half")
            raise interruption

    def interrupted_folder() -> None:
        with atomic_folder(tmp_path / "folder") as fresh:
            (fresh / "inner").write_text("half")
            raise interruption

    for interrupted in (interrupted_file, interrupted_folder):
        with pytest.raises(type(interruption)):
            interrupted()
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "inner").read_text() == "old"
    assert _names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_every_call_that_fails_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Whichever call to the disk fails before the new content is in place, the old content is still there."""

    def write_both() -> None:
        write_file(tmp_path / "file", "new")
        with atomic_folder(tmp_path / "folder") as fresh:
            (fresh / "inner").write_text("new")

    write_file(tmp_path / "file", "old")
    with atomic_folder(tmp_path / "folder") as fresh:
        (fresh / "inner").write_text("old")
    if failing == "replace":  # two renames, as where the system cannot exchange two folders
        monkeypatch.setattr(files, "exchange", lambda first, second: False)
    real: Callable[..., None] = getattr(os, failing)
    calls = 0
    for nth in range(20):
        calls = 0

        def sometimes(*given: object, nth: int = nth) -> None:
            nonlocal calls
            calls += 1
            if calls == nth + 1:
                raise OSError("the disk failed")
            real(*given)

        with monkeypatch.context() as patch:
            patch.setattr(files.os, failing, sometimes)
            try:
                write_both()
            except OSError:
                pass
            else:
                break
        assert (tmp_path / "file").read_text() in ("old", "new")
        assert (tmp_path / "folder" / "inner").read_text() in ("old", "new")
        assert _names(tmp_path) == ["file", "folder"]
        write_file(tmp_path / "file", "old")
    assert nth >= 3
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "inner").read_text() == "new"


def test_bytes_are_durable_before_their_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_sync, real_replace = files.sync, os.replace

    def record_sync(path: Path) -> None:
        steps.append("folder" if path == tmp_path else "bytes")
        real_sync(path)

    def record_replace(source: Path, target: Path) -> None:
        steps.append("name")
        real_replace(source, target)

    monkeypatch.setattr(files, "sync", record_sync)
    monkeypatch.setattr(files.os, "replace", record_replace)
    write_file(tmp_path / "file", "x")
    assert steps == ["bytes", "name", "folder"]
    steps.clear()
    with atomic_folder(tmp_path / "folder") as fresh:
        (fresh / "inner").write_text("x")
    assert steps == ["bytes", "bytes", "name", "folder"]  # the file inside, the new folder's entries


def test_the_error_names_the_file_that_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"File exists|Not a directory") as caught:
        write_file(tmp_path / "file" / "out.json", "x")
    assert str(caught.value.filename).startswith(str(tmp_path / "file"))
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="directory") as caught:
        write_file(tmp_path / "out", "x")
    assert caught.value.filename == str(tmp_path / "out")
    assert _names(tmp_path) == ["file", "out"]


def test_two_processes_that_write_one_file_do_not_mix(tmp_path: Path) -> None:
    code = (
        "import sys; from chan_rt.runtime.files import write_file\n"
        "for _ in range(100): write_file(sys.argv[1], sys.argv[2] * 100_000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "file"), letter]) for letter in "ab"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "file").exists():
            seen.add((tmp_path / "file").read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen <= {"a" * 100_000, "b" * 100_000}
    assert seen
    assert _names(tmp_path) == ["file"]


def test_publish_replaces_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    publish(tmp_path / "new", tmp_path / "old")
    assert _names(tmp_path) == ["old"]
    assert _names(tmp_path / "old") == ["new"]


@pytest.mark.parametrize("there", [False, True])
def test_what_came_meanwhile_is_not_replaced(tmp_path: Path, there: bool) -> None:
    """A command that writes for minutes must not remove what another one has made there since it looked."""
    out = tmp_path / "out"
    if there:
        out.mkdir()

    def write() -> None:
        with atomic_folder(out) as fresh:
            (fresh / "new").touch()
            out.mkdir(exist_ok=True)
            (out / "theirs").touch()

    with pytest.raises(OSError, match="out"):
        write()
    assert _names(tmp_path) == ["out"]
    assert _names(out) == ["theirs"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a child that is killed is made by fork")
@pytest.mark.parametrize("swaps", [True, False], ids=["exchange", "two renames"])
def test_a_kill_at_any_step_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool
) -> None:
    """The child is killed before and after each call to the disk; whoever opens the path next finds a folder."""
    if not swaps:
        monkeypatch.setattr(files, "exchange", lambda first, second: False)
    elif not _exchanges(tmp_path):
        pytest.skip("this file system cannot exchange two folders")
    target = tmp_path / "folder"
    with atomic_folder(target) as fresh:
        (fresh / "inner").write_text("0")
    missing, contents = 0, []
    for nth in range(50):
        if (child := os.fork()) == 0:
            _replace_and_die(target, str(nth + 1), nth)
        _, status = os.waitpid(child, 0)
        missing += not target.exists()
        recover(target)
        contents.append((target / "inner").read_text())
        assert contents[-1] in {(contents[-2:-1] or ["0"])[0], str(nth + 1)}
        assert _names(target) == ["inner"]
        if os.WIFEXITED(status):
            break
    assert nth >= 4, "the child was killed at some steps"
    assert contents[-1] == str(nth + 1), "the last child was not killed"
    assert bool(missing) == (not swaps)
    with atomic_folder(target) as fresh:
        (fresh / "inner").write_text("end")
    assert (target / "inner").read_text() == "end"


def _exchanges(folder: Path) -> bool:
    (folder / "a").mkdir()
    (folder / "b").write_text("")
    try:
        return exchange(folder / "a", folder / "b") and (folder / "b").is_dir()
    finally:
        for path in (folder / "a", folder / "b"):
            path.rmdir() if path.is_dir() else path.unlink()


def _replace_and_die(target: Path, content: str, nth: int) -> None:
    """In a child: replace the folder, and be killed at the nth point before or after a name changes."""
    points = 0

    def point() -> None:
        nonlocal points
        if points == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        points += 1

    def deadly(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*given: object) -> object:
            point()
            found = call(*given)
            point()
            return found

        return wrapped

    files.os.replace = deadly(os.replace)
    files.exchange = deadly(files.exchange)
    files.sync = deadly(files.sync)
    try:
        with atomic_folder(target) as fresh:
            (fresh / "inner").write_text(content)
    except BaseException:
        os._exit(1)
    os._exit(0)


def test_a_reader_waits_for_a_process_that_is_replacing_the_folder(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from chan_rt.runtime import files\n"
        "replace, files.exchange = os.replace, lambda first, second: False\n"
        "def slow(old, new):\n"
        "    replace(old, new)\n"
        "    if Path(new).name == 'old': print('missing', flush=True); time.sleep(0.5)\n"
        "files.os.replace = slow\n"
        "with files.atomic_folder(sys.argv[1]) as fresh: (fresh / 'inner').write_text('new')\n"
    )
    target = tmp_path / "folder"
    target.mkdir()
    (target / "inner").write_text("old")
    with subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert not target.exists()
        recover(target)
        assert (target / "inner").read_text() == "new"
    assert writer.returncode == 0
    assert _names(tmp_path) == ["folder"]


def test_nothing_is_recovered_for_a_path_that_never_was(tmp_path: Path) -> None:
    (tmp_path / ".folder.abc").mkdir()
    (tmp_path / ".folder.abc/new").mkdir()
    recover(tmp_path / "folder")
    assert _names(tmp_path) == [".folder.abc"]


@pytest.mark.parametrize("fakes", [None, errno.EOPNOTSUPP], ids=["allocates", "writes zeros"])
def test_reserved_bytes_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fakes: int | None) -> None:
    if fakes is not None:
        monkeypatch.setattr(os, "posix_fallocate", _fails(fakes))
    path, size = tmp_path / "file", 3_000_000
    path.write_bytes(b"head")
    reserve(path, size)
    assert path.read_bytes() == b"head" + bytes(size - 4)
    assert path.stat().st_blocks * 512 >= size


def test_a_disk_without_room_is_an_error_before_a_map_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = new_npy(tmp_path / "sound.npy", (4, 3))
    array[2] = 7
    array.flush()
    np.testing.assert_array_equal(np.load(tmp_path / "sound.npy")[:, 0], [0, 0, 7, 0])
    monkeypatch.setattr(os, "posix_fallocate", _fails(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left on device") as caught, atomic_file(tmp_path / "x.npy") as beside:
        new_npy(beside, (4, 3))
    assert caught.value.filename == str(tmp_path / "x.npy")
    assert _names(tmp_path) == ["sound.npy"]


@pytest.mark.parametrize("kind", ["unnamed", "numpy", "copied", "inside"])
@pytest.mark.parametrize("writer", [atomic_file, atomic_folder])
def test_a_full_disk_is_named_by_the_place_that_is_full(tmp_path: Path, writer: Any, kind: str) -> None:
    source, path = tmp_path / "source", tmp_path / "out.x"

    def write(beside: Path) -> None:
        if kind == "copied":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(beside))
        if kind == "numpy":
            raise OSError("262144 requested and 1000 written")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *([str(beside)] if kind == "inside" else []))

    with pytest.raises(OSError, match="No space left on device") as caught, writer(path) as beside:
        write(beside)
    assert (caught.value.filename, caught.value.filename2) == (str(path), None)
    assert str(caught.value) == f"[Errno 28] No space left on device: '{path}'"
    assert _names(tmp_path) == []
    with pytest.raises(OSError, match="No space left"), writer(tmp_path / "made/for/it") as beside:
        write(beside)
    assert _names(tmp_path) == []


def test_an_error_of_another_place_keeps_its_name(tmp_path: Path) -> None:
    other = tmp_path / "missing"
    with pytest.raises(FileNotFoundError) as caught, atomic_folder(tmp_path / "out"):
        other.read_bytes()
    assert caught.value.filename == str(other)
    with pytest.raises(BrokenPipeError) as broken, atomic_file(tmp_path / "out"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert broken.value.filename is None


def _fails(code: int) -> Callable[..., None]:
    def fail(*_: int) -> None:
        raise OSError(code, os.strerror(code))

    return fail
