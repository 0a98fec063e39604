"""Every command that docs/reproduce.md tells exists, with the options it is given."""

import shlex
from pathlib import Path

import click
import pytest

from chan_rt.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "reproduce.md").read_text(encoding="utf-8")
LINES = [line.split("#")[0].strip() for line in PAGE.splitlines() if line.startswith("chan ")]


def test_the_page_has_commands() -> None:
    assert {line.split()[1] for line in LINES} == {"import", "evaluate", "export", "parity", "train"}


@pytest.mark.parametrize("line", LINES)
def test_command_and_options_exist(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = main.get_command(click.Context(main), name)
    assert command is not None
    given, rest, _ = command.make_parser(click.Context(command)).parse_args(list(arguments))
    assert not rest
    assert given
