"""The page of the demo: all results of its steps, with the pictures, in one file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..chan_ref.backbone import GRID
from ..export.engines import BuiltEngine
from ..export.parity.measures import named_recalls
from ..export.parity.plots import recall_plot
from ..export.parity.report import Report
from ..export.parity.table import cell
from ..runtime.cpus import usable_cpus
from ..runtime.pictures.document import render_document
from ..runtime.pictures.page import HitWords, explanation_data, result_data
from .pointing import Pointing
from .steps import CHECKPOINT, Query, size_of


@dataclass(frozen=True)
class Findings:
    """The results of the steps.

    Attributes:
        out: the demo's folder.
        report: of parity.
        pointing: by "backend/precision", torch first.
        query: the search and its explanation.
        engines: built, and `reasons`, why others were not.
        seconds: of each step by its title.
        total: seconds in all.
    """

    out: Path
    report: Report
    pointing: Mapping[str, Pointing]
    query: Query
    engines: Sequence[BuiltEngine]
    reasons: Sequence[str]
    seconds: Mapping[str, float]
    total: float

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Yield the names and bytes of what the steps wrote."""
        bundle = self.out / "bundle"
        yield "checkpoint (torch, fp32)", size_of(CHECKPOINT.rglob("*"))
        for precision in ("fp32", "fp16"):
            yield f"ONNX graphs, {precision}", size_of((bundle / "graphs" / precision).glob("*.onnx"))
        for precision in ("fp32", "fp16"):
            own = [engine.path for engine in self.engines if engine.record.precision == precision]
            yield f"TensorRT engines, {precision}", size_of(own)
        yield "gallery on disk", self.query.gallery_bytes


def render(findings: Findings) -> str:
    """Return the page as HTML that loads no other file; links lead to other files in the demo's folder."""
    report, query = findings.report, findings.query
    rows = [("torch", report.reference), *((stage.name, stage.recalls) for stage in report.stages)]
    spoken = HitWords(query.words, [match.known for match in query.explanation.words])
    hits, _ = result_data(query.result, [spoken] * len(query.result.hits), query.caption, None, GRID, query.alignment)
    best = explanation_data(Path(str(query.result.hits[0].metadata["path"])), query.explanation)
    values = {
        "findings": findings,
        "report": report,
        "query": query,
        "parts": [check.part for check in report.stages[0].checks if not check.part.endswith("tokenizer")],
        "hits": hits,
        "explanation": best,
        "recalls": [(name, list(named_recalls(metrics).values()), metrics.rsum) for name, metrics in rows if metrics],
        "recall_names": list(named_recalls(report.reference)),
        "plot": recall_plot(report),
        "cell": cell,
        "cores": usable_cpus(),
        "sizes": [(name, size / 1e6) for name, size in findings.sizes() if size],
        "scan_bytes": query.gallery_bytes / query.result.rows,
    }
    data = {"hits": {**hits, "truth": f"{query.scene:05d}.png"}, "explanation": best}
    return render_document("demo.html", "CHAN, from pictures to proven engines", values, package=__package__, data=data)
