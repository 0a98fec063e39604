"""Read an untrusted file of `torch.save`: nothing in it is executed, and nothing in it can exhaust the memory.

`torch.load(weights_only=True)` refuses to call what is not on its list, but the list is wide (`bytearray(10**12)` is on
it), it does not verify the archive's checksums, and a tuple nested a million deep ends the process. Therefore the
archive and the pickle are surveyed first, and torch reads only what has the shape of a plain state dict.
"""

from __future__ import annotations

import argparse
import io
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..runtime.errors import CheckpointError

# What a dictionary of tensors is made of; `argparse.Namespace` holds the options of a published checkpoint.
STORAGES = frozenset(
    f"torch {kind}Storage"
    for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
)
GLOBALS = STORAGES | {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "argparse Namespace"}

# Opcodes that torch's weights-only reader supports. Gets and puts use the memo; pickletools describes the others.
GETS, PUTS = {"BINGET", "LONG_BINGET"}, {"BINPUT", "LONG_BINPUT"}
FILLERS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}  # they fill an object on the stack and make no new one
# fmt: off
OPCODES = GETS | PUTS | FILLERS | {
    "PROTO", "STOP", "MARK", "GLOBAL", "NEWOBJ", "REDUCE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "EMPTY_LIST", "EMPTY_DICT", "NONE", "NEWFALSE", "NEWTRUE", "BINPERSID", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING",
}
# fmt: on

# A published checkpoint is nested 8 deep. Its pickle, with the whole vocabulary, is far smaller than 1 MiB.
MAX_PICKLE_BYTES = 16 << 20
MAX_DEPTH = 64
MAX_OBJECTS = 10_000_000


def read_torch_file(path: str | Path) -> Any:
    """Read what `torch.save` wrote: dicts, lists, numbers, strings, `argparse.Namespace` and tensors, on the CPU.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, of another format, or holds anything else. Nothing in
            it was executed.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(4)
            _check_kind(content, path)  # before reading what may be 31 GiB of features
            content += file.read()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    _survey_pickle(_survey_archive(content, path), path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            data = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile file can make torch raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as data of torch.save: {reason}") from error
    return data


def check_tensor(name: str, tensor: object, path: str | Path) -> torch.Tensor:
    """Return the tensor, if it is dense and no larger than the bytes that the file stores for it.

    Raises:
        CheckpointError: it is not a tensor, or it is a view (an expanded one, say) whose copy could have any size.
    """
    if not isinstance(tensor, torch.Tensor):
        raise CheckpointError(f"{path}: {name} must be a tensor, got {type(tensor).__name__}")
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu" and tensor.is_contiguous()
    if not dense or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{path}: {name} must be a plain contiguous tensor")
    return tensor.detach()


def _check_kind(head: bytes, path: Path) -> None:
    if head[:1] == b"\x80":
        raise CheckpointError(
            f"{path} is a bare pickle or a file of torch before 1.6, which can run code when it is loaded: refused. "
            "If you trust it, load it and torch.save it again"
        )
    if head != b"PK\x03\x04":
        raise CheckpointError(f"{path} is not a file of torch.save: it starts with {head!r}")


def _survey_archive(content: bytes, path: Path) -> bytes:
    """Return the bytes of the archive's pickle, if every member is stored uncompressed and passes its checksum."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise CheckpointError(f"{path} is a zip file, but not of torch.save: its members are compressed")
            if len(set(names)) < len(names) or sum(member.file_size for member in members) > len(content):
                raise CheckpointError(f"{path} is not a file of torch.save: its members overlap")
            if (damaged := archive.testzip()) is not None:
                raise CheckpointError(f"{path} is damaged: {damaged} fails its checksum")
            pickles = [name for name in names if name.split("/")[1:] == ["data.pkl"]]
            if len(pickles) != 1:
                raise CheckpointError(f"{path} is a zip file, but not of torch.save: it must hold one data.pkl")
            return archive.read(pickles[0])
    except CheckpointError:
        raise
    except Exception as error:  # zipfile has no common base for what damage makes it raise
        raise CheckpointError(f"{path} is truncated or damaged: {error}") from error


def _survey_pickle(content: bytes, path: Path) -> None:
    """Check which names a pickle looks up, and how deep and how large its objects are, without building any."""
    if len(content) > MAX_PICKLE_BYTES:
        raise CheckpointError(f"{path}: its pickle must be below {MAX_PICKLE_BYTES} bytes, got {len(content)}")
    Node = tuple[int, int]  # depth, objects counted as often as they are reached
    stack: list[Node | None] = []  # None is a mark
    memo: dict[int, Node] = {}
    try:
        argument: Any
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL" and argument not in GLOBALS:
                asked = str(argument).replace(" ", ".")
                raise CheckpointError(f"{path} asks for {asked}, which is not data: refused, nothing was executed")
            if opcode.name not in OPCODES:
                raise CheckpointError(f"{path}: its pickle uses {opcode.name}, which torch.save does not: refused")
            if opcode.name in GETS:
                stack.append(memo[argument])
                continue
            if opcode.name in PUTS:
                memo[argument] = _node(stack[-1])
                continue
            parts: list[Node] = []
            for wanted in reversed(opcode.stack_before):
                if wanted is pickletools.markobject:
                    while (part := stack.pop()) is not None:
                        parts.append(part)
                elif wanted is not pickletools.stackslice:
                    parts.append(_node(stack.pop()))
            filled = parts.pop() if opcode.name in FILLERS else (0, 0)
            depth = max(filled[0], 1 + max((part[0] for part in parts), default=0))
            objects = 1 + filled[1] + sum(part[1] for part in parts)
            if depth > MAX_DEPTH or objects > MAX_OBJECTS:
                raise CheckpointError(f"{path}: its pickle builds {objects} objects nested {depth} deep: refused")
            stack.extend(None if made is pickletools.markobject else (depth, objects) for made in opcode.stack_after)
    except CheckpointError:
        raise
    except Exception as error:  # pickletools has no common base for what damage makes it raise
        raise CheckpointError(f"{path}: its pickle is damaged: {error!r}") from error


def _node(item: tuple[int, int] | None) -> tuple[int, int]:
    if item is None:
        raise ValueError("a mark where an object should be")
    return item
