"""Parity: the torch reference against every form a bundle runs in, stage by stage.

Each stage is one backend at one precision, checked in the order of the data:

    tokenizer        the bundle's ids are the checkpoint's
    backbone         fed the pictures, where the bundle reads them and the data has them
    region_encoder   fed the features
    text_encoder     fed the reference's ids
    hard_alignment   fed the reference's embeddings
    alignment_map    fed the reference's embeddings
    matcher          captions and features in, scores out, as a service runs it: errors, ranks and recalls
    gallery          exact search over the embeddings that the matcher made

Each graph is fed what the reference has at that place, so the first check that misses names the graph at fault. What
is measured is in `parity_measures.MEASURES`, what is allowed in `tolerances.json` and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ...chan_ref.checkpoint import WEIGHTS
from ...chan_ref.checkpoint import load as load_checkpoint
from ...chan_ref.config import ModelConfig
from ...runtime.backends import BACKENDS
from ...runtime.backends.probe import examine_backend
from ...runtime.backends.sidecar import Sidecars, read_sidecars
from ...runtime.backends.table import FLAVORS
from ...runtime.checks import check_choice
from ...runtime.contract import PRECISIONS, Manifest, sha256_file, write_manifest
from ...runtime.data.images import CaptionedImages
from ...runtime.errors import BackendError, ChanError, ParityError
from ...runtime.evaluation.metrics import Metrics
from ...runtime.gpu import examine_gpu
from ...runtime.matcher import Matcher
from ..backbone import Backbone
from .measures import MEASURES, misses
from .runners import COMPARED, GraphRunner, describe
from .stages import Measured, Reference, StageRun, Tick

SCHEMA = 1
Bounds = Mapping[str, Mapping[str, float]]  # part -> measure -> bound


@dataclass(frozen=True)
class Check:
    """One part of a stage against the reference.

    Attributes:
        part: see the module's head.
        found: what was measured; None where the run broke off.
        tolerances: the bounds that apply.
        misses: in words; empty where the check passed.
    """

    part: str
    found: Measured | None
    tolerances: Mapping[str, float]
    misses: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """One backend at one precision.

    Attributes:
        backend, precision: what ran.
        status: `not run` is an engine that was built but cannot run on this machine.
        reason: why it was not run; empty otherwise.
        checks: in the order of the data.
        seconds: wall time.
    """

    backend: str
    precision: str
    status: Literal["passed", "missed", "not run"]
    reason: str = ""
    checks: tuple[Check, ...] = ()
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """`backend/precision`, the key of the verdict in the manifest."""
        return f"{self.backend}/{self.precision}"

    @property
    def recalls(self) -> Metrics | None:
        """End to end; None where the stage has no finite scores."""
        return next((check.found.recalls for check in self.checks if check.found and check.found.recalls), None)

    def misses(self) -> list[str]:
        """Every miss with the part it belongs to, in the order of the data: the first names the culprit."""
        return [f"{check.part}: {miss}" for check in self.checks for miss in check.misses]


@dataclass(frozen=True)
class Report:
    """What a parity check found.

    Attributes:
        bundle: its folder.
        checkpoint: path and sha256 of the reference's weights.
        sample: data, split, images, captions.
        notes: what was not checked, and why.
        reference: the torch model's recalls over the sample.
        stages: as they were run.
    """

    bundle: str
    checkpoint: Mapping[str, str]
    sample: Mapping[str, str | int]
    reference: Metrics
    stages: tuple[Stage, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every stage that could run passed; `check_parity` sees to it that at least one could."""
        return all(stage.status in ("passed", "not run") for stage in self.stages)

    def misses(self) -> list[str]:
        """Why `passed` is False: each miss with stage and part, in the order of the data."""
        return [f"{stage.name} {miss}" for stage in self.stages for miss in stage.misses()]

    def to_json(self) -> str:
        """The report without the plots' points; sorted keys, a figure that is no number as null, a final newline."""
        stages = []
        for stage in self.stages:
            checks = [
                {
                    "part": check.part,
                    "measures": {} if check.found is None else _finite(check.found.measures),
                    "tolerances": dict(check.tolerances),
                    "misses": list(check.misses),
                }
                for check in stage.checks
            ]
            recalls = None if stage.recalls is None else _recalls(stage.recalls)
            own = {"name": stage.name, "status": stage.status, "reason": stage.reason, "seconds": stage.seconds}
            stages.append({**own, "checks": checks, "recalls": recalls})
        record = {
            "schema": SCHEMA,
            "passed": self.passed,
            "bundle": self.bundle,
            "checkpoint": dict(self.checkpoint),
            "sample": dict(self.sample),
            "reference": _recalls(self.reference),
            "stages": stages,
            "notes": list(self.notes),
        }
        return json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n"


