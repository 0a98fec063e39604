"""`chan inspect`: what is inside a bundle, an engine or an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, each layer of an engine included.")
def command(path: Path, as_json: bool) -> None:
    """Show what is inside PATH, a bundle's folder, an .engine or an .onnx file.

    Inputs and outputs, layers and the precision they compute in, memory; of a bundle also which engines may be used
    here, and why the others may not.
    """
    from ..export.inspection import inspect_path

    found = inspect_path(path)
    if as_json:
        click.echo(json.dumps(found, indent=2, sort_keys=True))
        return
    {"bundle": _show_bundle, "engine": _show_engine, "onnx": _show_onnx}[found["kind"]](found)


def _show_bundle(found: Mapping[str, Any]) -> None:
    alignment = found["alignment"]
    click.echo(f"model      {', '.join(f'{key} {value}' for key, value in found['model'].items())}")
    click.echo(f"alignment  {alignment['coding']} + {alignment['pooling']} ({alignment['pooling_temperature']})")
    click.echo(f"tokenizer  {found['tokenizer']}")
    click.echo(f"tools      {', '.join(f'{key} {value}' for key, value in found['tools'].items())}")
    click.echo(f"\n{'graph':<16}{'precision':<10}{'MiB':>8}  tensors")
    for graph in found["graphs"]:
        tensors = f"{_tensors(graph['inputs'])} -> {_tensors(graph['outputs'])}"
        size = "missing" if graph["bytes"] is None else _mib(graph["bytes"])
        click.echo(f"{graph['graph']:<16}{graph['precision']:<10}{size:>8}  {tensors}")
        if not graph["sound"]:
            click.echo(f"{'':<36}altered: its bytes are not those of the manifest")
    click.echo(f"\n{'engine of':<16}{'precision':<10}{'flavor':<14}{'MiB':>8}  {'layers':<36}usable here")
    for engine in found["engines"]:
        counts, size = _counts(engine["layers"]["by_precision"]), _mib(engine["engine_bytes"])
        click.echo(
            f"{engine['graph']:<16}{engine['precision']:<10}{engine['flavor']:<14}{size:>8}  {counts:<36}"
            f"{engine['problem'] or 'yes'}"
        )
    for problem in found["broken"]:
        click.echo(problem)
    if not found["engines"] and not found["broken"]:
        click.echo("none: chan build makes them")
    for name, verdict in found["parity"].items():
        click.echo(f"parity     {name}: {verdict}")


def _show_engine(found: Mapping[str, Any]) -> None:
    click.echo(f"graph      {found['graph']} {found['precision']}")
    click.echo(f"built by   {found['flavor']} {found['version']} for {found['gpu']}, {found['os']}")
    click.echo(f"key        {found['key']}")
    click.echo(f"size       {_mib(found['engine_bytes'])} MiB, built in {found['build_seconds']:.1f} s")
    memory = found["memory"]
    if "weight_bytes" in memory:
        click.echo(f"weights    {_mib(memory['weight_bytes'])} MiB")
    activations = memory.get("activation_bytes", [])
    for index, profile in enumerate(found["profiles"]):
        scratch = f", scratch up to {_mib(activations[index])} MiB" if index < len(activations) else ""
        click.echo(f"profile {index}{scratch}")
        for name, shapes in profile.items():
            click.echo(f"  {name:<20}{' | '.join(str(list(shapes[bound])) for bound in ('min', 'opt', 'max'))}")
    click.echo(f"layers     {_counts(found['layers']['by_precision'])} (from the {found['layers']['source']})")
    _show_kinds(found["layers_by_type"])
    click.echo(f"usable     {found['problem'] or 'yes, where there is the GPU it was built for'}")


def _show_onnx(found: Mapping[str, Any]) -> None:
    click.echo(f"size       {_mib(found['bytes'])} MiB, IR version {found['ir_version']}")
    click.echo(f"opsets     {_counts(found['opsets'])}")
    click.echo(f"inputs     {_tensors(found['inputs'])}")
    click.echo(f"outputs    {_tensors(found['outputs'])}")
    click.echo(f"weights    {', '.join(f'{name} {_mib(size)} MiB' for name, size in found['weight_bytes'].items())}")
    click.echo(f"nodes      {_counts(found['nodes_by_precision'])}")
    _show_kinds(found["nodes_by_type"])


def _show_kinds(kinds: Iterable[Mapping[str, Any]]) -> None:
    for kind in kinds:
        click.echo(f"  {kind['count']:>5}  {kind['type']:<24}{kind['precision']}")


def _tensors(tensors: Iterable[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['name']} {one['dtype']}[{', '.join(map(str, one['shape']))}]" for one in tensors)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f}"
