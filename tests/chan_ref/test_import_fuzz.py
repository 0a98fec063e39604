"""Hostile checkpoint files: none runs anything, none raises anything but a ChanError, none leaves anything behind."""

from __future__ import annotations

import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from chan_rt.chan_ref.published import import_published, read_published
from chan_rt.runtime.errors import ChanError, CheckpointError

GOLDEN = Path(__file__).parents[1] / "golden"
SOURCES = [path.read_bytes() for path in sorted(GOLDEN.glob("*.pth"))]
pytestmark = pytest.mark.usefixtures("little_memory")


@pytest.fixture(autouse=True)
def cage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Canaries sing in `tmp_path`."""
    monkeypatch.chdir(tmp_path)


class Canary:
    """Whoever unpickles this touches a file."""

    def __init__(self, path: Path, how: Callable[..., object], *arguments: object) -> None:
        self.path, self.how, self.arguments = path, how, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.how, self.arguments or (f"touch {self.path}",)


def _rezip(source: bytes, edit: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with its members edited and its checksums right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, edit(name, old.read(name)))
    return target.getvalue()


def _with_pickle(source: bytes, content: bytes) -> bytes:
    return _rezip(source, lambda name, old: content if name.endswith("/data.pkl") else old)


def _hostile_pickles(canary: Path) -> dict[str, bytes]:
    touch = f"touch {canary}"
    calls = {
        "os.system": Canary(canary, os.system),
        "eval": Canary(canary, eval, f"__import__('os').system({touch!r})"),
        "exec": Canary(canary, exec, f"__import__('os').system({touch!r})"),
        "open": Canary(canary, open, str(canary), "w"),
        "touch": Canary(canary, Path.touch, canary),
        "bytearray": Canary(canary, bytearray, 10**12),
        "torch.load": Canary(canary, torch.load, str(canary)),
        "torch.zeros": Canary(canary, torch.zeros, 10**12),
    }
    pickles = {name: pickle.dumps({"model": call, "opt": 1}, protocol=2) for name, call in calls.items()}
    command = touch.encode()
    pickles["protocol 0"] = b"cos\nsystem\n(S'" + command + b"'\ntR."
    pickles["INST"] = b"(S'" + command + b"'\nios\nsystem\n."
    pickles["OBJ"] = b"(cos\nsystem\nS'" + command + b"'\no."
    pickles["STACK_GLOBAL"] = b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)]) + command + b"\x85R."
    pickles["EXT1"] = b"\x80\x02\x82\x01."
    pickles["Namespace called with arguments"] = b"\x80\x02cargparse\nNamespace\nK\x01\x85R."
    pickles["Namespace with a method"] = b"\x80\x02cargparse\nNamespace\n)\x81cos\nsystem\nb."
    pickles["huge storage"] = b"\x80\x02ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R."
    # A tuple of tuples: hashing it recurses once a level, or takes 2 ** 200 steps.
    pickles["deep key"] = b"\x80\x02})" + b"\x85" * 10**6 + b"K\x01s."
    doubled = b"".join(b"q" + bytes([row]) + b"h" + bytes([row]) + b"\x86" for row in range(200))
    pickles["wide key"] = b"\x80\x02})" + doubled + b"K\x01s."
    pickles["no end"] = b"\x80\x02}"
    pickles["empty"] = b""
    pickles["stack underflow"] = b"\x80\x02s."
    pickles["unknown memo"] = b"\x80\x02h\x05."
    pickles["mark at the end"] = b"\x80\x02(."
    return pickles


HOSTILE = _hostile_pickles(Path("canary"))  # in the working directory, which every test sets


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_nothing_runs(tmp_path: Path, name: str):
    file = tmp_path / "model.pth"
    for data in (_with_pickle(SOURCES[0], HOSTILE[name]), HOSTILE[name]):
        file.write_bytes(data)
        with pytest.raises(CheckpointError):
            import_published(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_the_canary_does_sing(tmp_path: Path):
    pickle.loads(HOSTILE["os.system"])
    assert (tmp_path / "canary").exists()


def test_the_refusal_names_what_was_asked_for(tmp_path: Path):
    (tmp_path / "model.pth").write_bytes(_with_pickle(SOURCES[0], HOSTILE["os.system"]))
    with pytest.raises(CheckpointError, match=r"asks for (posix|nt)\.system, which is not data: refused, nothing was"):
        read_published(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a file of torch.save"),
        (b"\x93NUMPY" + bytes(100), "is not a file of torch.save"),
        (pickle.dumps({"model": 1}), "bare pickle.*can run code"),
        (SOURCES[0][: len(SOURCES[0]) // 2], "truncated or damaged"),
        (SOURCES[0][:-1], "truncated or damaged"),
        (_rezip(SOURCES[0], lambda _, content: content, zipfile.ZIP_DEFLATED), "its members are compressed"),
        (_rezip(SOURCES[0], lambda name, content: content[4:] if "/data/" in name else content), "cannot be read as"),
        (SOURCES[0].replace(b"data.pkl", b"atad.pkl"), "must hold one data.pkl"),
    ],
)
def test_a_file_that_is_no_whole_checkpoint_is_refused(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_published(tmp_path / "model.pth")


def test_one_flipped_bit_of_a_weight_is_seen(tmp_path: Path):
    content = bytearray(SOURCES[0])
    with zipfile.ZipFile(io.BytesIO(SOURCES[0])) as archive:
        member = next(member for member in archive.infolist() if member.filename.endswith("/data/0"))
        weights = archive.read(member)
    content[SOURCES[0].index(weights) + 5] ^= 1
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"data/0 fails its checksum"):
        read_published(tmp_path / "model.pth")


def _flip(dice: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(dice.choice((1, 1, 2, 8))):
        changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def _splice(dice: random.Random, content: bytes) -> bytes:
    """Cut, repeat, move or overwrite a stretch."""
    start, end = sorted(dice.randrange(len(content) + 1) for _ in range(2))
    other = dice.choice(SOURCES)
    at = dice.randrange(len(other))
    fill = dice.choice((b"", content[start:end] * 2, other[at : at + end - start], bytes(end - start), b"\xff" * 4))
    return content[:start] + fill + content[end:]


def _edit_pickle(dice: random.Random, source: bytes) -> bytes:
    """A valid archive whose pickle was damaged: what gets past every checksum."""
    change = dice.choice((_flip, _flip, _flip, _splice, _grow))
    return _rezip(source, lambda name, old: change(dice, old) if name.endswith("/data.pkl") else old)


def _grow(dice: random.Random, content: bytes) -> bytes:
    """Write a huge number over a small one (opcodes K and M, and J)."""
    places = [row for row, byte in enumerate(content[:-6]) if byte in b"KM"]
    at = dice.choice(places)
    width = 2 if content[at : at + 1] == b"K" else 3
    return content[:at] + b"J" + struct.pack("<i", dice.choice((2**31 - 1, 2**27, -1, 0))) + content[at + width :]


def _edit_member(dice: random.Random, source: bytes) -> bytes:
    """A valid archive of which one member is shorter, longer, or another file's."""
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        victim = dice.choice(archive.namelist())
        other = archive.read(dice.choice(archive.namelist()))
    change = dice.choice((lambda old: old[: len(old) // 2], lambda old: old * 2, lambda _: other, lambda _: b""))
    return _rezip(source, lambda name, old: change(old) if name == victim else old)


def _edit_directory(dice: random.Random, source: bytes) -> bytes:
    """Damage the archive's own directory, where sizes and offsets stand."""
    start = source.rindex(b"PK\x01\x02", 0, dice.randrange(source.index(b"PK\x01\x02") + 46, len(source)))
    return source[:start] + _flip(dice, source[start : start + 46]) + source[start + 46 :]


def _spliced_zips(dice: random.Random, source: bytes) -> bytes:
    other = dice.choice(SOURCES)
    if dice.random() < 0.5:
        return source + other
    return source[: dice.randrange(len(source))] + other[dice.randrange(len(other)) :]


def _poison(dice: random.Random, source: bytes) -> bytes:
    """A valid archive with a hostile pickle inside its own, or in place of its end."""
    poison = dice.choice(list(HOSTILE.values()))[: dice.choice((10, 100, 10**7))]

    def change(name: str, old: bytes) -> bytes:
        at = dice.randrange(len(old))
        return old[:at] + poison + dice.choice((old[at:], b"")) if name.endswith("/data.pkl") else old

    return _rezip(source, change)


def _torn(dice: random.Random, source: bytes) -> bytes:
    return source[: dice.randrange(len(source))]


MUTATIONS = (_flip, _splice, _torn, _edit_pickle, _edit_pickle, _edit_pickle, _edit_member, _edit_directory)
MUTATIONS += (_spliced_zips, _poison)


def _fuzz(folder: Path, seed: int, rounds: int) -> tuple[int, int]:
    """Read mutated files; returns how many were refused and how many were still whole."""
    dice, file = random.Random(seed), folder / "model.pth"
    refused = whole = 0
    for _ in range(rounds):
        file.write_bytes(dice.choice(MUTATIONS)(dice, dice.choice(SOURCES)))
        try:
            model = read_published(file).model
        except ChanError:
            refused += 1
        else:
            # What is read must be a whole model; a flipped bit of a best_rsum or a padding byte harms nobody.
            assert all(parameter.isfinite().all() for parameter in model.parameters())
            whole += 1
    assert [path.name for path in folder.iterdir()] == ["model.pth"]
    return refused, whole


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")  # pickletools, of a damaged string
def test_thousands_of_mutated_files_are_read_whole_or_refused(tmp_path: Path):
    refused, whole = _fuzz(tmp_path, seed=0, rounds=2000)
    assert refused > 1000
    assert whole > 20


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@pytest.mark.parametrize("seed", range(1, 13))
def test_a_hundred_thousand_mutated_files(tmp_path: Path, seed: int):
    refused, _ = _fuzz(tmp_path, seed, rounds=10_000)
    assert refused > 5000
