"""Clocks are sampled by one nvidia-smi, which is awake before anything is timed; GPUs are named as it lists them."""

import time
from collections.abc import Callable
from pathlib import Path, os
from types import SimpleNamespace

import pytest
from cuda.bindings import runtime as cudart

from chan_rt.bench import gpu_run, nvidia_smi
from chan_rt.bench.gpu_run import Run
from chan_rt.bench.latency import _gpu_state
from chan_rt.bench.nvidia_smi import Clocks, gpu_state


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Let a shell script stand for nvidia-smi; it notes its arguments and its process in the file that is returned."""
    started = tmp_path / "started"

    def install(script: str) -> Path:
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\necho "$$ $*" >> {started}\n{script}')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        return started

    return install


def line(clock: str) -> str:
    """A line of nvidia-smi's."""
    return f"T4, 580.1, {clock} MHz, 5000 MHz, 1590 MHz, 5001 MHz, [N/A], 40, 7 MiB"


def is_running(started: Path) -> bool:
    """Whether the one nvidia-smi that was started runs."""
    (told,) = started.read_text().splitlines()
    try:
        os.kill(int(told.split()[0]), 0)
    except ProcessLookupError:
        return False
    return True


def test_one_nvidia_smi_is_awake_before_the_block_and_gone_after_it(tool) -> None:
    """Its first line comes late, and does not count: the GPU was idle then."""
    started = tool(
        f'sleep 0.3; echo "{line("300")}"; sleep 0.2; for clock in 1001 1003 1002; do echo "{line("$clock")}"; done\n'
        "exec sleep 60"
    )
    began = time.perf_counter()
    with Clocks("GPU-1234", every=0.25) as clocks:
        assert time.perf_counter() - began > 0.3
        assert is_running(started)
        assert clocks.samples == []
        while len(clocks.samples) < 3:
            assert time.perf_counter() - began < 20
    assert not is_running(started)
    assert "--id=GPU-1234 --loop-ms=250" in started.read_text()
    assert clocks.summary() == {
        "clocks.sm": [1001.0, 1002.0, 1003.0],
        "clocks.mem": [5000.0] * 3,
        "temperature.gpu": [40.0] * 3,
    }


@pytest.mark.parametrize("script", ["exec sleep 60", "echo No devices were found; exit 9", "echo; exec sleep 60"])
def test_an_nvidia_smi_that_tells_nothing_holds_nothing_up(tool, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia_smi, "_PATIENCE", 20.0 if "exit" in script else 0.2)
    started = tool(script)
    began = time.perf_counter()
    with Clocks("GPU-1234") as clocks:
        assert time.perf_counter() - began < 10
    assert not is_running(started)
    assert clocks.summary() == {}


def test_an_error_of_the_block_ends_nvidia_smi(tool) -> None:
    started = tool(f'echo "{line("300")}"; exec sleep 60')
    with pytest.raises(KeyboardInterrupt), Clocks("GPU-1234"):
        raise KeyboardInterrupt
    assert not is_running(started)


def test_without_a_gpu_or_nvidia_smi_nothing_is_sampled(tool, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tool("exit 0")
    with Clocks(None) as none:
        pass
    assert not started.exists()
    monkeypatch.setenv("PATH", "")
    with Clocks("GPU-1234") as missing:
        pass
    assert none.summary() == missing.summary() == {}


def test_a_process_of_the_benchmark_begins_when_clocks_are_sampled(
    tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    came = tmp_path / "came"
    tool(f'sleep 0.3; touch {came}; echo "{line("300")}"; exec sleep 60')
    run = Run({"not run": {}}, tmp_path / "gpu.json", None)
    run.gpu = "GPU-1234"

    def ask(*given: object) -> tuple[dict, str]:
        assert came.exists()
        return {"listed": [], "rescored": []}, ""

    monkeypatch.setattr(gpu_run, "ask_worker", ask)
    run.measure("shortlist", "it", {})
    assert run.record["shortlist"]["it"]["clocks"] == {}


def test_gpu_state_is_what_nvidia_smi_says(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "good": SimpleNamespace(returncode=0, stdout="T4, 580.1, 1, 2, 3, 4, 5 W, 40, 7 MiB\n", stderr=""),
        "bad": SimpleNamespace(returncode=9, stdout="No devices were found", stderr=""),
    }
    monkeypatch.setattr(nvidia_smi.shutil, "which", lambda name: None)
    assert gpu_state() == {}
    monkeypatch.setattr(nvidia_smi.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(nvidia_smi.subprocess, "run", lambda *a, **k: answers["good"])
    assert gpu_state()["clocks.sm"] == "1"
    monkeypatch.setattr(nvidia_smi.subprocess, "run", lambda *a, **k: answers["bad"])
    assert gpu_state() == {"nvidia-smi": "No devices were found"}


def _named(uuid: str, listed: str | None, monkeypatch: pytest.MonkeyPatch) -> tuple[str | None, str]:
    """What `gpu_uuid` says where CUDA has this UUID and nvidia-smi, if it is there, this list."""
    given = SimpleNamespace(uuid=SimpleNamespace(bytes=bytes.fromhex(uuid.replace("-", ""))))
    monkeypatch.setattr(cudart, "cudaGetDeviceProperties", lambda index: (cudart.cudaError_t.cudaSuccess, given))
    monkeypatch.setattr(nvidia_smi.shutil, "which", lambda name: None if listed is None else name)
    monkeypatch.setattr(nvidia_smi.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=listed))
    return nvidia_smi.gpu_uuid()


def test_a_gpu_and_a_mig_instance_are_named_as_nvidia_smi_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, slice_ = (f"{digit * 8}-0000-4000-8000-{digit * 12}" for digit in "123")
    listed = (
        f"GPU 0: NVIDIA H100 (UUID: GPU-{first})\nGPU 1: NVIDIA H100 (UUID: GPU-{second})\n"
        f"  MIG 1g.10gb     Device  0: (UUID: MIG-{slice_})\n"
    )
    assert _named(first, listed, monkeypatch) == (f"GPU-{first}", "")
    assert _named(slice_, listed, monkeypatch) == (f"GPU-{second}", ""), "clocks are of the GPU it is a part of"
    none, reason = _named(slice_, listed.split("  MIG")[0], monkeypatch)
    assert none is None
    assert reason == f"nvidia-smi -L lists no GPU and no MIG instance {slice_}"
    run = Run({"not run": {}}, Path("unused.json"), (9, 0))
    assert run.gpu is None
    assert run.record["not run"] == {"clocks": reason}
    assert _gpu_state(1) == {"nvidia-smi": reason}, "and not that of another GPU"
    assert _named(first, None, monkeypatch) == (None, "nvidia-smi is not installed")
