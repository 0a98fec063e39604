"""The benchmark loads NVIDIA's server as it loads the others."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chan_rt.bench import serve as bench
from chan_rt.bench.load import open_loop
from chan_rt.bench.triton_server import find_server


def test_a_python_without_the_server_is_named(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(LookupError, match=r"has no nvidia-pytriton, which has the server: make .venv-triton/installed"):
        find_server(str(python))


def test_a_small_load(gallery: Path) -> None:
    pytest.importorskip("tritonclient", reason="tritonclient is not installed: make test-triton")
    try:
        find_server(sys.executable)
    except LookupError as reason:
        pytest.skip(str(reason))
    with bench.triton_server(gallery, sys.executable) as server:
        bodies = [server.body("a red strawberry"), server.body("clouds")]
        found = open_loop("127.0.0.1", server.port, server.path, bodies, 50, 0.5)
        assert bench.memory(server.pid) > 0
    assert found.answered > 0
    assert (found.refused, found.failed) == (0, 0)
