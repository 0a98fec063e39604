"""The `chan` command: a table of names; each command's module is imported only when it is needed."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import warnings
from typing import Any

import click

# name -> module under chan_rt.commands that defines a click command called `command`
COMMANDS: dict[str, str] = {
    "scenes": "scenes",
    "data": "data",
    "features": "features",
    "train": "train",
    "import": "import_",
    "evaluate": "evaluate",
    "compare": "compare",
    "export": "export",
    "calibrate": "calibrate",
    "sensitivity": "sensitivity",
    "build": "build",
    "parity": "parity",
    "inspect": "inspect",
    "index": "index",
    "gallery": "gallery",
    "search": "search",
    "explain": "explain",
    "serve": "serve",
    "triton": "triton",
    "bench": "bench",
    "doctor": "doctor",
}


INTERRUPTED = 130  # exit status after Ctrl-C, as a shell reports it
# Turns of a loop in which an idle thread of PyTorch's looks for work before it sleeps. libgomp's default is some
# milliseconds, which are lost to every program where cores are shared. Beside two busy processes on two cores of a
# Zen 5 a step of training took 4.3 s by default, and 0.19 s so; alone 96 to 97 ms, and 97 to 102 ms so.
SPINS = "1000"


class ChanGroup(click.Group):
    """Loads commands on first use, and turns errors into one line and an exit status.

    The status is 2 where the command line itself is wrong (an unknown option, a value that is not among the choices),
    1 where the work failed, and 130 after Ctrl-C.
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line, whose streams may fail."""
        from chan_rt.commands.streams import guarded_streams

        with guarded_streams():
            try:
                return super().main(*args, **extra)
            except OSError as error:  # of the help or the version, which click prints before it invokes a command
                _failure(error).show()
                sys.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"chan_rt.commands.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names; an unknown name is an error that suggests a similar one."""
        if self.get_command(ctx, args[0]) is None:
            similar = difflib.get_close_matches(args[0], COMMANDS, 1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {similar[0]!r}?" if similar else ""))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command, which Ctrl-C ends at any time with one line."""
        try:
            return self._invoke(ctx)
        except KeyboardInterrupt:
            click.echo("\nInterrupted.", err=True)
            ctx.exit(INTERRUPTED)

    def _invoke(self, ctx: click.Context) -> object:
        """Run the command; errors of the library, missing extras and files that cannot be used become `Error: ...`."""
        from chan_rt.commands.terminal import visible_lines
        from chan_rt.runtime.errors import ChanError
        from chan_rt.runtime.extras import extra_of, missing

        if "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault("GOMP_SPINCOUNT", SPINS)  # libgomp reads it when torch is imported
        try:
            return super().invoke(ctx)
        except click.UsageError as error:  # it may repeat a file name that the shell filled in
            if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # the help of a group (click 8.2)
                raise
            raise click.UsageError(visible_lines(error.format_message()), error.ctx) from error
        except ChanError as error:
            raise click.ClickException(visible_lines(str(error))) from error
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if extra_of(module) is None:
                raise
            raise click.ClickException(str(missing(module, "this command"))) from error
        except MemoryError as error:
            reason = visible_lines(f": {error}") if str(error) else ""
            raise click.ClickException(f"there is too little memory for this{reason}") from error
        except BrokenPipeError:  # the reader of a pipe has left: click ends quietly
            raise
        except OSError as error:
            raise _failure(error) from error


def _failure(error: OSError) -> click.ClickException:
    """What a command says of a file, or of a stream, that cannot be used."""
    from chan_rt.commands.terminal import visible_lines

    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return click.ClickException(visible_lines(f"{place}{error.strerror or error}"))


@click.group(cls=ChanGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-v", "--verbose", count=True, help="Log what the library does to stderr. Give it twice to log the details too."
)
@click.version_option(package_name="chan-rt")
def main(verbose: int) -> None:
    """CHAN image-text matching: from a PyTorch checkpoint to proven engines and exact search.

    The exit status is 0 on success, 1 if the work failed, 2 if the command line is wrong, and 130 after Ctrl-C.
    """
    from chan_rt.commands.terminal import log_to_stderr

    log_to_stderr(verbose)
    # Pillow warns of damaged metadata and of pictures above 89 million pixels, and reads them.
    warnings.filterwarnings("ignore", module=r"PIL\.")


if __name__ == "__main__":
    main(prog_name="chan")
