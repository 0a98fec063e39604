"""The page of the demo: all results of its steps, with the pictures, in one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from PIL import Image

from ..chan_ref.backbone import GRID
from ..export.engines import BuiltEngine
from ..export.parity.measures import named_recalls
from ..export.parity.plots import recall_plot
from ..export.parity.report import Report
from ..export.parity.table import cell
from ..runtime.cpus import usable_cpus
from ..runtime.pictures.draw import PALETTE
from .pointing import Pointing
from .steps import CHECKPOINT, Query, size_of

_THUMBNAIL = 300  # pixels


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
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(resources.files(__package__).joinpath("page.html").read_text("utf-8"))
    report, query = findings.report, findings.query
    rows = [("torch", report.reference), *((stage.name, stage.recalls) for stage in report.stages)]
    return template.render(
        findings=findings,
        report=report,
        query=query,
        hits=[(hit, _thumbnail(Path(str(hit.metadata["path"]))), _marks(query, number))
              for number, hit in enumerate(query.result.hits)],
        truth=f"{query.scene:05d}.png",
        alignment=_picture(findings.out / "alignment.png"),
        recalls=[(name, list(named_recalls(metrics).values()), metrics.rsum) for name, metrics in rows if metrics],
        recall_names=list(named_recalls(report.reference)),
        plot=recall_plot(report),
        cell=cell,
        cores=usable_cpus(),
        sizes=[(name, size / 1e6) for name, size in findings.sizes() if size],
        scan_bytes=query.gallery_bytes / query.result.rows,
    )  # fmt: skip


def _marks(query: Query, number: int) -> list[dict[str, object]]:
    """For each word that names something: its color, and the cell it chose in a hit, in percent of the picture."""
    hit = query.result.hits[number]
    marks = []
    for color, token in zip(PALETTE, query.naming, strict=False):
        row, column = divmod(int(hit.word_regions[token]), GRID)
        marks.append(
            {
                "word": query.words[token],
                "similarity": float(hit.word_scores[token]),
                "color": "#{:02x}{:02x}{:02x}".format(*color),
                "left": 100 * column / GRID,
                "top": 100 * row / GRID,
            }
        )
    return marks


def _thumbnail(path: Path) -> str:
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _picture(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
