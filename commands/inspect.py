"""`chan inspect`: show what is inside a checkpoint, a bundle, an engine or an ONNX file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from . import options, values
from .terminal import echo, print_json

WIDTH = 100  # columns


@click.command(short_help="Show what is inside a checkpoint, a bundle, an .engine file or an .onnx file.")
@click.argument("path", type=values.EXISTING)
@options.json_option
def command(path: Path, as_json: bool) -> None:
    """Show what is inside PATH: the folder of a checkpoint or bundle, an .engine file or an .onnx file.

    Of a checkpoint the result has the model's sizes and where it comes from. Otherwise it has inputs and outputs,
    layers with the precision they compute in, and memory. For a bundle it also has which engines may be used here, and
    why the others may not. --json prints each layer of an engine too.
    """
    from ..export.inspection import inspect_path

    found = inspect_path(path)
    if as_json:
        print_json(found)
        return
    show = {"checkpoint": _show_checkpoint, "bundle": _show_bundle, "engine": _show_engine, "onnx": _show_onnx}
    show[found["kind"]](found)


def _show_checkpoint(found: Mapping[str, Any]) -> None:
    _show_model(found, found["model"])
    echo(f"parameters {found['parameters']:,}")
    if (imported := found["imported"]) is not None:
        _row("imported", f"from {imported['file']}", *_flat({key: imported[key] for key in ("epoch", "best_rsum")}))
    if (training := found["training"]) is not None:
        _row("trained", f"to epoch {training['epoch']}", f"rsum {training['rsum']:.1f} on the validation images")
        _row("options", *_flat(training["options"]))


def _show_model(found: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    alignment = found["alignment"]
    _row("model", *_flat(model))
    _row("alignment", f"{alignment['coding']} + {alignment['pooling']} ({alignment['pooling_temperature']})")
    _row("tokenizer", found["tokenizer"])


def _show_bundle(found: Mapping[str, Any]) -> None:
    _show_model(found, {key: value for key, value in found["model"].items() if key != "alignment"})
    _row("tools", *(f"{key} {value}" for key, value in found["tools"].items()))
    for name, verdict in found["parity"].items():
        result = "passed" if verdict.get("passed") else "missed"
        counts = [f"{verdict[key]} {key}" for key in ("images", "captions") if key in verdict]
        _row("parity", f"{name} {result}" + (f" on {' and '.join(counts)}" if counts else ""))
    for problem in found["problems"]:
        _row("unusable", problem)
    echo(f"\n{'graph':<16}{'precision':<10}{'MiB':>8}")
    for graph in found["graphs"]:
        size = "-" if graph["bytes"] is None else _mib(graph["bytes"])
        echo(f"{graph['graph']:<16}{graph['precision']:<10}{size:>8}")
        if graph["problem"] is not None:
            _row("  unusable", graph["problem"])
        _row("  inputs", *_tensors(graph["inputs"]))
        _row("  outputs", *_tensors(graph["outputs"]))
    echo(f"\n{'engine of':<16}{'precision':<10}{'flavor':<14}{'MiB':>8}  layers")
    for engine in found["engines"]:
        layers, size = _counts(engine["layers"]["by_precision"]), _mib(engine["engine_bytes"])
        echo(f"{engine['graph']:<16}{engine['precision']:<10}{engine['flavor']:<14}{size:>8}  {layers}")
        _row("  usable", "yes" if engine["problem"] is None else f"no: {engine['problem']}")
    for problem in found["broken"]:
        _row("unreadable", problem)
    if not found["engines"] and not found["broken"]:
        echo("none: chan build makes them")


def _show_engine(found: Mapping[str, Any]) -> None:
    echo(f"graph      {found['graph']} {found['precision']}")
    echo(f"built by   {found['flavor']} {found['version']} for {', '.join(found['gpus'])}, {found['os']}")
    echo(f"key        {found['key']}")
    echo(f"size       {_mib(found['engine_bytes'])} MiB, built in {found['build_seconds']:.1f} s")
    memory = found["memory"]
    if "weight_bytes" in memory:
        echo(f"weights    {_mib(memory['weight_bytes'])} MiB")
    activations = memory.get("activation_bytes", [])
    for index, profile in enumerate(found["profiles"]):
        scratch = f", scratch up to {_mib(activations[index])} MiB" if index < len(activations) else ""
        echo(f"profile {index}{scratch}")
        for name, shapes in profile.items():
            echo(f"  {name:<20}{' | '.join(str(list(shapes[bound])) for bound in ('min', 'opt', 'max'))}")
    echo(f"layers     {_counts(found['layers']['by_precision'])} (from the {found['layers']['source']})")
    _show_kinds(found["layers_by_type"])
    echo(f"usable     {found['problem'] or 'yes, where there is the GPU it was built for'}")


def _show_onnx(found: Mapping[str, Any]) -> None:
    echo(f"size       {_mib(found['bytes'])} MiB, IR version {found['ir_version']}")
    echo(f"opsets     {_counts(found['opsets'])}")
    _row("inputs", *_tensors(found["inputs"]))
    _row("outputs", *_tensors(found["outputs"]))
    echo(f"weights    {', '.join(f'{name} {_mib(size)} MiB' for name, size in found['weight_bytes'].items())}")
    echo(f"nodes      {_counts(found['nodes_by_precision'])}")
    _show_kinds(found["nodes_by_type"])


def _row(label: str, *items: str) -> None:
    """A label and its items, wrapped to WIDTH columns; a break comes between items, or words where there is one."""
    words = items[0].split() if len(items) == 1 else [f"{item}," for item in items[:-1]] + [*items[-1:]]
    lines = [""]
    for word in words:
        joined = f"{lines[-1]} {word}".lstrip()
        lines[-1:] = [joined] if len(joined) <= WIDTH - 11 else [lines[-1], word]
    lines = [line for line in lines if line] or [""]
    echo("\n".join(f"{head:<11}{line}" for head, line in zip([label, *[""] * len(lines)], lines, strict=False)))


def _flat(record: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """A record within records as `name value` and `name.name value`; what is not set is left out."""
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        elif value is not None:
            yield f"{above}{key} {value}"


def _show_kinds(kinds: Iterable[Mapping[str, Any]]) -> None:
    for kind in kinds:
        echo(f"  {kind['count']:>5}  {kind['type']:<24}{kind['precision']}")


def _tensors(tensors: Iterable[Mapping[str, Any]]) -> list[str]:
    return [f"{one['name']} {one['dtype']}[{', '.join(map(str, one['shape']))}]" for one in tensors]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f}"
