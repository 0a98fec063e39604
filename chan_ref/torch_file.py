"""Read an untrusted file of `torch.save`: nothing in it is executed, and nothing in it can exhaust the memory.

`torch.load(weights_only=True)` is not used: its list of callables is wide (`bytearray(10**12)` is on it), it does not
verify the archive's checksums, a tuple nested a million deep ends the process, and its zip reader may see another
directory than Python's does, so that a survey by Python says nothing about what torch loads. Here one reader
(`zipfile`) reads every byte once: sizes and counts are limited first, then the pickle is surveyed without building
anything, and then it is unpickled where the only names that exist are dictionaries, tensors and `argparse.Namespace`.
"""

from __future__ import annotations

import argparse
import io
import math
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import CheckpointError, reason_of

STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}

# The opcodes of pickle protocol 2, which torch.save writes. Gets and puts use the memo; pickletools describes the rest.
GETS, PUTS = {"BINGET", "LONG_BINGET"}, {"BINPUT", "LONG_BINPUT"}
FILLERS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}  # they fill an object on the stack and make no new one
# fmt: off
OPCODES = GETS | PUTS | FILLERS | {
    "PROTO", "STOP", "MARK", "GLOBAL", "NEWOBJ", "REDUCE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_LIST", "EMPTY_DICT", "NONE", "NEWFALSE", "NEWTRUE", "BINPERSID", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
}
# fmt: on

# A published checkpoint is nested 8 deep, and a BERT has 200 tensors. With as many tensors and a vocabulary of 12,000
# words a pickle has 0.3 MiB and 42,000 opcodes; surveying a million opcodes took 2 s of CPU.
MAX_FILE_BYTES = 16 << 30
MAX_MEMBERS = 10_000
MAX_PICKLE_BYTES = 4 << 20
MAX_OPCODES = 1_000_000
MAX_DEPTH = 64
MAX_OBJECTS = 10_000_000
MAX_UNKNOWN = 100

_Node = tuple[int, int]  # how deep an object is, and its objects, counted as often as they are reached
_Stack = list[_Node | None]  # of a pickle; None is a mark


class Unknown:
    """Stands for an object of a class that is not data. The class was not imported, and nothing was executed."""

    def __new__(cls, *arguments: object) -> Unknown:
        """Ignore what the object would be made from."""
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Ignore the object's state."""

    def __setitem__(self, key: object, value: object) -> None:
        """Ignore an item of a subclass of dict."""

    def append(self, value: object) -> None:
        """Ignore an item of a subclass of list."""

    def extend(self, values: object) -> None:
        """Ignore the items of a subclass of list."""


