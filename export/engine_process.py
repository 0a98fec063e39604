"""The process that builds one engine, and the script that builds the same where it fails."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..runtime.backends.tf32 import VARIABLE
from ..runtime.errors import EngineError, quoted

_WORKER = ("-m", "chan_rt.export.engine_worker")

# What polygraphy has no option for, as it calls it after its own settings.
_RTX_SETTINGS = """\
import tensorrt_rtx as trt

def postprocess_config(builder, network, config):
    config.clear_flag(trt.BuilderFlag.TF32)
    gpus = {gpus}
    config.num_compute_capabilities = len(gpus)
    for index, number in enumerate(gpus):
        config.set_compute_capability(trt.ComputeCapability(number), index)
"""


def reproduce(request: Mapping[str, Any]) -> str:
    """A shell script that builds the same engine with polygraphy alone, TF32 off."""
    command = ["polygraphy", "convert", request["onnx"], "--convert-to", "trt", "--strongly-typed", "-o", "engine"]
    rtx = request["flavor"] == "tensorrt_rtx"
    for profile in request["profiles"]:
        for bound in ("min", "opt", "max"):
            shapes = [f"{name}:[{','.join(map(str, shape[bound]))}]" for name, shape in profile.items()]
            command += [f"--trt-{bound}-shapes", *shapes]
    if request["options"]["version_compatible"]:
        command += ["--version-compatible", "--exclude-lean-runtime"]
    if request["options"]["hardware_compatible"]:
        command += ["--hardware-compatibility-level", "ampere_plus"]
    head = f"#!/bin/sh\nunset {VARIABLE}\n"  # as in `run_worker`
    if not rtx:  # polygraphy clears TF32 for TensorRT
        return f"{head}{shlex.join(command)} --verbose\n"
    numbers = [int(gpu.removeprefix("sm_")) for gpu in request["gpus"]]
    settings = _RTX_SETTINGS.format(gpus=numbers)
    command += ["--trt-config-postprocess-script", "engine_settings.py"]
    write = f"cat > engine_settings.py <<'END'\n{settings}END\n"
    return f"{head}{write}POLYGRAPHY_USE_TENSORRT_RTX=1 {shlex.join(command)} --verbose\n"


def run_worker(
    work: Path, request: Mapping[str, Any], what: str, script: Path, progress: Callable[[str], None] | None
) -> dict[str, Any]:
    """Build one engine: WORK/engine, and the worker's report of it.

    Args:
        work: an empty folder.
        request: what to build, as `engine_worker` reads it.
        what: the graph and its precision, for the error.
        script: removed when the engine was built, and else written: it reproduces the failure.
        progress: called with the name of each phase of the build.

    Raises:
        EngineError: it does not build; the message names the script.
    """
    (work / "request.json").write_text(json.dumps(request))
    environment = os.environ | {"POLYGRAPHY_AUTOINSTALL_DEPS": "0"}
    environment.pop(VARIABLE, None)  # it would enter the engine's bytes, but not its name
    environment["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if request["flavor"] == "tensorrt_rtx" else "0"
    with open(work / "stderr", "w+", errors="replace") as stderr:
        command = [sys.executable, *_WORKER, str(work)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment, text=True) as worker:
            try:
                for phase in worker.stdout or ():
                    if progress is not None:
                        progress(phase.strip())
                status = worker.wait()
            finally:
                worker.kill()
        if status == 0:
            script.unlink(missing_ok=True)
            report: dict[str, Any] = json.loads((work / "report.json").read_text())
            return report
        error = work / "error.txt"
        reason = (
            error.read_text("utf-8", "surrogateescape")
            if error.exists()
            else f"the builder's process died with status {status}"
        )
        stderr.seek(0)
        logged = [line.strip() for line in stderr if line.startswith(("[E]", "[!]"))]
    script.write_bytes(reproduce(request).encode("utf-8", "surrogateescape"))
    details = "; ".join(dict.fromkeys([reason, *logged[-3:]]))
    raise EngineError(f"{what} does not build with {request['flavor']}: {details}; reproduce with: sh {quoted(script)}")
