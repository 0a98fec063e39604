"""Run real samples through the float32 graphs of a bundle and record the ranges of what enters and leaves products."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ..runtime.contract import GraphName, Manifest, sha256_file, verified, write_manifest
from ..runtime.directions import DIRECTIONS_FILE, directions_of
from ..runtime.errors import BundleError, InputError, quoted, reason_of
from ..runtime.files import atomic_file, write_file
from ..runtime.onnx_session import open_session
from ..runtime.strict_json import unique_keys
from .bounds import known_bounds
from .feeds import MIN_SAMPLES, Feeds, Samples
from .qdq import find_sites
from .ranges import Histogram, Method, TensorRange, choose_range
from .recurrence import find_grus

_log = logging.getLogger(__name__)

SCHEMA = 1
RANGES_FILE = "calibration/ranges.json"
STATE_FILE = "calibration/state.npz"
# graphs whose products are quantized; the last two take the outputs of the two encoders
CALIBRATED: tuple[GraphName, ...] = ("backbone", "region_encoder", "text_encoder", "hard_alignment", "alignment_map")
# of each encoder the embeddings, the lengths of its rows, and the name of their directions
ENCODED: Mapping[str, tuple[str, str, str]] = {
    "region_encoder": ("region_embeddings", "region_lengths", "regions"),
    "text_encoder": ("word_embeddings", "token_lengths", "words"),
}
_SAVE_EVERY_SECONDS = 20.0
_ALIGNED_RUNS = 8  # of the alignment graphs, each with up to 32 images and 32 captions spread over the samples


@dataclass(frozen=True)
class Calibration:
    """The ranges of a bundle's activations, and the samples they come from.

    Attributes:
        method: how the ranges were chosen.
        data: `sha256`, `images` and `captions`: the hash of the samples, and their numbers.
        graphs: graph name -> (sha256 of the float32 file, tensor name -> range).
    """

    method: Method
    data: Mapping[str, Any]
    graphs: Mapping[str, tuple[str, Mapping[str, TensorRange]]]

    def ranges(self, graph: str, sha256: str) -> Mapping[str, TensorRange]:
        """Return the ranges of one graph by tensor name; InputError if another graph was calibrated."""
        if graph not in self.graphs:
            raise InputError(f"{graph} was not calibrated: run chan calibrate")
        calibrated, tensors = self.graphs[graph]
        if calibrated != sha256:
            raise InputError(
                f"{graph} changed since it was calibrated ({calibrated[:12]}, now {sha256[:12]}): calibrate again"
            )
        return tensors

    def to_json(self) -> str:
        """Return the calibration as canonical JSON."""
        graphs = {
            name: {"sha256": sha256, "tensors": {tensor: asdict(item) for tensor, item in tensors.items()}}
            for name, (sha256, tensors) in self.graphs.items()
        }
        record = {"schema": SCHEMA, "method": self.method, "data": dict(self.data), "graphs": graphs}
        return json.dumps(record, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """Read the text that `to_json` returns; the InputError names what does not fit."""
        try:
            raw = json.loads(text, object_pairs_hook=unique_keys)
            if raw["schema"] != SCHEMA:
                raise InputError(f"the calibration's schema must be {SCHEMA}, got {raw['schema']!r}")
            graphs = {
                name: (item["sha256"], {tensor: TensorRange(**values) for tensor, values in item["tensors"].items()})
                for name, item in raw["graphs"].items()
            }
            return cls(raw["method"], raw["data"], graphs)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{RANGES_FILE} cannot be understood: {reason_of(error)}") from error


def load_calibration(bundle: Path, manifest: Manifest) -> Calibration:
    """Read the calibration of a bundle; BundleError if it has none, or the file was altered."""
    if RANGES_FILE not in manifest.calibration:
        raise BundleError(f"{bundle} is not calibrated; run: chan calibrate {quoted(bundle)} DATA")
    path = verified(bundle, RANGES_FILE, manifest.calibration[RANGES_FILE])
    return Calibration.from_json(path.read_text(encoding="utf-8"))


def observed_tensors(model: onnx.ModelProto) -> list[str]:
    """Return the tensors that need ranges, sorted: what products read, what Convs make, inputs and states of GRUs."""
    sites = find_sites(model)
    activations = {tensor for site in sites for tensor in site.activations.values()}
    activations |= {site.output for site in sites if site.output is not None}
    return sorted(activations | {tensor for node in find_grus(model) for tensor in (node.input[0], node.output[0])})


class Observer:
    """Runs a float32 graph and counts the values of the observed tensors.

    Args:
        path: of the graph.
        threads: as in `calibrate`.
        unit_inputs: inputs that are unit vectors or zeros.
        encoded: an output of embeddings [N, L, D] and the input of their lengths [N], whose second moment is summed.
    """

    def __init__(
        self, path: Path, threads: int | None, unit_inputs: Collection[str] = (), encoded: tuple[str, str] | None = None
    ) -> None:
        model = onnx.load(path)
        self.outputs = [item.name for item in model.graph.output]
        self.bounds = known_bounds(model, unit_inputs)
        self.histograms = {tensor: Histogram() for tensor in observed_tensors(model)}
        self.moment = np.zeros((0, 0))
        self._encoded = encoded
        known = {item.name for item in (*model.graph.input, *model.graph.output)}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.histograms if name not in known)
        self._session = open_session(model.SerializeToString(), threads, purpose="calibrating")

    def ranges(self, method: Method) -> dict[str, TensorRange]:
        """Choose the range of each observed tensor; InputError if one has no values, or only zeros."""
        return {
            tensor: choose_range(tensor, histogram, method, bounds=self.bounds.get(tensor))
            for tensor, histogram in self.histograms.items()
        }

    def run(self, feeds: Feeds, count: bool = True) -> dict[str, np.ndarray]:
        """Run the graph and return its outputs; with `count`, count the values of every observed tensor."""
        names = [item.name for item in self._session.get_outputs()]
        values = {**feeds, **dict(zip(names, self._session.run(names, dict(feeds)), strict=True))}
        if count:
            for tensor, histogram in self.histograms.items():
                histogram.add(tensor, values[tensor])
            if self._encoded is not None:
                vectors, lengths = (values[name] for name in self._encoded)
                held = vectors[np.arange(vectors.shape[1]) < lengths[:, None]].astype(np.float64)
                self.moment = held.T @ held + (self.moment if self.moment.size else 0)
        return {name: values[name] for name in self.outputs}


def calibrate(
    bundle: Path,
    samples: Samples,
    method: Method,
    threads: int | None = None,
    progress: Callable[[str, int, int], None] = lambda graph, done, total: None,
) -> Calibration:
    """Calibrate a bundle and record the ranges in it.

    The counts are saved every 20 seconds. A run that was stopped continues from there, given the same graphs and
    samples.

    Args:
        bundle: folder of the bundle; it must have float32 graphs.
        samples: real regions and captions. A backbone is calibrated where there are pictures, too, and its regions are
            a grid.
        method: how clipping ranges are chosen; see `calibration.ranges`.
        threads: number of threads of onnxruntime; None for one per CPU this process may use.
        progress: called with the graph, the number of finished batches, and the number of all batches.

    Returns:
        The calibration, which is also written to BUNDLE/calibration/ranges.json. BUNDLE/calibration/directions.npz
        keeps the directions of the samples' embeddings, to which search is fitted where there are no queries.

    Raises:
        InputError: there are too few samples, a tensor is zero on all of them, or a value is not finite.
    """
    manifest = Manifest.load(bundle)
    names = [name for name in CALIBRATED if name in manifest.graphs]
    if not _reads_pictures(manifest, samples):
        names = [name for name in names if name != "backbone"]
    hashes = {name: manifest.graph(name, "fp32").sha256 for name in names}
    data = {
        "sha256": samples.sha256(),
        "images": samples.num_images,
        "captions": len(samples.tokens.lengths),
    }
    state = _State(bundle / STATE_FILE, json.dumps([SCHEMA, "moments", hashes, data], sort_keys=True))
    observers = {
        name: Observer(
            verified(bundle, manifest.graph(name, "fp32").file, hashes[name]),
            threads,
            _unit_inputs(manifest),
            ENCODED[name][:2] if name in ENCODED else None,
        )
        for name in names
    }
    for name, observer in observers.items():
        batches = _batches(name, manifest, samples, observers)
        for index in range(state.restore(name, observer), len(batches)):
            observer.run(batches[index]())
            progress(name, index + 1, len(batches))
            state.save(name, observer, index + 1, last=index + 1 == len(batches))
    ranges = _ranges(observers, method)
    calibration = Calibration(method, data, {name: (hashes[name], found) for name, found in ranges.items()})
    moments = {label: observers[name].moment for name, (_, _, label) in ENCODED.items() if name in observers}
    _record(bundle, manifest, calibration, {label: directions_of(moment) for label, moment in moments.items()})
    state.remove()
    return calibration


def _reads_pictures(manifest: Manifest, samples: Samples) -> bool:
    """Whether the backbone is calibrated. One that chooses regions would choose others with rounded numbers."""
    preprocess = manifest.preprocess
    return preprocess is not None and preprocess.grid is not None and len(samples.pictures) >= MIN_SAMPLES


def _unit_inputs(manifest: Manifest) -> list[str]:
    """Return the inputs of the alignment graphs that are unit vectors or zeros, as the model makes them."""
    kinds = {"region_embeddings": "normalize_regions", "word_embeddings": "normalize_words"}
    return [name for name, option in kinds.items() if manifest.model.get(option) is True]


def _batches(
    name: GraphName, manifest: Manifest, samples: Samples, observers: Mapping[GraphName, Observer]
) -> Sequence[Callable[[], Feeds]]:
    """Return functions that make the batches of a graph, those of the alignment graphs by the encoders' observers."""
    if name == "backbone":
        assert manifest.preprocess is not None
        return samples.picture_feeds(manifest.preprocess)
    if name == "region_encoder":
        return samples.image_feeds()
    if name == "text_encoder":
        return samples.caption_feeds()
    return _alignment_feeds(observers["region_encoder"], observers["text_encoder"], samples)


