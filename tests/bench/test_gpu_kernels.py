"""The benchmark's and the tests' GPU kernels, compiled here or before."""

from pathlib import Path

import pytest

from chan_rt.bench import gpu_kernels
from chan_rt.bench.gpu_kernels import compile_all, give_kernels
from chan_rt.runtime.errors import BackendError, InputError

pytest.importorskip("triton", reason="triton is not installed: pip install 'chan-rt[triton]'")


def test_kernels_are_compiled_here_or_taken_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_kernels, "WIDTHS", {"int8": (64,), "float16": ()})
    monkeypatch.setattr(gpu_kernels, "POOLINGS", ("Sum",))
    compile_all(tmp_path / "compiled", "sm_80")
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    here = give_kernels(tmp_path / "here", 60, "Sum", "int8", (8, 0))
    monkeypatch.setenv("CHAN_COMPILED", str(tmp_path / "compiled"))
    with monkeypatch.context() as without:
        without.setattr(gpu_kernels, "build_kernels", None)
        assert give_kernels(tmp_path / "there", 60, "Sum", "int8", (8, 0)) == here
    given = tmp_path / "there" / "kernels"
    assert len([*given.iterdir()]) > len(here[1])
    assert all(
        (tmp_path / "here" / "kernels" / each.name).read_bytes() == each.read_bytes() for each in given.iterdir()
    )
    with pytest.raises(BackendError, match="no usable int8 kernels"):
        give_kernels(tmp_path / "there", 60, "Sum", "int8", (9, 0))
    monkeypatch.setattr(gpu_kernels, "source_hash", lambda: "other")
    with pytest.raises(InputError, match="of other sources: compile them again"):
        give_kernels(tmp_path / "there", 60, "Sum", "int8", (8, 0))
