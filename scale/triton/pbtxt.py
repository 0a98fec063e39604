"""Protocol buffers in their text form, as Triton reads them from config.pbtxt; written without a library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias, Union


class Symbol(str):
    """A value of an enumeration, which stands without quotes."""


Value: TypeAlias = Union[str, int, "Message", "Sequence[Value]"]
Message: TypeAlias = Mapping[str, Value]


def to_text(message: Message) -> str:
    """A message as text, a field a line. A list is a repeated field, and a `Symbol` a value of an enumeration."""
    return "".join(f"{line}\n" for line in _lines(message, ""))


def mapping(entries: Mapping[str, Value]) -> list[Message]:
    """The value of a map field: an entry for each key."""
    return [{"key": key, "value": value} for key, value in entries.items()]


def _lines(message: Message, indent: str) -> Iterator[str]:
    for name, value in message.items():
        if isinstance(value, Mapping):
            yield from _block(name, value, indent)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for one in value:
                if isinstance(one, Mapping):
                    yield from _block(name, one, indent)
            scalars = [_scalar(one) for one in value if isinstance(one, str | int)]
            if scalars:
                yield f"{indent}{name}: [{', '.join(scalars)}]"
        else:
            yield f"{indent}{name}: {_scalar(value)}"


def _block(name: str, message: Message, indent: str) -> Iterator[str]:
    inside = list(_lines(message, f"{indent}  "))
    if inside:
        yield f"{indent}{name} {{"
        yield from inside
        yield f"{indent}}}"
    else:
        yield f"{indent}{name} {{}}"


def _scalar(value: str | int) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | Symbol):
        return str(value)
    escaped = "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in value.encode())
    return f'"{escaped}"'