def _ranges(observers: Mapping[GraphName, Observer], method: Method) -> dict[GraphName, dict[str, TensorRange]]:
    """Return the ranges of each graph; a backbone that has none is left out, with a warning."""
    found = {}
    for name, observer in observers.items():
        try:
            found[name] = observer.ranges(method)
        except InputError as error:
            if name != "backbone":
                raise
            _log.warning("the backbone is not calibrated, and will not be quantized: %s", error)
    return found


def _alignment_feeds(region_encoder: Observer, text_encoder: Observer, samples: Samples) -> list[Callable[[], Feeds]]:
    """Return functions that make inputs of the alignment graphs: batches of images with batches of captions."""
    images, captions = _spread(samples.image_feeds()), _spread(samples.caption_feeds())
    runs = max(len(images), len(captions))
    return [
        partial(_encoded, region_encoder, text_encoder, images[run % len(images)], captions[run % len(captions)])
        for run in range(runs)
    ]


def _spread(batches: Sequence[Callable[[], Feeds]]) -> list[Callable[[], Feeds]]:
    rows = np.unique(np.linspace(0, len(batches) - 1, _ALIGNED_RUNS).astype(np.int64))
    return [batches[row] for row in rows]


def _encoded(
    region_encoder: Observer, text_encoder: Observer, read_images: Callable[[], Feeds], read: Callable[[], Feeds]
) -> Feeds:
    images, captions = read_images(), read()
    return {
        "region_embeddings": region_encoder.run(images, count=False)["region_embeddings"],
        "region_lengths": images["region_lengths"],
        "word_embeddings": text_encoder.run(captions, count=False)["word_embeddings"],
        "word_lengths": captions["token_lengths"],
    }


