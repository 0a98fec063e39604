"""Every error a caller can meet.

ChanError
├── InputError              an argument, file or array breaks a rule the message names
│   └── TensorError         an array breaks its tensor's rule: carries `tensor`, `rule` and `value`
├── CheckpointError         a checkpoint that cannot be read safely or does not fit its model
├── BundleError             a bundle that is missing, altered or of a schema this version does not know
├── BackendError            a backend that is not installed, cannot run here, or failed while running
│   ├── GpuMemoryError      a GPU has too little memory left
│   ├── EngineError         an engine that cannot be built, is stale, or is not of the precision asked for
│   └── MissingExtra        a library that an extra brings is not installed: carries `module` and `extra`
├── ParityError             a parity check that could not be carried out (a miss is a verdict, not an error)
└── GalleryError            a gallery that cannot be opened, written or trusted
    ├── GalleryLocked       another writer holds it
    ├── GalleryMissing      no gallery is in its folder, or another one than was opened
    ├── GalleryIncomplete   shards do not answer now, and an answer without them is not wanted
    └── GalleryCorrupt      bytes on disk are not the bytes that were committed
"""

from __future__ import annotations

import re
import shlex


class ChanError(Exception):
    """Base of every error this package raises on purpose; the message names what to do."""


class InputError(ChanError):
    """An argument, file or array breaks a rule; the message names all three."""


class TensorError(InputError):
    """An array breaks the rule of the tensor it was given for.

    Args:
        tensor: name of the tensor, as in the bundle's manifest.
        rule: what must hold.
        value: what was found instead.
    """

    def __init__(self, tensor: str, rule: str, value: object) -> None:
        super().__init__(f"{tensor}: {rule}, got {value}")
        self.tensor = tensor
        self.rule = rule
        self.value = value


class CheckpointError(ChanError):
    """A checkpoint cannot be read safely or does not fit its model."""


class BundleError(ChanError):
    """A bundle is missing, altered or of a schema this version does not know."""


class BackendError(ChanError):
    """A backend is not installed, cannot run here, or failed while running."""


class GpuMemoryError(BackendError):
    """A GPU has too little memory left for what was asked of it."""


class EngineError(BackendError):
    """An engine cannot be built, is stale, or is not of the precision that was asked for."""


class MissingExtra(BackendError, ImportError):
    """A library that an extra of this package brings is not installed, or does not load.

    Args:
        message: what needs the library, and the pip command that installs it (see `extras.missing`).
        module: the module, as Python imports it.
        extra: the extra that brings it.
    """

    def __init__(self, message: str, module: str = "", extra: str = "") -> None:
        super().__init__(message)
        self.module = module
        self.extra = extra


class ParityError(ChanError):
    """A parity check could not be carried out; a miss is a verdict, not this error."""


class GalleryError(ChanError):
    """A gallery cannot be opened, written or trusted."""


class GalleryLocked(GalleryError):
    """Another writer holds the gallery."""


class GalleryMissing(GalleryError):
    """No gallery is in its folder, or another one than was opened: it was moved away, replaced, or never there."""


class GalleryIncomplete(GalleryError):
    """Shards of a gallery do not answer now, and an answer without their rows is not wanted or cannot be given."""


class GalleryCorrupt(GalleryError):
    """Bytes on disk are not the bytes that were committed."""


def quoted(word: object) -> str:
    """A path, or other text from outside, in a command that a message advises: as a shell reads it.

    What cannot be printed, and bytes of a path that are not UTF-8, are written as bash, zsh and ksh read them.
    """
    text = str(word)
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(letter: str) -> str:
    if letter.isprintable():
        return f"\\{letter}" if letter in "\\'" else letter
    from_system = "\udc80" <= letter <= "\udcff"  # a byte of a path that is not UTF-8
    return "".join(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogateescape" if from_system else "replace"))


def shortened(text: str, most: int = 1000) -> str:
    """A text that someone's own value may have made long, at about `most` characters: without its middle."""
    return text if len(text) <= most else f"{text[: most // 2]} [...] {text[-most // 2 :]}"


def reason_of(error: BaseException) -> str:
    """Why a file or a record cannot be used, in words: without Python's names, numbers of errors, and the path."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (at byte {error.start})"
    if isinstance(error, KeyError):
        return f"the key {error.args[0]!r} is missing" if error.args else "a key is missing"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    text = str(error)
    if isinstance(error, TypeError) and (unknown := re.search(r"unexpected keyword argument ('.*')", text)):
        return f"the key {unknown[1]} is unknown"
    if isinstance(error, TypeError) and (missing := re.search(r"missing \d+ required .* arguments?: (.*)", text)):
        return f"keys are missing: {missing[1]}"
    if isinstance(error, TypeError | AttributeError | IndexError):
        return "a value is of the wrong kind"
    return " ".join(text.split()) or "it is damaged"
