"""Backends are what was asked for, or an error that says why not."""

import logging
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from chan_rt.runtime import backends
from chan_rt.runtime.backends import fake, onnxruntime_rtx, probe, tf32
from chan_rt.runtime.backends.onnxruntime import preload_cuda
from chan_rt.runtime.contract import (
    AlignmentConfig,
    GraphSpec,
    Manifest,
    Range,
    TensorSpec,
    TokenizerSpec,
    sha256_file,
    write_manifest,
)
from chan_rt.runtime.errors import BackendError, BundleError, EngineError, InputError, TensorError
from chan_rt.runtime.gpu import Gpu, GpuReport


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Manifest]:
    """A bundle with one graph that doubles `x` [B, 3] and adds 1 to `n` [B]."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Sub", ["n", "minus_one"], ["m"]),
    ]
    graph = helper.make_graph(
        nodes,
        "doubler",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 3]),
            helper.make_tensor_value_info("n", TensorProto.INT32, ["B"]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 3]),
            helper.make_tensor_value_info("m", TensorProto.INT32, ["B"]),
        ],
        [helper.make_tensor("minus_one", TensorProto.INT32, [], [-1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    path = tmp_path / "doubler.onnx"
    onnx.save(model, path)
    spec = GraphSpec(
        file="doubler.onnx",
        sha256=sha256_file(path),
        opset=20,
        inputs=(TensorSpec("x", "float32", ("B", 3)), TensorSpec("n", "int32", ("B",))),
        outputs=(TensorSpec("y", "float32", ("B", 3)), TensorSpec("m", "int32", ("B",))),
        ranges={"B": Range(2, 4, 8)},
    )
    manifest = Manifest(
        {"embed_dim": 3, "region_dim": 3},
        AlignmentConfig(),
        {"text_encoder": {"fp32": spec}},
        TokenizerSpec("scan", {}),
    )
    write_manifest(tmp_path, manifest)
    return tmp_path, manifest


def _feeds(size: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(size * 3, dtype=np.float32).reshape(size, 3), "n": np.arange(size, dtype=np.int32)}


def test_onnxruntime_runs_every_output(bundle: tuple[Path, Manifest]) -> None:
    with backends.open_graph("onnxruntime", *bundle, "text_encoder", "fp32", threads=1) as backend:
        outputs = backend.run(_feeds(4))
    assert list(outputs) == ["y", "m"]
    np.testing.assert_array_equal(outputs["y"], 2 * _feeds(4)["x"])
    np.testing.assert_array_equal(outputs["m"], [1, 2, 3, 4])
    with pytest.raises(BackendError, match="was closed"):
        backend.run(_feeds(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": None}, "n: must be given, got nothing"),
        ({"z": np.zeros(4)}, "z: must be one of the inputs x, n"),
        ({"x": np.zeros((4, 3))}, "x: dtype must be float32, got float64"),
        ({"x": np.zeros(4, np.float32)}, r"x: shape must be \[B, 3\], got \[4\]"),
        ({"x": np.zeros((4, 5), np.float32)}, r"x: shape must be \[B, 3\] where B = 4, got \[4, 5\]"),
        ({"x": np.zeros((9, 3), np.float32)}, "x: B must be between 2 and 8, got 9"),
        ({"x": np.zeros((1, 3), np.float32)}, "x: B must be between 2 and 8, got 1"),
        ({"n": np.zeros(5, np.int32)}, r"n: shape must be \[B\] where B = 4, got \[5\]"),
    ],
)
def test_feeds_that_do_not_fit(bundle: tuple[Path, Manifest], change: dict, message: str) -> None:
    feeds = {name: array for name, array in (_feeds(4) | change).items() if array is not None}
    with (
        backends.open_graph("onnxruntime", *bundle, "text_encoder", "fp32") as backend,
        pytest.raises(TensorError, match=message),
    ):
        backend.run(feeds)


def test_a_file_that_does_not_fit_its_spec(bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    spec = manifest.graph("text_encoder", "fp32")
    wrong = replace(spec, inputs=(TensorSpec("x", "float16", ("B", 3)), spec.inputs[1]))
    with pytest.raises(BackendError, match="does not fit the manifest: its inputs"):
        backends.open_backend("onnxruntime", folder / spec.file, wrong)
    (folder / "broken.onnx").write_bytes(b"not a graph")
    with pytest.raises(BackendError, match="cannot open"):
        backends.open_backend("onnxruntime", folder / "broken.onnx", spec)


def test_altered_graph_is_refused(bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    with open(folder / "doubler.onnx", "ab") as file:
        file.write(b"\0")
    for name in ("onnxruntime", "auto"):
        with pytest.raises(BundleError, match="altered"):
            backends.open_graphs(name, folder, manifest, {"text_encoder": "fp32"})


def test_names_and_threads_are_checked(bundle: tuple[Path, Manifest]) -> None:
    folder, manifest = bundle
    with pytest.raises(InputError, match=r"backend must be one of auto, tensorrt, .* got 'torch'"):
        backends.open_graphs("torch", folder, manifest, {"text_encoder": "fp32"})
    with pytest.raises(InputError, match="threads must be positive, got 0"):
        backends.open_graph("onnxruntime", folder, manifest, "text_encoder", "fp32", threads=0)
    with pytest.raises(InputError, match="threads must be at most 1024, got 1000000"):
        backends.open_graph("onnxruntime", folder, manifest, "text_encoder", "fp32", threads=1_000_000)
    with pytest.raises(BundleError, match="no graph 'backbone'"):
        backends.open_graphs("auto", folder, manifest, {"backbone": "fp32"})
    with pytest.raises(InputError, match=r"backend must be one of tensorrt, .* got 'auto'"):
        backends.open_graph("auto", *bundle, "text_encoder", "fp32")


def test_a_provider_that_is_not_there_is_never_replaced(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"needs CUDAExecutionProvider, .* pip install 'chan-rt\[gpu\]'"):
        backends.open_graph("onnxruntime_cuda", *bundle, "text_encoder", "fp32")


def test_a_provider_that_was_replaced_is_noticed(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])

    def on_the_cpu(file: str, options: object, providers: list) -> onnxruntime.InferenceSession:
        return real(file, options, providers=["CPUExecutionProvider"])

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", on_the_cpu)
    with pytest.raises(BackendError, match="asked for CUDAExecutionProvider, onnxruntime replaced it by CPU"):
        backends.open_graph("onnxruntime_cuda", *bundle, "text_encoder", "fp32")


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A plugin that offers the CPU, whose devices onnxruntime lists without loading anything."""
    if not hasattr(onnxruntime, "register_execution_provider_library"):
        pytest.skip("plugins need onnxruntime 1.23")
    package = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    package.get_ep_name = lambda: "CPUExecutionProvider"  # type: ignore[attr-defined]
    package.get_library_path = lambda: "plugin.so"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setattr(onnxruntime_rtx, "_registered", set())
    monkeypatch.setattr(onnxruntime_rtx, "examine_gpu", GpuReport)  # whatever GPU the tests run beside
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda name, path: None)
    return package


