"""Writes docs/cli.md, the reference of the command line, from `--help` of every command: `python tests/cli_page.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from chan_rt.cli import main

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
HEAD = """# The command line

This page is made from `--help` of every command by `python tests/cli_page.py`; a test fails where it is not current.

## Exit status

| status | meaning |
|---|---|
| 0 | The command did what it was asked to do. Items that it skipped are listed on stderr. |
| 1 | The work failed: a file is missing or damaged, a tolerance was missed, with `--strict` an item was skipped. |
| 2 | The command line is wrong: an unknown option, a value not among the choices, options that exclude each other. |
| 130 | Ctrl-C stopped the command. What was finished is kept, and files that were half written are removed. |

An error is one line on stderr that names the argument, the rule and the value.

## Output

Results go to stdout; progress, warnings and errors go to stderr. Progress is shown only where stderr is a terminal.
With `--json` a command prints its result as one JSON document to stdout. With `-v` before the name of the command, the
library logs what it does to stderr; with `-vv` also the details. Control characters in file names, captions and ids are
shown as `\\x1b` and the like, never sent to the terminal.

Where stdout takes nothing more, because its disk is full, the command ends with status 1 and one line; where the reader
of a pipe has left, with status 1 and no line. What stderr does not take is lost, and the work goes on.

## Data folders

DATA is a folder in the layout of SCAN and VSE-infinity, which the literature calls "precomp" for its precomputed
region features. SPLIT is train, dev, test or testall:

| file | what it has |
|---|---|
| `DATA/precomp/SPLIT_ims.npy` | region features; `.npz`, `.h5`, `.tsv`, `.lmdb`: [backbones.md](backbones.md) |
| `DATA/precomp/SPLIT_caps.txt` | one caption a line; without ids all images have equally many, in their order |
| `DATA/precomp/SPLIT_ids.txt` | optional: one image id a line, of each image or of each caption |
| `DATA/id_mapping.json` | optional: image ids and their picture files, below DATA, `images/` or `flickr30k-images/` |

DATA may also be the folder of the splits itself, and `f30k_precomp` or `coco_precomp` may stand for `precomp`.
`chan data` makes a data folder of your own pictures and captions ([own-data.md](own-data.md)), `chan scenes` of
drawings.

## Shell completion

The shell completes commands, options, choices and paths once it has read what `chan` prints for it. Add one line to the
file that your shell reads at its start:

| shell | file | line |
|---|---|---|
| bash (4.4 or newer) | `~/.bashrc` | `eval "$(_CHAN_COMPLETE=bash_source chan)"` |
| zsh | `~/.zshrc` | `eval "$(_CHAN_COMPLETE=zsh_source chan)"` |
| fish | `~/.config/fish/completions/chan.fish` | `_CHAN_COMPLETE=fish_source chan \\| source` |

## Commands
"""


def contexts(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    """The context of a command, and of all its commands."""
    context = command.make_context(name, [], parent, resilient_parsing=True, terminal_width=100, max_content_width=100)
    yield context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found is not None
            yield from contexts(found, below, context)


def render() -> str:
    """The page."""
    helps = ((context.command_path, context.get_help()) for context in contexts(main, "chan"))
    return HEAD + "".join(f"\n### {path}\n\n```text\n{text}\n```\n" for path, text in helps)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
