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

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.counts import counted
from ..runtime.data.fitting import cut_texts
from ..runtime.errors import CheckpointError, InputError, TensorError, reason_of
from ..runtime.evaluation.metrics import Metrics
from ..runtime.files import recover
from ..runtime.locks import only_one
from . import checkpoint
from .augment import change_words, drop_regions
from .checkpoint_config import CONFIG, read_config
from .first_model import new_model, started_model
from .inference import read_tokenizer
from .loss import MARGIN, hinge, infonce
from .model import ChanModel
from .run_folder import check_new, check_there, nothing_to_resume
from .train_config import EpochLog, TrainConfig
from .train_data import TrainData
from .train_log import TensorBoard, write_logs
from .train_state import make_optimizer, read_state, remove_states, write_state
from .validate import chance_rsum, evaluate

_log = logging.getLogger(__name__)
_GRADIENT_CLIP = 2.0
# A collapsed model: rsum below twice that of chance, and a loss of 0.9 to 1.5 times twice the margin, where it ends.
# On made-up data (120 images, rate 0.03, no warm-up) it fell 2.16, 0.39, 0.19, 0.16, 0.14, 0.13; runs that learned were
# above 0.2 whenever their rsum was that low.
_AT_CHANCE, _AT_MARGIN = 2.0, (0.9, 1.5)

OnStart = Callable[[int, Metrics], None]
"""Called before the first epoch with the number of words that were added to the vocabulary, and the recalls so far."""
OnStep = Callable[[int, int, int, float], None]
"""Called after each step with the epoch and the step (both from 0), the steps per epoch, and the mean loss per pair."""
OnEpoch = Callable[[EpochLog], None]
"""Called after each epoch with its line of the log."""


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
    with _alone(run), _enough_memory():
        check_new(run)
        place = usable_device(device)
        data = TrainData.open(data_dir)
        torch.manual_seed(config.seed)
        if config.start is None:
            model, files = new_model(config, data)
            return _Run(run, data, config, model, files, place, on_step, on_epoch).go(tensorboard)
        config, model, files, added = started_model(config, data)
        going = _Run(run, data, config, model, files, place, on_step, on_epoch)
        if on_start is not None:
            on_start(added, going.validate())
        return going.go(tensorboard)


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
    with _alone(run), _enough_memory():
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
        _check_best(run, logs)
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
        going = _Run(run, data, config, last.model, last.tokenizer_files, place, on_step, on_epoch)
        going.restore(epoch, [EpochLog.from_dict(line) for line in logs])
        return going.go(tensorboard)


def _check_best(run: Path, logs: list[dict[str, Any]]) -> None:
    """CheckpointError unless RUN/best is there, which later epochs may not replace."""
    try:
        recover(run / "best")
        read_config(run / "best")
    except CheckpointError as error:
        best = max((log["epoch"] for log in logs if log["best"]), default=0)
        raise CheckpointError(
            f"{run / 'best'} does not hold the best epoch so far, {best}, any more: bring it back, or copy "
            f"{run / 'last'} there to go on without it"
        ) from error


def _alone(run: Path) -> AbstractContextManager[None]:
    """Keep other processes from training in RUN, from before the first epoch on."""
    return only_one(run / ".lock", f"another process trains in {run}: wait for it to end, or choose another folder")


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


def last_epoch(run: str | Path) -> int | None:
    """Return the epoch that RUN/last holds, counted from 0, or None if no epoch was finished."""
    record = _last_record(run)
    return None if record is None else int(record["epoch"])


def stopped_early(run: str | Path) -> bool:
    """Return whether RUN ended before its last epoch."""
    record = _last_record(run)
    return record is not None and int(record["epoch"]) + 1 < int(record["options"]["epochs"])


