"""`chan bench`: every candidate beside torch, what does not run with its reason, a GPU's state where one took part."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from chan_rt.bench import latency
from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export.bundle import export_bundle
from chan_rt.runtime import backends
from chan_rt.runtime.backends.base import Backend
from chan_rt.runtime.errors import BackendError, InputError
from chan_rt.runtime.gpu import Gpu, GpuReport
from chan_rt.runtime.matcher import Matcher
from chan_rt.runtime.text import scan_vocabulary

from ..run_chan import chan, ok

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a"]
SMALL = ["--images", "6", "--regions", "3", "--words", "4", "--batch", "1", "--batch", "2", "--seconds", "0.01"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("bench")
    config = ModelConfig(region_dim=6, embed_dim=8, vocab_size=len(WORDS) + 1, word_dim=5, region_encoder="basic")
    vocabulary = json.dumps(scan_vocabulary({word: row for row, word in enumerate(WORDS)})).encode()
    checkpoint.save(root / "checkpoint", ChanModel(config).eval(), {"vocab.json": vocabulary}, {})
    export_bundle(root / "checkpoint", root / "bundle", ["fp32", "fp16"])
    return root


@pytest.fixture(autouse=True)
def quick_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "read_bandwidth", lambda threads: 3e10)
    monkeypatch.setattr(latency, "float32_rate", lambda: 1e11)
    monkeypatch.setattr(latency, "gpu_state", lambda gpu: {})


def test_every_candidate_is_measured_or_named_with_its_reason(root: Path, tmp_path: Path) -> None:
    report_file, plot = tmp_path / "report.json", tmp_path / "plot.svg"
    arguments = ["bench", str(root / "bundle"), "--backend", "onnxruntime", "--backend", "tensorrt", *SMALL]
    result = ok(*arguments, "--output-json", report_file, "--plot", plot)
    report = json.loads(report_file.read_text())
    assert set(report["latencies"]) == {
        "encode 1 captions", "encode 1 images", "encode 2 captions", "encode 2 images",
        "score 1 caption x 6 images", "whole query, 6 images",
    }  # fmt: skip
    for measured in report["latencies"].values():
        assert set(measured) == {"onnxruntime fp32", "onnxruntime fp16"}
        assert all(0 < item["best"] <= item["p50"] <= item["p99"] for item in measured.values())
    assert set(report["skipped"]) == {"tensorrt fp32", "tensorrt fp16"}
    assert "not run: tensorrt fp32: " in result
    assert report["bound"]["score 1 caption x 6 images"] == pytest.approx(6 * 3 * 8 * 4 / 3e10 * 1e3)
    assert report["gpu"] == {}
    assert plot.read_text().startswith("<?xml")


def test_torch_is_measured_beside_where_a_checkpoint_is_given(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    setting = latency.Setting(4, 3, 4, (1,), 0.01)
    report = latency.run(root / "bundle", ["onnxruntime"], ["fp32"], root / "checkpoint", setting)
    assert {"torch eager", "onnxruntime fp32"} <= set(report.latencies["whole query, 4 images"])
    assert {"torch eager", "torch.compile"} <= set(report.starts) | set(report.skipped)
    assert "Graph break" not in caplog.text


def test_nothing_that_runs_is_an_error_with_the_reasons(root: Path) -> None:
    result = chan("bench", root / "bundle", "--backend", "tensorrt", *SMALL)
    assert result.exit_code == 1
    assert "no candidate runs on this machine: tensorrt fp16: no usable tensorrt engine" in result.output


@pytest.fixture
def gpu(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that took part, on which no graph runs."""

    class Device:
        def __init__(self, index: int) -> None:
            assert index == 0

        def copy_bandwidth(self) -> float:
            return 3e12

    states = iter([{"clocks.sm": "1980 MHz"}, {"clocks.sm": "1755 MHz"}])
    monkeypatch.setattr(latency, "gpu_state", lambda gpu: next(states))
    monkeypatch.setattr(latency, "TimedDevice", Device)
    opener = ("onnxruntime_cuda fp32", lambda: Matcher.open(root / "bundle", "onnxruntime", "fp32"))
    monkeypatch.setattr(latency, "_openers", lambda *how: iter([opener]))


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_took_part_is_described(root: Path) -> None:
    result = ok("bench", root / "bundle", *SMALL)
    lines = ["GPU before: clocks.sm 1980 MHz", "GPU after: clocks.sm 1755 MHz", "GPU memory, copying: 3000 GB/s"]
    assert all(line in result for line in lines)


