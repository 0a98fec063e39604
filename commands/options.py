"""Arguments and options that several commands share: one name, one rule and one help text for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click
from click.core import ParameterSource

from ..runtime.skipped import MAX_BAD

if TYPE_CHECKING:
    from ..chan_ref.backbones.base import Backbone
    from ..runtime.data.vector_file import VectorFile
    from ..runtime.data.vectors import Readers

Command = TypeVar("Command", bound=Callable[..., Any])


class Decorator(Protocol):
    """What adds an option to a command."""

    def __call__(self, command: Command, /) -> Command:
        """The same command, with the option."""


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


TEXT = Text()
PATH = PathType()
EXISTING = PathType(exists=True)
FOLDER = PathType(exists=True, file_okay=False)
FILE = PathType(exists=True, dir_okay=False)
NEW_FILE = PathType(dir_okay=False)
NEW_FOLDER = PathType(file_okay=False)
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
    """A device that scans galleries: cpu, cuda, cuda:N or cuda:N,M."""

    name = "device"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """As the help shows it."""
        return "[cpu|cuda|cuda:N,...]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, if it is one."""
        from ..runtime.errors import InputError
        from ..runtime.gpu import device_indices

        try:
            device_indices(value)
        except InputError as error:
            self.fail(str(error), param, ctx)
        return value


DEVICE = Device()


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


_NO_ADDRESS = "\0"  # what no command line can have


class RayAddress(click.ParamType[str]):
    """Where a Ray cluster is: HOST:PORT, or `auto` or `local` as Ray has them; empty where none was given."""

    name = "address"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The address, if it can be one. An argument that stands behind the option is taken for an address."""
        if value == _NO_ADDRESS:
            return ""
        _refuse_empty(self, value, param, ctx)
        host, _, port = value.rpartition(":")
        if not (value in ("auto", "local") or "://" in value or (host and port.isdecimal())):
            rule = "an address must be HOST:PORT, auto or local"
            self.fail(
                f"{rule}, got {value}; --ray without an address must be last or before another option", param, ctx
            )
        return value


def ray_option(purpose: str) -> Decorator:
    """`--ray`, as `address`: None where it is not given, and empty where it is given without an address."""
    return click.option(
        "--ray",
        "address",
        is_flag=False,
        flag_value=_NO_ADDRESS,
        type=RayAddress(),
        metavar="[HOST:PORT]",
        help=f"{purpose} Without an address, the cluster that RAY_ADDRESS names or that runs on this machine is used, "
        "or one is started here and ended afterwards. `--ray local` always starts one.",
    )


bundle_argument = click.argument("bundle", type=FOLDER)
data_argument = click.argument("data", type=FOLDER)
gallery_argument = click.argument("gallery", type=FOLDER)


class Gallery(PathType):
    """The folder of a gallery, or its address in object storage, which becomes the folder of a copy in the cache."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The folder."""
        return super().convert(local_gallery(value) if isinstance(value, str) else value, param, ctx)


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
        return str(cached_gallery(text, progress=progress))


read_gallery_argument = click.argument("gallery", type=Gallery(), metavar="GALLERY|URL")

backend_option = click.option(
    "--backend",
    type=BACKEND_OR_AUTO,
    default="auto",
    show_default=True,
    help="Backend that runs the graphs of a bundle; auto takes the first one that runs here. `chan doctor` lists them.",
)
precision_option = click.option(
    "--precision", type=PRECISION, default="fp32", show_default=True, help="Precision of the bundle's graphs."
)
threads_option = click.option("--threads", type=COUNT, help="Number of CPU threads. The default is one for each core.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of a table.")
output_json_option = click.option(
    "--output-json", "json_file", type=NEW_FILE, help="Also write the result as JSON to this file."
)
plot_option = click.option(
    "--plot", "plot_file", type=NEW_FILE, help="Also draw the result to this file (PNG, SVG or PDF)."
)
moved_bundle_option = click.option(
    "--bundle", "moved", type=FOLDER, help="The bundle of the gallery. Needed only if the bundle was moved."
)
queries_option = click.option(
    "--queries",
    type=FILE,
    help="Text file with one caption on each line, or a file of embeddings for a gallery of embeddings. Search "
    "is fitted to them: half of the queries choose the fastest way, and the other half measure what it reads.",
)


