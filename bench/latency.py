"""Latency of a bundle: encode a caption, score it with images, do both; every backend beside torch.

All candidates of one operation take turns in one run. Images and captions are random: speed does not depend on values.
Times are wall times of calls that return numpy arrays, so those of a GPU include both copies. gpu.py times GPU kernels
alone, and images that stay on the GPU, with CUDA events.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..chan_ref.checkpoint import load
from ..chan_ref.model import ChanModel
from ..runtime.backends.placement import Placement
from ..runtime.checks import check_positive, check_threads
from ..runtime.contract import Manifest
from ..runtime.embeddings import Embeddings
from ..runtime.errors import ChanError, InputError, shortened
from ..runtime.gpu import device_index
from ..runtime.matcher import Matcher
from ..runtime.text import Tokenizer, load_tokenizer
from .cuda import TimedDevice
from .measure import PACKAGES, Latency, float32_rate, machine, read_bandwidth, take_turns
from .nvidia_smi import gpu_state, gpu_uuid

TOP_K = 10
MOST = 1_000_000  # of each size; a larger one is a slip, and a list of as many captions fills the memory
ON_GPU = ("tensorrt", "tensorrt_rtx", "onnxruntime_cuda", "onnxruntime_rtx")


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        images: number of images that a caption is scored with.
        regions: number of regions of an image.
        words: number of words of a caption.
        batches: numbers of captions and images that are encoded in one call.
        seconds: time for each operation, all candidates together.
        threads: CPU threads; None for one per core.
        device: the GPU of the backends that run on one, as in `Matcher.open`; torch runs on it.
        torch_on_cpu: whether torch runs on the CPU as well; it does where it finds no GPU.
    """

    images: int = 1000
    regions: int = 36
    words: int = 12
    batches: tuple[int, ...] = (1, 64)
    seconds: float = 5.0
    threads: int | None = None
    device: str = "cuda"
    torch_on_cpu: bool = True

    def __post_init__(self) -> None:
        sizes = [("images", self.images), ("regions", self.regions), ("words", self.words)]
        for name, size in [*sizes, *(("batches", batch) for batch in self.batches)]:
            if check_positive(name, size) > MOST:
                raise InputError(f"{name} must be at most {MOST}, got {shortened(str(size), 40)}")
        check_threads(self.threads)


@dataclass(frozen=True)
class Start:
    """Seconds until a candidate answered its first query: opened cold, and opened again in the same process."""

    cold: float
    warm: float


@dataclass
class LatencyReport:
    """Everything that `chan bench` prints.

    Attributes:
        machine: processor and versions.
        setting: what was measured.
        limits: bytes a second read from memory, float32 operations a second of a matrix product, in this run.
        latencies: operation -> candidate -> latency.
        starts: candidate -> start times.
        bound: operation -> milliseconds that memory or arithmetic alone would take in float32.
        skipped: candidate -> why it did not run.
        peak_memory: of this process, in bytes, with every candidate open.
        gpu: where a candidate ran on a GPU: its clocks, power and memory in use before any was opened and after all
            were measured, and the bytes a second that a copy within its memory reads and writes.
        placements: where a candidate ran on a GPU: where `auto` runs each graph, for each batch size and precision.
    """

    machine: dict[str, Any]
    setting: dict[str, Any]
    limits: dict[str, float]
    latencies: dict[str, dict[str, Latency]] = field(default_factory=dict)
    starts: dict[str, Start] = field(default_factory=dict)
    bound: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    peak_memory: int = 0
    gpu: dict[str, Any] = field(default_factory=dict)
    placements: list[Placement] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


class Candidate(Protocol):
    """Interface of what is timed; a Matcher has it."""

    def encode_texts(self, captions: Sequence[str]) -> Embeddings:
        """Word embeddings of captions."""

    def encode_images(self, regions: np.ndarray) -> Embeddings:
        """Region embeddings of images."""

    def score(self, images: Embeddings, texts: Embeddings) -> np.ndarray:
        """Scores [I, C]."""


