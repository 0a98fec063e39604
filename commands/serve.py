"""`chan serve`: answer searches of galleries over HTTP."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from . import options, values

if TYPE_CHECKING:
    from ..scale.ray_serve import RayShards

_KEY = "CHAN_API_KEY"
_OF_RAY = ("replicas", "max_replicas", "shard_threads", "hedge_seconds", "shard_seconds", "require_complete")


def _limit(flag: str, default: int, purpose: str) -> options.Decorator:
    return click.option(f"--max-{flag}", default=default, show_default=True, type=values.COUNT, help=purpose)


@click.command("serve", short_help="Serve galleries over HTTP, with a page to search them.")
@click.argument("galleries", nargs=-1, required=True, type=values.TEXT, metavar="[NAME=]GALLERY|URL...")
@options.moved_bundle_option
@click.option("--host", type=values.TEXT, default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port; 0 takes a free one."
)
@click.option("--workers", default=1, show_default=True, type=values.COUNT, help="Number of processes.")
@options.backend_option
@options.encoder_device_option
@click.option(
    "--threads", type=values.COUNT, help="CPU threads of each worker. By default the workers share the cores."
)
@click.option(
    "--device",
    type=values.DEVICE,
    default="cpu",
    show_default=True,
    help="Device that scans galleries.",
)
@options.ray_option(
    "Search each shard of the galleries in processes of its own on the Ray cluster at this address. All nodes must "
    "reach the galleries by the same paths."
)
@click.option(
    "--replicas",
    type=values.COUNT,
    default=1,
    show_default=True,
    help="Number of processes of each shard, with --ray.",
)
@click.option(
    "--max-replicas",
    type=values.COUNT,
    help="Largest number of processes of each shard under load, with --ray. The default is --replicas.",
)
@click.option(
    "--shard-threads",
    type=values.COUNT,
    default=1,
    show_default=True,
    help="CPU threads of each process of a shard, with --ray.",
)
@click.option(
    "--hedge-seconds",
    type=values.NumberRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Seconds to wait for a shard before a second process of it is asked as well, with --ray.",
)
@click.option(
    "--shard-seconds",
    type=values.NumberRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds to wait for a shard before it is left out, with --ray. The answer then names the rows that it lacks.",
)
@click.option(
    "--require-complete", is_flag=True, help="Answer with an error instead of leaving a shard out, with --ray."
)
@click.option(
    "--api-key-file",
    type=values.FILE,
    help=f"File with the key that clients must present. The environment variable {_KEY} does the same.",
)
@click.option("--writable", is_flag=True, help="Let clients add, change and delete rows, and reopen galleries.")
@click.option(
    "--uploads",
    type=values.NEW_FOLDER,
    help="Folder that keeps the pictures of rows that clients add. By default none is kept.",
)
@click.option(
    "--pictures",
    multiple=True,
    type=values.FOLDER,
    help="Folder with pictures of rows; may be repeated. By default a picture is served wherever a gallery says it is.",
)
@click.option(
    "--cors",
    "origins",
    multiple=True,
    type=values.TEXT,
    metavar="ORIGIN",
    help="Web origin that may use the API; may be repeated.",
)
@_limit("requests", 128, "Requests that may be at work in each worker. One more is answered with status 429.")
@_limit("connections", 1024, "Connections that may be open in each worker.")
@_limit("batch-words", 2048, "Words that are encoded together.")
@_limit("texts", 64, "Captions, pictures or rows in one request.")
@_limit("characters", 10_000, "Characters of one caption.")
@_limit("row", 64 << 10, "Bytes of the id and the metadata of a row that is added.")
@_limit("payload", 16 << 20, "Bytes of a request.")
@_limit("bodies", 256 << 20, "Bytes of all requests at work in each worker. One more is answered with status 429.")
@_limit("conditions", 100, "Values that a filter compares rows with.")
@_limit("k", 1000, "Hits that a request may ask for, of all its queries together.")
@_limit("pixels", 50_000_000, "Pixels of a picture.")
@_limit("seconds", 30, "Seconds that a request may take.")
@click.option(
    "--grace", default=30, show_default=True, type=values.COUNT, help="Seconds that requests may take after SIGTERM."
)
@click.option(
    "--log", type=click.Choice(["text", "json"]), default="text", show_default=True, help="Form of the log on stderr."
)
@click.option(
    "--otlp-endpoint",
    type=values.TEXT,
    metavar="URL",
    help="OpenTelemetry collector to send traces to (OTLP over HTTP).",
)
def command(galleries: tuple[str, ...], moved: Path | None, api_key_file: Path | None, **flags: Any) -> None:
    """Serve GALLERIES that `chan index` made, and a page at / to search them.

    A gallery's name in the API is that of its folder, or NAME. One in object storage is given as its URL; a copy of its
    newest commit is kept in a cache, and a later commit is served after a restart. SIGTERM ends the server once the
    requests at work are answered, and SIGHUP opens the galleries again.
    """
    from ..runtime.errors import InputError
    from ..runtime.extras import needs
    from ..serve.launch import serve
    from ..serve.logs import log_to_stderr
    from ..serve.settings import Limits, Settings, named_galleries

    shards = _read_shards(flags)
    with needs("uvicorn", "chan serve"):
        import uvicorn  # noqa: F401 - before anything is opened
    limits = {name.removeprefix("max_"): flags.pop(name) for name in list(flags) if name.startswith("max_")}
    if flags["uploads"] is not None and not flags["writable"]:
        raise click.UsageError("--uploads has no effect without --writable")
    key = _read_key(api_key_file)
    try:
        if shards is not None and any("://" in place for _, _, place in map(_named, galleries)):
            raise InputError("galleries must be folders where shards are searched on Ray, got a URL")
        local = [f"{name}{equals}{values.local_gallery(place)}" for name, equals, place in map(_named, galleries)]
        settings = Settings(
            named_galleries(tuple(local)), moved, api_key=key, limits=Limits(**limits), ray=shards, **flags
        )
    except InputError as error:
        raise click.UsageError(str(error)) from error
    log_to_stderr(settings.log)
    serve(settings)


def _read_shards(flags: dict[str, Any]) -> RayShards | None:
    """How shards are run on Ray, taken out of the flags; None where they are not.

    Raises:
        click.UsageError: a flag needs --ray and is given without it, or two do not fit together.
        MissingExtra: Ray is not installed.
    """
    from ..runtime.errors import InputError
    from ..runtime.extras import needs
    from ..scale.asking import Patience
    from ..scale.ray_serve import RayShards

    address = flags.pop("address")
    given = {name: flags.pop(name) for name in _OF_RAY}
    if address is None:
        source = click.get_current_context().get_parameter_source
        for name in _OF_RAY:
            if source(name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"--{name.replace('_', '-')} has no effect without --ray")
        return None
    with needs("ray", "chan serve --ray"):
        import ray.serve  # noqa: F401 - before anything is opened
    try:
        patience = Patience(given["hedge_seconds"], given["shard_seconds"], given["require_complete"])
        counts = {"replicas": given["replicas"], "max_replicas": given["max_replicas"]}
        return RayShards(address or None, threads=given["shard_threads"], patience=patience, **counts)
    except InputError as error:
        raise click.UsageError(str(error)) from error


def _read_key(file: Path | None) -> str | None:
    """The key of a file without surrounding blanks, or that of the environment."""
    if file is not None:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    return os.environ.get(_KEY)


def _named(argument: str) -> tuple[str, str, str]:
    """NAME, `=` and the place of a gallery; a URL without a name has that of its last part."""
    if "://" not in argument:
        return "", "", argument
    name, equals, url = argument.partition("=")
    if equals and "://" not in name:
        return name, equals, url
    return argument.rstrip("/").rpartition("/")[2], "=", argument
