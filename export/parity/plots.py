"""The pictures of a parity report as SVG texts: errors, scores and recalls."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np

from ...runtime.extras import needs
from .measures import named_recalls
from .report import Check, Report, Stage

# The colors have a contrast of 3 to 1 with the page's light and dark surfaces; ink becomes the page's own text color.
_COLORS = ("#3b82f6", "#db2777", "#2f9e44", "#e2570b", "#a855f7", "#808590")
_INK = "#24292f"
_PART_NAMES = {"matcher": "matcher (end to end)"}


def error_plot(report: Report) -> str:
    """For each part, how large each stage's errors are, on a logarithmic axis, and the bounds; empty without errors."""
    plt, style = _matplotlib()
    stages = _ran(report)
    parts = list(dict.fromkeys(check.part for stage in stages for check in stage.checks if _errors(check)))
    if not parts:
        return ""
    columns = 3
    rows = -(-len(parts) // columns)
    with plt.rc_context(style):
        figure, axes = plt.subplots(rows, columns, figsize=(11, 2.9 * rows), squeeze=False, layout="constrained")
        for axis, part in zip(axes.flat, parts, strict=False):
            for color, stage in zip(_COLORS, stages, strict=False):
                _plot_errors(axis, stage, part, color)
            axis.set_ylim(0, 1.25 * max(axis.get_ylim()[1], 1))
            axis.set(xscale="log", xlim=(1e-9, 10), title=_PART_NAMES.get(part, part))
            axis.set_xlabel("|error| against torch")
            axis.set_ylabel("% of values")
        for axis in axes.flat[len(parts) :]:
            axis.axis("off")
        lines = [plt.Line2D([], [], color=color) for color in _COLORS[: len(stages)]]
        bound = plt.Line2D([], [], color=_INK, linestyle=":")
        figure.legend([*lines, bound], [*(s.name for s in stages), "bound on the largest"], loc="outside upper center",
                      ncols=len(lines) + 1, frameon=False)  # fmt: skip
        return _svg(figure, plt, "How large the errors of each part are, by stage, and their bounds")


def score_plot(report: Report) -> str:
    """Each stage's scores against the reference's, and their difference; empty where no stage has scores."""
    plt, style = _matplotlib()
    stages = [stage for stage in _ran(report) if _scores(stage) is not None]
    if not stages:
        return ""
    with plt.rc_context(style):
        figure, axes = plt.subplots(2, len(stages), figsize=(11, 5.2), squeeze=False, layout="constrained")
        for column, stage in enumerate(stages):
            pairs = _scores(stage)
            if pairs is None:
                continue
            half = len(pairs) // 2
            for axis, values in ((axes[0][column], pairs[:, 1]), (axes[1][column], pairs[:, 1] - pairs[:, 0])):
                points = {"s": 5, "linewidths": 0, "rasterized": True}
                axis.scatter(pairs[half:, 0], values[half:], color="#808590", label="other pairs", **points)
                axis.scatter(pairs[:half, 0], values[:half], color="#3b82f6", label="true pairs", **points)
                axis.set_xlabel("score in torch")
            low, high = float(np.nanmin(pairs)), float(np.nanmax(pairs))
            axes[0][column].plot([low, high], [low, high], color=_INK, linewidth=0.7)
            axes[0][column].set(title=stage.name, ylabel=f"score in {stage.name}")
            axes[1][column].axhline(0, color=_INK, linewidth=0.7)
            axes[1][column].set(ylabel="difference of the scores")
        axes[0][0].legend(frameon=False, markerscale=2)
        return _svg(figure, plt, "Scores of each stage against those of torch, and their differences")


def recall_plot(report: Report) -> str:
    """The six recalls of the reference and of each stage, side by side."""
    plt, style = _matplotlib()
    bars = [("torch", _INK, named_recalls(report.reference))]
    for color, stage in zip(_COLORS, _ran(report), strict=False):
        if stage.recalls is not None:
            bars.append((stage.name, color, named_recalls(stage.recalls)))
    names = list(bars[0][2])
    width = 0.8 / len(bars)
    with plt.rc_context(style):
        figure, axis = plt.subplots(figsize=(11, 2.9), layout="constrained")
        for number, (label, color, recalls) in enumerate(bars):
            places = np.arange(len(names)) + (number - (len(bars) - 1) / 2) * width
            drawn = axis.bar(places, list(recalls.values()), width * 0.92, color=color, label=label)
            axis.bar_label(drawn, fmt="%.1f", fontsize=7, padding=1)
        axis.set_xticks(range(len(names)), [_long_name(name) for name in names])
        axis.set(ylabel="recall, %", ylim=(0, 108))
        axis.legend(frameon=False, ncols=len(bars), loc="upper left", bbox_to_anchor=(0, 1.16))
        return _svg(figure, plt, "Recalls of torch and of each stage")


def _plot_errors(axis: Any, stage: Stage, part: str, color: str) -> None:
    check = next((check for check in stage.checks if check.part == part), None)
    if check is None or check.found is None or not check.found.errors:
        return
    edges, shares = np.array(check.found.errors).T
    # Equal values have no place on a logarithmic axis and would be much larger than the rest: their share is text.
    axis.step(edges[1:], 100 * shares[1:], where="mid", color=color)
    axis.fill_between(edges[1:], 100 * shares[1:], step="mid", color=color, alpha=0.15)
    if shares[0] >= 0.005:
        line = sum(text.get_color() in _COLORS for text in axis.texts)
        axis.text(0.02, 0.95 - 0.1 * line, f"{100 * shares[0]:.0f} % equal", color=color, transform=axis.transAxes)
    if "max_abs" in check.tolerances:
        axis.axvline(check.tolerances["max_abs"], color=color, linestyle=":")


def _ran(report: Report) -> list[Stage]:
    return [stage for stage in report.stages if stage.checks]


def _errors(check: Check) -> bool:
    return check.found is not None and bool(check.found.errors)


def _scores(stage: Stage) -> np.ndarray | None:
    return next((c.found.scores for c in stage.checks if c.found is not None and c.found.scores is not None), None)


def _long_name(name: str) -> str:
    way, measure = name.split()
    return f"{measure}\n{'image to text' if way == 'i2t' else 'text to image'}"


def _matplotlib() -> tuple[Any, dict[str, Any]]:
    with needs("matplotlib", "drawing the plots of the parity page"):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    style = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.dpi": 150,
        "savefig.transparent": True,
        **{f"{part}.color": _INK for part in ("text", "xtick", "ytick")},
        **{f"axes.{part}": _INK for part in ("edgecolor", "labelcolor", "titlecolor")},
        "svg.hashsalt": "chan-rt",  # the same report gives the same bytes
    }
    return pyplot, style


def _svg(figure: Any, plt: Any, name: str) -> str:
    """A figure as SVG without styles, which the page's policy would not apply; it is as wide as its place."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{name}"', text, count=1)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    return re.sub(r' style="([^"]*)"', lambda found: _attributes(found[1]), text)


def _attributes(style: str) -> str:
    """`fill: none; stroke: #000` as attributes of an SVG element."""
    rules = (rule.split(":", 1) for rule in style.split(";") if ":" in rule)
    return "".join(f' {name.strip()}="{value.strip()}"' for name, value in rules)