class TorchCandidate:
    """The reference model, eager or compiled, on the CPU or a GPU, behind the Matcher's interface."""

    def __init__(self, model: ChanModel, tokenizer: Tokenizer, compiled: bool, device: str) -> None:
        import torch

        wrap: Callable[[Any], Any] = torch.compile if compiled else lambda function: function
        if compiled:  # it prints a page about each check of a length, at which it splits the graph
            logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
        self._torch = torch
        self._device = device
        self._tokenizer = tokenizer
        self._encode_words = wrap(model.encode_words)
        self._encode_regions = wrap(model.encode_regions)
        self._score = wrap(model.score)

    def encode_texts(self, captions: Sequence[str]) -> Embeddings:
        """Word embeddings of captions."""
        tokens = self._tokenizer.encode(captions)
        with self._torch.inference_mode():
            return Embeddings(self._call(self._encode_words, tokens.ids, tokens.lengths), tokens.lengths)

    def encode_images(self, regions: np.ndarray) -> Embeddings:
        """Region embeddings of images that all have the same count of regions."""
        lengths = np.full(len(regions), regions.shape[1], np.int32)
        with self._torch.inference_mode():
            return Embeddings(self._call(self._encode_regions, regions, lengths), lengths)

    def score(self, images: Embeddings, texts: Embeddings) -> np.ndarray:
        """Scores [I, C]."""
        arrays = (images.vectors, images.lengths, texts.vectors, texts.lengths)
        with self._torch.inference_mode():
            return self._call(self._score, *arrays)

    def _call(self, function: Callable[..., Any], *arrays: np.ndarray) -> np.ndarray:
        found = function(*(self._torch.from_numpy(array).to(self._device) for array in arrays))
        output: np.ndarray = found.cpu().numpy()
        return output


def run(
    bundle: Path,
    backends: Sequence[str],
    precisions: Sequence[str],
    checkpoint: Path | None,
    setting: Setting,
    progress: Callable[[str], None] = lambda message: None,
) -> LatencyReport:
    """Measure every backend at every precision that works here, beside torch eager and torch.compile.

    Args:
        bundle: what to measure.
        backends: names of backends; each that does not run here is listed under `skipped` with the reason.
        precisions: of the bundle.
        checkpoint: native checkpoint for the torch candidates; None leaves them out.
        setting: sizes and time.
        progress: called with what is being measured.

    Raises:
        InputError: no candidate runs here.
    """
    manifest = Manifest.load(bundle)
    threads = setting.threads or machine(())["cores"]
    limits = {"read_bytes_per_second": read_bandwidth(int(threads)), "float32_flops": float32_rate()}
    report = LatencyReport(machine(PACKAGES), asdict(setting), limits)
    index = device_index(setting.device)
    before = _gpu_state(index)
    with ExitStack() as stack:
        candidates: dict[str, Candidate] = {}
        for name, opener in _openers(bundle, manifest, backends, precisions, checkpoint, setting):
            progress(f"opening {name}")
            try:
                report.starts[name] = _start(opener)
                candidates[name] = stack.enter_context(opener())
                candidates[name].encode_texts(["a"])
            except (ChanError, RuntimeError) as error:
                report.skipped[name] = str(error).strip().splitlines()[0]
                candidates.pop(name, None)
                report.starts.pop(name, None)
        if not candidates:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in report.skipped.items())
            raise InputError(f"no candidate runs on this machine: {reasons}")
        _measure(candidates, manifest, setting, report, progress)
        if any(name.endswith(f" {setting.device}") or name.split()[0] in ON_GPU for name in candidates):
            report.gpu = {
                "state before": before,
                "state after": _gpu_state(index),
                "copy_bytes_per_second": TimedDevice(index).copy_bandwidth(),
            }
            report.placements = _placements(bundle, precisions, setting, report.skipped)
        report.peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
    return report


def _gpu_state(index: int) -> dict[str, str]:
    """The state of the GPU that is measured; nvidia-smi counts GPUs in another order than CUDA may."""
    if not index:
        return gpu_state(None)
    name, reason = gpu_uuid(index)
    return gpu_state(name) if name else {"nvidia-smi": reason}


def _placements(bundle: Path, precisions: Sequence[str], setting: Setting, skipped: dict[str, str]) -> list[Placement]:
    """Where `auto` runs each graph for each batch size and precision: measured now, unless it was before."""
    found = []
    for precision in precisions:
        for batch in setting.batches:
            try:
                opened = Matcher.open(bundle, "auto", precision, setting.threads, batch=batch, device=setting.device)
            except ChanError as error:
                skipped[f"auto {precision}"] = str(error)
                continue
            opened.close()
            if opened.placement_report is not None:
                found.append(opened.placement_report)
    return found


