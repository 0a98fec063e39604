"""`chan doctor`: report what runs here, what does not, and what to install."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from . import options, values
from .terminal import describe_placement, echo, print_json, warn


@click.command(short_help="Report what runs here, why the rest does not, and what to install.")
@click.option(
    "--bundle",
    type=values.FOLDER,
    help="Bundle of which to report where `auto` runs each graph. That is measured where a GPU is used.",
)
@options.device_option
@options.json_option
def command(bundle: Path | None, device: str, as_json: bool) -> None:
    """Report what runs here: GPU, driver, libraries, backends and extras, and what to install.

    The exit status is 0 when at least one backend runs.
    """
    from ..runtime.backends.placement import read_placements
    from ..runtime.doctor import examine
    from ..runtime.gpu import device_index

    report = examine(device_index(device))
    placements = [] if bundle is None else read_placements(bundle)
    if as_json:
        print_json({**report.to_dict(), "placements": [asdict(each) for each in placements]})
    else:
        gpu = report.gpu
        echo(f"python   {report.python} on {report.system}")
        driver = gpu.driver or ("none" if gpu.cuda is None else "of unknown version")
        echo(f"driver   {driver}, CUDA {gpu.cuda or 'none'}")
        for one in gpu.gpus:
            major, minor = one.capability
            echo(f"GPU      {one.name}, compute capability {major}.{minor}, {one.memory_bytes / 2**30:.0f} GiB")
        if gpu.problem:
            echo(f"GPU      {'not usable' if gpu.gpus else 'none'}: {gpu.problem}")
        if gpu.remedy:
            echo(f"{'':<9}-> {gpu.remedy}")
        echo(f"\n{'backend':<18}{'version':<14}{'runs':<6}{'builds':<8}")
        told: set[str] = set()
        for backend in report.backends:
            runs, builds = ({True: "yes", False: "no", None: "-"}[answer] for answer in (backend.runs, backend.builds))
            reason = "" if backend.problem is None else backend.problem.removesuffix(f": {gpu.problem}")
            echo(f"{backend.name:<18}{backend.version or '-':<14}{runs:<6}{builds:<8}{reason}")
            if backend.remedy and backend.remedy not in told:
                told.add(backend.remedy)
                echo(f"{'':<46}-> {backend.remedy}")
        if report.auto:
            echo(f"\nauto takes {report.auto}, the first that runs; the lines above give the reason for each other one")
        for line in (line for each in placements for line in describe_placement(each)):
            echo(line)
        echo("\ngallery scans, best first")
        for name, problem in report.scans.items():
            works = f"works, with {' or '.join(report.instructions)}" if name == "compiled" else "works"
            echo(f"  {name:<13}{problem or works}")
        echo("\nextras")
        width = max(map(len, report.extras)) + 2
        for extra, packages in report.extras.items():
            if not packages:  # another name of an extra
                continue
            missing = [package for package, version in packages.items() if version is None]
            echo(f"  {extra:<{width}}{'installed' if not missing else 'missing ' + ', '.join(missing)}")
        for warning in report.warnings:
            warn(warning)
    if not report.healthy:
        raise click.exceptions.Exit(1)
