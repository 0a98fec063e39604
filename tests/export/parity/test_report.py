"""The table and the page say what the report holds, with the first miss on top, and nothing loads from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from chan_rt.export.parity.measures import ErrorMeter, compare_scores, misses
from chan_rt.export.parity.page import page
from chan_rt.export.parity.report import Check, Measured, Report, Stage
from chan_rt.export.parity.table import table
from chan_rt.runtime.evaluation.metrics import evaluate

OWNER = np.repeat(np.arange(6), 5)


@pytest.fixture(scope="module")
def report() -> Report:
    """One stage that passed, one that missed in two parts, one that could not run."""
    rng = np.random.default_rng(0)
    reference = rng.standard_normal((6, 30)).astype(np.float32)

    def stage(backend: str, precision: str, noise: float) -> Stage:
        meter = ErrorMeter("region_embeddings")
        meter.add(reference, reference + noise * rng.standard_normal((6, 30)).astype(np.float32))
        encoder = Measured(meter.measures(), tuple(meter.histogram()))
        scores = reference + noise * rng.standard_normal((6, 30)).astype(np.float32)
        measures, meter, recalls = compare_scores(reference, scores, OWNER)
        pairs = np.stack([reference.ravel(), scores.ravel()], axis=1)
        matcher = Measured(measures, tuple(meter.histogram()), recalls, pairs)
        checks = tuple(
            Check(part, found, {"max_abs": 1e-4}, tuple(misses(found.measures, {"max_abs": 1e-4})))
            for part, found in (("region_encoder", encoder), ("matcher", matcher))
        )
        status = "missed" if any(check.misses for check in checks) else "passed"
        return Stage(backend, precision, status, "", checks, 1.5)

    return Report(
        bundle="out/<bundle>",
        checkpoint={"path": "out/checkpoint", "sha256": "ab" * 32},
        sample={"data": "data", "split": "test", "images": 6, "captions": 30},
        reference=evaluate(reference, OWNER),
        stages=(
            stage("onnxruntime", "fp32", 1e-6),
            stage("onnxruntime", "fp16", 1e-2),
            Stage("tensorrt_rtx", "fp16", "not run", "built, not run: no GPU"),
        ),
        notes=("the backbone was not checked: the data has no pictures",),
    )


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and value and not value.startswith(("#", "data:")):
                self.found.append(value)


def test_table_shows_every_stage_and_ends_with_the_verdict(report: Report) -> None:
    lines = table(report)
    text = "\n".join(lines)
    assert re.search(r"^torch +\d", text, re.M)
    assert "built, not run: no GPU" in text
    assert "Not checked: the backbone was not checked: the data has no pictures" in text
    missed = [line for line in lines if line.startswith("MISS ")]
    assert missed[0].startswith("MISS onnxruntime/fp16 region_encoder: max_abs is 0.0")
    assert len(missed) == 2
    assert lines[-1] == "1 of 2 stages missed, 1 could not run here"
    passed = table(replace(report, stages=report.stages[:1]))
    assert passed[-1] == "parity holds in 1 of 1 stage"
    assert max(map(len, lines)) <= 120


def test_table_says_where_few_images_may_miss_a_share(report: Report) -> None:
    def lines(miss: str, images: int) -> list[str]:
        missed = report.stages[1]
        checks = tuple(replace(check, misses=(miss,)) for check in missed.checks)
        stages = (report.stages[0], replace(missed, checks=checks))
        return table(replace(report, stages=stages, sample={**report.sample, "images": images}))

    note = "One image is 12.5 % of these 8, so chance may miss a share; compare more images"
    assert lines("top1_t2i is 93.75, less than 95", 8)[-2] == note
    assert note not in lines("max_abs is 1, more than 0.1", 8)
    assert not any(line.startswith("One image") for line in lines("top1_t2i is 93.75, less than 95", 100))


def test_page_is_whole_by_itself(report: Report) -> None:
    html = page(report)
    links = Links()
    links.feed(html)
    assert links.found == []
    assert "<script" not in html
    assert html.count("<svg") == 3
    assert "out/&lt;bundle&gt;" in html
    assert "<bundle>" not in html
    assert html.index("onnxruntime/fp16 region_encoder: max_abs") < html.index("onnxruntime/fp16 matcher: max_abs")
    assert "built, not run: no GPU" in html
    assert html == page(report), "the same report gives the same bytes"
    moved = page(replace(report, bundle="out/caf\udce9"))
    assert "out/caf\\udce9" in moved
    assert moved.encode() == moved.encode("utf-8", "surrogateescape")


@pytest.mark.parametrize(("size", "dark"), [("phone", False), ("laptop", True), ("4K", False)])
def test_page_is_accessible(
    report: Report,
    tmp_path: Path,
    open_page: Callable,
    violations: Callable,
    misplaced: Callable,
    size: str,
    dark: bool,
) -> None:
    (tmp_path / "parity.html").write_text(page(report), encoding="utf-8")
    shown = open_page((tmp_path / "parity.html").as_uri(), size, dark)
    shown.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
    assert violations(shown) == []
    assert misplaced(shown) == []
    ink = shown.evaluate("getComputedStyle(document.querySelector('.plot text, .plot g[id^=text] *')).fill")
    assert ink == shown.evaluate("getComputedStyle(document.body).color"), "plots follow the mode"


def test_json_has_every_figure_and_no_points(report: Report) -> None:
    raw = json.loads(report.to_json())
    assert raw["passed"] is False
    assert [stage["status"] for stage in raw["stages"]] == ["passed", "missed", "not run"]
    assert raw["stages"][1]["checks"][1]["misses"] == list(report.stages[1].checks[1].misses)
    assert len(report.to_json()) < 20_000


def test_the_hash_is_of_what_was_found_and_not_of_times_or_places(report: Report) -> None:
    slower = tuple(replace(stage, seconds=stage.seconds + 1) for stage in report.stages)
    elsewhere = replace(
        report,
        bundle="other",
        checkpoint={**report.checkpoint, "path": "other"},
        sample={**report.sample, "data": "other"},
        stages=slower,
    )
    assert elsewhere.to_json() != report.to_json()
    assert elsewhere.sha256() == report.sha256() == json.loads(report.to_json())["sha256"]
    for changed in (
        replace(report, checkpoint={**report.checkpoint, "sha256": "cd" * 32}),
        replace(report, sample={**report.sample, "split": "dev"}),
        replace(report, stages=report.stages[:2]),
        replace(report, notes=()),
    ):
        assert changed.sha256() != report.sha256()


def test_a_run_that_broke_off_is_shown(report: Report) -> None:
    broken = Check("region_encoder", None, {"max_abs": 1e-4}, ("broke off: scores: shape must be [6, 30]",))
    only = replace(report, stages=(Stage("onnxruntime", "fp32", "missed", "", (broken,), 0.1),))
    assert not only.passed
    assert "broke off: scores: shape must be [6, 30]" in page(only)
    assert "MISS" in table(only)[-2]
    assert json.loads(only.to_json())["stages"][0]["checks"][0]["measures"] == {}
