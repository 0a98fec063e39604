"""A connection with a Ray cluster, which may have to be started."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..runtime.errors import InputError

_CONNECT_SECONDS = 5.0


@contextmanager
def connected(address: str | None) -> Iterator[bool]:
    """Be connected with a cluster for a block; the value says whether it was started for the block, on this machine.

    A process that is connected already stays so.

    Args:
        address: HOST:PORT, `auto` or what else `ray.init` takes; None for the one that Ray finds, or else one on this
            machine that is started and ends with the block.

    Raises:
        InputError: there is no cluster at the address.
    """
    import ray

    if ray.is_initialized():
        yield False
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    alone = address == "local"
    try:
        if address is not None:
            _check_answers(address)
            ray.init(address, **quiet)
        else:
            try:
                ray.init("auto", **quiet)
            except ConnectionError:
                os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # what is started here reports nothing to Ray
                ray.init("local", include_dashboard=False, **quiet)
                alone = True
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"ray: there is no Ray cluster at {address or 'this machine'}: {reason}") from error
    try:
        yield alone
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """ConnectionError unless something answers at HOST:PORT; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"nothing answers ({error}); start one with: ray start --head") from error
