"""A parity report as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from ...runtime.pictures.document import render_document
from .measures import MEASURES, named_recalls
from .plots import error_plot, recall_plot, score_plot
from .report import Check, Report, Stage
from .table import cell


def page(report: Report) -> str:
    """The report as HTML with inline pictures; nothing is loaded from elsewhere."""
    parts: list[str] = []
    for stage in report.stages:
        parts += [check.part for check in stage.checks if check.part not in parts]
    name = Path(report.bundle).name
    values = {
        "report": report,
        "name": name,
        "parts": parts,
        "by_part": {stage.name: {check.part: check for check in stage.checks} for stage in report.stages},
        "measures": MEASURES,
        "used": {stage.name: used_measures(stage) for stage in report.stages},
        "recalls": [("torch", report.reference), *((stage.name, stage.recalls) for stage in report.stages)],
        "recall_names": list(named_recalls(report.reference)),
        "named_recalls": named_recalls,
        "cell": cell,
        "bound": bound,
        "broken": broken,
        "errors": error_plot(report),
        "scores": score_plot(report),
        "bars": recall_plot(report),
    }
    title = f"Parity of {name}: {'passed' if report.passed else 'missed'}"
    return render_document("parity.html", title, values, package=__package__, kind="report")


def used_measures(stage: Stage) -> list[str]:
    """The measures any check of a stage has, in the order of `MEASURES`."""
    found = {name for check in stage.checks if check.found is not None for name in check.found.measures}
    return [name for name in MEASURES if name in found]


def bound(check: Check, measure: str) -> str:
    """The tolerance of a figure as text; empty where it is only shown."""
    if measure not in check.tolerances:
        return ""
    return f"{'≤' if MEASURES[measure].good == 'low' else '≥'} {check.tolerances[measure]:g}"


def broken(check: Check, measure: str) -> bool:
    """Whether this figure broke its tolerance."""
    return any(miss.startswith(f"{measure} ") for miss in check.misses)