def test_the_plugins_device_runs_the_graph(bundle: tuple[Path, Manifest], plugin: ModuleType) -> None:
    with backends.open_graph("onnxruntime_rtx", *bundle, "text_encoder", "fp32") as backend:
        assert backend.name == "onnxruntime_rtx"
        out = backend.run({"x": np.ones((2, 3), np.float32), "n": np.zeros(2, np.int32)})
    np.testing.assert_array_equal(out["y"], np.full((2, 3), 2.0))


def test_a_plugin_that_is_missing_does_not_load_or_finds_no_gpu_says_so(
    bundle: tuple[Path, Manifest], plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str, path: str) -> None:
        raise RuntimeError(f"Failed to load library {path} with error: libcuda.so.1: cannot open shared object file")

    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "register_execution_provider_library", refuse)
        with pytest.raises(BackendError, match=r"does not load: .*libcuda\.so\.1"):
            backends.open_graph("onnxruntime_rtx", *bundle, "text_encoder", "fp32")
    plugin.get_ep_name = lambda: "NvTensorRTRTXExecutionProvider"  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match="finds no GPU"):
        backends.open_graph("onnxruntime_rtx", *bundle, "text_encoder", "fp32")
    monkeypatch.setitem(sys.modules, plugin.__name__, None)
    with pytest.raises(BackendError, match=r"pip install 'chan-rt\[rtx-plugin\]'"):
        backends.open_graph("onnxruntime_rtx", *bundle, "text_encoder", "fp32")


