"""Training with the published schedule and augmentation (CHAN, CVPR 2023, section 4; VSE-infinity's code base).

RUN/
├── best/                       the checkpoint of the epoch with the highest validation rsum
├── last/                       the checkpoint of the last finished epoch
├── optimizer-EPOCH.safetensors what `--resume` needs besides `last`: `train_state`
├── log.jsonl, log.csv          one line per epoch
├── curve.svg                   the loss and the recalls over the epochs
└── tensorboard/                the same for TensorBoard, if it was asked for

Every epoch draws its order, dropped regions and changed words from (seed, epoch) alone, so a run that was stopped
resumes exactly where it would have continued. On the CPU of one machine the same seed gives the same bits; a GPU sums
in no fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from ..runtime.errors import CheckpointError, InputError, reason_of
from ..runtime.evaluation.metrics import Metrics
from ..runtime.files import recover
from . import checkpoint
from .first_model import new_model, started_model
from .run_folder import alone, check_best, check_new, check_there, nothing_to_resume
from .train_config import EpochLog, TrainConfig
from .train_data import TrainData
from .train_run import OnEpoch, OnStep, TrainRun

OnStart = Callable[[int, Metrics], None]
"""Called before the first epoch with the number of words that were added to the vocabulary, and the recalls so far."""


def train(
    data_dir: str | Path,
    run: str | Path,
    config: TrainConfig,
    *,
    device: str | None = None,
    tensorboard: bool = False,
    on_start: OnStart | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> EpochLog:
    """Train a new model, or a checkpoint further (`config.start`), and return the log of the best epoch.

    An interrupt (KeyboardInterrupt) leaves RUN as it was after the last finished epoch; `resume` continues from there.

    Args:
        data_dir: a data set in the precomp layout with a `train` split. The model is validated on the `dev` split; if
            there is none, on the last tenth of the training images (at most 1,000), which are then not trained on.
        run: the folder to create; it must not hold another run.
        config: every choice.
        device: a torch device; None uses the GPU if torch finds one, else the CPU.
        tensorboard: also log to RUN/tensorboard.
        on_start: callback that reports on the checkpoint that is trained further.
        on_step, on_epoch: callbacks that report progress.

    Raises:
        InputError: the data or RUN break a rule, another process trains there, or torch cannot use the device.
        CheckpointError: the checkpoint to start from cannot be read.
    """
    run = Path(run)
    with alone(run), _enough_memory():
        check_new(run)
        place = usable_device(device)
        data = TrainData.open(data_dir)
        torch.manual_seed(config.seed)
        if config.start is None:
            model, files = new_model(config, data)
            return TrainRun(run, data, config, model, files, place).go(tensorboard, on_step, on_epoch)
        config, model, files, added = started_model(config, data)
        going = TrainRun(run, data, config, model, files, place)
        if on_start is not None:
            on_start(added, going.validate())
        return going.go(tensorboard, on_step, on_epoch)


def resume(
    data_dir: str | Path,
    run: str | Path,
    *,
    epochs: int | None = None,
    patience: int | None = None,
    device: str | None = None,
    tensorboard: bool = False,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> EpochLog:
    """Continue after RUN's last finished epoch, exactly as if the run had never stopped.

    Args:
        data_dir: the data that the run was started with.
        run: the folder of the run.
        epochs: train to this number of epochs instead of the run's own.
        patience: stop after so many epochs without a better one, instead of the run's own number.
        device, tensorboard, on_step, on_epoch: as in `train`.

    Returns:
        The log of the best epoch.

    Raises:
        InputError: RUN has no finished epoch, the data are not those it was trained on, another process trains there,
            or torch cannot use the device.
        CheckpointError: its files cannot be read.
    """
    run = Path(run)
    place = usable_device(device)
    check_there(run)
    with alone(run), _enough_memory():
        recover(run / "last")
        if not (run / "last").is_dir():
            raise nothing_to_resume(run)
        last = checkpoint.load(run / "last")
        try:
            training = last.record["training"]
            config, epoch, logs = TrainConfig.from_dict(training["options"]), training["epoch"], training["log"]
            fingerprint = training["data"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{run / 'last'} was not written by `chan train`: {reason_of(error)}") from error
        check_best(run, logs)
        data = TrainData.open(data_dir)
        if data.fingerprint != fingerprint:
            raise InputError(
                f"{data_dir} is not the data this run was trained on (sha256 {data.fingerprint}, not {fingerprint})"
            )
        config = replace(
            config,
            epochs=config.epochs if epochs is None else epochs,
            patience=config.patience if patience is None else patience,
        )
        going = TrainRun(run, data, config, last.model, last.tokenizer_files, place)
        going.restore(epoch, [EpochLog.from_dict(line) for line in logs])
        return going.go(tensorboard, on_step, on_epoch)


def usable_device(device: str | None) -> str:
    """The torch device of that name; for None the GPU if torch finds one, else the CPU.

    Raises:
        InputError: there is no such device, or this torch cannot compute on it.
    """
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=device).item()
    except Exception as error:  # torch raises its own, and AssertionError where it was built without CUDA
        raise InputError(
            f"device must be one that torch can use here, such as cpu, got {device!r}: {reason_of(error)}"
        ) from error
    return device


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Turn torch's errors of memory that it did not get into InputError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise InputError("too little memory is left to train this model: lower --batch-size or --embed-dim") from error