def read_torch_file(path: str | Path, keep_unknown: bool = False) -> Any:
    """Read what `torch.save` wrote: dicts, lists, numbers, strings, `argparse.Namespace` and tensors, on the CPU.

    Args:
        path: the file.
        keep_unknown: read an object of any other class as an `Unknown` instead of refusing the file.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, too large, of another format, or holds anything else.
            Nothing in it was executed.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} must be a file of torch.save, got a folder or a device")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise CheckpointError(f"{path} must be smaller than {MAX_FILE_BYTES} bytes, got {size}")
        with path.open("rb") as file:
            content = file.read(4)
            _check_kind(content, path)  # before reading what may be gigabytes of features
            content += file.read(size)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from error
    with _open_archive(content, path) as archive:
        names = _survey_archive(archive, len(content), path)
        root = names[0].partition("/")[0]
        code = archive.read(f"{root}/data.pkl")
        _survey_pickle(code, path)
        try:
            return _Reader(code, archive, root, keep_unknown, path).load()
        except CheckpointError:
            raise
        except Exception as error:  # a hostile pickle can make the reader raise anything
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{path} cannot be read as data of torch.save: {reason}") from error


def check_tensor(name: str, tensor: object, path: str | Path) -> torch.Tensor:
    """Return the tensor in contiguous form, if it is no larger than the bytes that the file stores for it.

    Raises:
        CheckpointError: it is not a tensor, or it is a view (an expanded one, say) whose copy could have any size.
    """
    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(f"{path}: {name} must be a tensor, got {type(tensor).__name__}")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {name} must be a plain tensor, got a view that is larger than its storage")
    return tensor.detach().contiguous().as_subclass(torch.Tensor)


def not_data(path: Path, name: str) -> str:
    """Return the message about a class or function that a file names and that is not data."""
    return f"{path} asks for {name}, which is not data: refused, nothing was executed"


def find_unknown(value: object) -> str | None:
    """Return the name of the class of an `Unknown` in nested dicts, lists and tuples, or None if there is none."""
    pending, seen = [value], set()
    while pending:
        item = pending.pop()
        if isinstance(item, type) and issubclass(item, Unknown):
            return item.__name__
        if isinstance(item, Unknown):
            return type(item).__name__
        if isinstance(item, dict | list | tuple | argparse.Namespace) and id(item) not in seen:
            seen.add(id(item))
            inner = vars(item) if isinstance(item, argparse.Namespace) else item
            pending.extend([*inner.keys(), *inner.values()] if isinstance(inner, dict) else inner)
    return None


# A pickle may set the state of whatever it has made or named. Without a `__setstate__` that would set attributes, on
# `argparse.Namespace` itself as well; of a class with one it fails, because the instance is missing.


class _Options(argparse.Namespace):
    def __setstate__(self, state: dict[str, Any]) -> None:
        if type(state) is not dict or not all(type(key) is str for key in state):
            raise ValueError("the state of a Namespace must be a dictionary of names")
        vars(self).update(state)


class _Dict(dict[Any, Any]):
    def __setstate__(self, state: object) -> None:
        """Ignore `_metadata`, the versions of the modules of a state dict."""


class _Tensor(torch.Tensor):
    def __setstate__(self, state: object) -> None:
        raise ValueError("a tensor has no state")


class _Rebuild:
    def __new__(cls, storage: Any, offset: Any, size: Any, stride: Any, *others: object) -> Any:
        """Return a view of a storage, if it stays within it; `others` are requires_grad, hooks and perhaps flags."""
        if any(others[2:]):
            raise ValueError(f"a tensor must be what its storage holds, got {others[2]}: save its resolve_neg()")
        numbers = (offset, *size, *stride)
        if not isinstance(storage, _Tensor) or storage.ndim != 1 or len(size) != len(stride) or len(size) > MAX_DEPTH:
            raise ValueError("a tensor must be made from a storage and have one stride per dimension")
        if any(type(number) is not int or number < 0 for number in numbers):
            raise ValueError("offset, sizes and strides of a tensor must be integers and not negative")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= storage.numel():
            raise ValueError(f"a tensor ends at element {last} of a storage of {storage.numel()} elements")
        return storage.as_strided(size, stride, offset if math.prod(size) else 0)

    def __setstate__(self, state: object) -> None:
        """See above."""


class _Parameter:
    def __new__(cls, data: Any, *_: object) -> Any:
        """Return the tensor of an `nn.Parameter`."""
        return data

    def __setstate__(self, state: object) -> None:
        """See above."""


class _Reader(pickle.Unpickler):
    """Unpickles what was surveyed. The only names that exist are those of `find_class`."""

    def __init__(self, code: bytes, archive: zipfile.ZipFile, root: str, keep_unknown: bool, path: Path) -> None:
        super().__init__(io.BytesIO(code))
        self._archive, self._root, self._keep_unknown, self._path = archive, root, keep_unknown, path
        self._swap = f"{root}/byteorder" in archive.namelist() and archive.read(f"{root}/byteorder") == b"big"
        self._buffers: dict[str, bytearray] = {}
        self._unknown: dict[str, type[Unknown]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name in the file. Nothing is imported."""
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        asked = f"{module}.{name}".replace("__builtin__.", "builtins.")
        if not self._keep_unknown:
            raise CheckpointError(not_data(self._path, asked))
        if asked not in self._unknown:
            if len(self._unknown) == MAX_UNKNOWN:
                raise CheckpointError(f"{self._path} names more than {MAX_UNKNOWN} classes that are not data: refused")
            self._unknown[asked] = type(asked, (Unknown,), {})
        return self._unknown[asked]

    def persistent_load(self, pid: Any) -> torch.Tensor:
        """Return a storage as a vector: `pid` is ("storage", dtype, key, location, number of elements)."""
        kind, dtype, key, _, size = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(key) is not str or type(size) is not int:
            raise ValueError("a storage must be ('storage', type, key, location, size)")
        if key not in self._buffers:
            self._buffers[key] = bytearray(self._archive.read(f"{self._root}/data/{key}"))
        buffer = self._buffers[key]
        if size < 0 or size * dtype.itemsize != len(buffer):
            raise ValueError(f"storage {key} must have {size * dtype.itemsize} bytes, got {len(buffer)}")
        storage = torch.frombuffer(buffer, dtype=dtype) if size else torch.empty(0, dtype=dtype)
        if self._swap:
            storage = storage.clone()
            storage.untyped_storage().byteswap(dtype)  # type: ignore[no-untyped-call]
        return storage.as_subclass(_Tensor)


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Dict,
    ("argparse", "Namespace"): _Options,
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuild,
    ("torch._utils", "_rebuild_parameter"): _Parameter,
    **{("torch", name): dtype for name, dtype in STORAGES.items()},
}


