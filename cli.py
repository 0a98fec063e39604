"""The `chan` command: a table of names; each command's module is imported only when it is needed."""

from __future__ import annotations

import importlib

import click

# name -> module under chan_rt.commands that defines a click command called `command`
COMMANDS: dict[str, str] = {
    "scenes": "scenes",
    "features": "features",
    "train": "train",
    "import": "import_",
    "evaluate": "evaluate",
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
    "bench": "bench",
    "doctor": "doctor",
}


class ChanGroup(click.Group):
    """Loads commands on first use; a ChanError, a missing extra or the system's refusal of a file becomes one line.

    The exit status is then 1.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the work, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module; None for an unknown name, so that click suggests a near one."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"chan_rt.commands.{COMMANDS[cmd_name]}")
        command: click.Command = module.command
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; library errors, missing extras and files that cannot be written become `Error: ...`."""
        from chan_rt.runtime.errors import ChanError
        from chan_rt.runtime.extras import extra_of, missing

        try:
            return super().invoke(ctx)
        except ChanError as error:
            raise click.ClickException(str(error)) from error
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if extra_of(module) is None:
                raise
            raise click.ClickException(str(missing(module, "this command"))) from error
        except BrokenPipeError:  # the reader of a pipe has left: click ends quietly
            raise
        except OSError as error:
            place = f"{error.filename}: " if error.filename is not None else ""
            raise click.ClickException(f"{place}{error.strerror or error}") from error


@click.group(cls=ChanGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="chan-rt")
def main() -> None:
    """CHAN image-text matching: from a PyTorch checkpoint to proven engines and exact search."""
