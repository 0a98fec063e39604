"""A connection with a Ray cluster, which may have to be started."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from ..runtime.errors import InputError

_CONNECT_SECONDS = 5.0
_VARIABLE = "RAY_ADDRESS"  # Ray's own


@contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """Be connected with a cluster for a block; the value says whether it was started for the block, on this machine.

    A process that is connected already stays so.

    Args:
        address: HOST:PORT, `auto`, or `local` to start one on this machine that ends with the block. None for the one
            that the environment variable RAY_ADDRESS names or that Ray finds on this machine, or else `local`.

    Raises:
        InputError: there is no cluster at the address.
    """
    import ray

    if ray.is_initialized():
        yield False
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = address or os.environ.get(_VARIABLE) or None
    try:
        if address is None:
            try:
                ray.init("auto", **quiet)
            except ConnectionError:
                address = "local"
        if address == "local":
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is started here reports nothing to Ray
            ray.init(address, include_dashboard=False, **quiet)
        elif address is not None:
            _check_answers(address)
            ray.init(address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"ray: there is no Ray cluster at {address or 'this machine'}: {reason}") from error
    try:
        yield address == "local"
    finally:
        ray.shutdown()


def other_version(wanted: str) -> str | None:
    """What is wrong with this machine if it has another version of this package than who started the work."""
    here = version("chan-rt")
    return None if here == wanted else f"it has chan-rt {here}, and {wanted} is needed"


def _check_answers(address: str) -> None:
    """ConnectionError unless something answers at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"nothing answers ({error}); start one with: ray start --head") from error