def test_an_engine_backend_without_an_engine_says_how_to_build_one(bundle: tuple[Path, Manifest]) -> None:
    with pytest.raises(EngineError, match=r"chan build .* --backend tensorrt_rtx --precision fp32 --graph"):
        backends.open_graph("tensorrt_rtx", *bundle, "text_encoder", "fp32")


def _offer(monkeypatch: pytest.MonkeyPatch, outcomes: dict[str, object]) -> list[fake.FakeBackend]:
    """Replace opening: per backend name an exception to raise, or the exception its run raises, or None to work."""
    opened = []

    def open_graph(
        name: str, bundle: Path, manifest: Manifest, graph: str, precision: str, *, threads: int | None, gpu: int
    ):
        when, error = outcomes[name]
        if when == "open":
            raise error

        def compute(feeds: dict) -> dict:
            if when == "run":
                raise error
            return {}

        backend = fake.FakeBackend(manifest.graph(graph, precision), compute)
        backend.name = name
        opened.append(backend)
        return backend

    monkeypatch.setattr(backends, "open_graph", open_graph)
    return opened


def test_auto_takes_the_first_that_really_runs(bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = _offer(
        monkeypatch,
        {
            "tensorrt": ("open", EngineError("no engine")),
            "tensorrt_rtx": ("run", BackendError("no driver")),
            "onnxruntime_cuda": ("never", None),
            "onnxruntime": ("never", None),
        },
    )
    chosen = backends.open_graphs("auto", *bundle, {"text_encoder": "fp32"}).backends
    assert [backend.name for backend in opened] == ["tensorrt_rtx", "onnxruntime_cuda"]
    assert opened[0].closed
    assert chosen == {"text_encoder": opened[1]}
    assert opened[1].calls == [{"x": (2, 3), "n": (2,)}]


def test_auto_reports_why_each_better_backend_was_passed_over(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reasons = {name: f"why not {name}" for name in backends.BACKENDS if name != "onnxruntime"}
    _offer(
        monkeypatch,
        {name: ("open", BackendError(reason)) for name, reason in reasons.items()} | {"onnxruntime": ("never", None)},
    )
    for gpus, level in (((), logging.DEBUG), ((Gpu("H100", (9, 0), 2**36),), logging.WARNING)):
        monkeypatch.setattr(backends, "examine_gpu", lambda gpus=gpus: GpuReport(gpus))
        caplog.clear()
        with caplog.at_level(logging.DEBUG, logger="chan_rt"):
            found = backends.open_graphs("auto", *bundle, {"text_encoder": "fp32"})
        assert found.passed_over == reasons
        assert [record.levelno for record in caplog.records] == [level] * len(reasons)
        assert "auto takes onnxruntime and not tensorrt_rtx: why not tensorrt_rtx" in caplog.text


def test_engines_are_not_looked_for_on_a_gpu_that_none_would_run_on(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    h100 = GpuReport((Gpu("H100", (9, 0), 2**36),), "580.0", "13.0")
    monkeypatch.setattr(probe, "examine_gpu", lambda: h100)
    with pytest.raises(BackendError, match=r"H100 has compute capability 9\.0, .* use the backend tensorrt, or onnxr"):
        backends.open_graph("tensorrt_rtx", *bundle, "text_encoder", "fp32")


def test_the_plugin_is_neither_loaded_nor_missed_on_a_gpu_that_it_does_not_run_on(
    bundle: tuple[Path, Manifest], plugin: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    h100, l4 = (
        GpuReport((Gpu(name, each, 2**36),), "580.0", "13.0") for name, each in (("H100", (9, 0)), ("L4", (8, 9)))
    )
    loaded: list[str] = []
    monkeypatch.setattr(onnxruntime, "register_execution_provider_library", lambda name, path: loaded.append(path))
    monkeypatch.setattr(onnxruntime_rtx, "examine_gpu", lambda: h100)
    refused = (
        r"onnxruntime_rtx cannot run here: H100 has compute capability 9\.0, .* use the backend tensorrt, or onnxr"
    )
    with pytest.raises(BackendError, match=refused):
        backends.open_graph("onnxruntime_rtx", *bundle, "text_encoder", "fp32")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, plugin.__name__, None)
        with pytest.raises(BackendError, match=refused):
            backends.open_graph("onnxruntime_rtx", *bundle, "text_encoder", "fp32")
    assert not loaded
    monkeypatch.setattr(onnxruntime_rtx, "examine_gpu", lambda: l4)
    backends.open_graph("onnxruntime_rtx", *bundle, "text_encoder", "fp32").close()
    assert loaded == ["plugin.so"]


@pytest.mark.parametrize(("before", "after", "warned"), [(None, "0", False), ("0", "0", False), ("1", "1", True)])
def test_nvidias_libraries_are_kept_from_tf32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, before: str | None, after: str, warned: bool
) -> None:
    for door in ("cuda", "plugin"):
        monkeypatch.setenv(tf32.VARIABLE, before) if before else monkeypatch.delenv(tf32.VARIABLE, raising=False)
        caplog.clear()
        if door == "cuda":
            preload_cuda.__wrapped__(SimpleNamespace())
        else:
            package = SimpleNamespace(get_ep_name=lambda: f"plugin {before}", get_library_path=lambda: "plugin.so")
            monkeypatch.setattr(onnxruntime_rtx, "plugin", lambda package=package: package)
            ort = SimpleNamespace(register_execution_provider_library=lambda *a: None, get_ep_devices=list)
            with pytest.raises(BackendError, match="finds no GPU"):
                onnxruntime_rtx.devices(ort)
        assert os.environ[tf32.VARIABLE] == after
        assert bool(caplog.records) is warned


@pytest.mark.parametrize(
    ("torch", "set_before", "warned"),
    [
        (None, False, False),
        (SimpleNamespace(), False, False),  # while torch is being imported
        (SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False)), False, False),
        (SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True)), False, True),
        (SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: True)), True, False),
    ],
)
def test_tf32_that_is_turned_off_after_torch_used_cuda_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    torch: SimpleNamespace | None,
    set_before: bool,
    warned: bool,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setenv(tf32.VARIABLE, "0")
    if not set_before:
        monkeypatch.delenv(tf32.VARIABLE)
    tf32.forbid_tf32()
    tf32.forbid_tf32()  # says it once
    assert os.environ[tf32.VARIABLE] == "0"
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(" in this process")[0] for text in said] == ["torch has used CUDA"] * warned


