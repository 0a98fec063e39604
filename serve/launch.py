"""Starting a server: the socket, and one worker here or several in processes of their own."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import tempfile
from pathlib import Path

from ..runtime.contract import Manifest
from ..runtime.errors import InputError, reason_of
from ..runtime.gallery.settings import NO_MODEL, fingerprint
from ..runtime.gallery.view import newest_settings
from ..runtime.session import bundle_of
from .settings import Settings

_log = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; what is in flight then is finished within `settings.grace` seconds.

    SIGHUP opens the galleries again.

    Raises:
        ChanError: a gallery cannot be opened.
        InputError: the address cannot be listened at, or the folder for uploads cannot be written.
    """
    if settings.uploads is not None:
        _check_uploads(settings.uploads)
    _check_galleries(settings)
    with listen(settings) as listener:
        if settings.workers == 1:
            from .server import run_worker

            run_worker(settings, listener)
        else:
            from .workers import Supervisor

            Supervisor(settings, listener).run()


def _check_galleries(settings: Settings) -> None:
    """See that each gallery is there, and its bundle, before clients are told to come: opening them takes longer.

    Raises:
        GalleryError: a gallery is missing, cannot be read, or is of another model than the bundle.
        InputError, BundleError: a bundle is missing, or is none, or none of the galleries was made with one.
    """
    found = {folder: newest_settings(folder) for folder in settings.galleries.values()}
    if settings.bundle is not None and all(held.model == NO_MODEL for held in found.values()):
        raise InputError(
            "bundle must be left out where no gallery was made with one, for they are searched with embeddings or "
            f"`like` only, got {settings.bundle}"
        )
    for folder, held in found.items():
        if held.model != NO_MODEL:
            manifest = Manifest.load(bundle_of(held, settings.bundle))
            held.check_model(fingerprint(manifest, held.precision or "fp32"), folder)


def _check_uploads(folder: Path) -> None:
    """Make the folder for pictures that clients add, and see that files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"uploads must be a folder that can be written, got {folder}: {reason_of(error)}") from error


def listen(settings: Settings) -> socket.socket:
    """A socket that listens at the host and port of the settings; the log names its address.

    Raises:
        InputError: the address cannot be listened at.
    """
    try:
        settings.host.encode("idna")
    except UnicodeError as error:
        raise InputError(f"host must be an address or a name of this machine, got {settings.host!r}") from error
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        reason = reason_of(error).partition(" (while")[0]  # Python adds the address
        other = "; port 0 takes a free one" if error.errno == errno.EADDRINUSE else ""
        raise InputError(f"cannot listen at host {settings.host}, port {settings.port}: {reason}{other}") from error
    host, port = listener.getsockname()[:2]
    _log.info("listening at http://%s:%d", f"[{host}]" if ":" in host else host, port)
    if settings.api_key is None and not ipaddress.ip_address(host).is_loopback:
        _log.warning("whoever reaches this address may search: there is no API key")
    return listener
