"""Each step of the core that narrows a bound, called by itself and compared with similarities computed exactly.

`core_bounds.cpp` is compiled together with the core's sources; plain C++ kernels serve it, as the others give the same
bits (test_core_instructions.py). Searches compared end to end hardly notice a bound that is a little too narrow.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CORE = ROOT / "runtime" / "gallery" / "core"
SOURCES = ("bounds", "pairs", "fine", "query", "above", "search", "threads", "generic")
CLAIMS = {
    *("query norm", "query rest", "query along", "query lost", "query lost by high digits", "first level"),
    *("second level", "second level of a pair", "words by codes", "pairs by codes", "dropped pairs hold no maximum"),
    *("row by pairs", "row by codes of pairs", "row by all codes", "pooled similarity", "held pairs"),
    *("words by fine copies", "row by fine pairs", "fine score", "float32 similarity", "decided maxima"),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checks, compiled as setup.py compiles the core but for less optimization."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is missing: apt-get install g++")
    (found,) = re.findall(r"extra_compile_args=\[(.*?)\]", (ROOT / "setup.py").read_text(encoding="utf-8"), re.DOTALL)
    out = tmp_path_factory.mktemp("bounds") / "check"
    sources = [Path(__file__).with_name("core_bounds.cpp"), *(CORE / f"{name}.cpp" for name in SOURCES)]
    subprocess.run([compiler, *re.findall(r'"(.*?)"', found), "-O1", f"-I{CORE}", *sources, "-o", out], check=True)
    return out


@pytest.mark.parametrize("cases", [5000, pytest.param(100_000, marks=pytest.mark.nightly)])
def test_every_step_bounds_what_it_claims_to(cases: int, program: Path) -> None:
    ran = subprocess.run([program, str(cases)], check=True, capture_output=True, text=True, timeout=1200)
    lines = [line.split(",") for line in ran.stdout.splitlines()]
    assert {name for name, _, _, _ in lines} == CLAIMS
    assert {name: int(failed) for name, _, failed, _ in lines if int(failed)} == {}
    assert min(int(times) for _, times, _, _ in lines) > cases // 2
