"""Arguments and options that several commands share: one name, one rule and one help text for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click
from click.core import ParameterSource

from ..runtime.skipped import MAX_BAD
from . import values

if TYPE_CHECKING:
    from ..chan_ref.backbones.base import Backbone
    from ..runtime.data.vector_file import VectorFile
    from ..runtime.data.vectors import Readers

CALIBRATION_SAMPLES = 16  # the fewest images of calibration/feeds.py, which no command imports to show its help

Command = TypeVar("Command", bound=Callable[..., Any])


class Decorator(Protocol):
    """What adds an option to a command."""

    def __call__(self, command: Command, /) -> Command:
        """The same command, with the option."""


bundle_argument = click.argument("bundle", type=values.FOLDER)
DATA_FILES = "precomp/SPLIT_ims.npy (region features) and precomp/SPLIT_caps.txt (one caption a line)"
_DATA_FOLDER = (
    f"DATA is a folder with {DATA_FILES} for each SPLIT, and perhaps SPLIT_ids.txt (image ids). `chan data` makes one "
    "of your pictures, `chan scenes` one of drawings."
)
gallery_argument = click.argument("gallery", type=values.FOLDER)
read_gallery_argument = click.argument("gallery", type=values.Gallery(), metavar="GALLERY|URL")

backend_option = click.option(
    "--backend",
    type=values.BACKEND_OR_AUTO,
    default="auto",
    show_default=True,
    help="Backend that runs the graphs of a bundle; auto takes the first one that runs here. `chan doctor` lists them.",
)
_GPU = "GPU of a backend that runs on one. cuda:N is the GPU of that number as CUDA counts them; cuda is the first."
device_option = click.option("--device", type=values.ONE_GPU, default="cuda", show_default=True, help=_GPU)
encoder_device_option = click.option(
    "--encoder-device", type=values.ONE_GPU, default="cuda", show_default=True, help=_GPU
)
precision_option = click.option(
    "--precision", type=values.PRECISION, default="fp32", show_default=True, help="Precision of the bundle's graphs."
)
threads_option = click.option(
    "--threads", type=values.COUNT, help="Number of CPU threads. The default is one for each core."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of a table.")
folds_option = click.option(
    "--folds",
    type=click.IntRange(min=2),
    help="Number of blocks of images to average over. 5 on testall is the 1K protocol of COCO.",
)
ties_option = click.option(
    "--ties",
    type=click.Choice(["lower", "published"]),
    default="lower",
    show_default=True,
    help="Which of two equal scores ranks first: that of the lower index, or that of the higher, which is close to the "
    "published code (its sort is not stable).",
)
strict_captions_option = click.option(
    "--strict",
    is_flag=True,
    help="Refuse blank captions and captions that are too long. Otherwise they are skipped or cut.",
)
output_json_option = click.option(
    "--output-json", "json_file", type=values.NEW_FILE, help="Also write the result as JSON to this file."
)
plot_option = click.option(
    "--plot", "plot_file", type=values.NEW_PLOT, help="Also draw the result to this file (PNG, SVG or PDF)."
)
moved_bundle_option = click.option(
    "--bundle", "moved", type=values.FOLDER, help="The bundle of the gallery. Needed only if the bundle was moved."
)
queries_option = click.option(
    "--queries",
    type=values.FILE,
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
    type=values.TEXT,
    metavar="CONDITION",
    callback=_conditions,
    help="Use only rows whose metadata passes: KEY=VALUE, KEY!=VALUE, KEY<VALUE (also <=, >, >=), KEY~VALUE "
    "(contains), KEY (exists), !KEY, or a filter in JSON. May be repeated; all conditions must hold.",
)


def backends_option(default: str) -> Decorator:
    """`--backend`, repeatable; `default` is a sentence on what happens without it."""
    return click.option(
        "--backend", "backends", multiple=True, type=values.BACKEND, help=f"Backend to use; may be repeated. {default}"
    )


precisions_option: Decorator = click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=values.PRECISION,
    help="Precision to use; may be repeated. The default is every precision that BUNDLE has.",
)


def split_option(default: str, purpose: str) -> Decorator:
    """`--split` of the command's DATA; `purpose` is a sentence on what the split is used for."""
    return click.option("--split", type=values.SPLIT, default=default, show_default=True, help=purpose)


def data_argument(command: Command) -> Command:
    """DATA, a data folder, which the command's help then explains."""
    command.__doc__ = f"{(command.__doc__ or '').rstrip()}\n\n    {_DATA_FOLDER}\n    "
    return click.argument("data", type=values.FOLDER)(command)


def samples_option(default: int, least: int = 1) -> Decorator:
    """`--samples`, how many images of a split are used: LEAST or more."""
    return click.option(
        "--samples",
        type=click.IntRange(min=least),
        default=default,
        show_default=True,
        help="Number of images to use, spread evenly over the split, with all their captions.",
    )


def out_option(type: values.PathType, purpose: str) -> Decorator:
    """`-o` / `--out`, what the command writes."""
    return click.option("-o", "--out", required=True, type=type, help=purpose)


def ray_option(purpose: str) -> Decorator:
    """`--ray`, as `address`: None where it is not given, and empty where it is given without an address."""
    return click.option(
        "--ray",
        "address",
        is_flag=False,
        flag_value=values.NO_ADDRESS,
        type=values.RayAddress(),
        metavar="[HOST:PORT]",
        help=f"{purpose} Without an address, the cluster that RAY_ADDRESS names or that runs on this machine is used, "
        "or one is started here and ended afterwards. `--ray local` always starts one.",
    )


def backbone_options(purpose: str) -> Decorator:
    """`--backbone`, as `backbone` (None where it is not given), and `--weights`."""

    def decorate(command: Command) -> Command:
        command = click.option(
            "--weights",
            type=values.TEXT,
            default="pretrained",
            show_default=True,
            metavar="FILE|pretrained|random",
            help="Weights of a timm or torchvision backbone: a local file, those that its library downloads or has in "
            "its cache, or random ones.",
        )(command)
        return click.option(
            "--backbone",
            type=values.TEXT,
            metavar="NAME",
            help=f"{purpose} NAME is efficientnet-lite0 (or 1, 2), timm:NAME, torchvision:NAME, onnx:FILE or "
            "MODULE:FUNCTION. The last imports MODULE, which runs its code.",
        )(command)

    return decorate


def open_backbone(context: click.Context, name: str | None, weights: str) -> Backbone | None:
    """The backbone that the two options of `backbone_options` name; None where they are not given."""
    make = backbone_maker(context, name, weights)
    return None if make is None else make()


def backbone_maker(context: click.Context, name: str | None, weights: str) -> Callable[[], Backbone] | None:
    """What opens the backbone of `open_backbone`, also in another process; None where no backbone is given."""
    if name is None:
        refuse_given(context, ("weights",), "without --backbone")
        return None
    from ..chan_ref.backbones.names import check_name

    check_name(name, weights)
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


def refuse_without_bundle(context: click.Context, models: Sequence[Path]) -> None:
    """UsageError where options of bundles are given, and every model is a checkpoint."""
    from ..chan_ref.evaluation import is_bundle

    if not any(map(is_bundle, models)):
        reason = "on checkpoints, which run in PyTorch: give a bundle of `chan export`"
        refuse_given(context, ("backend", "device", "precision"), reason)


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
