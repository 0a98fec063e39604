"""What a server was started with: galleries, limits, keys. Every limit has a flag of `chan serve`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from ..runtime.checks import MAX_THREADS, check_positive
from ..runtime.errors import InputError, shortened

if TYPE_CHECKING:
    from ..scale.ray_serve import RayShards

MAX_SECONDS = 10**9
LogFormat = Literal["text", "json"]
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Limits:
    """What one request, and all of them together, may use. A request over a limit is refused before it costs much.

    Attributes:
        requests: requests at work or waiting in one worker process; one more is answered with 429 at once.
        connections: open connections of one worker process; one more is closed at once.
        batch_words: words that are encoded together, padding included.
        texts: captions, pictures or rows in one request.
        characters: of one caption.
        row: bytes of the id and the metadata of a row that is added.
        payload: bytes of a request's body.
        bodies: bytes of the bodies of all requests at work in one worker process; one more is answered with 429.
        conditions: values that a filter compares rows with.
        k: hits that a request may ask for, of all its queries together.
        pixels: of an uploaded picture, before it is decoded.
        seconds: that a request may take, reading its body and waiting included.
    """

    requests: int = 128
    connections: int = 1024
    batch_words: int = 2048
    texts: int = 64
    characters: int = 10_000
    row: int = 64 << 10
    payload: int = 16 << 20
    bodies: int = 256 << 20
    conditions: int = 100
    k: int = 1000
    pixels: int = 50_000_000
    seconds: int = 30

    def __post_init__(self) -> None:
        for one in fields(self):
            check_positive(one.name, getattr(self, one.name))
        _check_seconds("seconds", self.seconds)
        if self.bodies < self.payload:
            raise InputError(f"bodies must be at least payload ({self.payload} bytes), got {self.bodies}")


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Attributes:
        galleries: name in the API -> the gallery's folder.
        bundle: of all galleries, where it was moved; None for the one that each gallery remembers.
        host, port: where to listen; port 0 takes a free one.
        workers: processes.
        backend: as in `Matcher.open`.
        threads: CPU threads for encoding and for scans in each worker; None for every core.
        device: where galleries are scanned, as in `Gallery.open`.
        encoder_device: the GPU of a backend that runs on one, as `device` of `Matcher.open`.
        api_key: what clients must present; None lets everyone in.
        writable: whether clients may add, change and delete rows, and reopen galleries.
        uploads: folder that keeps pictures of rows that clients add; None keeps none.
        pictures: folders below which pictures of rows are served; empty for wherever a gallery's rows lie.
        origins: web origins that may use the API from a browser (CORS).
        limits: see `Limits`.
        grace: seconds that requests in flight have to finish after SIGTERM.
        log: form of the log.
        otlp_endpoint: URL of an OpenTelemetry collector (OTLP over HTTP); None sends nothing.
        ray: how the shards of galleries are run on Ray; None searches galleries in this process.
    """

    galleries: Mapping[str, Path]
    bundle: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    backend: str = "auto"
    threads: int | None = None
    device: str = "cpu"
    encoder_device: str = "cuda"
    api_key: str | None = field(default=None, repr=False)
    writable: bool = False
    uploads: Path | None = None
    pictures: tuple[Path, ...] = ()
    origins: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    grace: int = 30
    log: LogFormat = "text"
    otlp_endpoint: str | None = None
    ray: RayShards | None = None

    def __post_init__(self) -> None:
        if not self.galleries:
            raise InputError("galleries must name at least one gallery, got none")
        for name in self.galleries:
            if not _NAME.fullmatch(name):
                raise InputError(
                    f"the name of a gallery must be 1 to 64 letters, digits, '.', '_' or '-', and begin with a letter "
                    f"or digit, got {name!r}: write NAME=GALLERY"
                )
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise InputError("the API key must be at least one character of ASCII on one line, got another text")
        if check_positive("workers", self.workers) > MAX_THREADS:
            raise InputError(f"workers must be at most {MAX_THREADS}, got {self.workers}")
        if self.ray is not None and self.workers > 1:
            raise InputError(f"workers must be 1 where shards are searched on Ray, got {self.workers}")
        if self.ray is not None and self.device != "cpu":
            raise InputError(f"device must be cpu where shards are searched on Ray, got {self.device}")
        _check_seconds("grace", self.grace)
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise InputError(
                    "origins (--cors) must be as a browser sends them, such as https://example.org or "
                    f"http://localhost:3000, in small letters and without a path, or '*' for all, got {origin!r}"
                )
        if self.otlp_endpoint is not None and not _is_url(self.otlp_endpoint):
            raise InputError(f"otlp_endpoint must be a URL such as http://localhost:4318, got {self.otlp_endpoint!r}")


def _check_seconds(name: str, seconds: int) -> None:
    """InputError unless a time is positive, and one that clocks can add."""
    if check_positive(name, seconds) > MAX_SECONDS:
        raise InputError(f"{name} must be at most {MAX_SECONDS} seconds, got {shortened(str(seconds), 40)}")


def _is_url(text: str) -> bool:
    """Whether something can be sent to a URL over HTTP."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def named_galleries(arguments: tuple[str, ...]) -> dict[str, Path]:
    """`GALLERY` and `NAME=GALLERY` as name -> folder; without a name it is that of the folder.

    Raises:
        InputError: two galleries have one name.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        name, separator, folder = argument.partition("=")
        if not separator or Path(argument).is_dir():
            name, folder = Path(argument).resolve().name, argument
        if name in found:
            raise InputError(f"two galleries are named {name!r}: write NAME=GALLERY")
        found[name] = Path(folder)
    return found
