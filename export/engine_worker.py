"""Build one engine in a process of its own: `python -m chan_rt.export.engine_worker FOLDER`.

A process, because polygraphy chooses between TensorRT and TensorRT-RTX once, when it is imported (environment variable
POLYGRAPHY_USE_TENSORRT_RTX), because both libraries keep one logger per process, and because a builder that crashes or
is killed must leave its caller alive.

FOLDER/request.json describes what to build. The worker writes FOLDER/engine, FOLDER/build.log and, at the end,
FOLDER/report.json. Each line on stdout is the name of a phase of the build.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from ..runtime.backends.rtx_gpus import gpus_in_header
from ..runtime.files import is_utf8
from .engine_layers import from_build_log, from_inspector, memory_from_build_log


def main(folder: Path) -> None:
    """Carry out FOLDER/request.json; an exception's text goes to FOLDER/error.txt and the exit status is 1."""
    phases = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # nothing a library prints may be taken for a phase
    try:
        report = build(folder, json.loads((folder / "request.json").read_text()), phases)
    except Exception as error:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}", "utf-8", "surrogateescape")
        raise SystemExit(1) from error
    (folder / "report.json").write_text(json.dumps(report))


def build(folder: Path, request: dict[str, Any], phases: TextIO) -> dict[str, Any]:
    """Parse, build and read back; the report of what was really built."""
    from polygraphy.backend import trt as poly
    from polygraphy.logger import G_LOGGER
    from polygraphy.mod.trt_importer import lazy_import_trt

    trt = lazy_import_trt()
    rtx = request["flavor"] == "tensorrt_rtx"
    log = folder / "build.log"
    G_LOGGER.log_file = str(log)
    G_LOGGER.module_severity = G_LOGGER.EXTRA_VERBOSE  # the build log ends with the engine's layers, types included

    profiles = []
    for wanted in request["profiles"]:
        profile = poly.Profile()
        for name, shapes in wanted.items():
            profile.add(name, min=shapes["min"], opt=shapes["opt"], max=shapes["max"])
        profiles.append(profile)
    # TensorRT 11 networks are always strongly typed; before, that was a flag.
    typed = hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED")
    graph = request["onnx"]
    if is_utf8(graph):
        builder, network, parser = poly.network_from_onnx_path(graph, strongly_typed=typed)
    else:  # the parser opens paths in UTF-8 only
        builder, network, parser = poly.network_from_onnx_bytes(Path(graph).read_bytes(), strongly_typed=typed)
    config = {"profiles": profiles, "progress_monitor": _monitor(trt, phases)}
    if rtx:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX as CreateConfig  # no timing cache: it needs a GPU
    else:
        from polygraphy.backend.trt import CreateConfig

        options = request["options"]
        config |= {"version_compatible": options["version_compatible"], "load_timing_cache": request["timing_cache"]}
        config["exclude_lean_runtime"] = options["version_compatible"]  # engines must not carry host code
        if options["hardware_compatible"]:
            config["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    settings = CreateConfig(**config)(builder, network)
    # TensorFloat-32 keeps 10 bits of a float32's 23. TensorRT-RTX has it on by default, and polygraphy leaves it so.
    settings.clear_flag(trt.BuilderFlag.TF32)
    if rtx:
        _choose_gpus(trt, settings, request["gpus"])
    if settings.get_flag(trt.BuilderFlag.TF32) is not request["options"]["tf32"]:
        raise RuntimeError("the builder did not turn TF32 off")
    started = time.perf_counter()
    blob = poly.engine_bytes_from_network(
        (builder, network, parser), config=settings, save_timing_cache=None if rtx else request["timing_cache"]
    )
    seconds = time.perf_counter() - started
    data = bytes(blob)
    warnings = _check_header(trt, data, request["gpus"]) if rtx else []
    (folder / "engine").write_bytes(data)
    text = log.read_text(errors="replace")
    layers = _inspect(trt, data) if request["inspect"] else from_build_log(text)
    return {
        "version": trt.__version__,
        "seconds": seconds,
        "inputs": _tensors(network.num_inputs, network.get_input),
        "outputs": _tensors(network.num_outputs, network.get_output),
        "network": _network_types(network),
        "layers": layers,
        "memory": memory_from_build_log(text),
        "warnings": warnings,
    }


def _check_header(trt: Any, engine: bytes, gpus: list[str]) -> list[str]:
    """The header must name the GPUs that were asked for; what to warn of where it cannot be read.

    A header of a form that is not known is no error: a newer library may have another one, and checks it itself when it
    loads the engine.
    """
    found = gpus_in_header(engine, trt)
    if found is None:
        return [
            f"its header has a form that is not known (TensorRT-RTX {trt.__version__}), so nobody checked that it runs "
            f"on {', '.join(gpus)}"
        ]
    if found != tuple(gpus):
        raise RuntimeError(f"the engine was to run on {', '.join(gpus)}, its header says {', '.join(found) or 'none'}")
    return []


def _choose_gpus(trt: Any, settings: Any, gpus: list[str]) -> None:
    """Let the engine run on these architectures; left alone, the library adds some that it does not name."""
    settings.num_compute_capabilities = len(gpus)
    for index, gpu in enumerate(gpus):
        if not settings.set_compute_capability(trt.ComputeCapability(int(gpu.removeprefix("sm_"))), index):
            raise RuntimeError(f"the builder does not take {gpu}")


def _monitor(trt: Any, phases: TextIO) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tells the parent process which phase has begun."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.write(f"{phase_name}\n")

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None:
            return None

    return Monitor()


def _inspect(trt: Any, data: bytes) -> dict[str, Any]:
    """Layers as EngineInspector reports them. The engine is loaded, which needs its GPU; host code in it stays off."""
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise RuntimeError("the engine that was just built cannot be loaded; its build log has the reason")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return from_inspector(json.loads(text))


def _tensors(count: int, get: Any) -> list[dict[str, Any]]:
    return [{"name": t.name, "dtype": t.dtype.name, "shape": list(t.shape)} for t in map(get, range(count))]


def _network_types(network: Any) -> dict[str, int]:
    """How many layers of the parsed, strongly typed network read each type."""
    counts: dict[str, int] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        for name in {tensor.dtype.name for tensor in inputs if tensor is not None}:
            counts[name] = counts.get(name, 0) + 1
    return counts


if __name__ == "__main__":
    main(Path(sys.argv[1]))
