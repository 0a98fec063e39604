"""Cut a graph in which several Scans do not depend on each other: one graph for each of them, and the rest behind them.

onnxruntime runs the nodes of a graph one after the other. Its parallel execution mode does not change that on a CPU:
the nodes form one stream, and the caller waits for it on a second core. Two graphs, however, run on two cores.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .onnx_bytes import MAX_DEPTH, Node, field, number, read_fields, read_string, text

# Fields of GraphProto and ModelProto
_NODE, _INITIALIZER, _INPUT, _OUTPUT, _GRAPH = 1, 5, 11, 12, 7


@dataclass(frozen=True)
class Cut:
    """Serialized models that together compute what one did.

    Attributes:
        branches: each takes the inputs of the whole.
        made: of each branch, the names of its outputs.
        rest: takes the inputs of the whole and all that the branches made; its outputs are those of the whole.
    """

    branches: tuple[bytes, ...]
    made: tuple[tuple[str, ...], ...]
    rest: bytes


def cut_at_scans(serialized: memoryview) -> Cut | None:
    """Cut a model at its Scans; None where it has fewer than two, or one of them depends on another.

    Nodes and weights that several of the graphs need are in each of them.

    Raises:
        ValueError: the bytes are no ONNX model.
    """
    model = list(read_fields(serialized))
    graphs = [found for key, found in model if key == _GRAPH and isinstance(found, memoryview)]
    if len(graphs) != 1:
        return None
    graph = _Graph(graphs[0])
    scans = [node for node in graph.nodes if node.operator == "Scan"]
    if len(scans) < 2 or any(graph.outputs & set(scan.outputs) for scan in scans):
        return None
    made = [tuple(name for name in scan.outputs if name in graph.used) for scan in scans]
    needed = [graph.above(names) for names in made]
    if any(other is not scan and other in nodes for scan, nodes in zip(scans, needed, strict=True) for other in scans):
        return None
    given = [scan.value(name) for scan, names in zip(scans, made, strict=True) for name in names]
    around = b"".join(_write(key, found) for key, found in model if key != _GRAPH)
    return Cut(
        branches=tuple(
            around + field(_GRAPH, graph.part(nodes, outputs=[scan.value(name) for name in names]))
            for scan, names, nodes in zip(scans, made, needed, strict=True)
        ),
        made=tuple(made),
        rest=around + field(_GRAPH, graph.part(graph.above(graph.outputs, scans), inputs=given)),
    )


class _Graph:
    """A GraphProto whose nodes can be taken apart.

    Attributes:
        nodes: each after those whose outputs it takes, as ONNX has it.
        outputs: names of the graph's outputs.
        used: names of all tensors that a node takes.
    """

    def __init__(self, graph: memoryview, depth: int = 1) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"graphs must be nested at most {MAX_DEPTH} deep")
        self._fields = list(read_fields(graph))
        parts = [(key, found) for key, found in self._fields if isinstance(found, memoryview)]
        self.nodes = [_Whole(found, depth) for key, found in parts if key == _NODE]
        self.outputs = {_name(found, 1) for key, found in parts if key == _OUTPUT}
        self.used = {name for node in self.nodes for name in node.taken}
        self._weights = [(_name(found, 8), found) for key, found in parts if key == _INITIALIZER]

    def above(self, names: Iterable[str], without: Collection[_Whole] = ()) -> list[_Whole]:
        """The nodes that some tensors are computed by, none of `without` and of what only these need among them."""
        wanted, found = set(names), []
        for node in reversed(self.nodes):
            if node not in without and wanted.intersection(node.outputs):
                found.append(node)
                wanted |= node.taken
        return found[::-1]

    def part(self, nodes: list[_Whole], inputs: Iterable[bytes] = (), outputs: Iterable[bytes] = ()) -> bytes:
        """A graph of some nodes and their weights, with more inputs, and with other outputs where some are given."""
        taken = {name for node in nodes for name in node.taken}
        outputs = list(outputs)
        replaced = {_NODE, _INITIALIZER, *([_OUTPUT] if outputs else [])}
        return b"".join(
            [
                *(_write(key, found) for key, found in self._fields if key not in replaced),
                *(field(_NODE, bytes(node.raw)) for node in nodes),
                *(field(_INITIALIZER, bytes(weight)) for name, weight in self._weights if name in taken),
                *(field(_INPUT, value) for value in inputs),
                *(field(_OUTPUT, value) for value in outputs),
            ]
        )


class _Whole(Node):
    """A node together with its bytes.

    Attributes:
        raw: the NodeProto.
        taken: names of the tensors it takes, those that the graphs inside it take from around them included.
    """

    def __init__(self, raw: memoryview, depth: int) -> None:
        super().__init__(raw)
        self.raw = raw
        self.taken = {name for name in self.inputs if name}
        for body in self.bodies:
            inner = _Graph(body, depth + 1)
            self.taken |= inner.used | inner.outputs

    def value(self, output: str) -> bytes:
        """The ValueInfoProto of one of a Scan's outputs: its type is that of the body's, its shape left open."""
        infos = [found for body in self.bodies for key, found in read_fields(body) if key == _OUTPUT]
        if len(infos) != len(self.outputs):
            raise ValueError("a Scan must have one body, with an output for each of its own")
        info = infos[self.outputs.index(output)]
        kind = _inside(_inside(_inside(info, 2), 1), 1)  # ValueInfoProto.type, TypeProto.tensor_type, Tensor.elem_type
        if not isinstance(kind, int):
            raise ValueError("an element type must be a number")
        return text(1, output) + field(2, field(1, number(1, kind)))


def _inside(message: memoryview | int, key: int) -> memoryview | int:
    """The field `key` of a message."""
    if isinstance(message, memoryview):
        for number_, found in read_fields(message):
            if number_ == key:
                return found
    raise ValueError(f"a field {key} is missing")


def _name(message: memoryview, key: int) -> str:
    return read_string(_inside(message, key))


def _write(key: int, found: memoryview | int) -> bytes:
    return number(key, found) if isinstance(found, int) else field(key, bytes(found))
