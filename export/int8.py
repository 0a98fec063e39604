"""Add int8 graphs to a calibrated bundle, and keep them only when parity passes.

`int8` holds the graphs for TensorRT (explicit Q/DQ), `int8_x86` those for onnxruntime, and a backbone is in the latter
only. A graph in which nothing is quantized is in neither, and the runtime uses its next finer precision
(`Manifest.resolve`). The files are in a folder
named after their content, so the old manifest stays valid until the new one replaces it.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx

from ..calibration.calibrate import CALIBRATED, load_calibration
from ..calibration.plan import Plan, find_layers, to_int8
from ..calibration.qdq import Scheme
from ..chan_ref.backbones.base import Backbone
from ..runtime.contract import Manifest, Precision, verified, write_manifest
from ..runtime.data.images import CaptionedImages
from ..runtime.errors import InputError, ParityError
from ..runtime.files import naming, publish
from .bundle import ExportedGraph, describe, write_graph
from .parity import check_parity, record_verdict
from .parity.reference import pictures_of

SCHEMES: Mapping[Precision, Scheme] = {"int8": "tensorrt", "int8_x86": "x86"}
Prove = Callable[[Sequence[str]], Sequence[str]]


def export_int8(
    bundle: str | Path,
    checkpoint: str | Path,
    sample: CaptionedImages,
    precisions: Sequence[str] = tuple(SCHEMES),
    plan: Plan | None = None,
    force: bool = False,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    backbone: Backbone | None = None,
) -> list[ExportedGraph]:
    """Quantize a calibrated bundle's graphs and keep them if they pass parity; the verdict is in the manifest.

    Args:
        bundle: calibrated by `chan calibrate`.
        checkpoint: the one the bundle was exported from.
        sample: what parity is checked on.
        precisions, plan, force: see `add_int8`.
        progress: of the parity check, see `check_parity`.
        backbone: what the bundle's backbone was exported from. Without it, or where the sample has no pictures, nothing
            could prove an int8 backbone, and the backbone stays as it is.

    Raises:
        BundleError, InputError, ParityError: see `add_int8` and `check_parity`.
    """

    def prove(added: Sequence[str]) -> list[str]:
        report = check_parity(bundle, checkpoint, sample, ("onnxruntime",), added, backbone, progress)
        record_verdict(bundle, report)
        misses = report.misses()
        if misses and report.constant and not force:
            raise ParityError(
                f"the int8 graphs were not added, parity missed: {'; '.join(misses)}. The data cannot show "
                f"{report.constant}"
            )
        return [*misses, few] if (few := report.few_images()) else misses

    provable = backbone is not None and bool(pictures_of(sample))
    return add_int8(Path(bundle), prove, precisions, plan, force, with_backbone=provable)


def add_int8(
    bundle: Path,
    prove: Prove,
    precisions: Sequence[str] = tuple(SCHEMES),
    plan: Plan | None = None,
    force: bool = False,
    with_backbone: bool = False,
) -> list[ExportedGraph]:
    """Quantize a bundle's float32 graphs with the ranges it carries.

    Args:
        bundle: calibrated by `chan calibrate`.
        prove: called once the graphs are in place, with their precisions; returns the misses of the parity check,
            having recorded its verdict in the manifest.
        precisions: `int8`, `int8_x86` or both.
        plan: what stays float32; in a graph that it does not name, as with None, only products of two activations.
        force: keep graphs that missed, with the verdict in the manifest.
        with_backbone: quantize the backbone too, for `int8_x86`, if it was calibrated.

    Raises:
        BundleError: the bundle is not calibrated, or was altered.
        InputError: the plan names a layer that the bundle does not have, or leaves nothing to quantize.
        ParityError: parity missed and `force` is False; the bundle is then as it was before.
    """
    before = Manifest.load(bundle)
    wanted = _int8_precisions(precisions)
    exported = _write_graphs(bundle, before, wanted, plan, with_backbone)
    kept = False
    try:
        graphs = {name: dict(specs) for name, specs in before.graphs.items()}
        for specs in graphs.values():
            for precision in wanted:
                specs.pop(precision, None)
        for item in exported:
            graphs[item.name][item.precision] = item.spec
        write_manifest(bundle, replace(before, graphs=graphs))
        misses = prove([name for name in wanted if any(item.precision == name for item in exported)])
        kept = force or not misses
    finally:
        if not kept:
            write_manifest(bundle, before)
        _drop_unused(bundle)
    if not kept:
        without = "leave the backbone as it is (--no-backbone), " * any(item.name == "backbone" for item in exported)
        raise ParityError(
            "the int8 graphs were not added, parity missed: " + "; ".join(misses) + ". Keep more layers in float32 "
            f"(chan sensitivity --max-rsum-drop ... --plan), {without}or add them all the same with --force"
        )
    return exported


def _int8_precisions(precisions: Sequence[str]) -> list[Precision]:
    wanted = [name for name in SCHEMES if name in precisions]
    if unknown := sorted(set(precisions) - set(SCHEMES)):
        raise InputError(f"int8 precisions are {', '.join(SCHEMES)}, got {', '.join(unknown)}")
    if not wanted:
        raise InputError(f"int8 precisions are {', '.join(SCHEMES)}, got none")
    return wanted


def _write_graphs(
    bundle: Path, manifest: Manifest, precisions: Sequence[Precision], plan: Plan | None, with_backbone: bool
) -> list[ExportedGraph]:
    """Write the new graphs into a folder that no manifest names yet."""
    calibration = load_calibration(bundle, manifest)
    with tempfile.TemporaryDirectory(prefix=".int8.", dir=bundle / "graphs") as scratch, naming(bundle):
        built = Path(scratch, "new")
        made = []
        digest = hashlib.sha256()
        names = [name for name in CALIBRATED if name != "backbone" or (with_backbone and name in calibration.graphs)]
        for name in names:
            spec = manifest.graph(name, "fp32")
            model = onnx.load(verified(bundle, spec.file, spec.sha256))
            exclude = (plan or Plan()).excluded(name, model)
            for precision in precisions:
                if name == "backbone" and precision != "int8_x86":
                    continue  # TensorRT's symmetric form loses 14 to 22 points of rsum (docs/int8-figures.md)
                if not set(find_layers(model, SCHEMES[precision])) - set(exclude):
                    continue
                quantized = to_int8(model, calibration.ranges(name, spec.sha256), SCHEMES[precision], exclude)
                file = Path(precision, f"{name}.onnx")
                write_graph(built / file, quantized)
                digest.update(f"{file}\n".encode() + (built / file).read_bytes())
                made.append((name, precision, file, quantized))
        if not made:
            raise InputError("the plan leaves nothing to quantize")
        fresh = bundle / "graphs" / f"int8-{digest.hexdigest()[:16]}"
        if not fresh.exists():
            publish(built, fresh)
    exported = []
    for name, precision, file, quantized in made:
        ranges = manifest.graph(name, "fp32").ranges
        spec = describe(quantized, bundle, str((fresh / file).relative_to(bundle)), ranges)
        exported.append(ExportedGraph(name, precision, spec, (fresh / file).stat().st_size, None))
    return exported


def _drop_unused(bundle: Path) -> None:
    """Remove the int8 folders that the manifest does not name."""
    named = {Path(spec.file).parts[1] for specs in Manifest.load(bundle).graphs.values() for spec in specs.values()}
    for folder in (bundle / "graphs").glob("int8-*"):
        if folder.name not in named:
            shutil.rmtree(folder)