def _conditions(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> object:
    """The filter that `--where` asks for; a condition that cannot be read is a mistake of the command line."""
    from ..runtime.errors import InputError
    from ..runtime.gallery.where import parse_words

    try:
        return parse_words(words) or None
    except InputError as error:
        raise click.BadParameter(str(error), context, parameter) from error


where_option = click.option(
    "--where",
    multiple=True,
    type=TEXT,
    metavar="CONDITION",
    callback=_conditions,
    help="Use only rows whose metadata passes: KEY=VALUE, KEY!=VALUE, KEY<VALUE (also <=, >, >=), KEY~VALUE "
    "(contains), KEY (exists), !KEY, or a filter in JSON. May be repeated; all conditions must hold.",
)


def backends_option(default: str) -> Decorator:
    """`--backend`, repeatable; `default` is a sentence on what happens without it."""
    return click.option(
        "--backend", "backends", multiple=True, type=BACKEND, help=f"Backend to use; may be repeated. {default}"
    )


def precisions_option(default: str) -> Decorator:
    """`--precision`, repeatable; `default` is a sentence on what happens without it."""
    return click.option(
        "--precision", "precisions", multiple=True, type=PRECISION, help=f"Precision to use; may be repeated. {default}"
    )


def split_option(default: str, purpose: str) -> Decorator:
    """`--split` of the command's DATA; `purpose` is a sentence on what the split is used for."""
    return click.option("--split", type=SPLIT, default=default, show_default=True, help=purpose)


def samples_option(default: int) -> Decorator:
    """`--samples`, how many images of a split are used."""
    return click.option(
        "--samples",
        type=COUNT,
        default=default,
        show_default=True,
        help="Number of images to use, spread evenly over the split, with all their captions.",
    )


def out_option(type: PathType, purpose: str) -> Decorator:
    """`-o` / `--out`, what the command writes."""
    return click.option("-o", "--out", required=True, type=type, help=purpose)


def backbone_options(purpose: str) -> Decorator:
    """`--backbone`, as `backbone` (None where it is not given), and `--weights`."""

    def decorate(command: Command) -> Command:
        command = click.option(
            "--weights",
            type=TEXT,
            default="pretrained",
            show_default=True,
            metavar="FILE|pretrained|random",
            help="Weights of a timm or torchvision backbone: a local file, those that its library downloads or has in "
            "its cache, or random ones.",
        )(command)
        return click.option(
            "--backbone",
            type=TEXT,
            metavar="NAME",
            help=f"{purpose} NAME is efficientnet-lite0 (or 1, 2), timm:NAME, torchvision:NAME, onnx:FILE or "
            "MODULE:FUNCTION. The last imports MODULE, which runs its code.",
        )(command)

    return decorate


def open_backbone(context: click.Context, name: str | None, weights: str) -> Backbone | None:
    """The backbone that the two options of `backbone_options` name; None where they are not given."""
    if name is None:
        refuse_given(context, ("weights",), "without --backbone")
        return None
    from ..chan_ref.backbones.choose import open_backbone

    return open_backbone(name, weights)


def backbone_maker(context: click.Context, name: str | None, weights: str) -> Callable[[], Backbone] | None:
    """What opens the backbone of `open_backbone` in another process; None where no backbone is given."""
    if name is None:
        refuse_given(context, ("weights",), "without --backbone")
        return None
    from ..chan_ref.backbones.choose import open_backbone

    return partial(open_backbone, name, weights)


def vector_readers() -> Readers:
    """What reads the embeddings of .pt files: torch is needed for them alone."""

    def read(file: Path) -> VectorFile:
        from ..runtime.extras import needs

        with needs("torch", f"reading {file}"):
            from ..chan_ref.torch_vectors import open_torch_vectors
        return open_torch_vectors(file)

    return {".pt": read, ".pth": read}


def force_option(purpose: str) -> Decorator:
    """`--force`; `purpose` is a sentence on what it replaces."""
    return click.option("--force", is_flag=True, help=purpose)


def refuse_given(context: click.Context, parameters: Sequence[str], reason: str) -> None:
    """UsageError where an option was given that has no effect here; `reason` ends the sentence."""
    for parameter in context.command.params:
        if parameter.name in parameters and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
            given = "/".join([*parameter.opts, *parameter.secondary_opts])
            raise click.UsageError(f"{given} has no effect {reason}")


def skipping_options(command: Command) -> Command:
    """`--max-bad` and `--strict`: what happens where an item cannot be read."""
    command = click.option(
        "--strict",
        is_flag=True,
        help="Exit with status 1 if an item was skipped. Everything else is done all the same.",
    )(command)
    return click.option(
        "--max-bad",
        type=click.IntRange(min=0),
        default=MAX_BAD,
        show_default=True,
        help="Number of items that may be unreadable. One more stops the command; what was finished is kept.",
    )(command)
