"""The command line: every command explains itself, and a library error is one readable line."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from chan_rt import cli
from chan_rt.runtime.errors import InputError


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_for_itself_and_every_option(name: str) -> None:
    result = CliRunner().invoke(cli.main, [name, "--help"])
    assert result.exit_code == 0, result.output
    command = cli.main.get_command(click.Context(cli.main), name)
    assert command is not None
    assert command.help
    without_help = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert without_help == []


def test_group_lists_every_command() -> None:
    result = CliRunner().invoke(cli.main, ["--help"])
    assert result.exit_code == 0
    for name in cli.COMMANDS:
        assert f"\n  {name} " in result.output


def test_unknown_command_is_an_error() -> None:
    result = CliRunner().invoke(cli.main, ["no-such-command"])
    assert result.exit_code == 2
    assert "No such command" in result.output


def test_library_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def fails() -> None:
        raise InputError("regions: must be finite, got nan")

    monkeypatch.setattr(cli.ChanGroup, "get_command", lambda self, ctx, name: fails)
    result = CliRunner().invoke(cli.main, ["fails"])
    assert result.exit_code == 1
    assert result.output == "Error: regions: must be finite, got nan\n"


def test_a_file_that_cannot_be_written_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    @click.command()
    def fails() -> None:
        (tmp_path / "missing" / "out.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(cli.ChanGroup, "get_command", lambda self, ctx, name: fails)
    result = CliRunner().invoke(cli.main, ["fails"])
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path / 'missing' / 'out.json'}: No such file or directory\n"


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("torch", "export", ["train", ".", "-o", "run"]),
        ("PIL", "pictures", ["scenes", "out"]),
        ("onnx", "export", ["sensitivity", ".", "."]),
    ],
)
def test_a_missing_extra_names_its_pip_command(module: str, extra: str, arguments: list[str], tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from chan_rt.cli import main; main({arguments!r})"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == f"Error: this command needs {module}: pip install 'chan-rt[{extra}]'\n"
