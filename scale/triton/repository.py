"""Writes a model repository: a folder for each model with its configuration, its file and what it is warmed up with.

    REPOSITORY/chan-triton.json               what this folder is; Triton reads folders only
    REPOSITORY/chan_text_encoder/config.pbtxt
    REPOSITORY/chan_text_encoder/1/model.onnx a graph of the bundle, or model.plan, an engine
    REPOSITORY/chan_text_encoder/warmup/      inputs of the requests that warm it up
    REPOSITORY/chan_search/1/                 its model.py imports `chan_rt.scale.triton.search_model`
    REPOSITORY/chan_search/1/bundle/          of the bundle, what encoding queries needs

The gallery is not copied: the configuration of `chan_search` has its place.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ...runtime.backends.buckets import symbol_ranges, union
from ...runtime.backends.sidecar import Engine, read_sidecars, stem
from ...runtime.checks import check_choice
from ...runtime.contract import PRECISIONS, GraphSpec, Manifest, has_keys, sha256_file, verified, write_manifest
from ...runtime.errors import EngineError, InputError, quoted
from ...runtime.files import atomic_folder, is_utf8, recover, write_file
from ...runtime.gallery import Gallery, fingerprint
from .configs import MODEL_FILES, SEARCH, ModelFolder, Served, batch_symbol, graph_model, search_model
from .pbtxt import to_text

RECORD = "chan-triton.json"
CONFIG = "config.pbtxt"
VERSION = "1"
SCHEMA = 1
BACKENDS = ("onnxruntime", "tensorrt")
MODEL_PY = '''"""Searches a gallery. Needs the version of chan-rt that wrote this repository, or a later one."""

from chan_rt.scale.triton.search_model import TritonPythonModel  # noqa: F401
'''


@dataclass(frozen=True)
class WrittenModel:
    """A model that was written.

    Attributes:
        name: of the model and its folder.
        backend: of Triton, that runs it.
        batch: the most rows that are run together; 0 where Triton does not batch it.
        bytes: of its version's files.
    """

    name: str
    backend: str
    batch: int
    bytes: int


def write_repository(
    bundle: str | Path,
    out: str | Path,
    *,
    gallery: str | Path | None = None,
    gallery_place: str | None = None,
    precision: str = "fp32",
    backend: str = "onnxruntime",
    served: Served | None = None,
    force: bool = False,
) -> list[WrittenModel]:
    """Write a model repository; it appears at OUT when all of it is there.

    Args:
        bundle: the bundle's folder.
        out: the repository's folder.
        gallery: that `chan_search` searches, made with this bundle; None for a repository of graphs only.
        gallery_place: where the server finds the gallery, as a path or an address in object storage; None where
            `gallery` is.
        precision: of the graphs; a graph without such a form is taken at the next finer one.
        backend: `onnxruntime` runs the ONNX graphs, `tensorrt` the engines that `chan build --backend tensorrt` made.
        served: how the models are served; None for the defaults.
        force: replace a repository at OUT.

    Returns:
        The models, in the order of their names.

    Raises:
        InputError: OUT is taken (by anything but a repository of this kind: also with `force`), or an argument is none
            of its choices.
        BundleError: no bundle, an altered file, or no graph at that precision.
        EngineError: a graph has no engine.
        GalleryError: no gallery, or one of another model.
    """
    check_choice("precision", precision, PRECISIONS)
    check_choice("backend", backend, BACKENDS)
    bundle, out, served = Path(bundle), Path(out), served or Served()
    _check_place(out, force)
    manifest = Manifest.load(bundle)
    with atomic_folder(out) as folder:
        models = [
            _write_graph(folder, bundle, manifest, graph, manifest.resolve(graph, precision), backend, served)
            for graph in manifest.graphs
        ]
        if gallery is not None:
            models.append(_write_search(folder, bundle, manifest, Path(gallery), gallery_place, served))
        record = {"schema": SCHEMA, "precision": precision, "backend": backend, "tools": dict(manifest.tools)}
        write_file(folder / RECORD, json.dumps(record, indent=2, sort_keys=True) + "\n")
        return sorted((_written(folder, model) for model in models), key=lambda one: one.name)


def is_repository(path: Path) -> bool:
    """Whether a folder is a model repository that `write_repository` made."""
    return has_keys(path / RECORD, "schema", "backend")


def _check_place(out: Path, force: bool) -> None:
    recover(out)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_repository(out):
        raise InputError(f"{out} exists and is not a repository of chan triton: choose another place or remove it")
    if not force:
        raise InputError(
            f"{out} already exists: choose another folder, or replace it and all changes in it with --force"
        )


def _write_graph(
    folder: Path, bundle: Path, manifest: Manifest, graph: str, precision: str, backend: str, served: Served
) -> ModelFolder:
    spec = manifest.graph(graph, precision)
    if backend == "tensorrt":
        engine = _find_engine(bundle, graph, precision, spec)
        spec, tuned, facts = _of_engine(engine, spec)
        source, sha256 = engine.path, engine.record.engine_sha256
    else:
        source, sha256, tuned, facts = verified(bundle, spec.file, spec.sha256), spec.sha256, (), {}
    model = graph_model(graph, precision, spec, served, backend, sha256, tuned, facts)
    _write_model(folder, model)
    shutil.copyfile(source, folder / model.name / VERSION / MODEL_FILES[backend])
    return model


def _find_engine(bundle: Path, graph: str, precision: str, spec: GraphSpec) -> Engine:
    """The newest engine of a graph, its bytes verified. Only the server knows whether its TensorRT and GPU take it."""
    for engine in read_sidecars(bundle, stem(graph, precision, "tensorrt", "*")).engines:
        if engine.record.onnx_sha256 == spec.sha256 and engine.path.is_file():
            if sha256_file(engine.path) != engine.record.engine_sha256:
                raise EngineError(f"{engine.path} is corrupt: its sha256 is not the sidecar's")
            return engine
    command = f"chan build {quoted(bundle)} --backend tensorrt --precision {precision} --graph {graph}"
    raise EngineError(f"no TensorRT engine of {graph} at {precision}; run: {command}")


def _of_engine(engine: Engine, spec: GraphSpec) -> tuple[GraphSpec, tuple[int, ...], Mapping[str, str]]:
    """The spec of a graph with the ranges of an engine, the batch size each profile is tuned for, and facts of it."""
    profiles = symbol_ranges(spec, engine.record.profiles)
    batch = batch_symbol(spec)
    tuned = tuple(profile[batch].opt for profile in profiles) if batch is not None else ()
    facts = {"chan_tensorrt": engine.record.version, "chan_gpus": ", ".join(engine.record.gpus)}
    return replace(spec, ranges=union(profiles)), tuned, facts


def _write_search(
    folder: Path, bundle: Path, manifest: Manifest, gallery: Path, place: str | None, served: Served
) -> ModelFolder:
    with Gallery.open(gallery) as opened:
        settings = opened.settings
        precision = settings.precision or "fp32"
        opened.check_model(fingerprint(manifest, precision))
    place = place if place is not None else str(gallery.resolve())
    if not is_utf8(place):
        rule = "the gallery's place must be UTF-8 text, as Triton's configurations are"
        raise InputError(f"{rule}, got {place!a}: give another path to it with --gallery-place")
    chosen = {graph: manifest.resolve(graph, precision) for graph in manifest.graphs}
    needed = {graph: {form: manifest.graph(graph, form)} for graph, form in chosen.items()}
    facts = {
        "gallery": place,
        "backend": "auto",
        "max_k": "1000",
        "max_characters": "10000",
        "max_pixels": "50000000",
        "chan_kind": settings.kind,
        "chan_precision": precision,
        "chan_model": settings.model,
        "chan_coding": settings.alignment.coding,
        "chan_pooling": settings.alignment.pooling,
    }
    preprocess = manifest.preprocess
    if preprocess is not None and preprocess.grid is not None:
        facts["chan_grid"] = str(preprocess.grid)
    model = search_model(served, facts, takes_captions=settings.kind == "images")
    _write_model(folder, model)
    version = folder / SEARCH / VERSION
    write_file(version / MODEL_FILES["python"], MODEL_PY)
    kept = replace(manifest, graphs=needed, calibration={})
    files = {spec.file: spec.sha256 for forms in needed.values() for spec in forms.values()}
    for file, sha256 in {**files, **manifest.tokenizer.files}.items():
        target = version / "bundle" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(verified(bundle, file, sha256), target)
    write_manifest(version / "bundle", kept)
    return model


def _write_model(folder: Path, model: ModelFolder) -> None:
    place = folder / model.name
    (place / VERSION).mkdir(parents=True)
    write_file(place / CONFIG, to_text(model.config))
    for name, data in model.warmup.items():
        write_file(place / "warmup" / name, data)


def _written(folder: Path, model: ModelFolder) -> WrittenModel:
    files = (path for path in (folder / model.name / VERSION).rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    return WrittenModel(model.name, str(model.config["backend"]), model.batch, size)
