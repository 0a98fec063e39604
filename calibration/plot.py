"""A plot of the sensitivity table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..runtime.files import atomic_file
from .sensitivity import Effect


def plot_effects(effects: Sequence[Effect], path: Path) -> None:
    """Draw the score error and the bytes saved of each group of layers; the suffix of PATH chooses the format."""
    from matplotlib.figure import Figure

    names = [effect.group.name for effect in reversed(effects)]
    figure = Figure(figsize=(11, 1.6 + 0.28 * len(names)), layout="constrained")
    error, saved = figure.subplots(1, 2, sharey=True)
    error.barh(names, [effect.score_error for effect in reversed(effects)], color="#c0504d")
    error.set_xscale("log")
    error.set_xlabel("largest change of a score")
    saved.barh(names, [effect.bytes_saved / 2**20 for effect in reversed(effects)], color="#4f81bd")
    saved.set_xlabel("MiB saved")
    for axes in (error, saved):
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(axis="y", labelsize=8)
    figure.suptitle("One layer in int8, the rest in float32")
    with atomic_file(path) as beside:
        figure.savefig(beside)
