"""`chan build`: engines of a bundle's graphs."""

from __future__ import annotations

import json
import sys

import click


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False))
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "tensorrt_rtx"]),
    default="tensorrt_rtx",
    show_default=True,
    help="tensorrt builds on the GPU that will run the engine; tensorrt_rtx builds anywhere, for all from Ampere on.",
)
@click.option(
    "--precision", "precisions", multiple=True, help="fp32, fp16 or int8; repeatable. Default: all there are."
)
@click.option("--graph", "graphs", multiple=True, help="Name of a graph; repeatable. Default: all there are.")
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    metavar="SYMBOL=MIN:OPT:MAX,...",
    help="Optimization profile in place of the default ones, for every graph that has its symbols; repeatable.",
)
@click.option("--version-compatible", is_flag=True, help="tensorrt only: newer TensorRT versions may load the engines.")
@click.option("--hardware-compatible", is_flag=True, help="tensorrt only: all GPUs from Ampere on may run the engines.")
@click.option("--json", "as_json", is_flag=True, help="Print the engines as JSON.")
def command(
    bundle: str,
    backend: str,
    precisions: tuple[str, ...],
    graphs: tuple[str, ...],
    profiles: tuple[str, ...],
    version_compatible: bool,
    hardware_compatible: bool,
    as_json: bool,
) -> None:
    """Build the engines of BUNDLE's graphs; what is built already is kept."""
    from ..export.engines import BuildOptions, build_engine, find_target, plan

    options = BuildOptions(version_compatible, hardware_compatible)
    target = find_target(backend, options)
    chosen = plan(bundle, graphs, precisions, profiles)
    built = []
    label = f"Building with {backend}"
    with click.progressbar(length=len(chosen), label=label, file=sys.stderr, item_show_func=lambda text: text) as bar:
        for graph, precision, own in chosen:

            def show(phase: str, what: str = f"{graph} {precision}") -> None:
                bar.update(0, f"{what}: {phase}")

            built.append(build_engine(bundle, graph, precision, target, own, options, show))
            bar.update(1, f"{graph} {precision}")
    if as_json:
        rows = [{"path": str(one.path), "cached": one.cached, "replaced": one.replaced} for one in built]
        click.echo(json.dumps(rows, indent=2))
        return
    click.echo(f"{'graph':<18}{'precision':<10}{'MiB':>8}  {'seconds':>8}  {'layers by precision':<36}engine")
    for one in built:
        record = one.record
        counts = ", ".join(f"{name} {count}" for name, count in sorted(record.layers["by_precision"].items()))
        seconds = "cached" if one.cached else f"{record.build_seconds:.1f}"
        size = record.engine_bytes / 2**20
        click.echo(f"{record.graph:<18}{record.precision:<10}{size:>8.2f}  {seconds:>8}  {counts:<36}{one.path.name}")
        if one.replaced:
            click.echo(f"  built again: {one.replaced}")
