"""Read an engine's layers and the precision each computes in, from EngineInspector or from the end of a build log.

EngineInspector needs the engine loaded, hence its GPU. TensorRT-RTX builds without one; there the builder's own log, at
verbose level, ends with the same list for the engine just built.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from ..runtime.errors import EngineError

# In order of precedence: a layer that reads int8 is an int8 layer, whatever the type of its scales.
TYPES = ("Int8", "Half", "BFloat16", "Float")
WANTED: Mapping[str, str | None] = {"fp32": None, "fp16": "Half", "int8": "Int8"}
_ALIASES = {"INT8": "Int8", "FP16": "Half", "HALF": "Half", "BF16": "BFloat16", "FP32": "Float", "FLOAT": "Float"}
_MATRIX = re.compile(r"gemm|matmul|matrix|fully|conv|mha|attention", re.IGNORECASE)


def from_inspector(information: Mapping[str, Any]) -> dict[str, Any]:
    """Layers of EngineInspector's JSON (TensorRT 10 and 11 name a tensor's type differently)."""

    def types(tensors: Iterable[Mapping[str, Any]]) -> list[str]:
        return [str(t.get("Datatype") or t.get("Format/Datatype") or t.get("Format") or "") for t in tensors]

    layers = []
    for layer in information.get("Layers", []):
        if isinstance(layer, str):
            raise EngineError("the engine was built without detailed profiling, so its precision cannot be read back")
        reads = types(layer.get("Inputs", [])) + types(layer.get("Constants", []))
        layers.append(_layer(str(layer["Name"]), str(layer["LayerType"]), reads, types(layer.get("Outputs", []))))
    return _summary("engine inspector", layers)


def from_build_log(text: str) -> dict[str, Any]:
    """Layers of the list that closes a verbose build log; EngineError when the log has none."""
    at = text.rfind("Layers:\n")
    if at < 0:
        raise EngineError("the build log does not list the engine's layers, so its precision cannot be read back")
    layers = []
    for line in text[at:].splitlines()[1:]:
        if line.strip() == "I/O Tensors:":
            break
        match = re.match(r"\s*Name: (.*?), LayerType: (\w+), (Inputs: .*)$", line)
        if match is None:
            continue  # a layer's metadata may run over several lines
        reads, _, rest = match[3].partition("Outputs: [")
        writes = rest.partition("TacticName")[0]
        layers.append(_layer(match[1], match[2], *(re.findall(r"Datatype: (\w+)", part) for part in (reads, writes))))
    return _summary("build log", layers)


def memory_from_build_log(text: str) -> dict[str, Any]:
    """Bytes of weights, and of activations for each profile, as the builder logged them; empty where it did not."""
    activations = [int(size) for size in re.findall(r"Total Activation Memory: (\d+) bytes", text)]
    weights = re.findall(r"Total Weights Memory: (\d+) bytes", text)
    memory: dict[str, Any] = {"activation_bytes": activations} if activations else {}
    return memory | ({"weight_bytes": int(weights[-1])} if weights else {})


def check_precision(precision: str, layers: Mapping[str, Any], network: Mapping[str, int], what: str) -> None:
    """Refuse an engine that does not have the precision that was requested.

    fp16 and int8 must show in at least one layer, and in at least one matrix product where the engine has any; an fp32
    engine must show neither. Half layers beside int8 ones, and Float islands beside both, are as they should be.

    Args:
        precision: fp32, fp16 or int8.
        layers: as `from_inspector` or `from_build_log` gives them.
        network: layers of the parsed network by the types they read.
        what: names the engine in the message.

    Raises:
        EngineError: the message states whether the ONNX file or the builder is the cause.
    """
    wanted = WANTED[precision]
    counts, matrix = layers["by_precision"], layers["matrix"]
    if wanted is None:
        low = {name: counts[name] for name in ("Half", "Int8") if counts.get(name)}
        if low:
            raise EngineError(f"{what} was to be fp32, but has layers of lower precision: {low}")
        return
    if not network.get(wanted.upper()):
        raise EngineError(f"{what} was to be {precision}, but its ONNX graph has no {wanted} tensor: export it again")
    if not counts.get(wanted) or (matrix and not matrix.get(wanted)):
        raise EngineError(
            f"{what} was to be {precision}, but the builder chose otherwise: layers {counts}, matrix products {matrix}"
        )


def _layer(name: str, kind: str, reads: Iterable[str], writes: Iterable[str]) -> dict[str, str]:
    found = {_type(text) for text in reads} or {_type(text) for text in writes}
    precision = next((name for name in TYPES if name in found), "other")
    return {"name": name, "type": kind, "precision": precision}


def _type(text: str) -> str:
    for word in re.findall(r"\w+", text):
        if word in TYPES or word.upper() in _ALIASES:
            return word if word in TYPES else _ALIASES[word.upper()]
    return "other"


def _summary(source: str, layers: list[dict[str, str]]) -> dict[str, Any]:
    # The type of a fused attention is that of any generated kernel; its name shows what it is.
    matrix = Counter(one["precision"] for one in layers if _MATRIX.search(one["type"]) or "_gemm_" in one["name"])
    counts = Counter(layer["precision"] for layer in layers)
    return {"source": source, "by_precision": dict(counts), "matrix": dict(matrix), "each": layers}
