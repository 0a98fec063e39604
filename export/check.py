"""What every exported graph must pass: the ONNX checker, onnxruntime without a warning, and the torch reference.

A smoke test at a few sizes that fails an export at once; the proof over real data is `chan parity`.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..chan_ref import alignment
from ..chan_ref.backbones.base import OUTPUTS, Backbone
from ..chan_ref.config import ModelConfig
from ..chan_ref.model import ChanModel
from ..runtime.backends import Array
from ..runtime.contract import GraphName
from ..runtime.errors import BundleError
from ..runtime.onnx_session import WARNINGS, import_onnxruntime, open_session
from .region_match import match_regions

# Error of an output relative to its reference, ||got - want|| / ||want||. Measured over the sizes below: fp32 at most
# 1.4e-6 (the backbone; 1.2e-6 BERT-base), fp16 at most 7.3e-3 (the backbone; 6.6e-4 elsewhere).
TOLERANCES: Mapping[str, float] = {"fp32": 1e-5, "fp16": 2e-2}
# Regions of a detector that must be found again, in percent, see `region_match`. On random weights, whose confidences
# are nearly equal, half finds others: only float32 is held to a number here, and parity judges half on real pictures.
FOUND: Mapping[str, float] = {"fp32": 90.0, "fp16": 0.0}
# Batch and length of each case: never the sizes a tracer saw, among them the smallest.
SIZES = ((1, 1), (2, 5), (5, 18))
# Lines of the session that runs the graph bear its name; those of the process, as of a thread that may not be pinned in
# a container's set of CPUs or of a GPU that is not found, bear another and are about the machine.
_SESSION = "exported"
_PROBLEM = re.compile(rf"\[[WEF]:onnxruntime:{_SESSION},")
_COLOR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Case:
    """Inputs of a graph and the reference's outputs for them.

    For `alignment_map`, `similarities` [I, C, R, W] judges `word_regions`: another region is as right when its
    similarity is as high.
    """

    feeds: Mapping[str, Array]
    want: Mapping[str, Array]
    similarities: NDArray[np.float32] | None = None


def make_cases(name: GraphName, model: ChanModel, backbone: Backbone | None) -> list[Case]:
    """Random inputs, the same in every run, with lengths from 1 to full and what the torch reference makes of them."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        if name == "backbone":
            if backbone is None:
                raise BundleError("the backbone's graph cannot be checked without the backbone")
            found = [(pixels, backbone.outputs(pixels)) for pixels in _pixels(backbone, rng)]
            kept = [{key: array for key, array in outputs.items() if key in OUTPUTS} for _, outputs in found]
            return [Case({"pixels": pixels}, want) for (pixels, _), want in zip(found, kept, strict=True)]
        return [_case(name, model, rng, *sizes) for sizes in SIZES]


def check_graph(path: Path, precision: str, cases: Sequence[Case]) -> float:
    """Check one ONNX file; returns the largest relative error over its cases and outputs.

    Raises:
        BundleError: the checker or shape inference refuses it, onnxruntime warns of it or cannot run it, an output is
            not finite or not the reference's.
    """
    label = f"{path.parent.name}/{path.stem}"
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(f"{label} is not valid ONNX: {error}") from error
    worst = 0.0
    for case, got in zip(cases, run_without_warnings(path, label, cases), strict=True):
        if "boxes" in case.want:
            worst = max(worst, _boxed_error(label, got, case, precision))
            continue
        for name, want in case.want.items():
            worst = max(worst, _error(f"{label}: {name}", got[name], want, case, precision))
    if worst > TOLERANCES[precision]:
        raise BundleError(
            f"{label} differs from the torch reference by {worst:.2g} of its norm, at {precision} at most "
            f"{TOLERANCES[precision]:.0e} is right: this is a mistake of the export, please report it"
        )
    return worst


