"""The wheel holds exactly the packages' own files, and nothing heavy is imported before it is needed."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def tracked_files() -> set[str]:
    """Paths that git tracks, relative to the root."""
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(filter(None, found.stdout.split("\0")))


@pytest.fixture(scope="module")
def wheel_files(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names in a wheel built from what git tracks, so that leftovers of this working tree cannot hide a mistake."""
    source = tmp_path_factory.mktemp("source")
    for name in tracked_files():
        if (ROOT / name).is_file():
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run([str(part) for part in command], check=True)
    (wheel,) = out.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_wheel_contains_exactly_the_packages(wheel_files: set[str]) -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    expected = {"chan_rt/__init__.py", "chan_rt/cli.py"}
    for package in setuptools["packages"]:
        folder = ROOT if package == "chan_rt" else ROOT / package.removeprefix("chan_rt.").replace(".", "/")
        patterns = list(setuptools["package-data"].get(package, []))
        if package != "chan_rt":
            patterns.append("*.py")
        for pattern in patterns:
            files = {str(path.relative_to(ROOT)) for path in folder.glob(pattern)}
            expected |= {f"chan_rt/{name}" for name in files & tracked_files()}
    assert {name for name in wheel_files if ".dist-info/" not in name} == expected


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
