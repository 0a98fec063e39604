"""`chan doctor`: what runs here, what does not, and what to install."""

from __future__ import annotations

import json

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(as_json: bool) -> None:
    """Say what runs here: GPU, driver, libraries, backends, extras, and what to install.

    The exit status is 0 when at least one backend runs.
    """
    from ..runtime.doctor import examine

    report = examine()
    if as_json:
        click.echo(json.dumps(report.to_dict(), indent=2, sort_keys=True))
    else:
        gpu = report.gpu
        click.echo(f"python   {report.python} on {report.system}")
        click.echo(f"driver   {gpu.driver or 'none'}, CUDA {gpu.cuda or 'none'}")
        for one in gpu.gpus:
            major, minor = one.capability
            click.echo(f"GPU      {one.name}, compute capability {major}.{minor}, {one.memory_bytes / 2**30:.0f} GiB")
        if gpu.problem:
            click.echo(f"GPU      none: {gpu.problem}")
        click.echo(f"\n{'backend':<18}{'version':<14}{'runs':<6}{'builds':<8}")
        for backend in report.backends:
            runs, builds = ({True: "yes", False: "no", None: "-"}[answer] for answer in (backend.runs, backend.builds))
            click.echo(f"{backend.name:<18}{backend.version or '-':<14}{runs:<6}{builds:<8}{backend.problem or ''}")
            if backend.remedy:
                click.echo(f"{'':<46}-> {backend.remedy}")
        click.echo("\ngallery scans, best first")
        for name, problem in report.scans.items():
            click.echo(f"  {name:<13}{problem or 'works'}")
        click.echo("\nextras")
        for extra, packages in report.extras.items():
            missing = [package for package, version in packages.items() if version is None]
            click.echo(f"  {extra:<11}{'installed' if not missing else 'missing ' + ', '.join(missing)}")
        for warning in report.warnings:
            click.echo(f"\nWarning: {warning}")
    if not report.healthy:
        raise click.exceptions.Exit(1)
