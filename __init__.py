"""chan_rt: CHAN image-text matching from a PyTorch checkpoint to a small, fast and proven runtime."""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """`__version__`, read from the installed package: pyproject.toml is the only place that states it."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import version

    return version("chan-rt")
