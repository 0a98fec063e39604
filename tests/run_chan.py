"""`chan` as a test calls it: in this process, or as `COMMAND` in one of its own."""

import sys

from click.testing import CliRunner, Result

from chan_rt import cli

PROGRAM = "from chan_rt.cli import main; main()"
COMMAND = [sys.executable, "-c", PROGRAM]


def chan(*words: object) -> Result:
    """Run a command, whatever its exit status."""
    return CliRunner().invoke(cli.main, [str(word) for word in words])


def ok(*words: object) -> str:
    """What a command that must succeed prints to stdout."""
    result = chan(*words)
    assert result.exit_code == 0, result.output
    return result.stdout
