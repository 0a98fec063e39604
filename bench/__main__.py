"""Every CPU benchmark, one after the other, each in a process of its own: python -m chan_rt.bench"""

from __future__ import annotations

import subprocess
import sys

import click

MODULES = ("evaluate", "search", "int8", "serve")


@click.command()
def main() -> None:
    """Run the benchmarks with their defaults; each prints its table and the machine it ran on."""
    for module in MODULES:
        click.echo(f"== {module}")
        subprocess.run([sys.executable, "-m", f"chan_rt.bench.{module}"], check=True)


if __name__ == "__main__":
    main()
