"""A server for galleries (`chan serve`), and clients of it.

    from chan_rt.serve import Client

    with Client("http://127.0.0.1:8000") as client:
        (result,) = client.search(["a red apple and a strawberry"], k=10)

Names are imported on first use, so that a client loads nothing of the server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calls import RequestRefused
    from .client import AsyncClient, Client
    from .launch import serve
    from .settings import Limits, Settings

__all__ = ["AsyncClient", "Client", "Limits", "RequestRefused", "Settings", "serve"]

_MODULES = {
    "AsyncClient": "client",
    "Client": "client",
    "Limits": "settings",
    "RequestRefused": "calls",
    "Settings": "settings",
    "serve": "launch",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
