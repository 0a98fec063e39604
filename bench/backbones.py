"""`python -m chan_rt.bench.backbones PICTURES -o FOLDER`: each backbone on photographs, and its boxes drawn.

For each backbone, in a process of its own: CPU seconds of a picture in torch and in onnxruntime, one thread each, the
sizes of its ONNX files, how far their regions are from torch's, the largest memory, and FOLDER/NAME.png, the first
picture with the boxes of its regions. The first half of PICTURES calibrates int8_x86, and the others are measured.
"""

from __future__ import annotations

import json
import re
import resource
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import ImageDraw

from ..calibration.calibrate import Observer
from ..calibration.plan import Plan, to_int8
from ..chan_ref.backbones.base import Backbone
from ..chan_ref.backbones.choose import open_backbone
from ..commands import values
from ..export.backbone import backbone as graph_of
from ..export.precision import to_half
from ..export.region_match import match_regions
from ..runtime.errors import ChanError
from ..runtime.onnx_session import open_session
from ..runtime.pictures.load import load_pixels, open_picture
from ..runtime.regions import Regions, with_grid_boxes
from .measure import machine

ALL = (
    "efficientnet-lite0",
    "efficientnet-lite1",
    "efficientnet-lite2",
    "timm:resnet50",
    "timm:vit_base_patch16_224",
    "timm:vit_base_patch16_384",
    "timm:convnext_tiny",
    "torchvision:resnet50",
    "torchvision:fasterrcnn_resnet50_fpn",
)
_DRAWN = 600  # pixels of a drawn picture's longer side
_COLORS = ("red", "orange", "yellow", "lime", "cyan", "blue", "magenta")


def measure(backbone: Backbone, files: Sequence[Path]) -> dict[str, Any]:
    """The figures of one backbone; a graph that cannot be made is an error in words."""
    half = len(files) // 2
    pixels = [load_pixels([file], backbone.preprocess) for file in files[half:]]
    start = time.process_time()
    expected = [backbone.outputs(one) for one in pixels]
    found: dict[str, Any] = {"torch_s": (time.process_time() - start) / len(pixels), "features_gb": _peak_gb()}
    shape = expected[0]["regions"].shape
    found |= {"size": backbone.preprocess.size, "regions": shape[1], "width": shape[2]}
    try:
        model = graph_of(backbone, shape[2])
        forms = {"fp32": model, "fp16": to_half(model)}
    except ChanError as error:
        return {**found, "error": str(error)}
    found["export_gb"] = _peak_gb()
    if half and backbone.preprocess.grid is not None:
        samples = [load_pixels([file], backbone.preprocess) for file in files[:half]]
        try:
            forms["int8_x86"] = _quantized(model, samples)
        except ChanError as error:  # of timm's ResNets: with random weights their branches make zeros
            found["int8_x86_error"] = str(error)
    return found | {name: _compare(form, pixels, expected, backbone) for name, form in forms.items()}


def _peak_gb() -> float:
    """The largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _quantized(model: onnx.ModelProto, samples: Sequence[NDArray[np.float32]]) -> onnx.ModelProto:
    """The graph at int8_x86, as `chan calibrate` and `chan export` with their defaults make it."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "backbone.onnx")
        onnx.save(model, file)
        observer = Observer(file, threads=1)
        for pixels in samples:
            observer.run({"pixels": pixels})
    return to_int8(model, observer.ranges("minmax"), "x86", Plan().excluded("backbone", model))


def _compare(
    model: onnx.ModelProto, pixels: Sequence[NDArray[np.float32]], expected: Sequence[Any], backbone: Backbone
) -> dict[str, float]:
    session = open_session(model.SerializeToString(), 1)
    names = [item.name for item in session.get_outputs()]
    dtype = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
    start = time.process_time()
    runs = [dict(zip(names, session.run(names, {"pixels": one.astype(dtype)}), strict=True)) for one in pixels]
    seconds = (time.process_time() - start) / len(runs)
    share = 100.0
    pairs = [(want["regions"], got["regions"]) for want, got in zip(expected, runs, strict=True)]
    if backbone.preprocess.grid is None:
        matched = [match_regions(want, got) for want, got in zip(expected, runs, strict=True)]
        share = float(np.mean([one.found for one in matched]))
        pairs = [(one.reference, one.candidate) for one in matched]
    first = np.concatenate([want.reshape(-1, want.shape[-1]) for want, _ in pairs]).astype(np.float64)
    other = np.concatenate([got.reshape(-1, got.shape[-1]) for _, got in pairs]).astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (first * other).sum(1)[lengths > 0] / lengths[lengths > 0]
    return {
        "mb": model.ByteSize() / 1e6,
        "onnxruntime_s": seconds,
        "largest_error": float(np.abs(first - other).max()),
        "least_cosine": float(cosines.min()),
        "mean_cosine": float(cosines.mean()),
        "regions_found": share,
    }