class _State:
    """Histograms of an unfinished calibration on disk. The state of other graphs or samples is ignored."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key
        self._saved_at = time.monotonic()
        self._arrays: dict[str, np.ndarray] = {}
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                if str(stored["key"]) == key:
                    self._arrays = dict(stored)

    def restore(self, graph: str, observer: Observer) -> int:
        """Restore an observer's histograms and return the number of batches that they count."""
        if f"{graph}|done" not in self._arrays:
            return 0
        for tensor in observer.histograms:
            state = {part: self._arrays[f"{graph}|{tensor}|{part}"] for part in ("counts", "scalars")}
            observer.histograms[tensor] = Histogram.from_state(state)
        observer.moment = self._arrays[f"{graph}|moment"]
        return int(self._arrays[f"{graph}|done"])

    def save(self, graph: str, observer: Observer, done: int, last: bool) -> None:
        """Record the progress of a graph. It is written at most every 20 seconds, and when a graph is finished."""
        if not last and time.monotonic() - self._saved_at < _SAVE_EVERY_SECONDS:
            return
        self._arrays |= {
            "key": np.array(self._key),
            f"{graph}|done": np.array(done),
            f"{graph}|moment": observer.moment,
        }
        for tensor, histogram in observer.histograms.items():
            self._arrays |= {f"{graph}|{tensor}|{part}": value for part, value in histogram.state().items()}
        with atomic_file(self._path) as beside:
            np.savez(beside, **self._arrays)  # type: ignore[arg-type]
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Delete the state; the calibration is complete."""
        self._path.unlink(missing_ok=True)


def _record(
    bundle: Path, manifest: Manifest, calibration: Calibration, directions: Mapping[str, NDArray[np.float32]]
) -> None:
    write_file(bundle / RANGES_FILE, calibration.to_json())
    with atomic_file(bundle / DIRECTIONS_FILE) as beside:
        np.savez(beside, **directions)  # type: ignore[arg-type]
    hashes = {name: sha256_file(bundle / name) for name in (RANGES_FILE, DIRECTIONS_FILE)}
    write_manifest(bundle, replace(manifest, calibration={**manifest.calibration, **hashes}))
