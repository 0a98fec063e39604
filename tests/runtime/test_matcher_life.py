"""A matcher after close, in another working directory, and in the log."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from chan_rt.runtime import backends, gpu
from chan_rt.runtime.backends.base import Backend
from chan_rt.runtime.errors import BackendError
from chan_rt.runtime.extras import package_version
from chan_rt.runtime.gpu import Gpu, GpuReport
from chan_rt.runtime.matcher import Matcher
from chan_rt.runtime.regions import Regions

from .fake_driver import FakeDriver

ROWS = np.ones((2, 3, 12), np.float32)


def test_every_use_after_close_says_that_the_matcher_is_closed(small: Any) -> None:
    matcher = Matcher.open(small.bundle, "onnxruntime", threads=1)
    images, texts = matcher.encode_images(ROWS), matcher.encode_texts(["a red apple"])
    matcher.close()
    matcher.close()
    uses: dict[str, Callable[[], object]] = {
        "encode_images": lambda: matcher.encode_images(ROWS),
        "encode_images_on_device": lambda: matcher.encode_images_on_device(ROWS, np.full(2, 3, np.int32)),
        "encode_regions": lambda: matcher.encode_regions(Regions(ROWS, np.full(2, 3, np.int32), None)),
        "encode_texts": lambda: matcher.encode_texts(["a red apple"]),
        "score": lambda: matcher.score(images, texts),
        "align": lambda: matcher.align(images, texts),
        "explain": lambda: matcher.explain(images[0], "a red apple"),
    }
    for use in uses.values():
        with pytest.raises(BackendError, match=r"^this matcher is closed; open it again with Matcher.open$"):
            use()
    assert matcher.unknown_words("a red apple") == []
    public = {name for name, _ in inspect.getmembers(Matcher, inspect.isfunction) if not name.startswith("_")}
    assert matcher.directions("captions") is None
    needs_a_backbone, needs_no_graph = {"encode_pictures"}, {"close", "directions", "unknown_words"}
    assert public == uses.keys() | needs_a_backbone | needs_no_graph


def test_a_graph_opened_later_is_found_from_another_working_directory(
    small: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(Path(small.bundle).parent)
    with Matcher.open(Path(small.bundle).name, "onnxruntime", threads=1) as matcher:
        monkeypatch.chdir(tmp_path)
        assert matcher.explain(matcher.encode_images(ROWS)[0], "a red apple").words  # opens alignment_map


def test_the_log_tells_what_was_opened_and_what_auto_did_not_choose(
    small: Any, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with Matcher.open(small.bundle, "onnxruntime", threads=1):
        pass
    assert capfd.readouterr() == ("", "")  # nothing where nobody asked for a log
    with caplog.at_level(logging.DEBUG, logger="chan_rt"), Matcher.open(small.bundle, threads=1) as matcher:
        messages = {record.getMessage(): record.levelno for record in caplog.records}
    assert messages[f"opened {small.bundle} with {matcher.backend} at fp32"] == logging.INFO
    if matcher.backend == "onnxruntime":
        level = logging.WARNING if gpu.examine_gpu().gpus else logging.DEBUG  # without a GPU nobody would miss it
        passed_over = {at for message, at in messages.items() if message.startswith("auto takes onnxruntime and not ")}
        assert passed_over == {level}


def test_the_report_of_auto_has_each_better_backend_and_its_reason(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = backends.open_graph
    reasons = {"tensorrt": "no engine was built", "tensorrt_rtx": "its driver is too old"}

    def open_graph(name: str, *arguments: Any, **options: Any) -> Backend:
        if name in reasons:
            raise BackendError(reasons[name])
        backend = real("onnxruntime", *arguments, **options)
        backend.name = name
        return backend

    monkeypatch.setattr(backends, "open_graph", open_graph)
    monkeypatch.setattr(backends, "examine_gpu", GpuReport)  # nothing is measured
    with Matcher.open(small.bundle, threads=1) as matcher:
        assert matcher.backend == "onnxruntime_cuda"
        assert matcher.backend_report == reasons
    with Matcher.open(small.bundle, "onnxruntime_rtx", threads=1) as matcher:
        assert (matcher.backend, matcher.backend_report) == ("onnxruntime_rtx", {})


def test_on_an_h100_that_nothing_serves_the_report_and_the_log_say_what_to_do(
    small: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """All of it is real but the driver."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() or package_version("tensorrt"):
        pytest.skip("libraries for a GPU are installed")
    h100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0), 80 << 30)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu, "_load", FakeDriver("550.54.15", 12040, [h100]).load)
    monkeypatch.setattr(gpu, "_cuda_of_bindings", lambda: 0)
    with Matcher.open(small.bundle, threads=1) as matcher:
        report = matcher.backend_report
        assert matcher.backend == "onnxruntime"
    assert list(report) == ["tensorrt", "tensorrt_rtx", "onnxruntime_cuda", "onnxruntime_rtx"]
    assert "tensorrt is not installed; pip install 'chan-rt[tensorrt-cu12]'" in report["tensorrt"]
    assert "pip install 'chan-rt[gpu-cu12]'" in report["onnxruntime_cuda"]
    for name in ("tensorrt_rtx", "onnxruntime_rtx"):
        assert "compute capability 9.0" in report[name]
        assert "pip install" not in report[name]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said == [f"auto takes onnxruntime and not {name}: {reason}" for name, reason in report.items()]
