"""`python -m chan_rt.demo OUT`: pictures -> features -> bundle -> engines -> parity -> search, and a page of it all.

A second run keeps the scenes and engines that exist.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from ..chan_ref.backbone import load_backbone
from ..chan_ref.backbones.names import LITES
from ..commands import values
from ..export.parity import Report, check_parity, record_verdict, table
from ..export.parity.page import page as parity_page
from ..runtime.counts import counted
from ..runtime.data.images import open_sample
from ..runtime.errors import ChanError, InputError, quoted, reason_of
from .page import Findings, render
from .steps import (
    CHECKPOINT,
    SPLIT,
    Progress,
    Query,
    build_engines,
    draw_scenes,
    export,
    measure_pointing,
    search,
)

STEPS = 6
MARK = ".chan-demo"  # marks a folder that the demo made


@click.command()
@click.argument("out", type=values.NEW_FOLDER)
@click.option("--scenes", default=500, show_default=True, type=click.IntRange(min=2), help="Pictures to draw.")
def main(out: Path, scenes: int) -> None:
    """Run every step from pictures to engines and search with the demo model, in the folder OUT."""
    try:
        passed = run(out, scenes)
    except ChanError as error:
        raise click.ClickException(str(error)) from error
    sys.exit(0 if passed else 1)


def _claim(out: Path) -> None:
    """Mark OUT as a folder of the demo. The demo replaces what it finds there, so any other folder is refused."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise InputError(f"{out} has files that the demo did not make: choose a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).touch()
    except OSError as error:
        raise InputError(f"cannot write to {out}: {reason_of(error)}") from error


def run(out: Path, scenes: int) -> bool:
    """Run every step and return whether parity holds."""
    started = time.perf_counter()
    _claim(out)
    data, bundle, gallery = out / "data", out / "bundle", out / "gallery"
    seconds: dict[str, float] = {}

    with _step(1, f"Draw {scenes} scenes no model has seen, with captions, boxes and region features", seconds) as bar:
        fresh = draw_scenes(data, scenes, bar)
    click.echo(f"    {data}" + ("" if fresh else " (existed already)"))

    with _step(2, "Export the checkpoint: ONNX graphs in fp32 and fp16, each checked against torch", seconds) as bar:
        fresh = export(bundle, bar)
    click.echo(f"    {bundle}" + ("" if fresh else " (existed already with the same bytes)"))

    with _step(3, "Build TensorRT engines", seconds) as bar:
        engines, reasons = build_engines(bundle, bar)
    for flavor in dict.fromkeys(engine.record.flavor for engine in engines):
        own = [engine for engine in engines if engine.record.flavor == flavor]
        kept = sum(engine.cached for engine in own)
        click.echo(f"    engines by {flavor} {own[0].record.version}: {len(own)}, of which {kept} existed already")
    for reason in reasons:
        click.echo(f"    {reason}")

    with _step(4, "Check that every stage computes what torch computes", seconds) as bar:
        report = _parity(bundle, data, scenes, bar)
    (out / "parity.html").write_text(parity_page(report), encoding="utf-8")
    (out / "parity.json").write_text(report.to_json(), encoding="utf-8")
    click.echo("\n".join(f"    {line}" if line else "" for line in table(report)))

    with _step(5, "Measure whether words choose regions of the pictures they name", seconds):
        pointing = measure_pointing(bundle, data, ("fp32", "fp16"))
    for name, found in pointing.items():
        click.echo(f"    {name:<20} {found.accuracy:.1%} of {found.mentions} names (by chance {found.chance:.1%})")

    with _step(6, "Index the scenes, search with one caption, and explain the best picture", seconds):
        query = search(bundle, data, gallery, out / "alignment.png")
    _tell(query)

    findings = Findings(out, report, pointing, query, engines, reasons, seconds, time.perf_counter() - started)
    (out / "index.html").write_text(render(findings), encoding="utf-8")
    click.echo(f"\n{'size':<34}{'MB':>8}")
    for name, size in findings.sizes():
        click.echo(f"{name:<34}{size / 1e6:>8.2f}")
    verdict = "Parity holds" if report.passed else "Parity MISSED"
    click.echo(f"\n{verdict}. {time.perf_counter() - started:.0f} seconds in all. See:")
    for name in ("index.html", "parity.html", "alignment.png"):
        click.echo(f"    {out / name}")
    click.echo("Next:")
    activate = Path(sys.prefix, "bin", "activate")
    if shutil.which("chan") is None and activate.is_file():
        click.echo(f"    . {os.path.relpath(activate)}    # so that the shell finds chan")
    picture, caption = quoted(data / "images" / SPLIT / "00000.png"), quoted(query.caption)
    click.echo(f"    chan search {quoted(gallery)} {caption} --html {quoted(out / 'hits.html')}")
    click.echo(f"    chan explain {quoted(bundle)} {picture} {caption} --html {quoted(out / 'why.html')}")
    click.echo(f"    chan serve {quoted(gallery)}")
    return report.passed


@contextmanager
def _step(number: int, title: str, seconds: dict[str, float]) -> Iterator[Progress]:
    """Print a step's title, show a progress bar on a terminal, and record the time."""
    click.echo(f"\n{number}/{STEPS}  {title}")
    started = time.perf_counter()
    with ExitStack() as stack:
        progress: Progress = lambda what, done, total: None  # noqa: E731
        if sys.stderr.isatty():
            bar = click.progressbar(length=1, file=sys.stderr, item_show_func=lambda text: text, label="   ")
            stack.enter_context(bar)

            def progress(what: str, done: int, total: int) -> None:
                bar.length = total
                bar.update(done - bar.pos, what)

        yield progress
    seconds[title] = time.perf_counter() - started
    click.echo(f"    {seconds[title]:.1f} s")


def _parity(bundle: Path, data: Path, scenes: int, progress: Progress) -> Report:
    from ..chan_ref.backbones.base import Backbone

    sample = open_sample(data, SPLIT, scenes)
    report = check_parity(bundle, CHECKPOINT, sample, backbone=Backbone(*load_backbone(), LITES[0]), progress=progress)
    record_verdict(bundle, report)
    return report


def _tell(query: Query) -> None:
    result = query.result
    proof = "certified" if result.certified else "not certified"
    click.echo(f'    "{query.caption}"')
    for rank, hit in enumerate(result.hits, 1):
        click.echo(f"    {rank}. {hit.id}  score {hit.score:.3f}")
    click.echo(
        f"    encoded in {query.encode_ms:.1f} ms by {query.backend}, found among {counted(result.rows, 'picture')} in "
        f"{query.search_ms:.1f} ms ({proof}: {result.rescored} rescored)"
    )


if __name__ == "__main__":
    main()
