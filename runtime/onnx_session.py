"""The one place where onnxruntime's sessions are made: their threads, their log, and integer products that are exact.

On an x86 without VNNI (most servers before 2019) onnxruntime multiplies uint8 by int8 with an instruction that adds
two products in int16 and saturates, in silence. Its option `session.x64quantprecision` computes exactly there, if more
slowly, wherever a weight is a constant of the graph that its product is in and has a zero point. On other processors it
changes no result, but it makes uint8 weights of int8 ones there, too, which took 1.2 to 2.3 times as long on a Zen 4
(onnxruntime 1.32). So a known product is computed once a process to see what this processor does. Only where it
saturates is the option set, and a graph with a product that the option does not reach refused. (Without a zero point
onnxruntime 1.22 would multiply wrongly, or end the process.)

https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html (When to use S8S8 or U8S8)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .checks import check_threads
from .cpus import usable_cpus
from .errors import BackendError
from .extras import needs
from .files import is_utf8
from .onnx_bytes import INT8, INT32, UINT8, constant, model, node, read_integer_products, value

_log = logging.getLogger(__name__)

CPU = "CPUExecutionProvider"
_EXACT = ("session.x64quantprecision", "1")
_TERMS = 64
# Severities of its log: https://onnxruntime.ai/docs/api/python/api_summary.html (SessionOptions)
WARNINGS, ERRORS, FATAL = 2, 3, 4


def import_onnxruntime(purpose: str, extra: str = "cpu") -> Any:
    """onnxruntime's module; MissingExtra names the purpose and the extra that brings it."""
    with needs("onnxruntime", purpose, extra):
        import onnxruntime
    return onnxruntime


def open_session(
    graph: str | Path | bytes,
    threads: int | None = None,
    *,
    provider: tuple[str, Mapping[str, str]] = (CPU, {}),
    devices: Sequence[Any] = (),
    log: int = ERRORS,
    log_id: str = "",
    name: str | None = None,
    purpose: str = "running an ONNX graph",
    instead: str = "use precision fp32, or export the int8 graphs again",
) -> Any:
    """An onnxruntime session.

    Args:
        graph: an ONNX file, or a serialized model.
        threads: threads inside one operator; None for one per CPU this process may use. onnxruntime then pins none of
            them, which it tries when it chooses the number itself, and may not do in a container.
        provider: execution provider and its options.
        devices: of a plugin's provider, where that is not one onnxruntime was built with.
        log: the least severe messages to log; errors are raised as well.
        log_id: what the session's lines in the log carry; those of onnxruntime itself, on its threads for instance, do
            not.
        name: what errors call the graph; None for its file.
        purpose: what needs onnxruntime, for the error where it is missing.
        instead: what to do where the graph's integer products would saturate on this CPU, for the error.

    Raises:
        InputError: threads below 1, or more than any machine starts.
        MissingExtra: onnxruntime is not installed.
        BackendError: the graph's integer products would saturate on this CPU.
        Exception: whatever onnxruntime raises; its exceptions have no other base.
    """
    check_threads(threads)
    ort = import_onnxruntime(purpose)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = log
    options.logid = log_id
    # A Matcher's sessions run one after the other: threads that spin would take the next one's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not products_are_exact(ort)[1]:
        options.add_session_config_entry(*_EXACT)
    file = graph if isinstance(graph, bytes) else _as_utf8(Path(graph))
    if devices:
        options.add_provider_for_devices(list(devices), dict(provider[1]))
        return ort.InferenceSession(file, options)
    if provider[0] == CPU:
        _check_products(ort, graph, name or ("the graph" if isinstance(graph, bytes) else str(graph)), instead)
    return ort.InferenceSession(file, options, providers=[(provider[0], dict(provider[1]))])


def _as_utf8(file: Path) -> str | bytes:
    """A file as onnxruntime takes it: its path, or where that is not UTF-8 what it holds."""
    return str(file) if is_utf8(file) else file.read_bytes()


def _check_products(ort: Any, graph: str | Path | bytes, name: str, instead: str) -> None:
    """BackendError where a graph's integer products saturate on this CPU."""
    with_option, without = products_are_exact(ort)
    if without:
        return
    try:
        found = read_integer_products(memoryview(graph if isinstance(graph, bytes) else Path(graph).read_bytes()))
    except ValueError:  # no ONNX model: onnxruntime says what is wrong with it
        return
    wrong = [product for product in found if not (with_option and product.local)]
    if wrong:
        raise BackendError(
            f"{name}: its int8 products saturate on this CPU, which is an x86 without VNNI instructions, so that its "
            f"results would be wrong ({wrong[0].operator} {wrong[0].output}): {instead}"
        )
    if found:
        _log.info("%s: int8 products would saturate on this CPU; slower ones are used, which are exact", name)


@cache
def products_are_exact(ort: Any) -> tuple[bool, bool]:
    """Whether uint8 x int8 is exact on this CPU: a constant weight with the option set, and any weight without it.

    The product is of the largest values, which is the first to saturate: 64 times 255 x 127.
    """
    left, right = bytes([255] * _TERMS), bytes([127] * _TERMS)
    inputs = [value("left", UINT8, 1, _TERMS), value("right", INT8, _TERMS, 1)]
    product = node("MatMulInteger", ["left", "right", "left_zero", "right_zero"], ["product"])
    zeros = [constant("left_zero", UINT8, (), b"\0"), constant("right_zero", INT8, (), b"\0")]
    output = value("product", INT32, 1, 1)
    feeds = {
        "left": np.frombuffer(left, np.uint8).reshape(1, _TERMS),
        "right": np.frombuffer(right, np.int8).reshape(_TERMS, 1),
    }

    def is_exact(serialized: bytes, names: Sequence[str], *entries: tuple[str, str]) -> bool:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        for entry in entries:
            options.add_session_config_entry(*entry)
        session = ort.InferenceSession(serialized, options, providers=[CPU])
        (found,) = session.run(None, {name: feeds[name] for name in names})
        return int(found[0, 0]) == 255 * 127 * _TERMS

    stored = model([product], [*zeros, constant("right", INT8, (_TERMS, 1), right)], inputs[:1], output)
    given = model([product], zeros, inputs, output)
    return (
        is_exact(stored, ("left",), _EXACT),
        is_exact(stored, ("left",)) and is_exact(given, ("left", "right")),
    )
