"""Weights of a network: from a local file, from its library's hub, or random."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ...runtime.errors import InputError, reason_of
from ..torch_file import read_torch_file
from .names import PRETRAINED, RANDOM

_WRAPPERS = ("state_dict", "model", "model_state", "model_ema")


@contextmanager
def from_hub(name: str, where: str) -> Iterator[None]:
    """For a block that may download pretrained weights.

    Raises:
        InputError: they are not on this machine, and the hub cannot be reached.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # urllib's, the hub's, or the disk's
        raise InputError(
            f"{name} needs its pretrained weights from {where}, and they are neither in its cache on this machine nor "
            f"can be downloaded ({reason_of(error)}): download them elsewhere, and give the file with --weights FILE"
        ) from error


@contextmanager
def seeded() -> Iterator[None]:
    """For a block that makes random weights: the same ones in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def load_weights(module: nn.Module, file: Path, name: str, unused: tuple[str, ...] = ()) -> None:
    """Load a file of weights into a module; every tensor must fit.

    Args:
        module: the network.
        file: .safetensors, or a file of `torch.save` with a state dict, alone or under `state_dict` or `model`. Nothing
            in it is executed.
        name: of the network, for errors.
        unused: beginnings of the names of tensors that the module does not have and the file may, such as a classifier.

    Raises:
        InputError: the file cannot be read, lacks a tensor, or has one that does not fit.
    """
    state = {key: value for key, value in _read(file).items() if not key.startswith(unused or ("\0",))}
    expected = module.state_dict()
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if key not in expected]
    if missing or extra:
        parts = [f"lacks {missing[:3]}"] * bool(missing) + [f"has {extra[:3]} besides"] * bool(extra)
        raise InputError(f"{file} must have the weights of {name}; it {' and '.join(parts)}")
    for key, value in state.items():
        if value.shape != expected[key].shape:
            found = f"{list(expected[key].shape)}, got {list(value.shape)}"
            raise InputError(f"{file}: {key} must have the shape that {name} has, {found}")
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(f"{file}: {key} must be finite, got NaN or infinity")
    module.load_state_dict({**expected, **state})


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        got = "a folder" if file.is_dir() else "nothing there"
        raise InputError(f"{file}: weights must be a file, `{PRETRAINED}` or `{RANDOM}`, got {got}")
    if file.suffix == ".safetensors":
        from ..weights import load_tensors

        try:
            return load_tensors(file)
        except Exception as error:  # safetensors has an error of its own without a base
            raise InputError(f"{file} cannot be read as safetensors: {reason_of(error)}") from error
    found: object = read_torch_file(file)
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    state: dict[str, Tensor] = {}
    for key, value in (found if isinstance(found, Mapping) else {"all of it": found}).items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise InputError(
                f"{file} must hold a state dict, the name and tensor of each weight, got {kind} as {key!r}"
            )
        state[str(key).removeprefix("module.")] = value
    return state
