"""Pages, comments and docstrings are true: commands exist with their options, links and names lead to files."""

import ast
import io
import json
import re
import shlex
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from chan_rt.cli import COMMANDS, main
from chan_rt.runtime.text import ScanTokenizer

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(path.name for path in ROOT.glob("*.md")), *(f"docs/{p.name}" for p in sorted(ROOT.glob("docs/*.md")))]


def tracked_files() -> list[str]:
    """Paths of the repository, new files that git does not ignore included."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted(name for name in set(found.split("\0")) if (ROOT / name).is_file())


FILES = tracked_files()


def commands(page: str) -> list[str]:
    """The lines of a page that call chan, without comments and optional parts."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r"^ExecStart=\S*/chan ", "chan ", text, flags=re.MULTILINE)
    lines = (re.sub(r"\[.*?\]", "", line.split(" #")[0]).strip() for line in text.splitlines())
    return [line for line in lines if line.startswith("chan ")]


LINES = [(page, line) for page in PAGES for line in commands(page)]


def test_every_command_occurs_in_a_page() -> None:
    """As a line to copy, in a page that people write: the reference made from `--help` does not count."""
    named = {line.split()[1] for page, line in LINES if page != "docs/cli.md"}
    assert set(COMMANDS) <= named


@pytest.mark.parametrize(("page", "line"), [(page, line) for page, line in LINES if page != "docs/cli.md"])
def test_command_and_options_exist(page: str, line: str) -> None:
    _, *arguments = shlex.split(line)
    command: click.Command | None = main
    while isinstance(command, click.Group):
        name, *arguments = arguments
        command = command.get_command(click.Context(command), name)
    assert command is not None
    given, rest, _ = command.make_parser(click.Context(command, **main.context_settings)).parse_args(list(arguments))
    assert not rest
    assert all(given.get(parameter.name) for parameter in command.params if parameter.required)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".md")])
def test_no_line_of_a_page_is_too_long(name: str) -> None:
    """120 characters, but for the rows of tables, which Markdown cannot break."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert [f"{name}:{at}" for at, line in enumerate(lines, 1) if len(line) > 120 and not line.startswith("|")] == []


@pytest.mark.parametrize("line", [line for _, line in LINES if line.startswith("chan import")])
def test_an_import_does_not_go_where_its_file_lies(line: str) -> None:
    """That folder exists and is no checkpoint, so the command as told would be refused."""
    _, _, model, _, out, *_ = shlex.split(line)
    assert Path(out) not in Path(model).parents


def captions(text: str) -> list[str]:
    """The captions in a page's blocks: quoted text of small letters, and those in an address."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    found = [re.findall(r'"([a-z]+(?: [a-z]+)+)"', block) + re.findall(r"caption=([a-z+]+)", block) for block in blocks]
    return [caption.replace("+", " ") for each in found for caption in each]


# Pages whose captions are for models of their own.
OTHER_MODELS = {"docs/own-data.md", "docs/embeddings.md"}


@pytest.mark.parametrize("page", [page for page in PAGES if page not in OTHER_MODELS])
def test_the_demo_model_knows_the_words_of_every_caption(page: str) -> None:
    """So that whoever runs a page's commands after `make demo` gets hits and no warning."""
    vocabulary = ScanTokenizer.from_file(ROOT / "demo/checkpoint/tokenizer/vocab.json")
    found = captions((ROOT / page).read_text(encoding="utf-8"))
    assert [caption for caption in found if not all(vocabulary.known(caption))] == []
    assert found or page != "README.md"


def test_the_page_of_own_data_has_the_size_of_the_demo_vocabulary() -> None:
    words = json.loads((ROOT / "demo/checkpoint/tokenizer/vocab.json").read_text(encoding="utf-8"))["word2idx"]
    number = sum(word.isalpha() for word in words)
    assert f"vocabulary has {number} words" in (ROOT / "docs/own-data.md").read_text(encoding="utf-8").replace(
        "\n", " "
    )


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^):]+)\)", text):
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page} links to {target}"


