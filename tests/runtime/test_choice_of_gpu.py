"""`device="cuda:1"`: everything of a matcher that uses a GPU uses that one."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chan_rt.runtime import backends, doctor, matcher
from chan_rt.runtime.backends import engine_staleness, loading, onnxruntime_cuda, onnxruntime_rtx, probe, tensorrt
from chan_rt.runtime.backends.onnxruntime_rtx import device_of
from chan_rt.runtime.contract import GraphSpec
from chan_rt.runtime.errors import BackendError, InputError
from chan_rt.runtime.gpu import Gpu, GpuReport, device_index, parse_bus
from chan_rt.runtime.matcher import Matcher

from ..run_chan import chan

A100, L4 = Gpu("NVIDIA A100", (8, 0), 80 << 30), Gpu("NVIDIA L4", (8, 9), 24 << 30)
T4 = Gpu("Tesla T4", (7, 5), 16 << 30)
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

    def open_graph(name: str, bundle: Path, manifest: Any, graph: str, precision: str, **how: Any) -> Any:
        opened.append((graph, how["gpu"]))
        return SimpleNamespace(name="onnxruntime_cuda", close=lambda: None)

    for module in (backends, matcher):
        monkeypatch.setattr(module, "open_graph", open_graph)
    monkeypatch.setattr(matcher, "load_tokenizer", lambda *of: SimpleNamespace(vocab_size=1))
    manifest = SimpleNamespace(
        graph=lambda *of: None, resolve=lambda *of: "fp32", tokenizer=None, model={}, alignment=None
    )
    monkeypatch.setattr(matcher, "Manifest", SimpleNamespace(load=lambda bundle: manifest))
    with Matcher.open("bundle", "onnxruntime_cuda", device="cuda:1") as one:
        one._open("alignment_map")
    assert opened == [(graph, 1) for graph in (*matcher.NEEDED, "alignment_map")]


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


def listed(number: int | None, address: str | None) -> Any:
    """A device as onnxruntime lists it for the plugin."""
    metadata = {"card_idx": "0"} if address is None else {"pci_bus_id": address}
    options = {} if number is None else {"device_id": str(number)}
    return SimpleNamespace(ep_options=options, device=SimpleNamespace(metadata=metadata))


def test_the_plugin_is_given_the_device_of_that_number_and_address() -> None:
    shown = GpuReport((replace(L4, bus=(0, 0x17, 0, 0)), replace(L4, bus=(1, 0xCA, 0, 0))))
    first, second = listed(0, "0000:17:00.0"), listed(1, "00000001:CA:00.0")  # as sysfs and as NVML write it
    for found in ([first, second], [second, first]):
        assert device_of(found, 0, shown) is first
        assert device_of(found, 1, shown) is second
    with pytest.raises(BackendError, match="can use cuda:0, not cuda:1"):
        device_of([first], 1, shown)


@pytest.mark.parametrize("index", [0, 1])
def test_a_plugin_that_counts_gpus_in_another_order_is_refused(index: int) -> None:
    shown = GpuReport((replace(L4, bus=(0, 0x17, 0, 0)), replace(L4, bus=(0, 0xCA, 0, 0))))
    found = [listed(0, "0000:ca:00.0"), listed(1, "0000:17:00.0")]
    with pytest.raises(
        BackendError, match=rf"not surely cuda:{index}; .* alone in CUDA_VISIBLE_DEVICES, and use cuda:0"
    ):
        device_of(found, index, shown)


def test_a_plugin_that_leaves_a_gpu_out_is_not_believed() -> None:
    """It runs on the second of two GPUs only, and calls that one number 0, by which CUDA computes on the first one."""
    shown = GpuReport((replace(T4, bus=(0, 0x17, 0, 0)), replace(L4, bus=(0, 0xCA, 0, 0))))
    with pytest.raises(BackendError, match="not surely cuda:0"):
        device_of([listed(0, "0000:ca:00.0")], 0, shown)


def test_doctor_says_what_to_do_about_a_plugin_that_counts_in_another_order(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = GpuReport((replace(L4, bus=(0, 0x17, 0, 0)), replace(L4, bus=(0, 0xCA, 0, 0))), "580.1", "13.0")
    monkeypatch.setattr(probe, "examine_gpu", lambda: shown)
    monkeypatch.setattr(probe, "devices", lambda ort: [listed(0, "0000:ca:00.0"), listed(1, "0000:17:00.0")])
    monkeypatch.setattr(probe, "installed_packages", lambda info: [info.package])
    monkeypatch.setattr(probe, "package_version", lambda package: "1.0")
    report = probe.examine_backend("onnxruntime_rtx", shown.only(1))
    assert not report.runs
    assert (report.problem or "").endswith("its number 1 is not surely cuda:1")
    assert report.remedy == "start the process with that GPU alone in CUDA_VISIBLE_DEVICES, and use cuda:0"


def test_without_addresses_only_a_single_gpu_is_sure() -> None:
    one, two = GpuReport((L4,)), GpuReport((L4, L4))
    for number, address in ((0, None), (None, None), (0, "0000:17:00.0"), (0, "somewhere")):
        alone = listed(number, address)
        assert device_of([alone], 0, one) is alone
        assert device_of([alone], 0, GpuReport()) is alone
        with pytest.raises(BackendError, match="not surely cuda:0"):
            device_of([alone], 0, two)
        with pytest.raises(BackendError, match="not surely cuda:0"):
            device_of([alone, listed(1, address)], 0, one)


@pytest.mark.parametrize("text", ["", None, "0000:17:00", "17:00.0", "0000:17:00.8", "0000:1g:00.0", "[N/A]"])
def test_what_is_no_pci_address_is_none(text: str | None) -> None:
    assert parse_bus(text) is None
    assert parse_bus(" 0001:CA:1f.7\n") == (1, 0xCA, 0x1F, 7)


def test_doctor_tries_backends_on_the_gpu_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    real = doctor.examine_backend
    monkeypatch.setattr(doctor, "examine_backend", lambda name, gpu: (tried.append(gpu.gpus), real(name, TWO))[1])
    monkeypatch.setattr(probe, "_provider_problem", lambda provider, index: None)
    result = chan("doctor", "--device", "cuda:1")
    assert set(tried) == {(L4,)}
    assert "NVIDIA A100" in result.output
    assert "NVIDIA L4" in result.output
    refused = chan("doctor", "--device", "cuda:0,1")
    assert refused.exit_code == 2
    assert "must be one GPU" in refused.output