def run_without_warnings(path: Path, label: str, cases: Sequence[Case]) -> list[dict[str, Array]]:
    """Run a graph in onnxruntime on the CPU; BundleError when it fails or a warning of it is logged, as of a shape."""
    import_onnxruntime("checking the exported graphs")
    with native_stderr() as log:
        try:
            session = open_session(path, log=WARNINGS, log_id=_SESSION)
            kinds = {item.name: _NUMPY[item.type] for item in session.get_inputs()}
            names = [item.name for item in session.get_outputs()]
            results = [
                dict(zip(names, session.run(None, {k: v.astype(kinds[k]) for k, v in case.feeds.items()}), strict=True))
                for case in cases
            ]
        except Exception as error:  # onnxruntime's exceptions share no base but this
            raise BundleError(f"{label} does not run in onnxruntime: {error}") from error
    if log:
        raise BundleError(f"onnxruntime warns of {label}: " + " | ".join(log[:3]))
    return results


@contextmanager
def native_stderr() -> Iterator[list[str]]:
    """Collect what C++ writes to file descriptor 2 about the graph that is run; the list is filled on leaving.

    Lines of others go where they were going. The descriptor is the process's: no other thread should log meanwhile.
    """
    problems: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield problems
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            for line in file.read().decode(errors="replace").splitlines():
                if _PROBLEM.search(line):
                    problems.append(_COLOR.sub("", line))
                else:
                    sys.stderr.write(line + "\n")


_NUMPY = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}