def test_torch_has_the_function_that_tells_whether_it_used_cuda() -> None:
    pytest.importorskip("torch")
    assert tf32._torch_used_cuda() is sys.modules["torch"].cuda.is_initialized()


def test_onnxruntimes_sessions_on_a_gpu_have_tf32_off(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With recorded graphs, and without them where onnxruntime refuses to record."""
    asked: list[dict[str, str]] = []

    def refuse(file: str, options: object, providers: list) -> None:
        ((name, own),) = providers
        assert name == "CUDAExecutionProvider"
        asked.append(own)
        raise RuntimeError("This session cannot use the graph feature" if len(asked) == 1 else "no GPU")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(BackendError, match="no GPU"):
        backends.open_graph("onnxruntime_cuda", *bundle, "text_encoder", "fp32")
    assert [(own["use_tf32"], own["enable_cuda_graph"]) for own in asked] == [("0", "1"), ("0", "0")]


def test_auto_with_nothing_that_works_gives_every_reason(
    bundle: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    _offer(monkeypatch, {name: ("open", BackendError(f"why not {name}")) for name in backends.BACKENDS})
    with pytest.raises(BackendError) as caught:
        backends.open_graphs("auto", *bundle, {"text_encoder": "fp32"})
    for name in backends.BACKENDS:
        assert f"{name}: why not {name}" in str(caught.value)


def test_auto_here_ends_at_the_cpu_when_there_is_no_gpu(bundle: tuple[Path, Manifest]) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a CUDA provider")
    (backend,) = backends.open_graphs("auto", *bundle, {"text_encoder": "fp32"}).backends.values()
    assert backend.name == "onnxruntime"


def test_one_session_serves_many_threads(bundle: tuple[Path, Manifest]) -> None:
    wrong: list[int] = []
    with backends.open_graph("onnxruntime", *bundle, "text_encoder", "fp32", threads=2) as backend:

        def work(size: int) -> None:
            feeds = _feeds(size)
            wrong.extend(size for _ in range(200) if not np.array_equal(backend.run(feeds)["y"], 2 * feeds["x"]))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, (2, 3, 5, 8)))
    assert wrong == []
