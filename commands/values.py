"""Types of arguments and options: what a value on the command line may be, and what it becomes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ..runtime.errors import quoted
from ..runtime.files import is_device

_PLOTS = (".png", ".svg", ".pdf")


def _refuse_empty(
    kind: click.ParamType[Any], value: Any, parameter: click.Parameter | None, context: click.Context | None
) -> None:
    """A mistake of the command line where a value is empty, such as that of a shell's variable that is not set."""
    if value == "":
        kind.fail("must not be empty", parameter, context)


class Text(click.ParamType[str]):
    """Text that is not empty."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text as it is."""
        _refuse_empty(self, value, param, ctx)
        return value


class PathType(click.Path):
    """A path that is not empty, as a Path; the arguments are those of `click.Path`."""

    def __init__(self, *, exists: bool = False, file_okay: bool = True, dir_okay: bool = True) -> None:
        super().__init__(exists=exists, file_okay=file_okay, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        _refuse_empty(self, value, param, ctx)
        return super().convert(value, param, ctx)


class NewPath(PathType):
    """A file or folder to write: a place that cannot be written is refused before the work, not behind it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        path = super().convert(value, param, ctx)
        if is_device(path):
            return path
        there = next((place for place in (path, *path.absolute().parents) if os.path.lexists(place)), path)
        if there == path and not path.is_dir():  # a file, which is replaced
            there = path.absolute().parent
        if not there.is_dir():
            self.fail(f"{path} cannot be written: {there} is not a folder", param, ctx)
        if not os.access(there, os.W_OK | os.X_OK):
            self.fail(f"{path} cannot be written: the folder {there} is read-only, or not yours to write", param, ctx)
        return path


class ModelFolder(PathType):
    """The folder of a checkpoint or bundle."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The folder. A file of torch's is what `chan import` reads."""
        if isinstance(value, str) and value.lower().endswith((".pth", ".pt", ".tar")) and Path(value).is_file():
            self.fail(f"{value} is a file: make a checkpoint of it with `chan import {quoted(value)} -o CHECKPOINT`")
        return super().convert(value, param, ctx)


class Number(click.types.FloatParamType):
    """A finite number; click's own also takes NaN and infinity."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"must be a finite number, got {number}", param, ctx)
        return number


class NumberRange(Number, click.FloatRange):
    """A finite number of a range; the arguments are those of `click.FloatRange`."""


class PlotFile(NewPath):
    """A file to draw to, in a form that its ending names."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        path = super().convert(value, param, ctx)
        if path.suffix.lower() not in _PLOTS:
            self.fail(f"{path} must end in {', '.join(_PLOTS[:-1])} or {_PLOTS[-1]}", param, ctx)
        return path


TEXT, NUMBER = Text(), Number()
ID = click.STRING  # of a row; a gallery may have one that is empty
PATH = PathType()
EXISTING = PathType(exists=True)
FOLDER = PathType(exists=True, file_okay=False)
CHECKPOINT = ModelFolder()
FILE = PathType(exists=True, dir_okay=False)
NEW_FILE = NewPath(dir_okay=False)
NEW_PLOT = PlotFile(dir_okay=False)
NEW_FOLDER = NewPath(file_okay=False)
COUNT = click.IntRange(min=1)


class Choice(click.Choice[str]):
    """One of the names that a table of the library lists; the table is imported when it is first needed."""

    def __init__(self, table: Callable[[], tuple[str, ...]]) -> None:
        self._table = table
        super().__init__(())

    @property
    def choices(self) -> tuple[str, ...]:
        """The names."""
        return self._table()

    @choices.setter
    def choices(self, value: tuple[str, ...]) -> None:
        """Click sets an empty list while it is made; the table has the names."""


class Device(click.ParamType[str]):
    """A device: cpu, cuda, cuda:N or cuda:N,M.

    Args:
        one_gpu: whether it must be a single GPU, as graphs run on; galleries are scanned on any.
    """

    name = "device"

    def __init__(self, *, one_gpu: bool = False) -> None:
        self._one_gpu = one_gpu

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """As the help shows it."""
        return "[cuda|cuda:N]" if self._one_gpu else "[cpu|cuda|cuda:N,...]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, if it is one."""
        from ..runtime.errors import InputError
        from ..runtime.gpu import device_index, device_indices

        try:
            if self._one_gpu:
                device_index(value)
            else:
                device_indices(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        return value


DEVICE, ONE_GPU = Device(), Device(one_gpu=True)


def _backends() -> tuple[str, ...]:
    from ..runtime.backends import BACKENDS

    return tuple(BACKENDS)


def _precisions() -> tuple[str, ...]:
    from ..runtime.contract import PRECISIONS

    return PRECISIONS


def _graphs() -> tuple[str, ...]:
    from ..runtime.contract import GRAPHS

    return GRAPHS


def _gpus() -> tuple[str, ...]:
    from ..runtime.gallery.cuda.kernels import GPUS

    return GPUS


def _codings() -> tuple[str, ...]:
    from typing import get_args

    from ..runtime.contract import Coding

    return get_args(Coding)


def _poolings() -> tuple[str, ...]:
    from typing import get_args

    from ..runtime.contract import Pooling

    return get_args(Pooling)


def _splits() -> tuple[str, ...]:
    from typing import get_args

    from ..runtime.data.layout import Split

    return get_args(Split)


BACKEND = Choice(_backends)
BACKEND_OR_AUTO = Choice(lambda: ("auto", *_backends()))
PRECISION = Choice(_precisions)
GRAPH = Choice(_graphs)
GPU = Choice(_gpus)
SPLIT = Choice(_splits)
CODING = Choice(_codings)
POOLING = Choice(_poolings)


NO_ADDRESS = "\0"  # what no command line can have


class RayAddress(click.ParamType[str]):
    """Where a Ray cluster is: HOST:PORT, or `auto` or `local` as Ray has them; empty where none was given."""

    name = "address"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The address, if it can be one. An argument that stands behind the option is taken for an address."""
        if value == NO_ADDRESS:
            return ""
        _refuse_empty(self, value, param, ctx)
        host, _, port = value.rpartition(":")
        if not (value in ("auto", "local") or "://" in value or (host and port.isdecimal())):
            rule = "an address must be HOST:PORT, auto or local"
            self.fail(
                f"{rule}, got {value}; --ray without an address must be last or before another option", param, ctx
            )
        return value


class Gallery(PathType):
    """The folder of a gallery, or its address in object storage, which becomes the folder of a copy in the cache."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The folder."""
        return super().convert(local_gallery(value) if isinstance(value, str) else value, param, ctx)


class FileOrId(PathType):
    """A file, or the id of a gallery's row, as text; the shell completes files."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text as it is: which of the two it is depends on another argument."""
        _refuse_empty(self, value, param, ctx)
        return value


class Source(PathType):
    """A file or folder that exists, as a Path, or an address in object storage, as text."""

    def __init__(self) -> None:
        super().__init__(exists=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or the address as it is."""
        if isinstance(value, str) and "://" in value:
            return value
        return super().convert(value, param, ctx)


def local_gallery(text: str) -> str:
    """A path as it is; for an address in object storage the folder of a copy in the cache."""
    if "://" not in text:
        return text
    from ..scale import cached_gallery
    from .terminal import progress_bar

    with progress_bar("fetch", 0) as progress:
        folder = str(cached_gallery(text, progress=progress))
    click.get_current_context().meta[folder] = text
    return folder


def as_given(gallery: Path) -> str:
    """A gallery as the command line names it: by its address, where the folder is a copy in the cache."""
    given: str = click.get_current_context().meta.get(str(gallery), str(gallery))
    return given
