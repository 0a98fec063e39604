"""The core's kernels give the same bits with every instruction set: on this CPU, and on others that qemu emulates.

The compilers and qemu are Debian's and Ubuntu's packages g++, g++-aarch64-linux-gnu and qemu-user; `.ci/run` installs
them. qemu has no AVX-512, AVX-VNNI or AMX, so these run only where this CPU has them. AVX-VNNI's kernels are also
compiled to the instructions that CPUs with AVX-512 have for the same registers, and AMX's with its tiles in plain C++.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import defaultdict
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from chan_rt.runtime.contract import AlignmentConfig
from chan_rt.runtime.errors import BackendError
from chan_rt.runtime.gallery import Gallery, compiled
from chan_rt.runtime.gallery.kernels.choose import open_kernel
from chan_rt.runtime.gallery.proof.gallery_rows import GalleryRows

ROOT = Path(__file__).parents[3]
CORE = ROOT / "runtime" / "gallery" / "core"
DRIVER = Path(__file__).with_name("core_driver.cpp")
SEARCH = Path(__file__).with_name("core_search.py")
SOURCES = ("usable", "generic", "avx512", "amx", "avx2", "avxvnni", "i8mm", "dotprod")
OF_ONE_CPU = ("avx512", "amx", "avx2", "avxvnni", "i8mm", "dotprod")
COMPILERS = {"x86_64": "g++", "aarch64": "aarch64-linux-gnu-g++"}
STAND_INS = {"avxvnni": "-DCHAN_EVEX", "amx": "-DCHAN_EMULATED_TILES"}
FUNCTIONS = {
    *("block_over_row", "block_over_query", "row_sums", "row_over_query", "pair_sums", "lead"),
    *("products", "half_products", "pair_products", "dot", "widen", "narrow", "widen_fixed", "pool_lanes"),
}

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulated CPUs are started from an x86-64")


def flags() -> list[str]:
    """What setup.py compiles the core with: Python's own flags, then its own."""
    own = (sysconfig.get_config_var("CFLAGS") or "").split()
    (found,) = re.findall(r"extra_compile_args=\[(.*?)\]", (ROOT / "setup.py").read_text(encoding="utf-8"), re.DOTALL)
    return [*(flag for flag in own if flag.startswith(("-f", "-O", "-D"))), *re.findall(r'"(.*?)"', found)]


