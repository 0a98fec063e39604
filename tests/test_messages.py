"""What the errors of missing and unreadable files say: the path and the system's words, nothing that is Python's."""

import ast
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from chan_rt.calibration.plan import Plan
from chan_rt.chan_ref import checkpoint, torch_file
from chan_rt.commands.terminal import visible
from chan_rt.runtime.contract import Manifest
from chan_rt.runtime.counts import counted
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.errors import ChanError, quoted, reason_of
from chan_rt.runtime.gallery import Gallery
from chan_rt.runtime.gallery.sharded.manifest import describe_shards
from chan_rt.runtime.indexing.metadata_file import read_metadata
from chan_rt.runtime.indexing.sources import read_lines
from chan_rt.runtime.pictures.load import open_picture
from chan_rt.runtime.text import BertTokenizer, ScanTokenizer, bert_tokenizer_json

READERS: dict[str, Callable[[Path], object]] = {
    "manifest": Manifest.load,
    "checkpoint": checkpoint.load,
    "published": torch_file.read_torch_file,
    "vocabulary": ScanTokenizer.from_file,
    "tokenizer": BertTokenizer.from_file,
    "wordpieces": bert_tokenizer_json,
    "plan": Plan.from_file,
    "picture": open_picture,
    "lines": read_lines,
    "gallery": Gallery.open,
    "metadata": read_metadata,
    "data": lambda path: CaptionedImages.open(path, "test"),
}


