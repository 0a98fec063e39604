"""Encoding out of the GPU's memory and into it: torch eager, beside each backend that takes tensors there.

All candidates of an operation take turns in one run, on the same tensors. A call ends when its result is in the GPU's
memory: torch is waited for, and the backends wait themselves. They write into memory that they are given; torch takes
its own from what it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..chan_ref.checkpoint import load
from ..chan_ref.model import ChanModel
from ..runtime.backends import open_graph
from ..runtime.backends.base import Array
from ..runtime.backends.on_device import OnDevice
from ..runtime.backends.table import ON_DEVICE
from ..runtime.contract import Manifest
from ..runtime.errors import ChanError
from .latency import Setting
from .measure import Latency, take_turns

KINDS = {"region_encoder": "images", "text_encoder": "captions"}
PRECISIONS = ("fp32", "fp16")
EAGER = "torch eager"
_WORD = 1  # an id that every vocabulary has

Record = dict[str, Any]
Encoders = Mapping[str, Mapping[str, OnDevice]]  # candidate -> graph -> what runs it


def encode_on_device(bundle: Path, checkpoint: Path, setting: Setting) -> Record:
    """What `compare` measures, on the GPU of the setting; on the CPU, where there is none, of torch alone.

    Each backend and precision that does not run is in `skipped`, with the reason.
    """
    import torch

    device = setting.device if torch.cuda.is_available() else "cpu"
    wait = partial(torch.cuda.synchronize, device) if device != "cpu" else lambda: None
    model = load(checkpoint).model.eval().to(device)
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        opened: dict[str, dict[str, OnDevice]] = {}
        for name in ON_DEVICE:
            for precision in PRECISIONS:
                try:
                    opened[f"{name} {precision}"] = _open(bundle, name, precision, stack)
                except ChanError as error:
                    skipped[f"{name} {precision}"] = str(error).splitlines()[0]
        found = compare(model, opened, lambda array: torch.from_numpy(array).to(device), wait, setting)
    return found | {"skipped": skipped | found["skipped"]}


def _open(bundle: Path, name: str, precision: str, stack: ExitStack) -> dict[str, OnDevice]:
    opened: dict[str, OnDevice] = {}
    for graph in KINDS:
        backend = stack.enter_context(open_graph(name, bundle, Manifest.load(bundle), graph, precision))
        assert isinstance(backend, OnDevice)
        opened[graph] = backend
    return opened


def compare(
    model: ChanModel, opened: Encoders, put: Callable[[Array], Any], wait: Callable[[], None], setting: Setting
) -> Record:
    """Encode batches of images and captions that lie on a device.

    Args:
        model: in evaluation, on the device.
        opened: what to measure beside it.
        put: an array -> a torch tensor on the device.
        wait: waits for all that torch has queued.
        setting: sizes, and the time of each operation.

    Returns:
        latencies, `times` (as `times_as_fast`) and the largest difference from torch of a number of the result, each of
        operation -> candidate; and what was skipped, with the reason.
    """
    import torch

    found: Record = {"latencies": {}, "times as fast as torch eager": {}, "largest difference": {}, "skipped": {}}
    for batch in setting.batches:
        for graph, kind in KINDS.items():
            given = [put(array) for array in _inputs(graph, batch, setting, model.config.region_dim)]
            eager = _eager(model, graph, given, wait)
            expected = eager().float()
            calls: dict[str, Callable[[], object]] = {EAGER: eager}
            differences: dict[str, float] = {}
            for name, encoders in opened.items():
                spec = encoders[graph].spec
                mine = put(np.zeros(tuple(expected.shape), spec.outputs[0].dtype))
                feeds = {tensor.name: each for tensor, each in zip(spec.inputs, given, strict=True)}
                call = partial(encoders[graph].run_on_device, feeds, {spec.outputs[0].name: mine})
                try:
                    call()
                except (ChanError, RuntimeError) as error:
                    found["skipped"][f"{name}: {batch} {kind}"] = str(error).splitlines()[0]
                    continue
                differences[name] = float((mine.float() - expected).abs().max())
                calls[name] = call
            operation = f"encode {batch} {kind}"
            with torch.inference_mode():
                latencies = take_turns(calls, setting.seconds)
            found["latencies"][operation] = {name: asdict(latency) for name, latency in latencies.items()}
            found["times as fast as torch eager"][operation] = times_as_fast(latencies, EAGER)
            found["largest difference"][operation] = differences
    return found


def times_as_fast(latencies: Mapping[str, Latency], peer: str) -> dict[str, float]:
    """Each candidate but the peer -> how many times as fast as the peer it is, by the medians."""
    return {name: latencies[peer].p50 / found.p50 for name, found in latencies.items() if name != peer}


def _eager(model: ChanModel, graph: str, given: list[Any], wait: Callable[[], None]) -> Callable[[], Any]:
    import torch

    encode = model.encode_regions if graph == "region_encoder" else model.encode_words

    def call() -> Any:
        with torch.inference_mode():
            result = encode(*given)
        wait()
        return result

    return call


def _inputs(graph: str, batch: int, setting: Setting, width: int) -> tuple[Array, Array]:
    """Rows and their lengths; all have the same length."""
    if graph == "region_encoder":
        rows: Array = np.random.default_rng(0).standard_normal((batch, setting.regions, width), np.float32)
    else:
        rows = np.full((batch, setting.words), _WORD, np.int32)
    return rows, np.full(batch, rows.shape[1], np.int32)
