"""What a run needs besides its checkpoint to go on exactly: AdamW's moments, in RUN/optimizer-EPOCH.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..runtime.errors import CheckpointError, reason_of
from ..runtime.files import atomic_file
from .model import ChanModel
from .train_config import TrainConfig
from .weights import load_tensors, save_tensors


def make_optimizer(model: ChanModel, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW over the weights that are trained.

    A model with BERT has one decay for all its weights, and a learning rate for those of BERT.
    """
    pretrained: list[Tensor] = []
    fresh: list[Tensor] = []
    for name, parameter in _trained(model).items():
        (pretrained if name.startswith("text_encoder.bert.") else fresh).append(parameter)
    groups: list[dict[str, Any]] = [{"params": fresh, "lr": config.learning_rate}]
    if pretrained:
        groups.append({"params": pretrained, "lr": config.bert_learning_rate})
    for group in groups:
        group["initial_lr"] = group["lr"]
        if config.text_encoder == "bert":
            group["weight_decay"] = config.bert_weight_decay
    return torch.optim.AdamW(groups)


def write_state(run: Path, epoch: int, optimizer: torch.optim.AdamW, model: ChanModel) -> None:
    """Write the state after an epoch."""
    moments = {
        f"{key}/{name}": optimizer.state[parameter][key]
        for name, parameter in _trained(model).items()
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    with atomic_file(_file(run, epoch)) as beside:
        save_tensors(moments, beside)


def read_state(run: Path, epoch: int, optimizer: torch.optim.AdamW, model: ChanModel) -> None:
    """Set the optimizer to its state after an epoch.

    Raises:
        CheckpointError: the state is not there, cannot be read, or is that of another model.
    """
    file = _file(run, epoch)
    try:
        moments = load_tensors(file)
        for name, parameter in _trained(model).items():
            optimizer.state[parameter] = {
                "step": moments[f"step/{name}"],
                "exp_avg": moments[f"exp_avg/{name}"].to(parameter.device),
                "exp_avg_sq": moments[f"exp_avg_sq/{name}"].to(parameter.device),
            }
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"{file} does not hold the optimizer's state after epoch {epoch}: {reason_of(error)}"
        ) from error


def remove_states(run: Path, epoch: int) -> None:
    """Remove the states of other epochs than this one."""
    for old in run.glob("optimizer-*"):
        if old != _file(run, epoch):
            old.unlink()


def _trained(model: ChanModel) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _file(run: Path, epoch: int) -> Path:
    return run / f"optimizer-{epoch}.safetensors"
