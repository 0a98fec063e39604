"""Each graph runs where it is fastest at the batch size asked for; that is measured once a bundle and machine."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime import backends
from chan_rt.runtime.backends import placement
from chan_rt.runtime.backends.fake import FakeBackend
from chan_rt.runtime.backends.placement import read_placements
from chan_rt.runtime.contract import (
    AlignmentConfig,
    GraphSpec,
    Manifest,
    Range,
    TensorSpec,
    TokenizerSpec,
    write_manifest,
)
from chan_rt.runtime.errors import BackendError, BundleError
from chan_rt.runtime.gpu import Gpu, GpuReport

from ...run_chan import chan

L4 = GpuReport((Gpu("NVIDIA L4", (8, 9), 24 << 30),), "580.1", "13.0")
PRECISIONS = {"text_encoder": "fp32", "region_encoder": "fp32"}


def spec(name: str) -> GraphSpec:
    return GraphSpec(
        f"{name}.onnx",
        name[0] * 64,
        20,
        (TensorSpec("x", "float32", ("B", "W", 4)),),
        (TensorSpec("y", "float32", ("B", 4)),),
        {"B": Range(1, 8, 256), "W": Range(2, 12, 64)},
    )


@pytest.fixture
def bundle(tmp_path: Path) -> tuple[Path, Manifest]:
    graphs = {name: {"fp32": spec(name)} for name in PRECISIONS}
    manifest = Manifest({"embed_dim": 4, "region_dim": 4}, AlignmentConfig(), graphs, TokenizerSpec("scan", {}))
    write_manifest(tmp_path, manifest)
    return tmp_path, manifest


class Machine:
    """A GPU whose calls take 2 ms whatever the batch, and a CPU: 1 ms a text, 5 ms a picture. Nothing is waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.opened: list[FakeBackend] = []
        self.fails_on_cpu: set[str] = set()
        monkeypatch.setattr(backends, "open_graph", self.open_graph)
        monkeypatch.setattr(backends, "examine_gpu", lambda: L4)
        monkeypatch.setattr(placement.time, "perf_counter", lambda: self.now)

    def open_graph(self, name: str, *arguments: Any, threads: int | None, gpu: int) -> FakeBackend:
        _, manifest, graph, precision = arguments
        if name in ("tensorrt", "tensorrt_rtx") or (name == "onnxruntime" and precision in self.fails_on_cpu):
            raise BackendError(f"no {name}")

        def compute(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            one = 0.001 if graph == "text_encoder" else 0.005
            one *= {"fp32": 1, "int8": 3, "int8_x86": 0.5}[precision]
            self.now += 0.002 if name == "onnxruntime_cuda" else one * len(feeds["x"])
            return {}

        backend = FakeBackend(manifest.graph(graph, precision), compute)
        backend.name, backend.gpu = name, gpu
        self.opened.append(backend)
        return backend

    def place(
        self, bundle: tuple[Path, Manifest], batch: int, precisions: Mapping[str, str] = PRECISIONS
    ) -> dict[str, str]:
        """Where `auto` runs each graph; all else is closed."""
        self.opened.clear()
        chosen = backends.open_graphs("auto", *bundle, precisions, batch=batch).backends
        assert [one for one in self.opened if not one.closed and one not in chosen.values()] == []
        assert not any(one.closed for one in chosen.values())
        return {graph: one.name for graph, one in chosen.items()}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_each_graph_runs_where_it_is_fastest_at_the_batch_asked_for(bundle: tuple[Path, Manifest], machine) -> None:
    assert machine.place(bundle, 1) == {"text_encoder": "onnxruntime", "region_encoder": "onnxruntime_cuda"}
    assert machine.place(bundle, 64) == dict.fromkeys(PRECISIONS, "onnxruntime_cuda")
    found = {each.batch: each.milliseconds for each in read_placements(bundle[0])}
    assert found[1]["text_encoder"] == pytest.approx({"onnxruntime_cuda": 2.0, "onnxruntime": 1.0})
    assert found[64]["region_encoder"] == pytest.approx({"onnxruntime_cuda": 2.0, "onnxruntime": 320.0})


def test_it_is_measured_once_and_for_a_second_at_most(bundle: tuple[Path, Manifest], machine) -> None:
    machine.place(bundle, 1)
    assert machine.now < 1.1
    before = machine.now
    assert machine.place(bundle, 1)["text_encoder"] == "onnxruntime"
    tried_out = 2 * 0.002
    assert machine.now - before == pytest.approx(tried_out), "only what `auto` tries out on the GPU runs again"


def test_another_gpu_driver_or_graph_is_measured_anew(
    bundle: tuple[Path, Manifest], machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.place(bundle, 1)
    other = GpuReport((replace(L4.gpus[0], name="NVIDIA H100"),), "580.1", "13.0")
    for report in (other, replace(L4, driver="590.2")):
        monkeypatch.setattr(backends, "examine_gpu", lambda report=report: report)
        machine.place(bundle, 1)
    assert len(read_placements(bundle[0])) == 3


def test_what_was_kept_and_cannot_be_read_is_measured_anew(bundle: tuple[Path, Manifest], machine) -> None:
    machine.place(bundle, 1)
    (path,) = (bundle[0] / "engines").iterdir()
    for text in ("{", '{"machine": 3}', path.read_text().replace("NVIDIA L4", "NVIDIA T4")):
        path.write_text(text)
        assert machine.place(bundle, 1)["text_encoder"] == "onnxruntime"
        (found,) = read_placements(bundle[0])
        assert found.machine["gpu"] == "NVIDIA L4"


def test_a_bundle_that_cannot_be_written_to_is_measured_by_each_process(
    bundle: tuple[Path, Manifest], machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(placement, "write_file", refuse)
    assert machine.place(bundle, 1)["text_encoder"] == "onnxruntime"
    assert read_placements(bundle[0]) == []


def test_where_the_cpu_cannot_run_a_graph_all_stay_on_the_gpu(bundle: tuple[Path, Manifest], machine) -> None:
    machine.fails_on_cpu = {"fp32"}
    assert machine.place(bundle, 1) == dict.fromkeys(PRECISIONS, "onnxruntime_cuda")
    assert read_placements(bundle[0]) == []


INT8 = {"text_encoder": "int8", "region_encoder": "int8"}


@pytest.fixture
def quantized(tmp_path: Path) -> tuple[Path, Manifest]:
    """A bundle whose text encoder has both forms of int8, and whose region encoder has one."""
    forms = {"text_encoder": ("int8", "int8_x86"), "region_encoder": ("int8",)}
    graphs = {
        name: {form: replace(spec(name), file=f"{form}/{name}.onnx") for form in own} for name, own in forms.items()
    }
    manifest = Manifest({"embed_dim": 4, "region_dim": 4}, AlignmentConfig(), graphs, TokenizerSpec("scan", {}))
    write_manifest(tmp_path, manifest)
    return tmp_path, manifest


def test_the_cpus_own_int8_is_a_candidate(quantized: tuple[Path, Manifest], machine) -> None:
    assert machine.place(quantized, 1, INT8) == {"text_encoder": "onnxruntime", "region_encoder": "onnxruntime_cuda"}
    (found,) = read_placements(quantized[0])
    assert found.milliseconds == {
        "text_encoder": pytest.approx({"onnxruntime_cuda": 2.0, "onnxruntime": 3.0, "onnxruntime int8_x86": 0.5}),
        "region_encoder": pytest.approx({"onnxruntime_cuda": 2.0, "onnxruntime": 15.0}),
    }
    assert found.fastest == {"text_encoder": "onnxruntime int8_x86", "region_encoder": "onnxruntime_cuda"}
    (chosen,) = (one for one in machine.opened if one.name == "onnxruntime" and not one.closed)
    assert chosen.spec.file == "int8_x86/text_encoder.onnx"
    result = chan("doctor", "--bundle", quantized[0])
    assert "  text_encoder    int8  onnxruntime int8_x86  (onnxruntime 3.00 ms, onnxruntime int8_x86 0.50 ms, " in (
        result.output
    )


def test_an_int8_that_this_cpu_does_not_compute_is_no_candidate(quantized: tuple[Path, Manifest], machine) -> None:
    machine.fails_on_cpu = {"int8_x86"}
    assert machine.place(quantized, 1, INT8) == dict.fromkeys(INT8, "onnxruntime_cuda")
    (found,) = read_placements(quantized[0])
    assert set(found.milliseconds["text_encoder"]) == {"onnxruntime_cuda", "onnxruntime"}
    machine.fails_on_cpu = {"int8"}
    assert machine.place(quantized, 1, INT8)["text_encoder"] == "onnxruntime"
    machine.fails_on_cpu = set()
    machine.place(quantized, 1, INT8)
    assert len(read_placements(quantized[0])) == 3, "each choice of candidates is measured on its own"


def test_it_is_measured_on_the_gpu_that_is_named(
    bundle: tuple[Path, Manifest], machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = replace(L4, gpus=(Gpu("NVIDIA A100", (8, 0), 80 << 30), *L4.gpus))
    monkeypatch.setattr(backends, "examine_gpu", lambda: two)
    backends.open_graphs("auto", *bundle, PRECISIONS, gpu=1)
    assert [found.machine["gpu"] for found in read_placements(bundle[0])] == ["NVIDIA L4"]
    assert {one.gpu for one in machine.opened} == {1}


def test_a_file_of_the_cpu_that_was_altered_is_an_error(
    bundle: tuple[Path, Manifest], machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_graph = backends.open_graph

    def altered(name: str, *arguments: Any, **how: Any) -> FakeBackend:
        if name == "onnxruntime":
            raise BundleError("text_encoder.onnx was altered")
        return open_graph(name, *arguments, **how)

    monkeypatch.setattr(backends, "open_graph", altered)
    with pytest.raises(BundleError, match="was altered"):
        machine.place(bundle, 1)
    assert all(one.closed for one in machine.opened)


def test_doctor_reports_what_was_measured(bundle: tuple[Path, Manifest], machine) -> None:
    machine.place(bundle, 1)
    result = chan("doctor", "--bundle", bundle[0])
    assert "auto runs, for 1 at once on NVIDIA L4\n" in result.output
    assert (
        "  text_encoder    fp32  onnxruntime           (onnxruntime 1.00 ms, onnxruntime_cuda 2.00 ms)\n"
        in result.output
    )
    report = json.loads(chan("doctor", "--bundle", bundle[0], "--json").stdout)
    assert report["placements"][0]["batch"] == 1
