"""Sessions of onnxruntime are made in one place, with the threads asked for and quietly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from chan_rt.runtime import onnx_session
from chan_rt.runtime.backends.probe import _IDENTITY
from chan_rt.runtime.errors import MissingExtra
from chan_rt.runtime.onnx_session import open_session

ROOT = Path(__file__).parents[2]


def test_no_other_place_makes_a_session() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [name for name in tracked.split() if not name.startswith("tests/") and (ROOT / name).is_file()]
    made = [name for name in files if "InferenceSession(" in (ROOT / name).read_text()]
    assert made == ["runtime/onnx_session.py"]


def test_threads_are_those_asked_for_or_every_usable_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_session, "usable_cpus", lambda: 3)
    for threads, expected in ((None, 3), (2, 2)):
        options = open_session(_IDENTITY, threads).get_session_options()
        assert options.intra_op_num_threads == expected
        assert options.inter_op_num_threads == 1
        assert options.log_severity_level == onnx_session.ERRORS


@pytest.mark.skipif(sys.platform != "linux", reason="such names are Linux's")
def test_a_path_need_not_be_utf_8(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9").mkdir()
    for file in (tmp_path / "graph.onnx", tmp_path / "caf\udce9" / "graph.onnx"):
        file.write_bytes(_IDENTITY)
        (given,) = open_session(file).get_inputs()
        assert given.name == open_session(_IDENTITY).get_inputs()[0].name


def test_without_onnxruntime_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"scanning needs onnxruntime: pip install 'chan-rt\[cpu\]'"):
        open_session(_IDENTITY, purpose="scanning")
