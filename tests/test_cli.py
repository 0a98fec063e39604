"""The command line: every command explains itself, and a library error is one readable line."""

import ast
import contextlib
import importlib
import importlib.util
import json
import logging
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import click
import numpy as np
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result
from hypothesis import given, strategies

from chan_rt import bench, cli, demo
from chan_rt.commands import values as choices
from chan_rt.commands.terminal import print_json, visible, visible_lines
from chan_rt.runtime.backends import BACKENDS
from chan_rt.runtime.contract import GRAPHS, PRECISIONS
from chan_rt.runtime.data.layout import Split
from chan_rt.runtime.errors import InputError
from chan_rt.runtime.gallery import verify_gallery
from chan_rt.runtime.gallery.cuda.kernels import GPUS

from .run_chan import COMMAND, chan, ok


def every_command(group: click.Group = cli.main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with its words."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from every_command(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


EVERY = dict(every_command())
MODULES = [  # of a command that `python -m` runs
    f"chan_rt.{file.parent.name}.{file.stem}"
    for package in (bench, demo)
    for file in sorted(Path(package.__path__[0]).glob("*.py"))
    if "@click.command" in file.read_text(encoding="utf-8")
]


def options(command: click.Command) -> list[click.Option]:
    return [parameter for parameter in command.params if isinstance(parameter, click.Option)]


@pytest.mark.parametrize("words", EVERY)
def test_every_command_and_option_explains_itself_in_sentences(words: str) -> None:
    ok(*words.split(), "--help")
    texts = [("the command", EVERY[words].help)] + [(option.name, option.help) for option in options(EVERY[words])]
    for name, text in texts:
        assert text, name
        assert re.match(r"[A-Z`-]|(exact|int8)\b", text), f"{name}: {text}"
        assert text.rstrip().endswith((".", ")", '"')), f"{name}: {text}"
        assert not re.match(r"(Of|If|For|By|With) ", text), f"{name} has a fragment: {text}"


@pytest.mark.parametrize("module", ["chan_rt", "chan_rt.cli"])
def test_python_runs_the_command_line_as_a_module(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("chan, version ")
    wrong = subprocess.run([sys.executable, "-m", module, "nothing"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "nothing" in wrong.stderr


@pytest.mark.parametrize("words", EVERY)
def test_examples_in_a_help_keep_their_lines(words: str) -> None:
    for paragraph in re.split(r"\n\s*\n", EVERY[words].help or ""):
        if re.search(r"^\s*chan ", paragraph, re.MULTILINE):
            assert paragraph.lstrip(" ").startswith("\b\n"), paragraph


def test_the_page_of_the_command_line_is_current() -> None:
    spec = importlib.util.spec_from_file_location("cli_page", Path(__file__).parent / "cli_page.py")
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.PAGE.read_text(encoding="utf-8") == page.render(), "run: python tests/cli_page.py"


@pytest.mark.parametrize(
    "name", sorted({option.name or "" for command in EVERY.values() for option in options(command)})
)
def test_an_option_is_one_thing_in_every_command(name: str) -> None:
    """The same name has the same spelling and type; two names are torch's and the GPU's own."""
    others = {("gallery kernel", "precisions"), ("train", "device")}
    found = {
        words: (option.opts, type(option.type).__name__, option.is_flag)
        for words, command in EVERY.items()
        for option in options(command)
        if option.name == name and (words, name) not in others
    }
    assert len({str(kind) for kind in found.values()}) <= 1, found


def test_json_is_a_flag_everywhere() -> None:
    flags = [option for command in EVERY.values() for option in options(command) if "--json" in option.opts]
    assert len(flags) > 10
    assert all(option.is_flag and option.name == "as_json" for option in flags)


CHOICES = [
    (words, option.opts[0], tuple(option.type.choices))
    for words, command in EVERY.items()
    for option in options(command)
    if isinstance(option.type, click.Choice)
]


@pytest.mark.parametrize(("words", "flag", "choices"), CHOICES)
def test_a_value_that_is_not_among_the_choices_is_one_mistake(words: str, flag: str, choices: tuple[str, ...]) -> None:
    result = chan(*words.split(), flag, "nonsense")
    assert result.exit_code == 2
    assert f"Invalid value for '{flag}'" in result.output or f"/ '{flag}'" in result.output, result.output
    assert all(repr(choice) in result.output for choice in choices)


def test_choices_are_those_of_the_tables() -> None:
    assert choices.BACKEND.choices == tuple(BACKENDS)
    assert choices.BACKEND_OR_AUTO.choices == ("auto", *BACKENDS)
    assert choices.PRECISION.choices == PRECISIONS
    assert choices.GRAPH.choices == GRAPHS
    assert choices.GPU.choices == GPUS
    assert choices.SPLIT.choices == get_args(Split)


def test_names_that_a_table_lists_are_choices() -> None:
    """An option for a backend, a precision, a split, a graph or a GPU is checked while the command line is read."""
    listed = {"backend", "backends", "precision", "precisions", "split", "graphs", "gpus", "device"}
    for words, command in EVERY.items():
        for option in options(command):
            if option.name in listed and (words, option.name) != ("train", "device"):
                assert isinstance(option.type, click.Choice | choices.Device), (words, option.name)
    assert {flag for _, flag, _ in CHOICES} >= {"--backend", "--precision", "--split", "--graph", "--gpu"}


@pytest.mark.parametrize("command", ["search", "serve"])
def test_a_device_that_is_none_is_a_mistake_of_the_command_line(command: str) -> None:
    result = chan(command, "--device", "cuda:one")
    assert result.exit_code == 2
    assert "Invalid value for '--device': device must be cpu, cuda, cuda:N or cuda:N,M, got 'cuda:one'" in result.output


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_prints_a_script(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if shell == "bash":  # click asks bash for its version
        monkeypatch.setattr("click.shell_completion.BashComplete._check_version", lambda *_: None)
    result = CliRunner().invoke(cli.main, [], env={"_CHAN_COMPLETE": f"{shell}_source"}, prog_name="chan")
    assert result.exit_code == 0
    assert "_CHAN_COMPLETE" in result.output


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("chan ", set(cli.COMMANDS)),
        ("chan se", {"search", "sensitivity", "serve"}),
        ("chan gallery ve", {"verify"}),
        ("chan index --pre", {"--precision"}),
        ("chan index --precision ", {"fp32", "fp16", "int8", "int8_x86"}),
    ],
)
def test_shell_completion_offers(line: str, offered: set[str]) -> None:
    *words, last = line.split(" ")
    completion = ShellComplete(cli.main, {}, "chan", "_CHAN_COMPLETE")
    assert {item.value for item in completion.get_completions(words[1:], last)} == offered


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": cli.SPINS}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_waiting_threads_of_torch_soon_sleep_unless_the_user_says_otherwise(
    given: dict[str, str], expected: dict[str, str]
) -> None:
    """In a process of its own, as libgomp reads this when torch is imported."""
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    checkpoint = str(Path(demo.__file__).parent / "checkpoint")
    code = (
        "import os, sys; from importlib.abc import MetaPathFinder\n"
        "class Watch(MetaPathFinder):\n"
        "  def find_spec(self, name, *rest):\n"
        "    if name == 'torch':\n"
        f"      print({{n: os.environ[n] for n in {names} if n in os.environ}}, flush=True)\n"
        "      os._exit(0)\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"from chan_rt.cli import main; main(['export', {checkpoint!r}, '-o', 'none'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert ast.literal_eval(done.stdout) == expected, done.stderr


def test_group_lists_every_command() -> None:
    result = ok("--help")
    for name in cli.COMMANDS:
        assert f"\n  {name} " in result


@pytest.mark.parametrize("words", [[], ["gallery"]])
def test_the_list_of_commands_is_not_cut_at_80_columns(words: list[str]) -> None:
    result = CliRunner().invoke(cli.main, [*words, "--help"], terminal_width=80)
    listed = result.output.partition("Commands:")[2].splitlines()
    assert len(listed) > 10
    assert [line for line in listed if line.endswith("...")] == []


def test_unknown_command_is_an_error() -> None:
    result = chan("no-such-command")
    assert result.exit_code == 2
    assert "No such command 'no-such-command'.\n" in result.output
    assert "No such command 'serch'. Did you mean 'search'?\n" in chan("serch", "g").output


@pytest.mark.parametrize("words", [[], ["gallery"]])
def test_a_group_without_a_command_shows_its_help_once(words: list[str]) -> None:
    output = CliRunner().invoke(cli.main, words, prog_name="chan").output
    assert output.count("Usage: chan") == 1
    assert "Error" not in output
    assert "\nCommands:\n" in output


def refuse() -> None:
    raise InputError("regions: must be finite, got nan")


@pytest.mark.parametrize(
    ("work", "line"),
    [
        (refuse, "regions: must be finite, got nan"),
        (
            lambda: np.empty((2**20, 2**20, 2**10), np.float32),
            "there is too little memory for this: Unable to allocate 4[.]00 PiB .*",
        ),
        (lambda: Path("/missing/out.json").write_text("{}"), "/missing/out[.]json: No such file or directory"),
    ],
    ids=["of the library", "memory", "a file"],
)
def test_an_error_is_one_line(work: Callable[[], object], line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli.ChanGroup, "get_command", lambda self, ctx, name: click.command("fails")(work))
    result = chan("fails")
    assert result.exit_code == 1
    assert re.fullmatch(f"Error: {line}\n", result.output)


@pytest.mark.parametrize(
    ("module", "extra", "arguments"),
    [
        ("torch", "export", ["train", ".", "-o", "run"]),
        ("PIL", "pictures", ["scenes", "out"]),
        ("onnx", "export", ["sensitivity", ".", "."]),
    ],
)
def test_a_missing_extra_names_its_pip_command(module: str, extra: str, arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "precomp").mkdir()
    (tmp_path / "precomp" / "train_caps.txt").write_text("a cloud\n")  # what is wrong with the data is said before
    code = f"import sys; sys.modules[{module!r}] = None; from chan_rt.cli import main; main({arguments!r})"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == f"Error: this command needs {module}: pip install 'chan-rt[{extra}]'\n"


# -- paths of another kind than the command needs

KINDS = ("missing", "empty", "file", "bundle", "deep", "gallery", "checkpoint", "data")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.getbasetemp() / "places" / kind for kind in KINDS}
    for kind in ("empty", "bundle", "deep", "gallery", "checkpoint", "data"):
        made[kind].mkdir(parents=True)
    made["file"].write_bytes(b"\x1b[2J\xff no such thing")
    (made["bundle"] / "manifest.json").write_text(json.dumps({"schema": 1, "graphs": [], "tokenizer": None}))
    (made["deep"] / "manifest.json").write_text("[" * 100_000)
    (made["gallery"] / "catalogue.sqlite").write_bytes(b"SQLite format 3\0" + bytes(200))
    (made["checkpoint"] / "config.json").write_text('{"model": {"bert": 5, "alignment": []}}')
    (made["data"] / "test_caps.txt").write_bytes(b"a\n\xff\n")
    (made["data"] / "test_ims.npy").write_bytes(b"\x93NUMPY\1\0")
    return made


@pytest.mark.parametrize("kind", [*KINDS, "nothing"])
@pytest.mark.parametrize("words", [words for words in EVERY if words != "doctor"])
def test_a_path_of_another_kind_is_one_line(
    words: str, kind: str, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # an empty path is the working directory, which must hold no pictures
    place, out = "" if kind == "nothing" else str(places[kind]), str(tmp_path / "out")
    arguments = words.split()
    for parameter in EVERY[words].params:
        if isinstance(parameter, click.Argument):
            arguments += [out] if parameter.name == "out" else [place] * (3 if parameter.nargs < 0 else 1)
        elif parameter.required:
            arguments += [parameter.opts[-1], out if parameter.name == "out" else place]
    if words == "scenes":
        arguments = ["scenes", place, "--train", "0", "--dev", "0", "--test", "0"]
    result = chan(*arguments)
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit), result.exception
    assert "Error: " in result.output
    assert "\x1b" not in result.output


# -- the terminal

HOSTILE = [
    "\x1b]0;title\x07",
    "\x1b[2J",
    "red\u202egpj.txt",
    "a\rb",
    "\x9b31m",
    "\x00",
    "caf\udce9",
    "two\u2028lines",
    "\U000e0041",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_control_characters_are_shown_not_sent(text: str) -> None:
    assert visible(text).isprintable()
    assert visible(f"before{text}after").startswith("before")
    assert visible_lines(f"a\n{text}\tb").startswith("a\n")


@given(strategies.text())
def test_visible_text_is_one_line_without_control_characters(text: str) -> None:
    shown = visible(text)
    assert not any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")
    shown.encode("utf-8")


@given(strategies.recursive(strategies.text(), lambda below: strategies.dictionaries(strategies.text(), below)))
def test_json_is_safe_to_show_and_says_the_same(data: object) -> None:
    @click.command()
    def prints() -> None:
        print_json(data)

    result = CliRunner().invoke(prints)
    assert result.exit_code == 0
    assert visible_lines(result.output) == result.output
    assert json.loads(result.output) == data


IDS = {("gallery delete", "ids"), ("search", "like")}  # of rows, and a gallery may have one that is empty


def check_that_no_value_may_be_empty(words: str, command: click.Command) -> None:
    """Whatever takes a path, a place, an address or a name refuses the value of a shell's variable that is not set."""
    context = click.Context(command)
    for parameter in command.params:
        if (words, parameter.name) in IDS or getattr(parameter, "is_flag", False):
            assert getattr(parameter, "is_flag", False) or parameter.type("", parameter, context) == ""
            continue
        with pytest.raises(click.BadParameter) as refused:
            parameter.type("", parameter, context)
        assert str(refused.value), parameter.name


@pytest.mark.parametrize("words", EVERY)
def test_no_value_may_be_empty(words: str) -> None:
    check_that_no_value_may_be_empty(words, EVERY[words])


@pytest.mark.parametrize("module", MODULES)
def test_no_value_of_a_module_may_be_empty(module: str) -> None:
    check_that_no_value_may_be_empty(f"python -m {module}", importlib.import_module(module).main)


def check_that_numbers_are_finite(command: click.Command) -> None:
    for parameter in command.params:
        if isinstance(parameter.type, click.types.FloatParamType):
            for text in ("nan", "inf", "-inf"):
                with pytest.raises(click.BadParameter):
                    parameter.type(text, parameter, click.Context(command))


@pytest.mark.parametrize("words", EVERY)
def test_numbers_are_finite(words: str) -> None:
    check_that_numbers_are_finite(EVERY[words])


@pytest.mark.parametrize("module", MODULES)
def test_numbers_of_a_module_are_finite(module: str) -> None:
    check_that_numbers_are_finite(importlib.import_module(module).main)


@pytest.mark.parametrize(("name", "taken"), [("x.png", True), ("x.PDF", True), ("x.gif", False), ("x", False)])
def test_a_plot_has_a_form_that_can_be_drawn(name: str, taken: bool) -> None:
    for words in ("bench", "sensitivity"):
        (plot,) = [option for option in options(EVERY[words]) if option.name == "plot_file"]
        with (
            contextlib.nullcontext() if taken else pytest.raises(click.BadParameter, match=r"must end in .png, .svg or")
        ):
            plot.type(name, plot, click.Context(EVERY[words]))


def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    context = click.Context(EVERY["bench"])
    for kind in (choices.NEW_FILE, choices.NEW_FOLDER, choices.NEW_PLOT):
        for path in (tmp_path / "new.png", tmp_path / "folder/a/b.png", Path("new.png")):
            assert kind.convert(str(path), None, context) == path
        with pytest.raises(click.BadParameter, match=r"file/new.png cannot be written: .*file is not a folder"):
            kind.convert(str(tmp_path / "file" / "new.png"), None, context)
    assert choices.NEW_FILE.convert(str(tmp_path / "file"), None, context) == tmp_path / "file"
    monkeypatch.setattr(os, "access", lambda place, mode: not mode & os.W_OK or Path(place) != tmp_path / "folder")
    for kind, name in (
        (choices.NEW_FILE, "folder/new.json"),
        (choices.NEW_FOLDER, "folder/deep/new"),
        (choices.NEW_FOLDER, "folder"),
        (choices.NEW_PLOT, "folder/new.svg"),
    ):
        with pytest.raises(click.BadParameter, match=r"cannot be written: the folder .*folder is read-only"):
            kind.convert(str(tmp_path / name), None, context)
    (tmp_path / "folder/old.json").touch()
    with pytest.raises(click.BadParameter, match="cannot be written"):  # it would be replaced
        choices.NEW_FILE.convert(str(tmp_path / "folder/old.json"), None, context)


def test_an_empty_value_is_a_mistake_of_the_command_line(tmp_path: Path) -> None:
    for words in (
        ["triton", str(tmp_path), "-o", "repository", "--gallery-place", ""],
        ["index", str(tmp_path), str(tmp_path), "-o", str(tmp_path / "g"), "--ray", ""],
        ["gallery", "pull", "", "-o", "g"],
        ["gallery", "verify", ""],
        ["data", "", "-o", "data"],
        ["serve", "g", "--host", ""],
        ["search", "g", ""],
    ):
        result = chan(*words)
        assert result.exit_code == 2, result.output
        assert "must not be empty" in result.output


def run_fake(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object], *before: str) -> Result:
    """What `chan fake` does, where `fake` is a command that does `work`."""

    @click.command()
    @click.argument("words", nargs=-1)
    def fake(words: tuple[str, ...]) -> None:
        work()

    monkeypatch.setattr(cli.ChanGroup, "get_command", lambda self, ctx, name: fake)
    return chan(*before, "fake")


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "make",
    [InputError, click.UsageError, lambda text: FileNotFoundError(2, "No such file", text), click.BadParameter],
)
def test_errors_show_control_characters(text: str, make: Callable[[str], Exception], monkeypatch) -> None:
    def fails() -> None:
        raise make(text)

    result = run_fake(monkeypatch, fails)
    assert result.exit_code in (1, 2)
    assert visible_lines(result.output) == result.output
    assert "Traceback" not in result.output


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    result = run_fake(monkeypatch, interrupted)
    assert result.exit_code == 130
    assert result.stderr == "\nInterrupted.\n"


@pytest.mark.skipif(os.name == "nt", reason="closes streams as a shell does")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_stop_no_command(tmp_path: Path, closed: str) -> None:
    """What starts programs at boot may close them. No file of the command may take their place."""
    np.save(tmp_path / "a.npy", np.eye(3, dtype=np.float32))
    words = [*COMMAND, "index", "--embeddings", "a.npy", "-o", "g"]
    done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", *words], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert verify_gallery(tmp_path / "g") == []


PRINTS = [["--help"], ["--version"], ["search", "--help"], ["gallery", "--help"], ["doctor"], ["doctor", "--json"]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", PRINTS, ids=" ".join)
def test_a_full_disk_behind_stdout_is_one_line(words: list[str], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, env=environment)
    assert (done.returncode, done.stderr) == (1, b"Error: standard output: No space left on device\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(("words", "status"), [(["--version"], 0), (["nope"], 2), (["inspect", "."], 1)])
def test_a_full_disk_behind_stderr_changes_no_status(words: list[str], status: int, tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *words], stdout=subprocess.PIPE, stderr=full, cwd=tmp_path)
    assert done.returncode == status
    assert (b", version " in done.stdout) == (status == 0)


def test_a_warning_that_stderr_does_not_take_stops_no_work(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(3, dtype=np.float32))
    words = [*COMMAND, "-vv", "index", "--embeddings", "a.npy", "-o", "g"]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as left:
        done = subprocess.run(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=left)
    assert done.returncode == 0
    assert verify_gallery(tmp_path / "g") == []


@pytest.mark.skipif(os.name == "nt", reason="a pipe of Windows has no such error")
@pytest.mark.parametrize("words", PRINTS, ids=" ".join)
def test_a_reader_that_has_left_ends_a_command_quietly(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as left:
        done = subprocess.run([*COMMAND, *words], stdout=left, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_before_the_command_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "chan_rt.commands.terminal", Interrupted())
    result = chan("doctor")
    assert result.exit_code == 130
    assert result.stderr == "\nInterrupted.\n"


@pytest.mark.parametrize(
    ("flags", "shown"),
    [((), ["Warning:"]), (("-v",), ["Warning:", "Info:"]), (("-vv",), ["Warning:", "Info:", "Debug:"])],
)
def test_the_library_logs_on_request(flags: tuple[str, ...], shown: list[str], monkeypatch) -> None:
    def logs() -> None:
        logging.getLogger("chan_rt.runtime.fake").warning("slow")
        logging.getLogger("chan_rt.runtime.fake").info("opened %s", "a\x1bb")
        logging.getLogger("chan_rt.runtime.fake").debug("details")

    try:
        result = run_fake(monkeypatch, logs, *flags)
    finally:
        logging.getLogger("chan_rt").handlers.clear()
        logging.getLogger("chan_rt").setLevel(logging.NOTSET)
    assert [line.split()[0] for line in result.stderr.splitlines()] == shown
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_lacks_a_letter_shows_an_escape(encoding: str) -> None:
    text = "caf\u00e9 \u732b"
    code = f"from chan_rt.commands.terminal import echo, print_json; echo({text!a}); print_json([{text!a}])"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    line, _, data = done.stdout.decode(encoding).partition("\n")
    assert line == text.encode(encoding, "backslashreplace").decode(encoding)
    assert json.loads(data) == [text]


def test_commands_print_through_one_door() -> None:
    commands = Path(cli.__file__).parent / "commands"
    doors = [
        file.name
        for file in commands.glob("*.py")
        if re.search(r"click\.(s?echo|progressbar)|\bprint\(|sys\.(stdout|stderr)", file.read_text(encoding="utf-8"))
    ]
    assert sorted(doors) == ["streams.py", "terminal.py"]  # the first one only guards what the other prints to


@pytest.mark.parametrize("words", [words for words, one in EVERY.items() if any(p.name == "data" for p in one.params)])
def test_help_says_what_a_data_folder_is(words: str) -> None:
    text = " ".join(chan(*words.split(), "--help").output.split())
    assert "precomp/SPLIT_ims.npy (region features) and precomp/SPLIT_caps.txt (one caption a line)" in text
    assert "precomp layout" not in text