def _pixels(backbone: Backbone, rng: np.random.Generator) -> list[NDArray[np.float32]]:
    """Random pictures of two batches: noise for a grid, and for a detector squares, whose edges it can find."""
    size = backbone.preprocess.size
    cells, batches = (8, (1, 2)) if backbone.preprocess.grid is None else (size, (1, 3))
    step = -(-size // cells)
    pixels = [rng.uniform(-1, 1, (batch, 3, cells, cells)).astype(np.float32) for batch in batches]
    return [array.repeat(step, 2).repeat(step, 3)[:, :, :size, :size] for array in pixels]


def _boxed_error(label: str, got: Mapping[str, Array], case: Case, precision: str) -> float:
    """The error of the regions that both have; BundleError where too few are."""
    for name, want in case.want.items():
        if got[name].shape != want.shape:
            raise BundleError(f"{label}: {name} has shape {list(got[name].shape)}, the reference {list(want.shape)}")
    matched = match_regions(case.want, got)
    if matched.found < FOUND[precision]:
        raise BundleError(
            f"{label} finds {matched.found:.0f} % of the torch reference's regions, at {precision} at least "
            f"{FOUND[precision]:.0f} % is right: its confidences are nearly equal, as of random weights, or this is a "
            "mistake of the export: please report it"
        )
    if not len(matched.reference):
        return 0.0
    return _error(f"{label}: regions", matched.candidate, matched.reference, case, precision)


def _case(name: GraphName, model: ChanModel, rng: np.random.Generator, batch: int, size: int) -> Case:
    config = model.config
    if name == "region_encoder":
        regions, lengths = _normal(rng, batch, size, config.region_dim), _lengths(rng, batch, size)
        want = model.encode_regions(torch.from_numpy(regions), torch.from_numpy(lengths))
        return Case({"regions": regions, "region_lengths": lengths}, {"region_embeddings": want.numpy()})
    if name == "text_encoder":
        ids = _token_ids(config, rng, batch, size)
        size = ids.shape[1]
        lengths = _lengths(rng, batch, size)
        want = model.encode_words(torch.from_numpy(ids), torch.from_numpy(lengths))
        return Case({"token_ids": ids, "token_lengths": lengths}, {"word_embeddings": want.numpy()})
    captions, words = batch % 3 + 1, size // 2 + 1
    regions, region_lengths = _regions(model, rng, batch, size), _lengths(rng, batch, size)
    word_rows = _words(model, rng, captions, words)
    feeds = {
        "region_embeddings": regions,
        "region_lengths": region_lengths,
        "word_embeddings": word_rows,
        "word_lengths": _lengths(rng, captions, word_rows.shape[1]),
    }
    tensors: list[Tensor] = [torch.from_numpy(value) for value in feeds.values()]
    if name == "hard_alignment":
        return Case(feeds, {"scores": model.score(*tensors).numpy()})
    word_scores, word_regions = alignment.align(*tensors)
    similarities = alignment.similarities(tensors[0], tensors[2]).numpy()
    return Case(feeds, {"word_scores": word_scores.numpy(), "word_regions": word_regions.numpy()}, similarities)


def _regions(model: ChanModel, rng: np.random.Generator, batch: int, size: int) -> NDArray[np.float32]:
    """Region embeddings [B, R, D]: unit rows in any direction where the model makes such, otherwise its own."""
    config = model.config
    if config.normalize_regions:
        return _unit(_normal(rng, batch, size, config.embed_dim))
    regions, full = _normal(rng, batch, size, config.region_dim), np.full(batch, size, np.int32)
    return _numpy(model.encode_regions(torch.from_numpy(regions), torch.from_numpy(full)))


def _words(model: ChanModel, rng: np.random.Generator, batch: int, size: int) -> NDArray[np.float32]:
    """Word embeddings [B, W, D]: unit rows in any direction where the model makes such, otherwise its own."""
    config = model.config
    if config.normalize_words:
        return _unit(_normal(rng, batch, size, config.embed_dim))
    ids = _token_ids(config, rng, batch, size)
    full = np.full(batch, ids.shape[1], np.int32)
    return _numpy(model.encode_words(torch.from_numpy(ids), torch.from_numpy(full)))


def _token_ids(config: ModelConfig, rng: np.random.Generator, batch: int, size: int) -> NDArray[np.int32]:
    """Random ids [B, W], W at most BERT's positions."""
    if config.bert is not None:
        size = min(size, config.bert.positions)
    vocabulary = config.vocab_size if config.bert is None else config.bert.vocab_size
    return rng.integers(0, vocabulary, (batch, size)).astype(np.int32)


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.numpy()
    return array


def _error(label: str, got: Array, want: Array, case: Case, precision: str) -> float:
    """Norm of the difference over the norm of `want`, both float64."""
    if got.shape != want.shape:
        raise BundleError(f"{label} has shape {list(got.shape)}, the reference {list(want.shape)}")
    if case.similarities is not None and np.issubdtype(want.dtype, np.integer):
        if ((got < 0) != (want < 0)).any() or (got >= case.similarities.shape[2]).any():
            raise BundleError(f"{label} must be -1 exactly past a caption's length and a region's index elsewhere")
        got, want = _chosen(case.similarities, got), _chosen(case.similarities, want)
    wide, reference = got.astype(np.float64), want.astype(np.float64)
    if not np.isfinite(wide).all():
        hint = (
            ": this model's numbers do not fit in half, export it with --precision fp32" if precision == "fp16" else ""
        )
        raise BundleError(f"{label} holds NaN or infinity{hint}")
    return float(np.linalg.norm(wide - reference) / max(np.linalg.norm(reference), np.finfo(np.float32).tiny))


def _chosen(similarities: NDArray[np.float32], regions: Array) -> NDArray[np.float32]:
    """Similarity [I, C, W] of each word with the region it chose, 0 where it chose none."""
    index = np.maximum(regions, 0).astype(np.int64)
    chosen: NDArray[np.float32] = np.take_along_axis(similarities, index[:, :, None, :], axis=2)[:, :, 0]
    chosen[regions < 0] = 0
    return chosen


def _normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms: NDArray[np.float32] = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / norms


def _lengths(rng: np.random.Generator, batch: int, size: int) -> NDArray[np.int32]:
    """Lengths in 1..size: one of them 1, where all else is padding, and the last one full."""
    lengths = rng.integers(1, size + 1, batch).astype(np.int32)
    lengths[0], lengths[-1] = 1, size
    return lengths
