"""A parity report for people: a table for the terminal and one self-contained HTML page."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ...runtime.extras import needs
from .measures import MEASURES, named_recalls
from .plots import error_plot, recall_plot, score_plot
from .run import Check, Report, Stage

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
        f"{'recalls':<24}" + "".join(f"{name:>10}" for name in names) + f"{'rsum':>10}",
    ]
    for name, metrics in recalls:
        if metrics is not None:
            figures = [*named_recalls(metrics).values(), metrics.rsum]
            lines.append(f"{name:<24}" + "".join(f"{figure:>10.2f}" for figure in figures))
    lines += ["", f"{'against torch':<24}" + "".join(f"{head:>12}" for head in _HEADS)]
    for stage in report.stages:
        lines.append(f"{stage.name:<24}{stage.reason}" if not stage.checks else stage.name)
        for check in stage.checks:
            cells = "".join(f"{cell(check, name, '-'):>12}" for name in _COLUMNS)
            lines.append(f"  {check.part:<22}{cells}  {'MISS' if check.misses else 'ok'}")
    lines += ["", *(f"Not checked: {note}" for note in report.notes), *(f"MISS {miss}" for miss in report.misses())]
    ran = [stage for stage in report.stages if stage.status != "not run"]
    missed = sum(stage.status == "missed" for stage in ran)
    idle = len(report.stages) - len(ran)
    verdict = f"{missed} of {len(ran)} stages missed" if missed else f"parity holds in {len(ran)} of {len(ran)} stages"
    return [*lines, verdict + (f", {idle} could not run here" if idle else "")]


def page(report: Report) -> str:
    """The report as HTML with inline pictures; nothing is loaded from elsewhere."""
    with needs("jinja2", "writing the parity page", "export"):
        import jinja2
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(resources.files(__package__).joinpath("parity.html").read_text("utf-8"))
    parts: list[str] = []
    for stage in report.stages:
        parts += [check.part for check in stage.checks if check.part not in parts]
    return template.render(
        report=report,
        name=Path(report.bundle).name,
        parts=parts,
        by_part={stage.name: {check.part: check for check in stage.checks} for stage in report.stages},
        measures=MEASURES,
        used={stage.name: used_measures(stage) for stage in report.stages},
        recalls=[("torch", report.reference), *((stage.name, stage.recalls) for stage in report.stages)],
        recall_names=list(named_recalls(report.reference)),
        named_recalls=named_recalls,
        cell=cell,
        bound=bound,
        broken=broken,
        errors=error_plot(report),
        scores=score_plot(report),
        bars=recall_plot(report),
    )


def used_measures(stage: Stage) -> list[str]:
    """The measures any check of a stage has, in the order of `MEASURES`."""
    found = {name for check in stage.checks if check.found is not None for name in check.found.measures}
    return [name for name in MEASURES if name in found]


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


def bound(check: Check, measure: str) -> str:
    """The tolerance of a figure as text; empty where it is only shown."""
    if measure not in check.tolerances:
        return ""
    return f"{'≤' if MEASURES[measure].good == 'low' else '≥'} {check.tolerances[measure]:g}"


def broken(check: Check, measure: str) -> bool:
    """Whether this figure broke its tolerance."""
    return any(miss.startswith(f"{measure} ") for miss in check.misses)
