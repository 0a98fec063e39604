"""The one place where onnxruntime's sessions are made: how many threads they take, and what they log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .cpus import usable_cpus
from .extras import needs

CPU = "CPUExecutionProvider"
WARNINGS, ERRORS, FATAL = (
    2,
    3,
    4,
)  # onnxruntime's severities, see https://onnxruntime.ai/docs/api/python/api_summary.html


def import_onnxruntime(purpose: str, extra: str = "cpu") -> Any:
    """onnxruntime's module; MissingExtra names the purpose and the extra that brings it."""
    with needs("onnxruntime", purpose, extra):
        import onnxruntime
    return onnxruntime


def open_session(
    model: str | Path | bytes,
    threads: int | None = None,
    *,
    provider: tuple[str, Mapping[str, str]] = (CPU, {}),
    devices: Sequence[Any] = (),
    log: int = ERRORS,
    log_id: str = "",
    purpose: str = "running an ONNX graph",
    extra: str = "cpu",
) -> Any:
    """An onnxruntime session.

    Args:
        model: an ONNX file, or a serialized model.
        threads: threads inside one operator; None for one per CPU this process may use. onnxruntime then pins none of
            them, which it tries when it chooses the number itself, and may not do in a container.
        provider: execution provider and its options.
        devices: of a plugin's provider, where that is not one onnxruntime was built with.
        log: the least severe messages to log; errors are raised as well.
        log_id: what the session's lines in the log carry; those of onnxruntime itself, on its threads for instance, do
            not.
        purpose: what needs onnxruntime, for the error where it is missing.
        extra: the extra that brings the provider.

    Raises:
        MissingExtra: onnxruntime is not installed.
        Exception: whatever onnxruntime raises; its exceptions have no other base.
    """
    ort = import_onnxruntime(purpose, extra)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cpus()
    options.inter_op_num_threads = 1
    options.log_severity_level = log
    options.logid = log_id
    # A Matcher's sessions run one after the other: threads that spin would take the next one's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    file = model if isinstance(model, bytes) else str(model)
    if devices:
        options.add_provider_for_devices(list(devices), dict(provider[1]))
        return ort.InferenceSession(file, options)
    return ort.InferenceSession(file, options, providers=[(provider[0], dict(provider[1]))])