def _openers(
    bundle: Path,
    manifest: Manifest,
    backends: Sequence[str],
    precisions: Sequence[str],
    checkpoint: Path | None,
    setting: Setting,
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield each candidate's name, and a function that returns a context manager of it."""
    if checkpoint is not None:
        for device in _torch_devices(setting):
            for name, compiled in (("torch eager", False), ("torch.compile", True)):
                yield (
                    name if device == "cpu" else f"{name} {device}",
                    partial(_open_torch, bundle, manifest, checkpoint, compiled, device, setting),
                )
    for backend in backends:
        for precision in precisions:
            yield (
                f"{backend} {precision}",
                partial(_open_bundle, bundle, backend, precision, setting),
            )


@contextmanager
def _open_torch(
    bundle: Path, manifest: Manifest, checkpoint: Path, compiled: bool, device: str, setting: Setting
) -> Iterator[TorchCandidate]:
    import torch

    if setting.threads is not None:
        torch.set_num_threads(setting.threads)
    model = load(checkpoint).model.eval().to(device)
    yield TorchCandidate(model, load_tokenizer(bundle, manifest.tokenizer), compiled, device)


def _open_bundle(bundle: Path, backend: str, precision: str, setting: Setting) -> Matcher:
    device = setting.device if backend in ON_GPU else "cuda"
    return Matcher.open(bundle, backend, precision, setting.threads, device=device)


def _torch_devices(setting: Setting) -> tuple[str, ...]:
    import torch

    if not torch.cuda.is_available():
        return ("cpu",)
    return ("cpu", setting.device) if setting.torch_on_cpu else (setting.device,)


def _start(opener: Callable[[], Any]) -> Start:
    times = []
    for _ in range(2):
        before = time.perf_counter()
        with opener() as candidate:
            candidate.encode_texts(["a"])
        times.append(time.perf_counter() - before)
    return Start(*times)


def _measure(
    candidates: dict[str, Candidate],
    manifest: Manifest,
    setting: Setting,
    report: LatencyReport,
    progress: Callable[[str], None],
) -> None:
    rng = np.random.default_rng(0)
    d, f = manifest.embed_dim, manifest.region_dim
    # start and end marks count as words
    captions = [" ".join(["a"] * max(1, setting.words - 2))] * max(setting.batches)
    gallery = _unit(rng.standard_normal((setting.images, setting.regions, d), np.float32))
    regions = rng.standard_normal((max(setting.batches), setting.regions, f), np.float32)

    def compare(operation: str, call: Callable[[Candidate], object]) -> None:
        progress(operation)
        calls = {name: partial(call, candidate) for name, candidate in candidates.items()}
        report.latencies[operation] = take_turns(calls, setting.seconds)

    for batch in setting.batches:
        texts, images = captions[:batch], regions[:batch]
        compare(f"encode {batch} captions", methodcaller("encode_texts", texts))
        compare(f"encode {batch} images", methodcaller("encode_images", images))
    query = next(iter(candidates.values())).encode_texts(captions[:1])
    scoring = f"score 1 caption x {setting.images} images"
    compare(scoring, lambda c: c.score(gallery, query))
    report.bound[scoring] = gallery.vectors.nbytes / report.limits["read_bytes_per_second"] * 1e3
    compare(f"whole query, {setting.images} images", lambda c: _query(c, gallery, captions[0]))
    flops = 2 * max(setting.batches) * setting.regions * f * d
    report.bound[f"encode {max(setting.batches)} images"] = flops / report.limits["float32_flops"] * 1e3


def _query(candidate: Candidate, gallery: Embeddings, caption: str) -> np.ndarray:
    scores = candidate.score(gallery, candidate.encode_texts([caption]))[:, 0]
    best = np.argpartition(-scores, min(TOP_K, len(scores) - 1))[:TOP_K]
    return best[np.argsort(-scores[best], kind="stable")]


def _unit(vectors: np.ndarray) -> Embeddings:
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    return Embeddings(vectors, np.full(len(vectors), vectors.shape[1], np.int32))
