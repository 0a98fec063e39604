"""The epochs of a training run: its steps, the recalls after each epoch, and what is written then."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..runtime.counts import counted
from ..runtime.data.fitting import cut_texts
from ..runtime.errors import InputError, TensorError
from ..runtime.evaluation.metrics import Metrics
from . import checkpoint
from .augment import change_words, drop_regions
from .inference import read_tokenizer
from .loss import MARGIN, hinge, infonce
from .model import ChanModel
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

OnStep = Callable[[int, int, int, float], None]
"""Called after each step with the epoch and the step (both from 0), the steps per epoch, and the mean loss per pair."""
OnEpoch = Callable[[EpochLog], None]
"""Called after each epoch with its line of the log."""


class TrainRun:
    """A run in progress: its model, its optimizer and its log so far.

    Args:
        folder: of the run.
        data: what it is trained and validated on.
        config: every choice.
        model, tokenizer_files: of the checkpoint to begin with.
        device: of torch.
    """

    def __init__(
        self,
        folder: Path,
        data: TrainData,
        config: TrainConfig,
        model: ChanModel,
        tokenizer_files: Mapping[str, bytes],
        device: str,
    ) -> None:
        self.folder, self.data, self.config = folder, data, config
        self.device, self.tokenizer_files = device, tokenizer_files
        for weight in model.parameters():  # mapped from a file, they begin where sums may be rounded in another way
            weight.data = weight.data.clone()
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

    def go(self, tensorboard: bool, on_step: OnStep | None, on_epoch: OnEpoch | None) -> EpochLog:
        """Train until the last epoch, or until `patience` epochs were no better; return the log of the best."""
        with ExitStack() as stack:
            board = TensorBoard(self.folder, len(self.logs)) if tensorboard else None
            if board is not None:
                stack.callback(board.close)
            while len(self.logs) < self.config.epochs and not self.has_stopped:
                epoch = len(self.logs)
                loss = self._epoch(epoch, on_step)
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
                if on_epoch is not None:
                    on_epoch(self.logs[-1])
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

    def _epoch(self, epoch: int, on_step: OnStep | None) -> float:
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
            if on_step is not None:
                on_step(epoch, step, steps, loss.item() / len(batch))
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
