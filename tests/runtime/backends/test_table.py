"""One table of backends: what else knows backends by name agrees with it."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from chan_rt.runtime.backends.table import BACKENDS, FLAVORS, ON_DEVICE
from chan_rt.runtime.doctor import examine
from chan_rt.runtime.extras import EXTRAS

PACKAGE = Path(__file__).parents[3] / "runtime" / "backends"


def test_flavors_are_the_backends_that_run_engines() -> None:
    assert tuple(name for name, info in BACKENDS.items() if info.runs == "engine") == FLAVORS


def test_backends_that_take_tensors_of_gpu_memory_are_listed() -> None:
    classes = {
        path.stem: {
            item.name
            for node in ast.parse(path.read_text()).body
            for item in getattr(node, "body", ())
            if isinstance(item, ast.FunctionDef)
        }
        for path in PACKAGE.glob("*.py")
    }
    defines = {name for name in BACKENDS if "run_on_device" in classes[name]}
    assert defines | {"tensorrt_rtx"} == set(ON_DEVICE), "tensorrt_rtx is tensorrt's class"


def test_every_backend_has_a_module_that_opens_its_files() -> None:
    defines = {path.stem for path in PACKAGE.glob("*.py") if "\ndef open_file(" in path.read_text()}
    assert defines == set(BACKENDS)
    assert all(importlib.util.find_spec(f"chan_rt.runtime.backends.{name}") for name in BACKENDS)


def test_every_backend_is_brought_by_its_extra() -> None:
    for name, info in BACKENDS.items():
        assert info.package in EXTRAS[info.extra], name
        assert info.gpu == (info.extra != "cpu"), name


def test_the_doctor_examines_every_backend_in_this_order() -> None:
    assert [report.name for report in examine().backends] == list(BACKENDS)