def test_the_rooms_of_the_runtime_are_all_of_it() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = {name.removeprefix("runtime/").split("/")[0] for name in FILES if name.startswith("runtime/")}
    assert {room for room in rooms if not re.search(rf"`runtime/{room}\b", page)} == {"__init__.py"}


# -- names in comments, docstrings and pages

# A path or a bare name, but no pattern (`*.md`), placeholder (`gpu-NAME.json`) or address.
NAME = re.compile(
    r"(?<![\w./<*{:-])(?:\.\./)*(?:[\w.-]+/)*[\w-][\w.-]*\.(?:py|md|toml|json|html|sh|npz|safetensors|yaml)\b(?![\w/*])"
)
OURS = "bench|calibration|chan_ref|commands|demo|export|runtime|scale|serve"
MODULE = re.compile(rf"`(?:chan_rt\.)?((?:{OURS})(?:\.\w+)+)")
FOLDERS = {name.split("/")[0] for name in FILES if "/" in name}


def texts(name: str) -> Iterator[str]:
    """What a file says to people: comments and docstrings of Python, comments of settings, all of a page."""
    content = (ROOT / name).read_text(encoding="utf-8")
    if name.endswith(".py"):
        for token in tokenize.generate_tokens(io.StringIO(content).readline):
            if token.type == tokenize.COMMENT:
                yield token.string
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield ast.get_docstring(node, clean=False) or ""
    elif name.endswith(".md") or name == "NOTICE":
        yield content
    else:
        yield from (line.partition("#")[2] for line in content.splitlines())


SPEAKING = [name for name in FILES if name.endswith((".py", ".md", ".toml", "Makefile", "NOTICE", ".ci/run"))]


def exists(name: str, place: str) -> bool:
    """Whether a name that stands in the file `place` is one of a file: its whole path, the end of it, or a link."""
    return any(f"/{file}".endswith(f"/{name}") for file in FILES) or ((ROOT / place).parent / name).exists()


def test_every_file_that_is_named_exists() -> None:
    """Python files and pages by any name; other kinds where the path begins with a folder of the repository."""
    lost = []
    for place in SPEAKING:
        for name in (match.group() for text in texts(place) for match in NAME.finditer(text)):
            ours = name.endswith((".py", ".md")) or name.split("/")[0] in FOLDERS
            if ours and "NAME" not in name and not exists(name, place):
                lost.append(f"{place} names {name}")
    assert not lost


def test_every_module_that_is_named_exists() -> None:
    """`runtime.matcher.Matcher`, say: the module, and in its file the first name after it."""
    lost = []
    for place in SPEAKING:
        for dotted in (match.group(1) for text in texts(place) for match in MODULE.finditer(text)):
            parts = dotted.split(".")
            folder = ROOT
            while parts and (folder / parts[0]).is_dir():
                folder = folder / parts.pop(0)
            file = folder / f"{parts.pop(0)}.py" if parts and (folder / f"{parts[0]}.py").is_file() else None
            file = file or folder / "__init__.py"
            if parts and not re.search(rf"\b{parts[0]}\b", file.read_text(encoding="utf-8")):
                lost.append(f"{place} names {dotted}")
    assert not lost


def test_names_are_in_the_files_that_pages_say() -> None:
    """`align` in `chan_ref/alignment.py`, say: the file has that name."""
    found = []
    for page in PAGES:
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        found += re.findall(r"`([A-Za-z_]\w*)` (?:in|of) (?:the table of )?`([\w/]+\.(?:py|json|toml))`", text)
    assert len(found) >= 8
    assert [f"{file} has no {name}" for name, file in found if name not in (ROOT / file).read_text("utf-8")] == []


def test_lost_names_would_be_noticed() -> None:
    named = NAME.findall("see scan/gone.py, `*.md`, https://example.org/x.py and docs/gone.json")
    assert named == ["scan/gone.py", "docs/gone.json"]
    assert not any(exists(name, "README.md") for name in named)
    assert exists("bounds.py", "runtime/gallery/rank.py")
