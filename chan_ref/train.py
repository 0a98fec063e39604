"""Training with the published schedule and augmentation (CHAN, CVPR 2023, section 4; VSE-infinity's code base).

RUN/
├── best/                       the checkpoint of the epoch with the highest validation rsum
├── last/                       the checkpoint of the last finished epoch
├── optimizer-EPOCH.safetensors the moments of AdamW, which `--resume` needs as well
└── log.jsonl                   one line per epoch

Every epoch draws its order, dropped regions and changed words from (seed, epoch) alone, so a run that was stopped
resumes exactly where it would have continued. On the CPU of one machine the same seed gives the same bits; a GPU sums
in no fixed order.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..runtime.data.fitting import cut_texts
from ..runtime.data.images import CaptionedImages
from ..runtime.data.layout import has_split
from ..runtime.errors import CheckpointError, InputError, reason_of
from ..runtime.files import atomic_file, write_file
from ..runtime.text import ScanTokenizer, build_scan_vocabulary
from . import checkpoint
from .augment import change_words, drop_regions
from .bert import bert_from_pretrained
from .bert import read_tokenizer as read_bert_tokenizer
from .config import ModelConfig
from .inference import read_tokenizer
from .loss import MARGIN, hinge, infonce
from .model import ChanModel
from .train_config import EpochLog, TrainConfig
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


def train(
    data_dir: str | Path,
    run: str | Path,
    config: TrainConfig,
    *,
    device: str | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> EpochLog:
    """Train from the beginning and return the log of the best epoch.

    An interrupt (KeyboardInterrupt) leaves RUN as it was after the last finished epoch; `resume` continues from there.

    Args:
        data_dir: a data set in the precomp layout with a `train` split. The model is validated on the `dev` split; if
            there is none, on the last tenth of the training images (at most 1,000), which are then not trained on.
        run: the folder to create; it must not hold another run.
        config: every choice.
        device: a torch device; None uses the GPU if torch finds one, else the CPU.
        on_step, on_epoch: callbacks that report progress.

    Raises:
        InputError: the data or RUN break a rule.
    """
    run = Path(run)
    if (run / "last").exists() or (run / "log.jsonl").exists():
        raise InputError(f"{run} holds a run already: continue it with --resume, or choose another folder")
    data = _Data.open(data_dir)
    torch.manual_seed(config.seed)
    model, files = _new_model(config, data)
    return _Run(run, data, config, model, files, device, on_step, on_epoch).go()


def resume(
    data_dir: str | Path,
    run: str | Path,
    *,
    epochs: int | None = None,
    device: str | None = None,
    on_step: OnStep | None = None,
    on_epoch: OnEpoch | None = None,
) -> EpochLog:
    """Continue after RUN's last finished epoch, exactly as if the run had never stopped.

    Args:
        data_dir: the data that the run was started with.
        run: the folder of the run.
        epochs: train to this number of epochs instead of the run's own.
        device, on_step, on_epoch: as in `train`.

    Returns:
        The log of the best epoch.

    Raises:
        InputError: RUN has no finished epoch, or the data are not those it was trained on.
        CheckpointError: its files cannot be read.
    """
    run = Path(run)
    if not (run / "last").is_dir():
        raise InputError(f"{run} has no finished epoch to resume from: leave --resume out")
    last = checkpoint.load(run / "last")
    try:
        training = last.record["training"]
        config, epoch, logs = TrainConfig.from_dict(training["options"]), training["epoch"], training["log"]
        fingerprint = training["data"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{run / 'last'} was not written by `chan train`: {reason_of(error)}") from error
    data = _Data.open(data_dir)
    if data.fingerprint != fingerprint:
        raise InputError(
            f"{data_dir} is not the data this run was trained on (sha256 {data.fingerprint}, not {fingerprint})"
        )
    if epochs is not None:
        config = replace(config, epochs=epochs)
    going = _Run(run, data, config, last.model, last.tokenizer_files, device, on_step, on_epoch)
    going.restore(epoch, [EpochLog.from_dict(line) for line in logs])
    return going.go()


def last_epoch(run: str | Path) -> int | None:
    """Return the epoch that RUN/last holds, counted from 0, or None if no epoch was finished."""
    config = Path(run) / "last" / checkpoint.CONFIG
    if not config.is_file():
        return None
    try:
        return int(json.loads(config.read_text(encoding="utf-8"))["training"]["epoch"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{config} was not written by `chan train`: {reason_of(error)}") from error


@dataclass(frozen=True)
class _Data:
    """Pairs to train on and images to validate on."""

    train: CaptionedImages
    pairs: NDArray[np.int64]
    validation: CaptionedImages
    fingerprint: str

    @classmethod
    def open(cls, data_dir: str | Path) -> _Data:
        train = CaptionedImages.open(data_dir, "train")
        kept = train.num_images
        if has_split(data_dir, "dev"):
            validation = CaptionedImages.open(data_dir, "dev")
        else:
            kept -= min(1000, train.num_images // 10)
            if kept == train.num_images:
                raise InputError(f"{data_dir} has no dev split and too few training images to hold some out: add one")
            validation = train.take(np.arange(kept, train.num_images))
        if validation.region_dim != train.region_dim:
            widths = f"{validation.region_dim} and {train.region_dim}"
            raise InputError(f"dev and train must have features of the same width, got {widths}")
        digest = hashlib.sha256("\n".join(train.captions).encode())
        digest.update(f"{train.num_images} {train.max_regions} {train.region_dim} {kept}".encode())
        pairs = np.flatnonzero(train.image_of_caption < kept)
        return cls(train, pairs, validation, digest.hexdigest())


def _new_model(config: TrainConfig, data: _Data) -> tuple[ChanModel, dict[str, bytes]]:
    """Return a model at the start of training, and the files of its tokenizer."""
    shape = ModelConfig(
        region_dim=data.train.region_dim,
        embed_dim=config.embed_dim,
        region_encoder=config.region_encoder,
        word_dim=config.word_dim,
        vocab_size=1,  # until the vocabulary is known
        alignment=config.alignment,
    )
    if config.bert is None:
        captions = [data.train.captions[row] for row in data.pairs]
        vocabulary = build_scan_vocabulary(captions, config.min_count)
        size = ScanTokenizer(vocabulary["word2idx"]).vocab_size
        files = {"vocab.json": json.dumps(vocabulary, ensure_ascii=False).encode()}
        return ChanModel(replace(shape, vocab_size=size)), files
    sizes, weights = bert_from_pretrained(config.bert)
    files = read_bert_tokenizer(config.bert, sizes.vocab_size)
    used = read_tokenizer(files).vocab_size  # fewer than the rows of an embedding that is padded
    sizes, weights["words.weight"] = replace(sizes, vocab_size=used), weights["words.weight"][:used]
    model = ChanModel(replace(shape, text_encoder="bert", bert=sizes, vocab_size=0))
    model.text_encoder.get_submodule("bert").load_state_dict(weights)
    return model, files


class _Run:
    """A run in progress: its model, its optimizer and its log so far."""

    def __init__(
        self,
        folder: Path,
        data: _Data,
        config: TrainConfig,
        model: ChanModel,
        tokenizer_files: Mapping[str, bytes],
        device: str | None,
        on_step: OnStep | None,
        on_epoch: OnEpoch | None,
    ) -> None:
        self.folder, self.data, self.config = folder, data, config
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer_files, self.on_step, self.on_epoch = tokenizer_files, on_step, on_epoch
        self.model = model.to(self.device)
        self.optimizer = _optimizer(model, config)
        self.tokenizer = read_tokenizer(tokenizer_files)
        texts, cut = cut_texts([data.train.captions[row] for row in data.pairs], self.tokenizer, model.config.max_words)
        if cut:
            _log.warning("%d captions have more than %s wordpieces and are cut", len(cut), model.config.max_words)
        self.tokens = self.tokenizer.encode(texts)
        self.logs: list[EpochLog] = []

    def go(self) -> EpochLog:
        """Train to the last epoch and return the log of the best."""
        for epoch in range(len(self.logs), self.config.epochs):
            loss = self._epoch(epoch)
            found = evaluate(self.data.validation, self.model, self.tokenizer, self.device)
            best = found.rsum > max((log.rsum for log in self.logs), default=-1.0)
            rate = self.optimizer.param_groups[0]["lr"]
            collapsed = self._has_collapsed(epoch, loss, found.rsum)
            self.logs.append(EpochLog(epoch, loss, rate, found.i2t, found.t2i, found.rsum, best, collapsed))
            self._save()
            if self.on_epoch is not None:
                self.on_epoch(self.logs[-1])
        return max(self.logs, key=lambda log: log.rsum)

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
        self.model.train()
        total = 0.0
        for step in range(steps):
            batch = order[step * size : (step + 1) * size]
            loss = self._loss(batch, epoch, rng)
            if not torch.isfinite(loss):
                raise InputError(f"the loss became {loss.item()} in epoch {epoch}, step {step}: lower --learning-rate")
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), _GRADIENT_CLIP)
            self.optimizer.step()
            total += loss.item()
            if self.on_step is not None:
                self.on_step(epoch, step, steps, loss.item() / len(batch))
        return total / len(order)

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
        scores: Tensor = self.model(
            *(torch.from_numpy(array).to(self.device) for array in (features, counts, ids, lengths))
        )
        # Another caption of the same image is not a negative.
        siblings = torch.from_numpy((images[:, None] == images[None, :]) & ~np.eye(len(images), dtype=bool))
        scores = scores.masked_fill(siblings.to(self.device), -torch.inf)
        if self.config.loss == "infonce":
            return infonce(scores) * len(batch)
        return hinge(scores, MARGIN, hardest=epoch >= self.config.warmup_epochs)

    def _save(self) -> None:
        """Write the epoch. Ctrl-C or an error at any point leaves either this epoch or the one before it, complete.

        `last` records the epoch and is replaced last; the optimizer's file has the epoch in its name. Replacing a
        folder takes two renames: a process killed between them leaves the previous epoch in RUN/.last.*/old.
        """
        log = self.logs[-1]
        self.folder.mkdir(parents=True, exist_ok=True)
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
        state = _optimizer_file(self.folder, log.epoch)
        with atomic_file(state) as beside:
            save_file(_moments(self.optimizer, self.model), beside)
        write_file(self.folder / "log.jsonl", "".join(json.dumps(asdict(item)) + "\n" for item in self.logs))
        checkpoint.save(self.folder / "last", self.model, self.tokenizer_files, record)
        for old in self.folder.glob("optimizer-*"):
            if old != state:
                old.unlink()

    def restore(self, epoch: int, logs: list[EpochLog]) -> None:
        """Set the optimizer and the log to their state after `epoch`."""
        file = _optimizer_file(self.folder, epoch)
        try:
            moments = load_file(file, device=self.device)
            names = {parameter: name for name, parameter in self.model.named_parameters()}
            for parameter, name in names.items():
                self.optimizer.state[parameter] = {
                    "step": moments[f"step/{name}"].cpu(),
                    "exp_avg": moments[f"exp_avg/{name}"],
                    "exp_avg_sq": moments[f"exp_avg_sq/{name}"],
                }
        except (OSError, KeyError, SafetensorError) as error:
            raise CheckpointError(
                f"{file} does not hold the optimizer's state after epoch {epoch}: {reason_of(error)}"
            ) from error
        self.logs = logs


def _optimizer(model: ChanModel, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW. A model with BERT has one decay for all its weights, and a learning rate for those of BERT."""
    pretrained: list[Tensor] = []
    fresh: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (pretrained if name.startswith("text_encoder.bert.") else fresh).append(parameter)
    groups: list[dict[str, Any]] = [{"params": fresh, "lr": config.learning_rate}]
    if pretrained:
        groups.append({"params": pretrained, "lr": config.bert_learning_rate})
        for group in groups:
            group["weight_decay"] = config.bert_weight_decay
    for group in groups:
        group["initial_lr"] = group["lr"]
    return torch.optim.AdamW(groups)


def _moments(optimizer: torch.optim.AdamW, model: ChanModel) -> dict[str, Tensor]:
    return {
        f"{key}/{name}": optimizer.state[parameter][key].detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        for key in ("step", "exp_avg", "exp_avg_sq")
    }


def _optimizer_file(folder: Path, epoch: int) -> Path:
    return folder / f"optimizer-{epoch}.safetensors"
