"""`python -m chan_rt.bench.backbones PICTURES -o FOLDER`: each backbone on photographs, and its boxes drawn.

For each backbone: CPU seconds of a picture in torch and in onnxruntime, one thread each, the sizes of its ONNX files,
how far their regions are from torch's, and FOLDER/NAME.png, the first picture with the boxes of its regions.
"""

from __future__ import annotations

import json
import re
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from PIL import ImageDraw

from ..chan_ref.backbones.base import Backbone
from ..chan_ref.backbones.choose import open_backbone
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
    "torchvision:resnet50",
    "torchvision:fasterrcnn_resnet50_fpn",
)
_DRAWN = 600  # pixels of a drawn picture's longer side
_COLORS = ("red", "orange", "yellow", "lime", "cyan", "blue", "magenta")


def measure(backbone: Backbone, files: Sequence[Path]) -> dict[str, Any]:
    """The figures of one backbone; a graph that cannot be made is an error in words."""
    pixels = [load_pixels([file], backbone.preprocess) for file in files]
    start = time.process_time()
    expected = [backbone.outputs(one) for one in pixels]
    found: dict[str, Any] = {"torch_s": (time.process_time() - start) / len(files)}
    shape = expected[0]["regions"].shape
    found |= {"size": backbone.preprocess.size, "regions": shape[1], "width": shape[2]}
    try:
        model = graph_of(backbone, shape[2])
        forms = {"fp32": model, "fp16": to_half(model)}
    except ChanError as error:
        return {**found, "error": str(error)}
    found |= {name: _compare(form, pixels, expected, backbone) for name, form in forms.items()}
    found["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return found


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


@click.command()
@click.argument("pictures", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--backbone", "names", multiple=True, help="Name as `--backbone` of `chan features` takes it.")
@click.option("--weights", default="random", show_default=True, help="Of timm's and torchvision's networks.")
@click.option(
    "-o", "--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder to write to."
)
def main(pictures: tuple[Path, ...], names: tuple[str, ...], weights: str, out: Path) -> None:
    """Measure backbones on PICTURES, and draw the boxes of the first one."""
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name in names or ALL:
        try:
            backbone = (
                open_backbone(name, weights) if name.startswith(("timm:", "torchvision:")) else open_backbone(name)
            )
        except ChanError as error:
            found[name] = {"error": str(error)}
        else:
            draw(backbone, pictures[0], out / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.png")
            found[name] = measure(backbone, pictures)
        click.echo(f"{name}: {json.dumps(found[name])}")
    record = {"machine": machine(("numpy", "torch", "onnxruntime", "timm", "torchvision")), "backbones": found}
    (out / "backbones.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
