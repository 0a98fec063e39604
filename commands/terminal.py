"""The one way from a command to the terminal.

File names, captions, ids and words come from others, and a terminal acts on escape sequences. So every command prints
through this module, which shows control characters instead of sending them (a test refuses `click.echo` elsewhere).
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any, Protocol

import click

from ..runtime.counts import counted
from ..runtime.errors import shortened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ..runtime.backends.placement import Placement
    from ..runtime.skipped import SkippedItem

# What a terminal obeys, or shows as something else: C0 and C1 controls, marks that turn the direction of text, line
# separators, the invisible tags, and lone surrogates (bytes of a file name that are not UTF-8).
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\U000e0000-\U000e007f]"
)
_UNSAFE_IN_A_LINE = re.compile(f"{_UNSAFE.pattern[:-1]}\n\t]")


class Progress(Protocol):
    """How a command follows the work of the library."""

    def __call__(self, done: int, total: int, item: str = "") -> None:
        """Show how much work is done, how much there is, and what is at work."""


def visible(text: object) -> str:
    r"""Text from others, for one line: control characters as `\x1b`, `\n`, `\u202e`, and so on."""
    return _UNSAFE_IN_A_LINE.sub(_escaped, str(text))


def visible_word(word: str) -> str:
    """A word of a caption, for one line; a long one without its middle."""
    return shortened(visible(word), 40)


def visible_lines(text: str) -> str:
    """Text of several lines, for the terminal: as `visible`, but line breaks and tabs stay."""
    return _UNSAFE.sub(_escaped, text)


def echo(text: str = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text; control characters in it are shown, not sent."""
    encoding = _encoding(err)
    click.echo(visible_lines(text).encode(encoding, "backslashreplace").decode(encoding), err=err, nl=nl)


def _encoding(err: bool) -> str:
    """The encoding of stdout or stderr; where it lacks a letter, an escape is shown."""
    return (sys.stderr if err else sys.stdout).encoding or "utf-8"


def warn(text: str) -> None:
    """Print a warning to stderr."""
    echo(f"Warning: {text}", err=True)


def print_json(data: object) -> None:
    """Print data as JSON to stdout; what a terminal might obey is written as JSON's own escapes."""
    unicode = _encoding(err=False).lower().replace("-", "").startswith("utf")
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=not unicode)
    click.echo(_UNSAFE.sub(lambda found: json.dumps(found[0])[1:-1], text))


def say_next(made: Path, command: str, note: str = "") -> None:
    """Name the command that goes on with what a command made; paths in it are `quoted`. A note says more of it."""
    echo(f"{visible(made)}: next, `{visible(command)}`{note}")


def print_result(gallery: Path | str, as_json: bool, text: str, **facts: Any) -> None:
    """Print what a command did with a gallery, in words or as JSON."""
    if as_json:
        print_json({"gallery": str(gallery), **facts})
    else:
        echo(text)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """For a block in which a library prints: its lines go to stderr, so that stdout has the command's result alone."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def progress_bar(label: str, length: int = 1) -> Iterator[Progress]:
    """A progress bar on stderr, where that is a terminal; it appears with the first progress."""
    with ExitStack() as stack:
        bar: Any = None

        def show(done: int, total: int, item: str = "") -> None:
            nonlocal bar
            if bar is None:
                file = sys.stderr if sys.stderr.isatty() else StringIO()
                new = click.progressbar(
                    length=length, label=visible(label), file=file, item_show_func=lambda shown: shown
                )
                bar = stack.enter_context(new)
            bar.length = total
            bar.update(done - bar.pos, visible(item) or None)

        yield show


def report_skipped(skipped: Iterable[SkippedItem], passed_over: Mapping[str, int] | None = None) -> None:
    """Print to stderr what a run left out, each item with its reason, and how many files it did not try to read."""
    from ..runtime.pictures.load import HEIF_SUFFIXES

    items = list(skipped)
    if passed_over:
        counts = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(passed_over.items()))
        number = sum(passed_over.values())
        files = counted(number, "file that is no picture was", "files that are no pictures were")
        hint = "; reading HEIC needs the extra heif" if set(HEIF_SUFFIXES) & passed_over.keys() else ""
        echo(f"{files} not read: {visible(counts)}{hint}", err=True)
    if items:
        warn(f"{counted(len(items), 'item was', 'items were')} skipped:")
        for one in items:
            echo(f"  {visible(one.item)}: {visible(one.reason)}", err=True)


def warn_of_unknown(unknown: Sequence[str], known: Sequence[bool]) -> None:
    """Warn of the words of a caption that the model's vocabulary lacks.

    Args:
        unknown: those words.
        known: whether each word of the caption is known, the marks of its start and end included.
    """
    if unknown:
        listed = ", ".join(map(visible_word, unknown))
        most = 2 * known.count(False) > len(known) - 2
        one_word = "It treats all unknown words as the same word."
        little = "These are most words of this caption, so the scores mean little."
        warn(f"the model does not know {listed}. {little if most else one_word}")


def skipped_as_dicts(skipped: Iterable[SkippedItem]) -> list[dict[str, Any]]:
    """What a run left out, for JSON."""
    return [{"item": one.item, "reason": one.reason} for one in skipped]


def log_to_stderr(verbosity: int) -> None:
    """Print what `chan_rt` logs: warnings, information from verbosity 1 on, details from 2 on."""
    logger = logging.getLogger("chan_rt")
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)])
    logger.handlers = [handler for handler in logger.handlers if not isinstance(handler, _StderrHandler)]
    logger.addHandler(_StderrHandler())


class _StderrHandler(logging.Handler):
    """Log records as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        echo(f"{record.levelname.capitalize()}: {visible(record.getMessage())}", err=True)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")


def describe_placement(placement: Placement) -> list[str]:
    """Where `auto` runs each graph, and what was measured, as lines."""
    lines = [f"\nauto runs, for {placement.batch} at once on {placement.machine.get('gpu', 'an unknown GPU')}"]
    fastest = placement.fastest
    for graph, times in placement.milliseconds.items():
        measured = ", ".join(f"{name} {spent:.2f} ms" for name, spent in times.items())
        lines.append(f"  {graph:<16}{placement.precisions.get(graph, '-'):<6}{fastest[graph]:<22}({measured})")
    return lines
