"""What the errors of missing and unreadable files say: the path and the system's words, nothing that is Python's."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from chan_rt.calibration.plan import Plan
from chan_rt.chan_ref import checkpoint, torch_file
from chan_rt.runtime.contract import Manifest
from chan_rt.runtime.data.images import CaptionedImages
from chan_rt.runtime.errors import ChanError, reason_of
from chan_rt.runtime.gallery import Gallery
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
