"""Encoding on a device, beside torch: what is compared, and what is left out with the reason; no GPU is needed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chan_rt.bench import gpu_encoders, int8
from chan_rt.bench.gpu_encoders import EAGER, KINDS, compare, encode_on_device, times_as_fast
from chan_rt.bench.latency import Setting
from chan_rt.bench.measure import Latency
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.model import ChanModel
from chan_rt.runtime.backends.fake import FakeDevice
from chan_rt.runtime.backends.onnxruntime_cuda import BoundBackend
from chan_rt.runtime.contract import Manifest
from chan_rt.runtime.errors import BackendError

CONFIG = ModelConfig(region_dim=32, embed_dim=64, attention_heads=2, vocab_size=40, word_dim=16)
SETTING = Setting(regions=5, words=4, batches=(1, 3), seconds=0.0)
OPERATIONS = [f"encode {batch} {kind}" for batch in (1, 3) for kind in ("images", "captions")]


class Host(FakeDevice):
    """A device whose tensors torch reads, because they lie on the host."""

    def __init__(self) -> None:
        super().__init__({})
        self.kept: list[np.ndarray] = []

    def put(self, array: np.ndarray) -> torch.Tensor:
        self.kept.append(self.export(array.shape, array.dtype)[1])
        self.kept[-1][...] = array
        return torch.from_numpy(self.kept[-1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[ChanModel, Path]:
    return int8.make_float_bundle(CONFIG, tmp_path_factory.mktemp("encoders"))


def bound(bundle: Path, precision: str, memory: FakeDevice) -> dict[str, BoundBackend]:
    """onnxruntime_cuda, on a device that is the host in truth."""
    found = {}
    for graph in KINDS:
        spec = Manifest.load(bundle).graph(graph, precision)
        how: dict[str, Any] = {"device": "cpu", "graphs": False, "memory": memory}
        found[graph] = BoundBackend("bound", bundle / spec.file, spec, ("CPUExecutionProvider", {}), 1, **how)
    return found


def test_every_candidate_encodes_the_same_tensors_as_torch(made: tuple[ChanModel, Path]) -> None:
    model, bundle = made
    device, waited = Host(), []
    opened = {f"bound {precision}": bound(bundle, precision, device) for precision in ("fp32", "fp16")}
    found = compare(model, opened, device.put, lambda: waited.append(True), SETTING)
    assert found["skipped"] == {}
    assert [list(found[name]) for name in ("latencies", "largest difference")] == [OPERATIONS] * 2
    for operation in OPERATIONS:
        assert list(found["latencies"][operation]) == [EAGER, *opened]
        differences = found["largest difference"][operation]
        assert 0 < differences["bound fp32"] < 1e-5
        assert differences["bound fp32"] < differences["bound fp16"] < 1e-2
        assert found["times as fast as torch eager"][operation].keys() == opened.keys()
    runs = sum(found["latencies"][operation][EAGER]["runs"] for operation in OPERATIONS)
    assert len(waited) >= runs, "each of torch's calls is waited for"


def test_a_backend_that_fails_is_named_and_the_rest_goes_on(made: tuple[ChanModel, Path]) -> None:
    model, bundle = made
    device = Host()
    opened = {"closed": bound(bundle, "fp32", device), "bound": bound(bundle, "fp32", device)}
    opened["closed"]["text_encoder"].close()
    found = compare(model, opened, device.put, lambda: None, SETTING)
    assert found["skipped"] == {f"closed: {batch} captions": "bound was closed" for batch in (1, 3)}
    assert list(found["latencies"]["encode 3 captions"]) == [EAGER, "bound"]
    assert list(found["latencies"]["encode 3 images"]) == [EAGER, "closed", "bound"]


def test_backends_that_do_not_open_are_named(made: tuple[ChanModel, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, bundle = made
    device = Host()

    def open_graph(name: str, bundle: Path, manifest: Manifest, graph: str, precision: str) -> BoundBackend:
        if (name, precision) != ("onnxruntime_cuda", "fp32"):
            raise BackendError(f"no {name}\nnor anything like it")
        return bound(bundle, precision, device)[graph]

    monkeypatch.setattr(gpu_encoders, "open_graph", open_graph)
    found = encode_on_device(bundle, bundle.parent / "checkpoint", SETTING)
    assert found["skipped"]["tensorrt fp16"] == "no tensorrt"
    assert found["skipped"]["onnxruntime_cuda fp16"] == "no onnxruntime_cuda"
    if not torch.cuda.is_available():
        assert "must lie on CUDA device 0" in found["skipped"]["onnxruntime_cuda fp32: 3 images"]
    assert list(found["latencies"]) == OPERATIONS


def test_how_many_times_as_fast() -> None:
    found = {name: Latency(p50, 0, 0, 0, 5) for name, p50 in {"peer": 6.0, "fast": 2.0, "slow": 12.0}.items()}
    assert times_as_fast(found, "peer") == {"fast": 3.0, "slow": 0.5}
