"""`chan build`: build the engines of a bundle's graphs."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime.errors import quoted
from . import options, values
from .terminal import echo, print_json, progress_bar, say_next


@click.command()
@options.bundle_argument
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "tensorrt_rtx"]),
    default="tensorrt_rtx",
    show_default=True,
    help="Library that builds the engines. tensorrt builds on the GPU that will run them; tensorrt_rtx builds on any "
    "machine, for every GPU that the library knows.",
)
@options.precisions_option
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    type=values.GRAPH,
    help="Graph to build; may be repeated. The default is every graph that BUNDLE has.",
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    type=values.TEXT,
    metavar="SYMBOL=MIN:OPT:MAX,...",
    help="Optimization profile that replaces the default ones, for every graph that has its symbols; may be repeated.",
)
@click.option(
    "--version-compatible", is_flag=True, help="Let newer versions of TensorRT load the engines (tensorrt only)."
)
@click.option(
    "--hardware-compatible", is_flag=True, help="Let every GPU from Ampere on run the engines (tensorrt only)."
)
@options.json_option
def command(
    bundle: Path,
    backend: str,
    precisions: tuple[str, ...],
    graphs: tuple[str, ...],
    profiles: tuple[str, ...],
    version_compatible: bool,
    hardware_compatible: bool,
    as_json: bool,
) -> None:
    """Build the engines of BUNDLE's graphs. An engine that is already built and still fits is kept."""
    from ..export.engines import BuildOptions, build_engines

    compatible = BuildOptions(version_compatible, hardware_compatible)
    with progress_bar(f"Building with {backend}") as progress:
        built = build_engines(bundle, backend, graphs, precisions, profiles, compatible, progress)
    if as_json:
        print_json([{"path": str(one.path), "cached": one.cached, "replaced": one.replaced} for one in built])
        return
    echo(f"{'graph':<18}{'precision':<10}{'MiB':>8}  {'seconds':>8}  {'layers by precision':<36}engine")
    for one in built:
        record = one.record
        counts = ", ".join(f"{name} {count}" for name, count in sorted(record.layers["by_precision"].items()))
        seconds = "cached" if one.cached else f"{record.build_seconds:.1f}"
        size = record.engine_bytes / 2**20
        echo(f"{record.graph:<18}{record.precision:<10}{size:>8.2f}  {seconds:>8}  {counts:<36}{one.path.name}")
        if one.replaced:
            echo(f"  built again: {one.replaced}")
    say_next(bundle, f"chan bench {quoted(bundle)} --backend {backend}", " on the GPU that will serve")
