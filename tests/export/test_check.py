"""The check of an export: at the model's own scale, and deaf to what is logged about the machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chan_rt.chan_ref import checkpoint
from chan_rt.chan_ref.model import ChanModel
from chan_rt.export import alignment, graphs
from chan_rt.export.bundle import export_bundle
from chan_rt.export.check import make_cases, native_stderr
from chan_rt.export.place import is_bundle
from chan_rt.runtime.errors import BundleError


def save_loud(path: Path, model: ChanModel, gain: float) -> Path:
    """A checkpoint whose region embeddings are `gain` times as large as those of `model`."""
    model.region_encoder.projection.weight.mul_(gain)
    vocabulary = (path.parent / "tiny/tokenizer/vocab.json").read_bytes()
    checkpoint.save(path, model, {"vocab.json": vocabulary}, {})
    return path


@pytest.fixture
def loud(tiny_model: Callable[..., ChanModel], save_model: Callable[..., None], tmp_path: Path) -> Callable[..., Path]:
    def save(gain: float) -> Path:
        save_model(tmp_path / "tiny")
        return save_loud(tmp_path / "loud", tiny_model(regions="basic", normalize=False), gain)

    return save


def test_rows_have_the_scale_of_the_model(tiny_model: Callable[..., ChanModel]) -> None:
    unit, own = (make_cases("hard_alignment", tiny_model(normalize=normalize), None) for normalize in (True, False))
    for case in unit:
        np.testing.assert_allclose(np.linalg.norm(case.feeds["region_embeddings"], axis=-1), 1, rtol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(case.feeds["word_embeddings"], axis=-1), 1, rtol=1e-6)
    assert min(np.linalg.norm(case.feeds["region_embeddings"], axis=-1).min() for case in own) > 1.5
    assert max(np.linalg.norm(case.feeds["word_embeddings"], axis=-1).max() for case in own) < 3
    assert {name: array.shape for name, array in own[2].feeds.items()} == {
        name: array.shape for name, array in unit[2].feeds.items()
    }


def test_words_of_a_bert_end_at_its_positions(tiny_model: Callable[..., ChanModel]) -> None:
    model = tiny_model(text="bert", normalize=False)
    model.config.bert.__dict__["positions"] = 3
    longest = make_cases("alignment_map", model, None)[-1]
    assert longest.feeds["word_embeddings"].shape[1] == longest.feeds["word_lengths"].max() == 3


def test_a_mask_within_the_reach_of_real_logits_fails_the_export(
    loud: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = loud(1e8)
    export_bundle(path, tmp_path / "bundle", ["fp32"])
    monkeypatch.setattr(alignment, "MASKED", -60000.0)
    with pytest.raises(BundleError, match=r"fp32/(hard_alignment|alignment_map) differs from the torch reference"):
        export_bundle(path, tmp_path / "other", ["fp32"])
    assert -np.inf == graphs.MASKED
    assert not (tmp_path / "other").exists()


def test_numbers_beyond_half_are_refused_with_what_to_do(loud: Callable[..., Path], tmp_path: Path) -> None:
    message = (
        r"fp16/\w+: \w+ holds NaN or infinity: this model.s numbers do not fit in half, export it with --precision fp32"
    )
    with pytest.raises(BundleError, match=message):
        export_bundle(loud(1e5), tmp_path / "bundle")


def test_only_lines_about_the_graph_count(capfd: pytest.CaptureFixture[str]) -> None:
    pinning = "2026-11-25 [E:onnxruntime:Default, env.cc:226 ThreadMain] pthread_setaffinity_np failed for thread: 7\n"
    discovery = "2026-11-25 [W:onnxruntime:Default, device_discovery.cc:211] GPU device discovery failed\n"
    shape = "\x1b[0;93m2026-11-25 [W:onnxruntime:exported, execution_frame.cc:876] Expected shape from model\x1b[m\n"
    with native_stderr() as problems:
        os.write(2, (pinning + discovery + shape).encode())
    assert problems == ["2026-11-25 [W:onnxruntime:exported, execution_frame.cc:876] Expected shape from model"]
    assert capfd.readouterr().err == pinning + discovery


SHIM = """
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
int pthread_setaffinity_np(pthread_t t, size_t n, const cpu_set_t *s) { (void)t; (void)n; (void)s; return EINVAL; }
"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="the shim that makes pinning a thread fail needs gcc")
def test_a_model_is_exported_where_threads_may_not_be_pinned(save_tiny: Callable[..., Path], tmp_path: Path) -> None:
    """As in a container whose set of CPUs lacks those that a library asks for."""
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "shim.so", tmp_path / "shim.c"], check=True)
    code = (
        "import sys; from chan_rt.export.bundle import export_bundle; from chan_rt.runtime import onnx_session\n"
        "onnx_session.usable_cpus = lambda: int(sys.argv[3])\n"
        "export_bundle(sys.argv[1], sys.argv[2], ['fp32'])"
    )
    environment = os.environ | {"LD_PRELOAD": str(tmp_path / "shim.so")}
    for threads in ("2", "0"):  # with 0 onnxruntime chooses, and pins each thread
        out = tmp_path / f"bundle{threads}"
        command = [sys.executable, "-c", code, str(save_tiny()), str(out), threads]
        subprocess.run(command, check=True, env=environment, timeout=300)
        assert is_bundle(out)
