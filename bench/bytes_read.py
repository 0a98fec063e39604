"""`python -m chan_rt.bench.bytes_read RECORD... -o FILE`: what searches read against the size of galleries, drawn.

Records are those of `python -m chan_rt.bench.search --json` and its `--grow`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..commands import values


def points(record: dict[str, Any]) -> list[tuple[int, float]]:
    """(images, bytes read over those of the int8 codes) of every size that a record measured."""
    sizes = [*record.get("growth", []), *(value for key, value in record.items() if key.endswith(" images"))]
    return sorted((int(size["rows"]), float(size["share_of_int8"])) for size in sizes)


@click.command()
@click.argument("records", nargs=-1, required=True, type=values.FILE)
@click.option("-o", "--out", required=True, type=values.NEW_FILE, help="Picture to write (SVG, PNG or PDF).")
def main(records: tuple[Path, ...], out: Path) -> None:
    """Draw the bytes that searches read against the number of images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.2), layout="constrained")
    axes = figure.subplots()
    for path in records:
        found = points(json.loads(path.read_text(encoding="utf-8")))
        axes.plot(*zip(*found, strict=True), marker="o", label=path.stem)
    axes.axhline(1, color="#555555", linestyle="--", label="every int8 code once")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1)
    axes.set_xlabel("images in the gallery")
    axes.set_ylabel("bytes read / int8 codes")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
