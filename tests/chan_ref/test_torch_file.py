"""Files of torch.save: what is surveyed is what is read, limits come first, and what is not data is never executed."""

from __future__ import annotations

import argparse
import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from chan_rt.chan_ref import torch_file
from chan_rt.chan_ref.torch_file import check_tensor, find_unknown, read_torch_file
from chan_rt.runtime.errors import CheckpointError


def _zip(data: object) -> bytes:
    """What torch.save writes, as Python's zipfile stores it: without zip64 records."""
    raw, plain = io.BytesIO(), io.BytesIO()
    torch.save(data, raw)
    with zipfile.ZipFile(raw) as old, zipfile.ZipFile(plain, "w") as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name), old.read(name))
    return plain.getvalue()


def _with_pickle(code: bytes) -> bytes:
    plain = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_zip({}))) as old, zipfile.ZipFile(plain, "w") as new:
        for name in old.namelist():
            new.writestr(name, code if name.endswith("/data.pkl") else old.read(name))
    return plain.getvalue()


def _two_directories(seen_by_python: bytes, seen_by_torch: bytes) -> bytes:
    """One file with two central directories: zipfile uses the last one, torch the one at the offset in the file."""
    parts = []
    for content in (seen_by_torch, seen_by_python):
        size, offset = struct.unpack("<II", content[-22:][12:20])
        parts += [content[:offset], content[offset : offset + size]]
    torch_members, torch_directory, python_members, python_directory = parts
    assert len(torch_members) == len(python_members)
    assert len(torch_directory) == len(python_directory)
    return b"".join(parts) + seen_by_torch[-22:]


@pytest.mark.parametrize(
    "data",
    [
        {"w": torch.arange(6.0).view(2, 3), "n": [1, 2.5, "é", None, True, (3,), -(2**40)]},
        {"t": torch.arange(6.0).view(2, 3).t(), "empty": torch.zeros(0, 4), "scalar": torch.tensor(3)},
        {str(kind): torch.tensor([0, 1], dtype=kind) for kind in torch_file.STORAGES.values()},
        {"module": torch.nn.Linear(2, 3).state_dict(), "kept": torch.nn.Linear(2, 3).state_dict(keep_vars=True)},
        argparse.Namespace(a=1, b=argparse.Namespace(c=[2])),
    ],
)
def test_what_is_read_is_what_was_saved(tmp_path: Path, data: Any):
    torch.save(data, tmp_path / "f.pth")
    found = read_torch_file(tmp_path / "f.pth")

    def same(a: Any, b: Any) -> bool:
        if isinstance(b, argparse.Namespace):
            return isinstance(a, argparse.Namespace) and same(vars(a), vars(b))
        if isinstance(b, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in b)
        if isinstance(b, torch.Tensor):
            tensor = check_tensor("w", a, "f")
            return type(tensor) is torch.Tensor and tensor.dtype == b.dtype and torch.equal(tensor, b)
        return a == b

    assert same(found, data)


def test_of_two_directories_the_surveyed_one_is_read(tmp_path: Path):
    content = _two_directories(_zip({"w": torch.ones(4)}), _zip({"w": torch.full((4,), 2.0)}))
    (tmp_path / "two.pth").write_bytes(content)
    assert torch.load(tmp_path / "two.pth", weights_only=True)["w"].tolist() == [2, 2, 2, 2]
    assert read_torch_file(tmp_path / "two.pth")["w"].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"\x80\x02" + b"N" * (torch_file.MAX_PICKLE_BYTES - 2) + b".", "its pickle must be at most 4194304 bytes"),
        (b"\x80\x02" + b"N" * torch_file.MAX_OPCODES + b".", "must have at most 1000000 opcodes"),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "uses the memo at 2147483647, out of order"),
        (b"\x80\x02)" + b"\x85" * 65 + b".", "nested 65 deep"),
        # A tuple of 2 ** 18 objects as the key of many dictionaries, each of which would hash it.
        (
            b"\x80\x02K\x01"
            + b"".join(b"q" + bytes([row]) + b"h" + bytes([row]) + b"\x86" for row in range(18))
            + b"q\x12"
            + b"}h\x12Ns" * 100
            + b".",
            r"its pickle builds \d{8} objects",
        ),
    ],
)
def test_limits_come_before_anything_is_built(tmp_path: Path, code: bytes, message: str):
    (tmp_path / "f.pth").write_bytes(_with_pickle(code))
    with pytest.raises(CheckpointError, match=message):
        read_torch_file(tmp_path / "f.pth")


def test_an_archive_of_too_many_members_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch_file, "MAX_MEMBERS", 3)
    (tmp_path / "f.pth").write_bytes(_zip({"w": torch.ones(2)}))
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(CheckpointError, match=r"must have at most 3 members, got \d"):
        read_torch_file(tmp_path / "f.pth")


def test_what_is_not_a_regular_file_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path, tmp_path / "pipe.pth", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match=r"must be a file of torch\.save"):
            read_torch_file(path)


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02cargparse\nNamespace\nN}X\x08\x00\x00\x00__init__K\x01s\x86b.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        b"\x80\x02ccollections\nOrderedDict\nN}X\x01\x00\x00\x00aK\x01s\x86b.",
        b"\x80\x02cos\nsystem\n}X\x01\x00\x00\x00aK\x01sb.",
    ],
)
def test_no_class_can_be_changed(tmp_path: Path, code: bytes):
    before = dict(vars(argparse.Namespace))
    (tmp_path / "f.pth").write_bytes(_with_pickle(code))
    with pytest.raises(CheckpointError):
        read_torch_file(tmp_path / "f.pth", keep_unknown=True)
    assert dict(vars(argparse.Namespace)) == before
    assert not hasattr(torch_file._Rebuild, "a")


@pytest.mark.parametrize("size", [(3,), (2, 2), (5,), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("offset", [0, 1, 4])
def test_a_tensor_stays_within_its_storage(size: tuple[int, ...], stride: int, offset: int):
    storage = torch.arange(4.0).as_subclass(torch_file._Tensor)
    strides = (stride,) * len(size)
    inside = offset + sum((length - 1) * stride for length in size) < 4
    if inside:
        made = torch_file._Rebuild(storage, offset, size, strides, False, {})
        assert torch.equal(made, torch.arange(4.0).as_strided(size, strides, offset))
    else:
        with pytest.raises(ValueError, match="ends at element"):
            torch_file._Rebuild(storage, offset, size, strides, False, {})


class Command:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize(
    "stray", [Path("x"), {1, 2}, torch.device("cpu"), torch.float32, Command("touch ran"), ValueError(3), range(3)]
)
def test_what_is_not_data_is_named_and_never_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stray: object):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": 1, "b": [(stray,)], "w": torch.ones(2)}, "f.pth")
    with pytest.raises(CheckpointError, match=r"asks for [\w.]+, which is not data: refused, nothing was executed"):
        read_torch_file("f.pth")
    found = read_torch_file("f.pth", keep_unknown=True)
    assert (found["a"], found["w"].tolist()) == (1, [1, 1])
    assert find_unknown(found["a"]) is None
    assert find_unknown(found) == find_unknown(found["b"])
    assert find_unknown(found)
    assert not Path("ran").exists()
