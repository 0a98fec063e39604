"""Every command that a page tells exists, with the options it is given; every link leads to a file."""

import re
import shlex
from pathlib import Path

import click
import pytest

from chan_rt.cli import main

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md")))]


def commands(page: str) -> list[str]:
    """The lines of a page that call chan, without comments and optional parts."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (re.sub(r"\[.*?\]", "", line.split(" #")[0]).strip() for line in text.splitlines())
    return [line for line in lines if line.startswith("chan ")]


LINES = [(page, line) for page in PAGES for line in commands(page)]


def test_the_pages_have_commands() -> None:
    named = {line.split()[1] for _, line in LINES}
    assert named >= {"import", "train", "export", "build", "parity", "evaluate", "index", "search", "calibrate"}


@pytest.mark.parametrize(("page", "line"), LINES)
def test_command_and_options_exist(page: str, line: str) -> None:
    _, *arguments = shlex.split(line)
    command: click.Command | None = main
    while isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.get_command(click.Context(command), name)
    assert command is not None
    given, rest, _ = command.make_parser(click.Context(command)).parse_args(list(arguments))
    assert not rest
    assert given


@pytest.mark.parametrize("line", [line for _, line in LINES if line.startswith("chan import")])
def test_an_import_does_not_go_where_its_file_lies(line: str) -> None:
    """That folder exists and is no checkpoint, so the command as told would be refused."""
    _, _, model, _, out, *_ = shlex.split(line)
    assert Path(out) not in Path(model).parents


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