@pytest.mark.parametrize("kind", ["missing", "folder", "file", "inside a file"])
@pytest.mark.parametrize("name", READERS)
def test_a_path_that_cannot_be_used_is_named_in_words(name: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(b"\xff\xfe no such thing")
    if kind == "inside a file":
        path = path / "thing"
    with pytest.raises(ChanError) as caught:
        READERS[name](path)
    message = str(caught.value)
    assert str(path) in message
    assert not re.search(r"\[Errno|Error\(|<class|Traceback", message), message


@dataclass
class Record:
    name: str
    size: int = 0


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (lambda: Path("/no/such").read_bytes(), "No such file or directory"),
        (lambda: b"a\xff".decode(), "it is not UTF-8 text (at byte 1)"),
        (lambda: {}["name"], "the key 'name' is missing"),
        (lambda: Record(name="a", other=1), "the key 'other' is unknown"),
        (lambda: Record(), "keys are missing: 'name'"),
        (lambda: [].items(), "a value is of the wrong kind"),
        (lambda: Record(*5), "a value is of the wrong kind"),
        (lambda: int("x"), "invalid literal for int() with base 10: 'x'"),
        (lambda: json.loads("{}\n["), "Extra data: line 2 column 1 (char 3)"),
        (lambda: exec("raise ValueError('two\\n\\n  lines')"), "two lines"),
    ],
)
def test_a_reason_is_in_words(cause: Callable[[], object], expected: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any
        cause()
    assert reason_of(caught.value) == expected


def test_no_message_prints_an_exception_as_python_does() -> None:
    root = Path(__file__).parent.parent
    folders = ("runtime", "chan_ref", "export", "calibration", "commands", "demo", "bench", "serve")
    files = [file for folder in folders for file in (root / folder).rglob("*.py")]
    assert [str(file) for file in files if "{error!r}" in file.read_text(encoding="utf-8")] == []


def test_a_count_has_its_noun() -> None:
    assert [counted(n, "old row") for n in (0, 1, 2)] == ["0 old rows", "1 old row", "2 old rows"]
    assert [counted(2, one) for one in ("query", "key", "box", "class", "batch")] == [
        "2 queries",
        "2 keys",
        "2 boxes",
        "2 classes",
        "2 batches",
    ]
    assert [counted(n, "row is", "rows are") for n in (1, 3)] == ["1 row is", "3 rows are"]


def test_shards_of_one_size_are_told_once() -> None:
    assert describe_shards([20]) == "1 shard of 20 rows"
    assert describe_shards([1, 1]) == "2 shards of 1 row each"
    assert describe_shards([5, 5]) == "2 shards of 5 rows each"
    assert describe_shards([1, 5]) == "2 shards of 1 to 5 rows"


COUNTABLE = re.compile(
    r" (?:old |other |different )?(actors|batches|boxes|captions|columns|files|folds|galleries|graphs|hits|ids|images"
    r"|items|keys|layers|lines|numbers|objects|pictures|pieces|queries|regions|requests|rows|segments|shards|stages|tensors|texts"
    r"|threads|values|vectors|words|workers)\b"
)
# Numbers that are never 1, one that is not whole, and names.
NEVER_ONE = re.compile(r"[A-Z_]+|max_words|counted\.train_words|num_captions / 5|' and '\.join\(.*\)")


def fixed_plurals(source: str) -> list[str]:
    """What f-strings and logs say of a number with a noun that is wrong for 1."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            for number, text in zip(node.values, node.values[1:], strict=False):
                if isinstance(number, ast.FormattedValue) and isinstance(text, ast.Constant):
                    noun, shown = COUNTABLE.match(str(text.value)), ast.unparse(number.value)
                    if noun and not NEVER_ONE.fullmatch(shown):
                        found.append(f"{{{shown}}}{noun.group()}")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEVELS:
            texts = [text.value for text in node.args[:1] if isinstance(text, ast.Constant)]
            found += [text for text in texts if any(COUNTABLE.match(text, at.end()) for at in re.finditer("%d", text))]
    return found


LEVELS = {"debug", "info", "warning", "error"}


@pytest.mark.parametrize("folder", ["commands", "runtime", "scale", "serve"])
def test_no_message_counts_with_a_fixed_plural(folder: str) -> None:
    """`counted` writes a number with its noun, so that nobody reads of "1 pictures"."""
    root = Path(__file__).parent.parent
    found = {file: fixed_plurals(file.read_text(encoding="utf-8")) for file in (root / folder).rglob("*.py")}
    assert {str(file): texts for file, texts in found.items() if texts} == {}


def test_a_fixed_plural_would_be_noticed() -> None:
    source = """f"{len(rows)} rows, {n} of {total} old pieces in {MOST} shards"; log.info("%d of %d rows", 1, 2)"""
    assert fixed_plurals(source) == ["{len(rows)} rows", "{total} old pieces", "%d of %d rows"]


# A command that a message advises, up to what comes from outside; and what needs no quotes, because it is a choice.
ADVISED = re.compile(r"\b(?:chan [a-z]+(?: [a-z]+)?|tritonserver)(?: [A-Z]+| --?[a-z-]+)*[ =]$")
A_CHOICE = {"backend", "caption", "flavor", "precision", "graph", "here", "picture"}


def unquoted(source: str) -> list[str]:
    """What f-strings put into a command that they advise without `quoted`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        said = ""
        for part in node.values if isinstance(node, ast.JoinedStr) else ():
            if isinstance(part, ast.Constant):
                said += str(part.value)
                continue
            shown = ast.unparse(part.value) if isinstance(part, ast.FormattedValue) else ""
            if ADVISED.search(said) and "quoted(" not in shown and shown not in A_CHOICE:
                found.append(f"{said}{{{shown}}}")
            said += "X"
    return found


@pytest.mark.parametrize(
    "folder", ["calibration", "chan_ref", "commands", "demo", "export", "runtime", "scale", "serve"]
)
def test_advised_commands_are_quoted_for_a_shell(folder: str) -> None:
    files = (Path(__file__).parent.parent / folder).rglob("*.py")
    assert {file.name: found for file in files if (found := unquoted(file.read_text(encoding="utf-8")))} == {}


def test_an_unquoted_path_would_be_noticed() -> None:
    source = "f'run: chan gallery verify {path}'; f'chan train {quoted(data)} -o {out}'; f'no `chan train`: {reason}'"
    assert unquoted(source) == ["run: chan gallery verify {path}", "chan train X -o {out}"]
    assert f"chan serve {quoted(Path('o 1'))}" == "chan serve 'o 1'"
    assert quoted("plain/path-1.x") == "plain/path-1.x"


PATHS = [
    "o 1",
    "it's",
    "two\nlines",
    "caf\udce9",
    "\udce91",
    "\x1b[2J",
    "tab\tb'\\",
    "\u202egpj",
    "\u00a0",
    "$HOME",
    "é 猫",
    "",
]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_a_shell_reads_the_path_that_was_meant_from_what_the_terminal_shows(path: str) -> None:
    shown = visible(quoted(path))
    assert shown == quoted(path)
    done = subprocess.run(["bash", "-c", f"printf %s {shown}"], capture_output=True, check=True, env={"LC_ALL": "C"})
    assert done.stdout == os.fsencode(path)
