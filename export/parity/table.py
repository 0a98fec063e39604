"""A parity report as lines for a terminal."""

from __future__ import annotations

from ...runtime.counts import counted
from .measures import named_recalls
from .report import Check, Report

_COLUMNS = ("max_abs", "p999_abs", "cosine_min", "same_region_clear", "overlap10_t2i", "rsum_change")
_HEADS = ("max error", "99.9 % of", "min cosine", "regions %", "top 10 %", "rsum")


def table(report: Report) -> list[str]:
    """The report's lines for a terminal: what was checked, recalls, then what each part measured."""
    sample = report.sample
    recalls = [("torch", report.reference), *((stage.name, stage.recalls) for stage in report.stages)]
    names = list(named_recalls(report.reference))
    lines = [
        f"{sample['images']} images and {sample['captions']} captions of {sample['data']} ({sample['split']})",
        "",
        f"{'recalls':<28}" + "".join(f"{name:>10}" for name in names) + f"{'rsum':>10}",
    ]
    for name, metrics in recalls:
        if metrics is not None:
            figures = [*named_recalls(metrics).values(), metrics.rsum]
            lines.append(f"{name:<28}" + "".join(f"{figure:>10.2f}" for figure in figures))
    lines += ["", f"{'against torch':<28}" + "".join(f"{head:>12}" for head in _HEADS)]
    for stage in report.stages:
        lines.append(f"{stage.name:<28}{stage.reason}" if not stage.checks else stage.name)
        for check in stage.checks:
            cells = "".join(f"{cell(check, name, '-'):>12}" for name in _COLUMNS)
            lines.append(f"  {check.part:<26}{cells}  {'MISS' if check.misses else 'ok'}")
    lines += ["", *(f"Not checked: {note}" for note in report.notes), *(f"MISS {miss}" for miss in report.misses())]
    ran = [stage for stage in report.stages if stage.status != "not run"]
    missed = sum(stage.status == "missed" for stage in ran)
    if few := report.few_images():
        lines.append(few)
    idle = len(report.stages) - len(ran)
    verdict = (
        f"{missed} of {counted(len(ran), 'stage')} missed"
        if missed
        else f"parity holds in {len(ran)} of {counted(len(ran), 'stage')}"
    )
    return [*lines, verdict + (f", {idle} could not run here" if idle else "")]


def cell(check: Check, measure: str, missing: str) -> str:
    """A figure as text, `missing` where the check has none."""
    value = None if check.found is None else check.found.measures.get(measure)
    if value is None:
        return missing
    if measure.startswith("cosine"):
        return f"{value:.7f}"
    if measure in ("max_abs", "p999_abs"):
        return f"{value:.1e}" if value else "0"
    return f"{value:.4g}"
