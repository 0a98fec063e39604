"""A lock that one process at a time holds, and that leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chan_rt.runtime.errors import InputError
from chan_rt.runtime.locks import only_one


def test_a_second_holder_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    lock = tmp_path / "made/run/.lock"
    with only_one(lock, "busy"):
        with pytest.raises(InputError, match=r"^busy$"), only_one(lock, "busy"):
            pass
        assert lock.exists()
    assert list(tmp_path.iterdir()) == []
    with only_one(lock, "busy"):
        (lock.parent / "result").touch()
    assert [path.name for path in lock.parent.iterdir()] == ["result"]


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    code = "import os, sys; from pathlib import Path; from chan_rt.runtime.locks import only_one\n"
    code += "with only_one(Path(sys.argv[1]), 'busy'): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(lock)], check=False).returncode == -9
    assert lock.exists()
    with only_one(lock, "busy"):
        pass


def test_a_file_that_was_removed_while_it_was_opened_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removed = tmp_path / ".lock", []
    real = os.open

    def open_then_remove(path: Path, *rest: int) -> int:
        descriptor = real(path, *rest)
        if not removed:
            removed.append(path)
            os.unlink(path)
        return descriptor

    monkeypatch.setattr(os, "open", open_then_remove)
    with only_one(lock, "busy"):
        assert lock.exists()