def draw(backbone: Backbone, file: Path, out: Path) -> None:
    """Write the picture with the boxes of its regions; those of a grid are its cells."""
    regions: Regions = backbone.regions(load_pixels([file], backbone.preprocess))
    grid = backbone.preprocess.grid
    boxed = regions if grid is None else with_grid_boxes(regions, grid)
    assert boxed.boxes is not None
    picture = open_picture(file)
    factor = _DRAWN / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * factor)), max(1, round(picture.height * factor))))
    pen = ImageDraw.Draw(picture)
    for number, (left, top, width, height) in enumerate(boxed.boxes[0, : boxed.lengths[0]].tolist()):
        corners = np.array([[left, top], [left + width, top + height]]) * [picture.width - 1, picture.height - 1]
        pen.rectangle(corners.ravel().tolist(), outline=_COLORS[number % len(_COLORS)], width=2)
    picture.save(out)


HEAD = (
    "backbone", "S", "R x F", "torch", "onnxruntime fp32, int8_x86", "ONNX fp32, fp16, int8_x86",
    "largest error fp32, fp16", "least cosine fp16, int8_x86", "memory of features, export",
)  # fmt: skip


def table(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures in Markdown, a line for each backbone."""
    lines = [HEAD, ("---",) * len(HEAD)]
    for name, one in measured.items():
        if "fp32" not in one:
            lines.append((f"`{name}`", *["not measured"] * (len(HEAD) - 1)))
            continue
        full, half, small = one["fp32"], one["fp16"], one.get("int8_x86")
        lines.append(
            (
                f"`{name}`",
                f"{one['size']}",
                f"{one['regions']} x {one['width']}",
                f"{one['torch_s']:.2g} s",
                f"{full['onnxruntime_s']:.2g}" + (f", {small['onnxruntime_s']:.2g} s" if small else " s"),
                f"{full['mb']:.0f}, {half['mb']:.0f}" + (f", {small['mb']:.0f} MB" if small else " MB"),
                f"{full['largest_error']:.0e}, {half['largest_error']:.2g}",
                f"{half['least_cosine']:.4f}" + (f", {small['least_cosine']:.3f}" if small else ""),
                f"{one['features_gb']:.1f}, {one['export_gb']:.1f} GB",
            )
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _one(name: str, weights: str, pictures: Sequence[Path], drawing: Path) -> dict[str, Any]:
    """Open, draw and measure one backbone."""
    torch.set_num_threads(1)
    try:
        backbone = open_backbone(name, weights) if name.startswith(("timm:", "torchvision:")) else open_backbone(name)
    except ChanError as error:
        return {"error": str(error)}
    draw(backbone, pictures[0], drawing)
    return measure(backbone, pictures)


@click.command()
@click.argument("pictures", nargs=-1, required=True, type=values.FILE)
@click.option(
    "--backbone", "names", type=values.TEXT, multiple=True, help="Name as `--backbone` of `chan features` takes it."
)
@click.option(
    "--weights", type=values.TEXT, default="random", show_default=True, help="Of timm's and torchvision's networks."
)
@click.option("-o", "--out", required=True, type=values.NEW_FOLDER, help="Folder to write to.")
def main(pictures: tuple[Path, ...], names: tuple[str, ...], weights: str, out: Path) -> None:
    """Measure backbones on PICTURES, and draw the boxes of the first one."""
    out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as processes:
        for name in names or ALL:
            drawing = out / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.png"
            found[name] = processes.submit(_one, name, weights, pictures, drawing).result()
            click.echo(f"{name}: {json.dumps(found[name])}", err=True)
    about = machine(("numpy", "torch", "onnxruntime", "timm", "torchvision"))
    record = {"machine": about, "pictures": len(pictures), "weights": weights, "backbones": found}
    (out / "backbones.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    click.echo(table(found))


if __name__ == "__main__":
    main()
