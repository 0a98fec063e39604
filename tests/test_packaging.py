"""The wheel holds exactly the packages' own files, and nothing heavy is imported before it is needed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import chan_rt

from .run_chan import chan

ROOT = Path(__file__).parent.parent
CORE = "chan_rt/runtime/gallery/_core.abi3.so"
COMPILER = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")


def tracked_files() -> set[str]:
    """Paths that git tracks, relative to the root."""
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(filter(None, found.stdout.split("\0")))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, so that leftovers of this working tree cannot hide a mistake."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked_files():
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return source


def build_wheel(source: Path, out: Path, compiler: str | None = None) -> tuple[Path, str]:
    """A wheel of the source, and what its build printed; `compiler` stands for the C++ compiler."""
    shutil.rmtree(source / "build", ignore_errors=True)
    named = {} if compiler is None else {"CC": compiler, "CXX": compiler}
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", out, source]
    ran = subprocess.run(
        [str(part) for part in command], check=True, capture_output=True, text=True, env={**os.environ, **named}
    )
    (wheel,) = out.glob("*.whl")
    return wheel, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(source, tmp_path_factory.mktemp("wheel"))[0]


def installed_files(wheel: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def package_files() -> set[str]:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    expected = {"chan_rt/__init__.py", "chan_rt/__main__.py", "chan_rt/cli.py"}
    for package in setuptools["packages"]:
        folder = ROOT if package == "chan_rt" else ROOT / package.removeprefix("chan_rt.").replace(".", "/")
        patterns = list(setuptools["package-data"].get(package, []))
        if package != "chan_rt":
            patterns.append("*.py")
        for pattern in patterns:
            files = {str(path.relative_to(ROOT)) for path in folder.glob(pattern)}
            expected |= {f"chan_rt/{name}" for name in files & tracked_files()}
    return expected


def test_wheel_contains_exactly_the_packages(wheel: Path) -> None:
    assert installed_files(wheel) - {CORE} == package_files()


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is installed")
def test_wheel_has_the_compiled_core_for_every_python(wheel: Path) -> None:
    assert CORE in installed_files(wheel)
    assert "-cp311-abi3-" in wheel.name


def test_a_failed_compilation_leaves_a_package_without_the_core(source: Path, tmp_path: Path) -> None:
    wheel, printed = build_wheel(source, tmp_path / "wheel", compiler="false")
    assert installed_files(wheel) == package_files()
    assert "installed without its compiled search core: searches return the same results, but are slower" in printed


def test_source_distribution_has_the_whole_core(source: Path, tmp_path: Path) -> None:
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        packed = {name.partition("/")[2] for name in opened.getnames()}
    core = {name for name in tracked_files() if name.startswith("runtime/gallery/core/")}
    assert core | {"setup.py"} <= packed


def test_every_package_folder_is_named_in_pyproject() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = (Path(name) for name in tracked_files() if Path(name).name == "__init__.py")
    folders = {path.parent for path in packages if path.parts[0] != "tests"}
    assert set(setuptools["packages"]) == {".".join(("chan_rt", *folder.parts)) for folder in folders}


@pytest.mark.parametrize("module", ["chan_rt.cli", "chan_rt.runtime"])
def test_import_loads_nothing_heavy(module: str) -> None:
    heavy = "{'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'polygraphy', 'PIL', 'matplotlib'}"
    code = f"import sys, {module}; found = {heavy} & set(sys.modules); sys.exit(f'loaded {{found}}' if found else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_version_stands_in_one_place() -> None:
    """`pyproject.toml` states it; the package, the command and new manifests read it from there."""
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert chan_rt.__version__ == version("chan-rt") == stated
    shown = chan("--version")
    assert shown.output.split()[-1] == stated
    literal = re.compile(rf"[\"']{re.escape(stated)}[\"']")
    sources = [name for name in tracked_files() if name.endswith(".py") and (ROOT / name).is_file()]
    assert [name for name in sources if literal.search((ROOT / name).read_text(encoding="utf-8"))] == []


def test_extras_and_classifiers_say_what_is_true() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    used = {name for needs in extras.values() for need in needs for name in re.findall(r"chan-rt\[([\w,-]+)\]", need)}
    assert {name for group in used for name in group.split(",")} <= extras.keys()
    assert "triton" not in " ".join(extras["demo"])  # 1 GB that the demo never loads
    minor = [name.rsplit(".", 1)[1] for name in project["classifiers"] if re.search(r"Python :: 3\.\d+$", name)]
    assert project["requires-python"] == f">=3.{min(map(int, minor))}"


def test_every_extra_has_a_row_in_the_readme() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = [line.split("|")[1] for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert extras.keys() <= set(re.findall(r"`([\w-]+)`", " ".join(rows)))


def test_hooks_run_what_make_lint_runs() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0].splitlines()[1:]
    hooks = re.findall(r"^ +entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    assert hooks == [line.strip() for line in recipe]


def test_a_python_that_is_not_here_is_skipped_aloud() -> None:
    ran = subprocess.run(["make", "test-python-3.99"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "Python 3.99: skipped" in ran.stdout