def needed(program: str, package: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is missing: apt-get install {package}")
    return found


class Builds:
    """Objects and drivers, each compiled once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.compile = cache(self._compile)
        self.driver = cache(self._driver)

    def _compile(self, machine: str, source: Path, *defines: str) -> Path:
        package = {"x86_64": "g++", "aarch64": "g++-aarch64-linux-gnu"}[machine]
        compiler = needed(COMPILERS[machine], package)
        out = self._folder / "-".join((machine, source.stem, *defines, ".o"))
        subprocess.run([compiler, *flags(), *defines, f"-I{CORE}", "-c", source, "-o", out], check=True)
        return out

    def _driver(self, machine: str, stand_ins: bool = False) -> Path:
        objects = [self.compile(machine, DRIVER)]
        for name in SOURCES:
            defines = [STAND_INS[name]] if stand_ins and name in STAND_INS else []
            objects.append(self.compile(machine, CORE / f"{name}.cpp", *defines))
        out = self._folder / f"driver-{machine}-{stand_ins}"
        subprocess.run([COMPILERS[machine], "-static", "-pthread", *objects, "-o", out], check=True)
        return out


@pytest.fixture(scope="module")
def builds(tmp_path_factory: pytest.TempPathFactory) -> Builds:
    return Builds(tmp_path_factory.mktemp("driver"))


def results(driver: Path, *emulator: str) -> dict[str, dict[str, str]]:
    """For each instruction set that the driver could use, the hash of each function's results."""
    command = [*emulator, str(driver)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for line in ran.stdout.splitlines():
        name, function, digest = line.split()
        found[name][function] = digest
    return found


@pytest.fixture(scope="module")
def expected(builds: Builds) -> dict[str, str]:
    """What plain C++ computes on this CPU."""
    found = results(builds.driver("x86_64"))["generic"]
    assert found.keys() == FUNCTIONS
    return found


def test_this_cpu(builds: Builds, expected: dict[str, str]) -> None:
    found = results(builds.driver("x86_64"))
    assert found == dict.fromkeys(found, expected)


def test_instructions_that_others_stand_in_for(builds: Builds, expected: dict[str, str]) -> None:
    found = results(builds.driver("x86_64", stand_ins=True))
    if "avx512_vnni" not in found:
        pytest.skip("this CPU has no AVX-512 VNNI")
    assert {"avx_vnni", "amx"} <= found.keys()
    assert found == dict.fromkeys(found, expected)


@pytest.mark.parametrize(
    ("machine", "cpu", "sets"),
    [
        ("x86_64", "Haswell-noTSX", ["avx2", "generic"]),
        ("x86_64", "Nehalem", ["generic"]),
        ("aarch64", "max", ["neon_i8mm", "neon_dotprod", "generic"]),
        ("aarch64", "cortex-a76", ["neon_dotprod", "generic"]),
        ("aarch64", "cortex-a72", ["generic"]),
    ],
)
def test_an_emulated_cpu(machine: str, cpu: str, sets: list[str], builds: Builds, expected: dict[str, str]) -> None:
    emulator = needed(f"qemu-{machine}", "qemu-user")
    found = results(builds.driver(machine), emulator, "-cpu", cpu)
    assert list(found) == sets  # the best first, and none that this CPU lacks
    assert found == dict.fromkeys(sets, expected)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_no_function_for_one_instruction_set_can_replace_one_for_all(machine: str, builds: Builds) -> None:
    """The linker keeps one copy of a weak function, such as an instance of a library's template, for all files."""
    for name in OF_ONE_CPU:
        compiled = builds.compile(machine, CORE / f"{name}.cpp")
        listed = subprocess.run(["nm", "-C", compiled], check=True, capture_output=True, text=True).stdout
        assert re.findall(r"^\w* [WVu] .*", listed, re.MULTILINE) == []


def run_checked(folder: Path, sanitizers: str, *sources: Path) -> str:
    """What a program prints that is compiled with sanitizers; what they find makes it fail."""
    out = folder / "checked"
    checks = ["-g", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", *STAND_INS.values()]
    subprocess.run([needed("g++", "g++"), *flags(), "-O1", *checks, f"-I{CORE}", *sources, "-o", out], check=True)
    return subprocess.run([out], check=True, capture_output=True, text=True, timeout=600).stdout


@pytest.mark.nightly
def test_no_kernel_reads_or_computes_what_is_undefined(tmp_path: Path) -> None:
    printed = run_checked(tmp_path, "address,undefined", DRIVER, *(CORE / f"{name}.cpp" for name in SOURCES))
    assert {line.split()[1] for line in printed.splitlines()} == FUNCTIONS


@pytest.mark.parametrize("step", [97, pytest.param(1, marks=pytest.mark.nightly)])
def test_pooling_is_as_close_in_float32_as_its_bounds_allow_for(step: int, tmp_path: Path) -> None:
    """Of exponentials in steps of so many float32 numbers, and of logarithms; see pool_lanes.h."""
    out = tmp_path / "pooling"
    source = DRIVER.with_name("core_pooling.cpp")
    subprocess.run([needed("g++", "g++"), *flags(), f"-I{CORE}", source, "-o", out], check=True)
    printed = subprocess.run([out, str(step)], check=True, capture_output=True, text=True, timeout=600).stdout
    exponentials, logarithms, exactly = map(float, printed.split())
    assert 3 < exponentials < 5
    assert 1 < logarithms < 3
    assert exactly == 1


@pytest.mark.nightly
def test_callers_of_one_pool_of_threads_do_not_race(tmp_path: Path) -> None:
    run_checked(tmp_path, "thread", DRIVER.with_name("core_threads.cpp"), CORE / "threads.cpp")


@pytest.fixture(scope="module")
def search_results() -> str:
    """What `core_search.py` prints on this CPU."""
    pytest.importorskip("chan_rt.runtime.gallery._core", reason="the search core is not compiled here")
    ran = subprocess.run([sys.executable, SEARCH], check=True, capture_output=True, text=True, timeout=300)
    return ran.stdout


def test_searches_agree_to_the_bit(search_results: str) -> None:
    found = dict(line.split() for line in search_results.splitlines())
    assert list(found) == compiled.need_core().features()
    assert len(set(found.values())) == 1


@pytest.mark.nightly
def test_searches_agree_to_the_bit_on_an_emulated_cpu(search_results: str) -> None:
    command = [needed("qemu-x86_64", "qemu-user"), "-cpu", "Haswell-noTSX", sys.executable, str(SEARCH)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True, timeout=1200)
    found = dict(line.split() for line in ran.stdout.splitlines())
    expected = dict(line.split() for line in search_results.splitlines())
    assert found == {"avx2": expected["generic"], "generic": expected["generic"]}


def test_auto_does_not_take_a_core_without_instructions_for_bytes(
    gallery_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "open_core", lambda: SimpleNamespace(features=lambda: ["generic"]))
    with Gallery.open(gallery_path) as gallery:
        assert gallery.scan == open_kernel().name, "onnxruntime, on a CPU whose products of bytes do not saturate"
    with Gallery.open(gallery_path, scan="compiled") as gallery:
        assert gallery.scan == "compiled"


def test_an_unknown_instruction_set_is_refused_by_name() -> None:
    core = pytest.importorskip("chan_rt.runtime.gallery._core", reason="the search core is not compiled here")
    names = ", ".join(core.features())
    with pytest.raises(LookupError, match=re.escape(f"must be one that this CPU has ({names}), got mmx")):
        core.Search({"instructions": "mmx"}, [], None)
    with pytest.raises(BackendError, match=f"this CPU has no instructions named mmx; it has {names}"):
        compiled.CompiledSearch(GalleryRows([], "images", AlignmentConfig()), None, compiled.CoreThreads(1), "mmx")