L4 = GpuReport((Gpu("NVIDIA L4", (8, 9), 24 << 30),), "580.1", "13.0")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime_cuda, on a GPU that is the CPU in truth."""
    real = backends.open_graph

    def open_graph(name: str, *of: Any, **how: Any) -> Backend:
        if name not in ("onnxruntime_cuda", "onnxruntime"):
            raise BackendError(f"no {name}")
        backend = real("onnxruntime", *of, **how)
        backend.name = name
        return backend

    monkeypatch.setattr(backends, "open_graph", open_graph)
    monkeypatch.setattr(backends, "examine_gpu", lambda: L4)


@pytest.mark.usefixtures("gpu", "cuda")
def test_where_auto_runs_each_graph_is_measured_for_each_batch_and_precision(root: Path, tmp_path: Path) -> None:
    bundle, report_file = tmp_path / "bundle", tmp_path / "report.json"
    shutil.copytree(root / "bundle", bundle)
    arguments = ["bench", str(bundle), "--precision", "fp32", "--precision", "fp16", *SMALL]
    result = ok(*arguments, "--output-json", report_file)
    placements = json.loads(report_file.read_text())["placements"]
    assert [(each["precisions"]["text_encoder"], each["batch"]) for each in placements] == [
        ("fp32", 1), ("fp32", 2), ("fp16", 1), ("fp16", 2),
    ]  # fmt: skip
    for each in placements:
        assert each["machine"]["gpu"] == "NVIDIA L4"
        assert set(each["milliseconds"]) == {"text_encoder", "region_encoder", "hard_alignment"}
        for times in each["milliseconds"].values():
            assert set(times) == {"onnxruntime_cuda", "onnxruntime"}
    printed = result.split("auto runs, for ")[1:]
    assert [text.splitlines()[0] for text in printed] == [f"{batch} at once on NVIDIA L4" for batch in (1, 2, 1, 2)]
    for text, each in zip(printed, placements, strict=True):
        times = each["milliseconds"]["text_encoder"]
        (line,) = (line.split() for line in text.splitlines() if "  text_encoder " in line)
        assert line[:3] == [
            "text_encoder",
            each["precisions"]["text_encoder"],
            min(times, key=lambda name: times[name]),
        ]
        assert f"(onnxruntime {times['onnxruntime']:.2f} ms, onnxruntime_cuda" in text


@pytest.mark.usefixtures("cuda")
def test_what_was_measured_elsewhere_or_for_another_batch_is_not_reported(root: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(root / "bundle", bundle)
    skipped: dict[str, str] = {}
    (first,) = latency._placements(bundle, ["fp32"], latency.Setting(batches=(2,)), skipped)
    (path,) = (bundle / "engines").glob("placement.*.json")
    path.with_name("placement.0.json").write_text(path.read_text().replace("NVIDIA L4", "NVIDIA T4"))
    assert latency._placements(bundle, ["fp32"], latency.Setting(batches=(2,)), skipped) == [first]
    (other,) = latency._placements(bundle, ["fp32"], latency.Setting(batches=(3,)), skipped)
    assert (other.batch, skipped) == (3, {})


def test_a_precision_that_auto_cannot_open_is_named_with_the_reason(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*of: Any, **how: Any) -> Backend:
        raise BackendError("nothing runs")

    monkeypatch.setattr(backends, "open_graph", refuse)
    skipped: dict[str, str] = {}
    assert latency._placements(root / "bundle", ["fp32"], latency.Setting(batches=(1,)), skipped) == []
    assert skipped["auto fp32"].startswith("no backend works here. tensorrt: nothing runs")


@pytest.mark.parametrize("sizes", [{"images": 10**9}, {"regions": 2**31}, {"words": 10**400}, {"batches": (1, 2**63)}])
def test_sizes_that_no_machine_holds(sizes: dict) -> None:
    (name,) = sizes
    with pytest.raises(InputError, match=f"^{name} must be at most 1000000, got"):
        latency.Setting(**sizes)
