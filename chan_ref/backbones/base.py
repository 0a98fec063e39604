"""The protocol of a backbone, and the check of what it returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...runtime.contract import Preprocess
from ...runtime.errors import InputError, TensorError
from ...runtime.regions import Regions

OUTPUTS = ("regions", "boxes", "region_lengths")
CLASS_SCORES = "class_scores"


@dataclass(frozen=True)
class Backbone:
    """A network from pictures to regions.

    Attributes:
        module: pixels [B, 3, S, S] float32 -> the outputs that the package's docstring lists, in evaluation mode and
            without gradients.
        preprocess: how a picture becomes pixels; its `grid` is None where the module returns boxes.
        name: what a bundle calls it.
    """

    module: nn.Module
    preprocess: Preprocess
    name: str = "own"

    def outputs(self, pixels: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """What the module makes of pixels, by the names of the graph's outputs.

        Raises:
            InputError: the module fails, or returns something that `named` refuses.
        """
        try:
            with torch.inference_mode():
                found = self.module(torch.from_numpy(pixels))
        except InputError:
            raise
        except Exception as error:  # the module may be anybody's
            reason = " ".join(str(error).split())
            raise InputError(f"the backbone {self.name} fails for pixels {list(pixels.shape)}: {reason}") from error
        return {name: tensor.cpu().numpy() for name, tensor in named(found, self.name).items()}

    def regions(self, pixels: NDArray[np.float32]) -> Regions:
        """The regions of pictures.

        Args:
            pixels: [B, 3, S, S] float32, as `runtime.pictures.load.load_pixels` makes them with `preprocess`.

        Raises:
            InputError: the module fails, or what it returns breaks a rule of `Regions.of_outputs`.
        """
        try:
            return Regions.of_outputs(self.outputs(pixels), self.preprocess, len(pixels))
        except TensorError as error:
            raise InputError(f"the backbone {self.name} returned what it must not: {error}") from error


def named(outputs: object, name: str) -> Mapping[str, Tensor]:
    """The tensors that a module returned, by their names.

    Args:
        outputs: a tensor, a tuple or list of two or three, or a dictionary of tensors by their names.
        name: of the backbone, for the error.

    Raises:
        InputError: it is something else.
    """
    if isinstance(outputs, Mapping):
        return _by_name(outputs, name)
    tensors = [outputs] if isinstance(outputs, Tensor) else outputs
    if not isinstance(tensors, list | tuple) or not 1 <= len(tensors) <= 3:
        raise InputError(
            f"the backbone {name} must return regions [B, R, F], or a tuple of these, boxes [B, R, 4] and perhaps "
            f"region_lengths [B], or a dictionary of these, got {type(outputs).__name__}"
        )
    for position, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise InputError(
                f"the backbone {name} must return tensors, got {type(tensor).__name__} as {OUTPUTS[position]}"
            )
    return dict(zip(OUTPUTS, tensors, strict=False))


def _by_name(outputs: Mapping[object, object], name: str) -> Mapping[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, tensor in outputs.items():
        if not isinstance(key, str) or key not in (*OUTPUTS, CLASS_SCORES) or not isinstance(tensor, Tensor):
            known = ", ".join((*OUTPUTS, CLASS_SCORES))
            raise InputError(
                f"the backbone {name} must return regions, and all else, as tensors with names among {known}, got "
                f"{type(tensor).__name__} as {key!r}"
            )
        found[key] = tensor
    if OUTPUTS[0] not in found:
        raise InputError(
            f"the backbone {name} must return regions, got a dictionary with {', '.join(found) or 'nothing'}"
        )
    return found


def frozen(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, without gradients."""
    return module.eval().requires_grad_(False)


class GridFeatures(nn.Module):
    """A network's last feature map as regions, row by row: [B, 3, S, S] -> [B, G * G, F].

    Args:
        network: pixels -> a feature map [B, F, G, G] or [B, G, G, F], or tokens [B, prefix + G * G, F].
        prefix: number of tokens in front that are no part of the picture.
        channels_last: whether a feature map is [B, G, G, F].
    """

    def __init__(self, network: nn.Module, prefix: int = 0, channels_last: bool = False) -> None:
        super().__init__()
        self.network = network
        self.prefix = prefix
        self.channels_last = channels_last

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the regions of each picture."""
        found: Tensor = self.network(pixels)
        if found.dim() == 3:
            return found[:, self.prefix :]
        return found.flatten(1, 2) if self.channels_last else found.flatten(2).transpose(1, 2)


def grid_of(module: GridFeatures, size: int, name: str) -> int:
    """G: the module's regions of a picture of size x size are a grid of G x G.

    Raises:
        InputError: the module does not take such pictures, or its regions are no square grid.
    """
    try:
        with torch.inference_mode():
            found = module(torch.zeros(1, 3, size, size))
    except Exception as error:  # each network raises its own
        raise InputError(f"{name} does not take pictures of {size} x {size} pixels: {error}") from error
    grid = round(found.shape[1] ** 0.5) if found.dim() == 3 else 0
    if grid < 1 or grid * grid != found.shape[1]:
        raise InputError(f"{name} must have a feature map as high as it is wide, got {list(found.shape)}")
    return grid
