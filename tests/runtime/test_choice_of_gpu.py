"""`device="cuda:1"`: everything of a matcher that uses a GPU uses that one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from chan_rt import cli
from chan_rt.runtime import backends, doctor, matcher
from chan_rt.runtime.backends import engine_staleness, loading, onnxruntime_cuda, onnxruntime_rtx, probe, tensorrt
from chan_rt.runtime.backends.onnxruntime_rtx import device_of
from chan_rt.runtime.contract import GraphSpec
from chan_rt.runtime.errors import BackendError, InputError
from chan_rt.runtime.gpu import Gpu, GpuReport, device_index
from chan_rt.runtime.matcher import Matcher

A100, L4 = Gpu("NVIDIA A100", (8, 0), 80 << 30), Gpu("NVIDIA L4", (8, 9), 24 << 30)
TWO = GpuReport((A100, L4), "580.1", "13.0")
NO_SPEC: Any = None


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (backends, doctor, engine_staleness, loading, matcher, onnxruntime_rtx, probe):
        monkeypatch.setattr(module, "examine_gpu", lambda: TWO)


def test_a_name_stands_for_one_gpu() -> None:
    assert [device_index(name) for name in ("cuda", "cuda:0", "cuda:3")] == [0, 0, 3]
    for name in ("cuda:0,1", "cpu", "gpu", "cuda:"):
        with pytest.raises(InputError, match=f"got '{name}'"):
            device_index(name)


def test_a_report_of_one_gpu() -> None:
    assert (TWO.only(1).gpus, TWO.only(1).first) == ((L4,), 1)
    assert TWO.only(0).gpus == (A100,)
    with pytest.raises(
        InputError, match=r"cuda:2 is not there: CUDA shows cuda:0 \(NVIDIA A100\), cuda:1 \(NVIDIA L4\)"
    ):
        TWO.only(2)
    none = GpuReport(problem="no driver")
    assert none.only(0) is none
    with pytest.raises(InputError, match=r"cuda:1 is not there: CUDA shows no GPU \(no driver\)"):
        none.only(1)


@pytest.mark.parametrize(
    ("device", "backend", "message"),
    [
        ("cuda:0,1", "auto", "must be one GPU for the graphs of a bundle"),
        ("cpu", "auto", "on the CPU the backend onnxruntime runs them"),
        ("cuda:2", "auto", "cuda:2 is not there"),
        ("cuda:1", "onnxruntime", "must be cuda with the backend onnxruntime, which uses no GPU"),
    ],
)
def test_a_matcher_is_not_opened_on_what_is_not_one_gpu(device: str, backend: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Matcher.open("anywhere", backend, device=device)


def test_a_matcher_opens_every_graph_on_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def open_graphs(name: str, bundle: Path, manifest: Any, graphs: dict[str, str], **how: Any) -> dict[str, Any]:
        opened.append((sorted(graphs), how["gpu"]))
        return {graph: SimpleNamespace(name="onnxruntime_cuda", close=lambda: None) for graph in graphs}

    monkeypatch.setattr(matcher, "open_graphs", open_graphs)
    monkeypatch.setattr(matcher, "load_tokenizer", lambda *of: SimpleNamespace(vocab_size=1))
    manifest = SimpleNamespace(resolve=lambda *of: "fp32", tokenizer=None, model={}, alignment=None)
    monkeypatch.setattr(matcher, "Manifest", SimpleNamespace(load=lambda bundle: manifest))
    with Matcher.open("bundle", device="cuda:1") as one:
        one._open("alignment_map")
    assert opened == [(sorted(matcher.NEEDED), 1), (["alignment_map"], 1)]


def test_onnxruntimes_provider_and_memory_are_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(onnxruntime_cuda, "BoundBackend", lambda *of, **how: made.append((of, how)))
    onnxruntime_cuda.open_file(Path("graph.onnx"), NO_SPEC, None, 1)
    (((*_, provider, _), how),) = made
    assert provider == ("CUDAExecutionProvider", {"use_tf32": "0", "device_id": "1", "enable_cuda_graph": "1"})
    assert (how["device"], how["index"]) == ("cuda", 1)


def test_an_engine_is_loaded_for_its_gpu_and_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def stop(*of: Any) -> Any:
        asked.append(of)
        raise BackendError("seen enough")

    monkeypatch.setattr(tensorrt, "load_library", lambda flavor, record, gpu: (asked.append(gpu), (None, L4))[1])
    monkeypatch.setattr(tensorrt, "CudaDevice", stop)
    monkeypatch.setattr(tensorrt.EngineRecord, "from_file", lambda path: SimpleNamespace(onnx_sha256="0"))
    spec: GraphSpec = SimpleNamespace(sha256="0")  # type: ignore[assignment]
    with pytest.raises(BackendError, match="seen enough"):
        tensorrt.open_file(Path("e.engine"), spec, None, 1)
    assert asked == [1, (1,)]
    assert engine_staleness.capability_here(1) == (8, 9)


def test_the_plugin_is_given_the_device_of_that_number() -> None:
    first, second = (SimpleNamespace(ep_options={"device_id": str(number)}) for number in (0, 1))
    assert device_of([second, first], 1) is second
    unnumbered = [SimpleNamespace(ep_options={}) for _ in range(2)]
    assert device_of(unnumbered, 1) is unnumbered[1]
    with pytest.raises(BackendError, match="can use cuda:0, not cuda:1"):
        device_of([first], 1)


def test_doctor_tries_backends_on_the_gpu_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    real = doctor.examine_backend
    monkeypatch.setattr(doctor, "examine_backend", lambda name, gpu: (tried.append(gpu.gpus), real(name, TWO))[1])
    monkeypatch.setattr(probe, "_provider_problem", lambda provider, index: None)
    result = CliRunner().invoke(cli.main, ["doctor", "--device", "cuda:1"])
    assert set(tried) == {(L4,)}
    assert "NVIDIA A100" in result.output
    assert "NVIDIA L4" in result.output
    refused = CliRunner().invoke(cli.main, ["doctor", "--device", "cuda:0,1"])
    assert refused.exit_code == 2
    assert "must be one GPU" in refused.output
