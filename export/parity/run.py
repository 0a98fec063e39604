"""Parity: the torch reference against every form a bundle runs in, stage by stage.

Each stage is one backend at one precision, checked in the order of the data:

    tokenizer        ids of the bundle's tokenizer, compared with those of the checkpoint's
    backbone         run on pictures, where the bundle reads pictures and the data has some
    region_encoder   run on the features
    text_encoder     run on the ids of the reference
    hard_alignment   run on the embeddings of the reference
    alignment_map    run on the embeddings of the reference
    matcher          captions and features to scores, as a service runs it: errors, ranks and recalls
    gallery          exact search over the embeddings that the matcher computed

`independent` adds parts that are compared with nltk and transformers instead of the reference.

Each graph gets the reference's values as its input, so the first check that misses names the graph at fault. The
measures are listed in `measures.MEASURES`; what is allowed is in `tolerances.json` and nowhere else.
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ...chan_ref.backbones.base import Backbone
from ...chan_ref.checkpoint import WEIGHTS
from ...chan_ref.checkpoint import load as load_checkpoint
from ...chan_ref.config import ModelConfig
from ...chan_ref.inference import open_tokenizer
from ...runtime.backends import BACKENDS
from ...runtime.backends.probe import examine_backend
from ...runtime.backends.sidecar import Sidecars, read_sidecars
from ...runtime.backends.table import FLAVORS
from ...runtime.checks import check_choice
from ...runtime.contract import PRECISIONS, Manifest, sha256_file, write_manifest
from ...runtime.counts import counted
from ...runtime.data.fitting import fit_captions
from ...runtime.data.images import CaptionedImages
from ...runtime.errors import BackendError, ChanError, ParityError
from ...runtime.gpu import device_index, examine_gpu
from ...runtime.matcher import Matcher
from ...runtime.text import load_tokenizer
from .blocks import Tick
from .measures import misses
from .reference import Reference
from .report import Check, Report, Stage
from .runners import COMPARED, GraphPool, GraphRunner
from .stages import StageRun
from .tolerances import Bounds, load_tolerances


def check_parity(
    bundle: str | Path,
    checkpoint: str | Path,
    sample: CaptionedImages,
    backends: Sequence[str] = (),
    precisions: Sequence[str] = (),
    backbone: Backbone | None = None,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    device: str = "cuda",
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
        device: the GPU of backends that run on one, as of `Matcher.open`.

    Raises:
        InputError: a device that is not one GPU, or a GPU that CUDA does not show.
        ParityError: the checkpoint is of another model than the bundle, or nothing could be run.
        BundleError: the bundle lacks a precision, or a file was altered.
        BackendError: a backend that was named cannot run here.
    """
    bundle, checkpoint = Path(bundle), Path(checkpoint)
    gpu = device_index(device)
    if gpu:  # the first one may be missing: then backends say so
        examine_gpu().only(gpu)
    manifest = Manifest.load(bundle)
    source = load_checkpoint(checkpoint)
    _check_same_model(manifest, source.model.config, f"{checkpoint} and {bundle}")
    tokenizer = load_tokenizer(bundle, manifest.tokenizer)
    sidecars = read_sidecars(bundle)
    planned = plan_stages(bundle, manifest, sidecars, backends, precisions)
    tolerances = {stage: load_tolerances(*stage) for stage in planned}
    stages = []
    with tempfile.TemporaryDirectory(prefix="chan-parity-") as scratch:

        def ticker(name: str, turn: int) -> Tick:  # the reference has the first turn, and each stage the next one
            return lambda done, total: progress(name, turn * total + done, (1 + len(planned)) * total)

        def folder(name: str) -> Path:
            path = Path(scratch, name)
            path.mkdir()
            return path

        sample = fit_captions(sample, open_tokenizer(source, checkpoint), manifest.max_words)
        reference = Reference(checkpoint, source, backbone, sample, folder("torch"), ticker("torch", 0))
        for backend, group in itertools.groupby(planned, key=lambda stage: stage[0]):
            names = [precision for _, precision in group]
            if cannot := _cannot_run(backend, gpu):
                if backends:
                    raise BackendError(f"{backend} cannot run here: {cannot}")
                stages += [Stage(backend, name, "not run", f"built, not run: {cannot}") for name in names]
                continue
            with GraphPool(bundle, manifest, backend, gpu) as pool:
                for precision in names:
                    graphs = pool.graphs(precision)
                    matcher = Matcher(bundle, manifest, tokenizer, graphs, precision, gpu=gpu)
                    tick = ticker(f"{backend}/{precision}", 1 + planned.index((backend, precision)))
                    run = StageRun(reference, GraphRunner(graphs), matcher, folder(f"{backend}-{precision}"), tick)
                    stages.append(_check_stage(run, backend, precision, tolerances[backend, precision]))
    if all(stage.status == "not run" for stage in stages):
        raise ParityError("no stage could run here: " + "; ".join(f"{stage.name} {stage.reason}" for stage in stages))
    return Report(
        bundle=str(bundle),
        checkpoint={"path": str(checkpoint), "sha256": sha256_file(checkpoint / WEIGHTS)},
        sample=describe(sample),
        reference=reference.recalls,
        stages=tuple(stages),
        notes=_notes(manifest, reference, sidecars),
        constant=reference.constant,
    )


def plan_stages(
    bundle: Path, manifest: Manifest, sidecars: Sidecars, backends: Sequence[str], precisions: Sequence[str]
) -> list[tuple[str, str]]:
    """Which backends to check at which precisions, see `check_parity`."""
    for name in backends:
        check_choice("backend", name, BACKENDS)
    exported = [name for name in PRECISIONS if name in (precisions or manifest.graphs.get("region_encoder", {}))]
    for precision in precisions:
        for graph in COMPARED:
            manifest.resolve(graph, precision)  # the error names what the bundle has instead
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


def record_verdict(bundle: str | Path, report: Report) -> None:
    """Put the verdict of each stage that ran into the bundle's manifest, with the hashes of the graphs it is about."""
    manifest = Manifest.load(bundle)
    digest = report.sha256()
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


def _check_stage(run: StageRun, backend: str, precision: str, tolerances: Bounds) -> Stage:
    started = time.perf_counter()
    checks: list[Check] = []
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


def _cannot_run(backend: str, gpu: int) -> str | None:
    report = examine_backend(backend, examine_gpu().only(gpu))
    return None if report.runs else report.problem or "this machine cannot run it"


def _notes(manifest: Manifest, reference: Reference, sidecars: Sidecars) -> tuple[str, ...]:
    notes = [f"an engine whose sidecar is unreadable: {error}" for error in sidecars.unreadable]
    notes += reference.readings.notes
    notes += [reference.constant] if reference.constant else []
    if reference.sample.cut_rows:
        notes.append(
            f"captions that were cut to {counted(manifest.max_words, 'word')}: {len(reference.sample.cut_rows)}"
        )
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


def describe(sample: CaptionedImages) -> dict[str, str | int]:
    """Where a sample is from and its size, for the report."""
    origin = {} if sample.files is None else {"data": str(sample.files.root), "split": sample.files.split}
    return {**origin, "images": sample.num_images, "captions": sample.num_captions}