def _last_record(run: str | Path) -> dict[str, Any] | None:
    """What RUN/last records of its training; None if no epoch was finished."""
    config = Path(run) / "last" / CONFIG
    if not config.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))["training"]
        int(record["epoch"]), int(record["options"]["epochs"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{config} was not written by `chan train`: {reason_of(error)}") from error
    return record


@contextmanager
def _enough_memory() -> Iterator[None]:
    """Turn torch's errors of memory that it did not get into InputError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise InputError("too little memory is left to train this model: lower --batch-size or --embed-dim") from error


class _Run:
    """A run in progress: its model, its optimizer and its log so far."""

    def __init__(
        self,
        folder: Path,
        data: TrainData,
        config: TrainConfig,
        model: ChanModel,
        tokenizer_files: Mapping[str, bytes],
        device: str,
        on_step: OnStep | None,
        on_epoch: OnEpoch | None,
    ) -> None:
        self.folder, self.data, self.config = folder, data, config
        self.device = device
        self.tokenizer_files, self.on_step, self.on_epoch = tokenizer_files, on_step, on_epoch
        self.model = model.to(self.device)
        if config.bert_tuning == "frozen":
            model.text_encoder.get_submodule("bert").requires_grad_(False)
        self.optimizer = make_optimizer(model, config)
        self.tokenizer = read_tokenizer(tokenizer_files)
        texts, cut = cut_texts(data.captions, self.tokenizer, model.config.max_words)
        if cut:
            longer = counted(len(cut), "caption has", "captions have")
            _log.warning("%s more than %s wordpieces, the rest is cut", longer, model.config.max_words)
        self.tokens = self.tokenizer.encode(texts)
        self.logs: list[EpochLog] = []

    def go(self, tensorboard: bool) -> EpochLog:
        """Train until the last epoch, or until `patience` epochs were no better; return the log of the best."""
        with ExitStack() as stack:
            board = TensorBoard(self.folder, len(self.logs)) if tensorboard else None
            if board is not None:
                stack.callback(board.close)
            while len(self.logs) < self.config.epochs and not self.has_stopped:
                epoch = len(self.logs)
                loss = self._epoch(epoch)
                try:
                    found = self.validate()
                except TensorError as error:  # the last update of the epoch spoiled the weights
                    raise InputError(f"after epoch {epoch}, {error}: lower --learning-rate") from error
                best = found.rsum > max((log.rsum for log in self.logs), default=-1.0)
                rate = self.optimizer.param_groups[0]["lr"]
                collapsed = self._has_collapsed(epoch, loss, found.rsum)
                self.logs.append(EpochLog(epoch, loss, rate, found.i2t, found.t2i, found.rsum, best, collapsed))
                self._save()
                if board is not None:
                    board.write(self.logs[-1])
                if self.on_epoch is not None:
                    self.on_epoch(self.logs[-1])
        return max(self.logs, key=lambda log: log.rsum)

    def validate(self) -> Metrics:
        """The recalls of the model on the validation images."""
        return evaluate(self.data.validation, self.model, self.tokenizer, self.device)

    @property
    def has_stopped(self) -> bool:
        """Whether the last `patience` epochs were no better than one before them."""
        waited = len(self.logs) - max((log.epoch + 1 for log in self.logs if log.best), default=0)
        return 0 < self.config.patience <= waited

    def _has_collapsed(self, epoch: int, loss: float, rsum: float) -> bool:
        """Return whether all pairs have one score, so that each direction of the hinge loss is its margin.

        A small validation set cannot tell: with fewer than about 35 images even chance recalls most of them.
        """
        images = self.data.validation
        chance = chance_rsum(images.num_images, images.image_of_caption)
        hardest = self.config.loss == "hinge" and epoch >= self.config.warmup_epochs
        low, high = (2 * MARGIN * factor for factor in _AT_MARGIN)
        return hardest and chance < 100 and rsum < _AT_CHANCE * chance and low < loss < high

    def _epoch(self, epoch: int) -> float:
        """Train on all pairs once and return the mean loss per pair."""
        rng = np.random.default_rng([self.config.seed, epoch])
        torch.manual_seed(int(rng.integers(2**62)))  # BERT's dropout
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (0.1 if epoch >= self.config.drop_epoch else 1.0)
        order = rng.permutation(len(self.data.pairs))
        size = self.config.pairs_per_step
        steps = -(-len(order) // size)
        self._train_mode()
        total = 0.0
        for step in range(steps):
            batch = order[step * size : (step + 1) * size]
            loss = self._loss(batch, epoch, rng)
            if not torch.isfinite(loss):
                raise InputError(self._why_not_finite(loss.item(), epoch, step, batch))
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_CLIP)
            self.optimizer.step()
            total += loss.item()
            if self.on_step is not None:
                self.on_step(epoch, step, steps, loss.item() / len(batch))
        return total / len(order)

    def _why_not_finite(self, loss: float, epoch: int, step: int, batch: NDArray[np.int64]) -> str:
        """What to do about a loss. Before the first update it says nothing of the learning rate."""
        if epoch or step:
            return f"the loss became {loss} in epoch {epoch}, step {step}: lower --learning-rate"
        features, _ = self.data.train.regions(self.data.train.image_of_caption[self.data.pairs[batch]])
        return (
            f"the loss is {loss} before anything was learned: the features of the first images reach "
            f"{np.abs(features).max():.3g}; scale features to at most about 100, or raise a temperature that is too low"
        )

    def _loss(self, batch: NDArray[np.int64], epoch: int, rng: np.random.Generator) -> Tensor:
        """Return the loss of a batch of pairs, summed as published (InfoNCE times the batch, to be a sum as well)."""
        images = self.data.train.image_of_caption[self.data.pairs[batch]]
        features, counts = drop_regions(*self.data.train.regions(images), self.config.region_drop, rng)
        token_lengths = self.tokens.lengths[batch]
        ids, lengths = change_words(
            self.tokens.ids[batch, : int(token_lengths.max())],
            token_lengths,
            self.config.word_drop,
            self.tokenizer.mask_id,
            self.tokenizer.vocab_size,
            rng,
        )
        arrays = (torch.from_numpy(array).to(self.device) for array in (features, counts, ids, lengths))
        scores = self._scores(*arrays)
        # Another caption of the same image is not a negative.
        siblings = torch.from_numpy((images[:, None] == images[None, :]) & ~np.eye(len(images), dtype=bool))
        scores = scores.masked_fill(siblings.to(self.device), -torch.inf)
        if self.config.loss == "infonce":
            return infonce(scores, self.config.loss_temperature) * len(batch)
        return hinge(scores, MARGIN, hardest=epoch >= self.config.warmup_epochs)

    def _scores(self, regions: Tensor, counts: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """Score all pairs of a batch [B, B]; with `bf16` only the encoders compute in bfloat16."""
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.config.bf16):
            region_embeddings = self.model.encode_regions(regions, counts)
            word_embeddings = self.model.encode_words(ids, lengths)
        return self.model.score(region_embeddings.float(), counts, word_embeddings.float(), lengths)

    def _train_mode(self) -> None:
        """Switch dropout on, except in a text encoder that is frozen."""
        self.model.train()
        if self.config.bert_tuning == "frozen":
            self.model.text_encoder.get_submodule("bert").eval()

    def _save(self) -> None:
        """Write the epoch. Ctrl-C or an error at any point leaves either this epoch or the one before it, complete.

        `last` records the epoch and is replaced last; the optimizer's file has the epoch in its name. Where replacing
        a folder takes two renames, a process killed between them leaves the previous epoch in RUN/.last.*/old, from
        which `resume` brings it back.
        """
        log = self.logs[-1]
        record = {
            "training": {
                "options": asdict(self.config),
                "epoch": log.epoch,
                "data": self.data.fingerprint,
                "log": [asdict(item) for item in self.logs],
            }
        }
        if log.best:
            checkpoint.save(self.folder / "best", self.model, self.tokenizer_files, record)
        write_state(self.folder, log.epoch, self.optimizer, self.model)
        write_logs(self.folder, self.logs)
        checkpoint.save(self.folder / "last", self.model, self.tokenizer_files, record)
        remove_states(self.folder, log.epoch)

    def restore(self, epoch: int, logs: list[EpochLog]) -> None:
        """Set the optimizer and the log to their state after `epoch`."""
        read_state(self.folder, epoch, self.optimizer, self.model)
        remove_states(self.folder, epoch)
        self.logs = logs