def _check_kind(head: bytes, path: Path) -> None:
    if head[:1] == b"\x80":
        raise CheckpointError(
            f"{path} is a bare pickle or a file of torch before 1.6, which can run code when it is loaded: refused. "
            "If you trust it, load it and torch.save it again"
        )
    if head != b"PK\x03\x04":
        raise CheckpointError(f"{path} is not a file of torch.save: it starts with {head!r}")


def _open_archive(content: bytes, path: Path) -> zipfile.ZipFile:
    # Every entry of the directory starts with this signature, so there cannot be more entries than signatures.
    if (count := content.count(b"PK\x01\x02")) > MAX_MEMBERS:
        raise CheckpointError(f"{path} must have at most {MAX_MEMBERS} members, got {count}")
    try:
        return zipfile.ZipFile(io.BytesIO(content))
    except Exception as error:  # zipfile has no common base for what damage makes it raise
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error


def _survey_archive(archive: zipfile.ZipFile, size: int, path: Path) -> list[str]:
    """Return the names of the members, the pickle first, if every member is stored as it is and passes its checksum."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise CheckpointError(f"{path} is a zip file, but not of torch.save: its members are compressed")
    if len(set(names)) < len(names) or sum(member.file_size for member in members) > size:
        raise CheckpointError(f"{path} is not a file of torch.save: its members overlap")
    try:
        damaged = archive.testzip()
    except Exception as error:  # as above
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} fails its checksum")
    pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise CheckpointError(f"{path} is a zip file, but not of torch.save: it must hold one data.pkl")
    return [pickles[0], *(name for name in names if name != pickles[0])]


def _survey_pickle(code: bytes, path: Path) -> None:
    """Check the opcodes of a pickle, and how deep and how large its objects are, without building any."""
    if len(code) > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{path}: its pickle must be at most {MAX_PICKLE_BYTES} bytes, got {len(code)}")
    stack: _Stack = []
    memo: dict[int, _Node] = {}
    handled = 0  # objects that opcodes put into others, so the steps that hashing all of them can take
    argument: Any
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(code)):
            if opcode.name not in OPCODES:
                raise CheckpointError(
                    f"{path}: its pickle uses {opcode.name}, which torch.save does not: refused. If you trust the "
                    "file, load it and torch.save it again with its default protocol"
                )
            if count > MAX_OPCODES:
                raise CheckpointError(f"{path}: its pickle must have at most {MAX_OPCODES} opcodes: refused")
            if opcode.name in GETS:
                stack.append(memo[argument])
                continue
            if opcode.name in PUTS:
                if argument > count:  # the reader's memo is an array
                    raise CheckpointError(f"{path}: its pickle uses the memo at {argument}, out of order: refused")
                memo[argument] = _node(stack[-1])
                continue
            parts = _taken(opcode, stack)
            filled = parts.pop() if opcode.name in FILLERS else (0, 0)
            depth = max(filled[0], 1 + max((part[0] for part in parts), default=0))
            inside = sum(part[1] for part in parts)
            objects, handled = 1 + filled[1] + inside, handled + inside
            most = max(objects, handled)
            if depth > MAX_DEPTH or most > MAX_OBJECTS:
                raise CheckpointError(f"{path}: its pickle builds {most} objects nested {depth} deep: refused")
            stack.extend(None if made is pickletools.markobject else (depth, objects) for made in opcode.stack_after)
    except CheckpointError:
        raise
    except Exception as error:  # pickletools has no common base for what damage makes it raise
        raise CheckpointError(f"{path}: its pickle is damaged: {reason_of(error)}") from error


def _taken(opcode: pickletools.OpcodeInfo, stack: _Stack) -> list[_Node]:
    """What an opcode takes from the stack, the last object first."""
    parts: list[_Node] = []
    for wanted in reversed(opcode.stack_before):
        if wanted is pickletools.markobject:
            while (part := stack.pop()) is not None:
                parts.append(part)
        elif wanted is not pickletools.stackslice:
            parts.append(_node(stack.pop()))
    return parts


def _node(item: _Node | None) -> _Node:
    if item is None:
        raise ValueError("a mark where an object should be")
    return item
