"""Sections of the GPU benchmark that need the demo or a whole model: parity, and every backend's speed."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..chan_ref.config import ModelConfig
from ..export.engines import build_engine, find_target, plan
from ..runtime.backends import BACKENDS
from ..runtime.backends.sidecar import ENGINES
from ..runtime.backends.table import FLAVORS
from ..runtime.contract import Manifest
from ..runtime.doctor import examine
from ..runtime.errors import ChanError

CHECKPOINT = Path(__file__).parent.parent / "demo" / "checkpoint"  # what the demo's bundle is made of
_SCENES = 16  # as many as calibration needs
_SMALL = ModelConfig(region_dim=32, embed_dim=64, attention_heads=2, vocab_size=40, word_dim=16)

Record = dict[str, Any]


def parity(demo: Path, small: bool) -> Record:
    """The verdict on every backend and precision of the demo's bundle, with engines built for this GPU.

    int8 is calibrated on 64 of the pictures it is checked on: its verdict is on the arithmetic, not on unseen data.

    Args:
        demo: the demo's folder; it is run where there is none.
        small: whether few pictures suffice, because only the benchmark is tested.
    """
    from ..calibration.calibrate import calibrate
    from ..calibration.feeds import Samples
    from ..export.int8 import add_int8
    from ..export.parity import check_parity
    from ..runtime.data.images import open_sample
    from ..runtime.text import load_tokenizer

    if not (demo / "bundle").is_dir():
        command = [sys.executable, "-m", "chan_rt.demo", str(demo), *(("--scenes", str(_SCENES)) if small else ())]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    cannot = {report.name: report.problem for report in examine().backends if not report.runs}
    with TemporaryDirectory(prefix="chan-bench-gpu-") as scratch:
        bundle = Path(scratch, "bundle")
        shutil.copytree(demo / "bundle", bundle, ignore=shutil.ignore_patterns(ENGINES))
        few = open_sample(demo / "data", "test", 64)
        tokens = load_tokenizer(bundle, Manifest.load(bundle).tokenizer).encode(few.captions)
        calibrate(bundle, Samples(few.regions, few.num_images, tokens), "minmax")
        add_int8(bundle, lambda precisions: [], ("int8",))
        reasons = build_engines(bundle)
        running = [name for name in BACKENDS if name not in cannot and name not in reasons]
        report = check_parity(bundle, CHECKPOINT, open_sample(demo / "data", "test", 500), running)
    return {"report": json.loads(report.to_json()), "engines not built": reasons, "not run": cannot}


def build_engines(bundle: Path, graphs: Sequence[str] = ()) -> dict[str, str]:
    """Every precision of some graphs, or of all, with each TensorRT flavor; why the others are not built."""
    reasons: dict[str, str] = {}
    for flavor in FLAVORS:
        try:
            target = find_target(flavor)
            for graph, precision, profiles in plan(bundle, graphs):
                build_engine(bundle, graph, precision, target, profiles)
        except ChanError as error:
            reasons[flavor] = str(error)
    return reasons


def from_gpu_memory(seconds: float, small: bool) -> Record:
    """Encoding out of the GPU's memory into the GPU's memory, with a model of the published size, beside torch.

    Args:
        seconds: for each operation, all candidates together.
        small: whether a small model suffices, because only the benchmark is tested.
    """
    from .gpu_encoders import KINDS, encode_on_device
    from .int8 import MODELS, make_float_bundle
    from .latency import Setting

    with TemporaryDirectory(prefix="chan-bench-gpu-") as folder:
        _, bundle = make_float_bundle(_SMALL if small else MODELS["gru"], Path(folder))
        reasons = build_engines(bundle, tuple(KINDS))
        setting = Setting(regions=4, words=4, batches=(1, 2), seconds=seconds) if small else Setting(seconds=seconds)
        found = encode_on_device(bundle, Path(folder, "checkpoint"), setting)
    return found | {"engines not built": reasons}


def backends(seconds: float, small: bool) -> Record:
    """`chan bench` on a model of the published size: every backend and precision, beside torch.

    Args:
        seconds: for each operation, all candidates together.
        small: whether a small model suffices, because only the benchmark is tested.
    """
    from .gpu_encoders import EAGER, times_as_fast
    from .int8 import MODELS, make_bundle
    from .latency import Setting, run

    with TemporaryDirectory(prefix="chan-bench-gpu-") as folder:
        model = Path(folder)
        _, bundle = make_bundle(_SMALL if small else MODELS["gru"], model, np.random.default_rng(0))
        reasons = build_engines(bundle)
        precisions = tuple(dict.fromkeys(name for held in Manifest.load(bundle).graphs.values() for name in held))
        setting = Setting(10, 4, 4, (1, 2), seconds) if small else Setting(seconds=seconds, torch_on_cpu=False)
        report = run(bundle, tuple(BACKENDS), precisions, model / "checkpoint", setting)
    peer = f"{EAGER} {setting.device}"
    times = {
        operation: times_as_fast(latencies, peer)
        for operation, latencies in report.latencies.items()
        if peer in latencies
    }
    return report.to_dict() | {"engines not built": reasons, "times as fast as torch eager": times}
