"""A latency report as a picture."""

from __future__ import annotations

from pathlib import Path

from ..runtime.files import atomic_file
from .latency import LatencyReport


def plot_report(report: LatencyReport, path: Path) -> None:
    """One panel an operation: p50 as bars, p90 as a whisker; the file's ending chooses the format."""
    from matplotlib.figure import Figure

    operations = report.latencies
    names = list(next(iter(operations.values())))
    figure = Figure(figsize=(9, (0.5 + 0.28 * len(names)) * len(operations) + 0.8), layout="constrained")
    panels = figure.subplots(len(operations), 1, squeeze=False)[:, 0]
    for axes, (operation, latencies) in zip(panels, operations.items(), strict=True):
        medians = [item.p50 for item in latencies.values()]
        tails = [item.p90 - item.p50 for item in latencies.values()]
        axes.barh(list(latencies), medians, xerr=[[0] * len(tails), tails], color="#4f81bd", ecolor="#555555")
        axes.invert_yaxis()
        axes.set_title(operation, loc="left", fontsize=10)
        axes.set_xlabel("milliseconds: median, whisker to p90")
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(str(report.machine["processor"]), fontsize=10)
    with atomic_file(path) as beside:
        figure.savefig(beside)
