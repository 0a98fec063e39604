"""A missing library is one class of error that names the extra, from one table that agrees with pyproject.toml."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from chan_rt.runtime.errors import BackendError, MissingExtra
from chan_rt.runtime.extras import EXTRAS, extra_of, install_command, missing, needs

ROOT = Path(__file__).parents[2]


def test_the_table_is_that_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brings = {
        extra: {re.split(r"[<>=\[;]", need)[0] for need in needs if not need.startswith("chan-rt")}
        for extra, needs in project["optional-dependencies"].items()
        if extra != "dev"
    }
    assert {extra: set(packages) for extra, packages in EXTRAS.items()} == brings


def test_modules_are_those_of_the_packages_installed_here() -> None:
    installed = metadata.packages_distributions()
    checked = 0
    for packages in EXTRAS.values():
        for package, module in packages.items():
            if any(package in map(str.lower, found) for found in installed.values()):
                assert package in map(str.lower, installed.get(module, ())), f"{package} does not bring {module}"
                checked += 1
    assert checked >= 5


def test_no_other_place_writes_the_pip_command_of_an_extra() -> None:
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [name for name in tracked.split() if not name.startswith("tests/")]
    found = [name for name in files if (ROOT / name).is_file() and "chan-rt[" in (ROOT / name).read_text()]
    assert found == ["runtime/extras.py"]


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("onnxruntime", "cpu"),
        ("jinja2", "pictures"),
        ("onnx.helper", "export"),
        ("PIL.Image", "pictures"),
        ("os", None),
    ],
)
def test_the_extra_of_a_module(module: str, extra: str | None) -> None:
    assert extra_of(module) == extra


def test_a_missing_module_names_its_purpose_and_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra) as caught, needs("PIL", "reading pictures"):
        from PIL import Image  # noqa: F401
    assert str(caught.value) == "reading pictures needs PIL: pip install 'chan-rt[pictures]'"
    assert (caught.value.module, caught.value.extra) == ("PIL", "pictures")
    assert isinstance(caught.value, BackendError)
    assert isinstance(caught.value, ImportError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.module, again.extra) == (str(caught.value), "PIL", "pictures")


def test_a_module_that_does_not_load_tells_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "h5py.py").write_text("raise ImportError('libhdf5.so.310: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "h5py", raising=False)
    reason = r"h5py, which is installed but does not load \(libhdf5.so.310: "
    with pytest.raises(MissingExtra, match=reason), needs("h5py", "reading x.h5"):
        import h5py  # noqa: F401


def test_of_several_extras_the_caller_may_choose() -> None:
    assert missing("jinja2", "the page", "export").extra == "export"
    assert install_command("rtx-plugin") == "pip install 'chan-rt[rtx-plugin]'"
    with pytest.raises(ValueError, match="must be one that an extra brings, got 'numpy'"):
        missing("numpy", "anything")