def check_parity(
    bundle: str | Path,
    checkpoint: str | Path,
    sample: CaptionedImages,
    backends: Sequence[str] = (),
    precisions: Sequence[str] = (),
    backbone: Backbone | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> Report:
    """Compare a bundle with the checkpoint it was made of.

    Args:
        bundle: the bundle's folder.
        checkpoint: whose torch model is the reference.
        sample: from `open_sample`, or of arrays.
        backends: names; empty for onnxruntime and each TensorRT flavor that has engines in the bundle. A backend that
            is named must run here, an engine that is not named is listed as not run.
        precisions: names; empty for all the bundle (or its engines) has.
        backbone: what the bundle's backbone was exported from; None leaves that graph unchecked, as the report notes.
        progress: called with the name of what runs, blocks done and blocks in all, over every stage.

    Raises:
        ParityError: the checkpoint is of another model than the bundle, or nothing could be run.
        BundleError: the bundle lacks a precision, or a file was altered.
        BackendError: a backend that was named cannot run here.
    """
    bundle, checkpoint = Path(bundle), Path(checkpoint)
    manifest = Manifest.load(bundle)
    source = load_checkpoint(checkpoint)
    _check_same_model(manifest, source.model.config, f"{checkpoint} and {bundle}")
    sidecars = read_sidecars(bundle)
    planned = plan_stages(bundle, manifest, sidecars, backends, precisions)
    tolerances = {stage: load_tolerances(*stage) for stage in planned}
    stages = []
    with tempfile.TemporaryDirectory(prefix="chan-parity-") as scratch:

        def ticker(name: str, turn: int) -> Tick:
            return lambda done, total: progress(name, turn * total + done, (1 + len(planned)) * total)

        def folder(name: str) -> Path:
            path = Path(scratch, name)
            path.mkdir()
            return path

        reference = Reference(checkpoint, source, backbone, sample, folder("torch"), ticker("torch", 0))
        for turn, (backend, precision) in enumerate(planned, start=1):
            cannot = _cannot_run(backend)
            if cannot and backends:
                raise BackendError(f"{backend} cannot run here: {cannot}")
            if cannot:
                stages.append(Stage(backend, precision, "not run", f"built, not run: {cannot}"))
                continue
            bounds, name = tolerances[backend, precision], f"{backend}/{precision}"
            own = folder(f"{backend}-{precision}")
            stages.append(_run_stage(reference, bundle, manifest, backend, precision, bounds, own, ticker(name, turn)))
    if all(stage.status == "not run" for stage in stages):
        raise ParityError("no stage could run here: " + "; ".join(f"{stage.name} {stage.reason}" for stage in stages))
    return Report(
        bundle=str(bundle),
        checkpoint={"path": str(checkpoint), "sha256": sha256_file(checkpoint / WEIGHTS)},
        sample=describe(sample),
        reference=reference.recalls,
        stages=tuple(stages),
        notes=_notes(manifest, reference, sidecars),
    )


def plan_stages(
    bundle: Path, manifest: Manifest, sidecars: Sidecars, backends: Sequence[str], precisions: Sequence[str]
) -> list[tuple[str, str]]:
    """Which backends to check at which precisions, see `check_parity`."""
    for name in backends:
        check_choice("backend", name, BACKENDS)
    exported = [name for name in PRECISIONS if name in (precisions or manifest.graphs["region_encoder"])]
    for precision in precisions:
        for graph in COMPARED:
            manifest.resolve(graph, precision)  # says what the bundle has instead
    built = {(engine.record.flavor, engine.record.precision) for engine in sidecars.engines}
    planned: list[tuple[str, str]] = [
        (backend, precision)
        for backend in backends or ("onnxruntime", *FLAVORS)
        for precision in exported
        if backend not in FLAVORS or (backend, precision) in built or (backends and precisions)
    ]
    if not planned:
        raise ParityError(f"{bundle} has no engines of {', '.join(backends)}: build them with `chan build`")
    return planned


def load_tolerances(backend: str, precision: str) -> Bounds:
    """What `tolerances.json` allows a backend at a precision.

    Raises:
        ParityError: nothing is written for it, or something is bounded that is not measured.
    """
    every = json.loads(resources.files("chan_rt.export").joinpath("tolerances.json").read_text("utf-8"))
    kind = "engine" if backend in FLAVORS else "onnxruntime"
    bounds: Bounds | None = every[kind].get(precision)
    if bounds is None:
        raise ParityError(f"tolerances.json has none for {kind} at {precision}, only at {', '.join(every[kind])}")
    for part, measures in bounds.items():
        if unknown := measures.keys() - MEASURES.keys():
            raise ParityError(f"tolerances.json: {kind} {precision} {part} bounds {', '.join(unknown)}: not measured")
    return bounds


def record_verdict(bundle: str | Path, report: Report) -> None:
    """Put the verdict of each stage that ran into the bundle's manifest, with the hashes of the graphs it is about."""
    manifest = Manifest.load(bundle)
    digest = hashlib.sha256(report.to_json().encode()).hexdigest()
    verdicts = {
        stage.name: {
            "passed": stage.status == "passed",
            "report_sha256": digest,
            "checkpoint_sha256": report.checkpoint["sha256"],
            "images": report.sample["images"],
            "captions": report.sample["captions"],
            "graphs": {
                graph: manifest.graph(graph, manifest.resolve(graph, stage.precision)).sha256 for graph in COMPARED
            },
        }
        for stage in report.stages
        if stage.status != "not run"
    }
    write_manifest(bundle, replace(manifest, parity={**manifest.parity, **verdicts}))


def _run_stage(
    reference: Reference,
    bundle: Path,
    manifest: Manifest,
    backend: str,
    precision: str,
    tolerances: Bounds,
    scratch: Path,
    tick: Tick,
) -> Stage:
    started = time.perf_counter()
    checks: list[Check] = []
    with (
        GraphRunner(bundle, manifest, backend, precision) as graphs,
        Matcher.open(bundle, backend=backend, precision=precision) as matcher,
    ):
        run = StageRun(reference, bundle, manifest, graphs, matcher, scratch, tick)
        for part, check in run.checks().items():
            bounds = tolerances[part]
            try:
                found = check()
            except ChanError as error:  # a wrong shape, NaN where the runtime refuses it: the verdict, not a crash
                checks.append(Check(part, None, bounds, (f"broke off: {error}",)))
                break
            checks.append(Check(part, found, bounds, tuple(misses(found.measures, bounds))))
    status: Literal["passed", "missed"] = "missed" if any(check.misses for check in checks) else "passed"
    return Stage(backend, precision, status, "", tuple(checks), round(time.perf_counter() - started, 3))


def _cannot_run(backend: str) -> str | None:
    report = examine_backend(backend, examine_gpu())
    return None if report.runs else report.problem or "this machine cannot run it"


def _notes(manifest: Manifest, reference: Reference, sidecars: Sidecars) -> tuple[str, ...]:
    notes = [f"an engine whose sidecar is unreadable: {error}" for error in sidecars.unreadable]
    if "backbone" in manifest.graphs and reference.backbone is None:
        why = "its torch network was not given" if reference.pictures else "the data has no pictures"
        notes.append(f"the backbone was not checked: {why}")
    return tuple(notes)


def _check_same_model(manifest: Manifest, config: ModelConfig, which: str) -> None:
    here, there = (json.loads(json.dumps(record)) for record in (config.to_dict(), manifest.model))
    different = [name for name in here | there if here.get(name) != there.get(name)]
    if different:
        found = "; ".join(f"{name} is {here.get(name)} and {there.get(name)}" for name in different)
        raise ParityError(f"{which} are not of one model: {found}")


def _recalls(metrics: Metrics) -> dict[str, Any]:
    return {**asdict(metrics), "rsum": metrics.rsum}


def _finite(measures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in measures.items()}
