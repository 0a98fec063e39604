"""`chan train`: train a checkpoint on region features and captions."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..runtime.counts import counted
from ..runtime.errors import quoted
from .options import data_argument, out_option
from .terminal import Progress, echo, progress_bar, say_next
from .values import CHECKPOINT, COUNT, FOLDER, NEW_FOLDER, NUMBER, TEXT, NumberRange

if TYPE_CHECKING:
    from ..chan_ref.train_config import EpochLog, TrainConfig
    from ..runtime.evaluation.metrics import Metrics

_COLLAPSED = (
    "Warning: the model has collapsed: it gives all pairs one score (the loss is twice the margin) and recalls no more "
    "than chance. It rarely recovers. OUT/best keeps the best epoch so far. Train again with more --warmup-epochs (5, "
    "say), or with a lower --learning-rate."
)

# What a checkpoint that is trained further decides.
_OF_THE_MODEL = (
    "embed_dim", "word_dim", "region_encoder", "text_encoder", "bert", "coding", "pooling", "attention_temperature",
    "pooling_temperature",
)  # fmt: skip
# What may change between a run and its --resume; everything else is the run's own.
_FREE_ON_RESUME = {"data", "out", "resume", "epochs", "patience", "tensorboard", "device"}


@click.command()
@data_argument
@out_option(NEW_FOLDER, "Folder of the training run.")
@click.option("--resume", is_flag=True, help="Continue the run in that folder after its last finished epoch.")
@click.option(
    "--start",
    type=CHECKPOINT,
    metavar="CHECKPOINT",
    help="Train this checkpoint further, in place of a new model. It keeps its encoders, alignment and vocabulary; "
    "words that its vocabulary lacks are added (--min-count).",
)
@click.option(
    "--epochs", type=click.IntRange(min=1), default=25, show_default=True, help="Number of passes over all pairs."
)
@click.option(
    "--patience",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Stop early after this number of epochs in a row without a better rsum. 0 never stops early.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=2),
    help="Number of pairs in a batch. The default is 384 for bigru and 128 for bert.",
)
@click.option("--learning-rate", type=NUMBER, default=5e-4, show_default=True, help="Learning rate of AdamW.")
@click.option(
    "--drop-epoch",
    type=click.IntRange(min=0),
    default=15,
    show_default=True,
    help="Epoch, counted from 0, from which on the learning rate is a tenth.",
)
@click.option(
    "--embed-dim", type=click.IntRange(min=1), default=1024, show_default=True, help="Width of the embeddings (D)."
)
@click.option(
    "--word-dim",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Width of the word embedding (bigru only).",
)
@click.option(
    "--region-encoder",
    type=click.Choice(["basic", "selfattention"]),
    default="selfattention",
    show_default=True,
    help="Encoder of the regions: basic is one linear layer, selfattention adds attention among the regions.",
)
@click.option(
    "--text-encoder",
    type=click.Choice(["bigru", "bert"]),
    default="bigru",
    show_default=True,
    help="Encoder of the captions. bert needs --bert.",
)
@click.option(
    "--bert",
    type=FOLDER,
    help="Folder of a pretrained BERT, MiniLM, DistilBERT or RoBERTa, with config.json, model.safetensors or "
    "pytorch_model.bin, and tokenizer.json or vocab.txt.",
)
@click.option(
    "--bert-tuning",
    type=click.Choice(["all", "frozen"]),
    default="all",
    show_default=True,
    help="Weights of BERT to train: all of them, as published, or none (frozen), which is faster and less accurate.",
)
@click.option(
    "--bert-learning-rate", type=NUMBER, default=5e-5, show_default=True, help="Learning rate of the weights of BERT."
)
@click.option(
    "--bert-weight-decay",
    type=NUMBER,
    default=1e-4,
    show_default=True,
    help="Weight decay of all weights of a model with BERT.",
)
@click.option(
    "--coding",
    type=click.Choice(["VHA", "THA", "VSA"]),
    default="VHA",
    show_default=True,
    help="How words and regions are aligned: each word chooses a region (VHA), each region chooses a word (THA), or "
    "attention is soft (VSA).",
)
@click.option(
    "--pooling",
    type=click.Choice(["Max", "Mean", "Sum", "LSE", "Softmax"]),
    default="LSE",
    show_default=True,
    help="How the chosen similarities are pooled into a score.",
)
@click.option(
    "--attention-temperature", type=NUMBER, default=0.1, show_default=True, help="Temperature of the attention of VSA."
)
@click.option(
    "--pooling-temperature", type=NUMBER, default=0.1, show_default=True, help="Temperature of LSE and Softmax pooling."
)
@click.option(
    "--loss",
    type=click.Choice(["hinge", "infonce"]),
    default="hinge",
    show_default=True,
    help="Loss to train with. hinge is the published one.",
)
@click.option(
    "--loss-temperature",
    type=NumberRange(0, min_open=True),
    default=0.01,
    show_default=True,
    help="Temperature of infonce, in units of the score. With LSE pooling at 0.1, scores are ten times a similarity.",
)
@click.option(
    "--warmup-epochs",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Number of epochs in which the hinge loss counts every violation; later only the hardest one counts. Raise it "
    "if recall falls to chance.",
)
@click.option(
    "--min-count",
    type=COUNT,
    default=4,
    show_default=True,
    help="A word that is rarer than this is unknown (bigru only).",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of the weights, the order of the data and the augmentation.",
)
@click.option(
    "--bf16",
    is_flag=True,
    help="Compute the encoders in bfloat16 (mixed precision). Weights, scores and losses stay in float32.",
)
@click.option("--tensorboard", is_flag=True, help="Also write the log for TensorBoard, to OUT/tensorboard.")
@click.option(
    "--device",
    type=TEXT,
    help="Torch device to train on. The default is cuda where there is a GPU, and cpu elsewhere.",
)
@click.pass_context
def command(
    context: click.Context,
    /,
    data: Path,
    out: Path,
    resume: bool,
    start: Path | None,
    epochs: int,
    patience: int,
    device: str | None,
    tensorboard: bool,
    **options: Any,
) -> None:
    """Train CHAN on DATA with the published schedule.

    DATA has precomp/train_* to train on and, optionally, precomp/dev_* to validate on. The model is a new one, or with
    --start that of a checkpoint, which is tuned so. OUT/best and OUT/last are
    checkpoints for `chan export`. OUT/log.csv and OUT/log.jsonl have one line for each epoch, and OUT/curve.svg draws
    them. Ctrl-C keeps the last finished epoch; --resume continues from there, exactly as if nothing had happened.
    """
    from ..chan_ref.checkpoint_config import read_config
    from ..chan_ref.run_folder import check_new, check_tensorboard, check_there, last_epoch, stopped_early
    from ..runtime.data.layout import find_split

    given = {name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    if resume and (fixed := sorted(given - _FREE_ON_RESUME)):
        raise click.UsageError(f"--resume continues with the options of the run: leave out {_flags(fixed)}")
    if start is not None and (fixed := [name for name in _OF_THE_MODEL if name in given]):
        raise click.UsageError(f"the checkpoint of --start decides what the model is: leave out {_flags(fixed)}")
    config = _config(options, epochs=epochs, patience=patience, start=None if start is None else str(start))
    find_split(data, "train")
    if start is not None:
        read_config(start)
    if tensorboard:
        check_tensorboard(out)
    if resume:
        check_there(out)
    else:
        check_new(out)
    from ..chan_ref import train as training  # torch is loaded here: what is wrong already is said before

    progress = _Progress()
    watch: dict[str, Any] = {"device": device, "tensorboard": tensorboard}
    watch |= {"on_step": progress.step, "on_epoch": progress.epoch}
    try:
        if resume:
            watch |= {name: context.params[name] for name in ("epochs", "patience") if name in given}
            best = training.resume(data, out, **watch)
        else:
            best = training.train(data, out, config, on_start=progress.start, **watch)
    except KeyboardInterrupt:
        progress.close()
        kept = last_epoch(out)
        if kept is None:
            echo("Stopped before the first epoch was finished: nothing is kept.", err=True)
        else:
            again = f"chan train {quoted(data)} -o {quoted(out)} --resume"
            echo(f"Stopped: epoch {kept} is kept in {out}/last. Go on with: {again}", err=True)
        context.exit(130)
    if stopped_early(out):
        echo(f"Stopped early after epoch {last_epoch(out)}: no epoch since {best.epoch} was better.")
    if best.rsum <= progress.before:
        echo(
            f"Warning: no epoch is better than the checkpoint it started from, rsum {progress.before:.1f}. Try a lower "
            "--learning-rate, or more --warmup-epochs.",
            err=True,
        )
    echo(f"Best epoch {best.epoch}, rsum {best.rsum:.1f}: {out}/best, and all epochs in {out}/curve.svg")
    say_next(out, f"chan export {quoted(f'{out}/best')} -o bundle")


def _config(options: dict[str, Any], **more: Any) -> TrainConfig:
    """The choices of a run, from the options that are named as they are."""
    from ..chan_ref.train_config import TrainConfig
    from ..runtime.contract import AlignmentConfig

    names = ("coding", "pooling", "attention_temperature", "pooling_temperature")
    alignment = AlignmentConfig(**{name: options[name] for name in names})
    rest = {name: value for name, value in options.items() if name not in names}
    rest["batch_size"] = rest["batch_size"] or 0
    rest["bert"] = None if rest["bert"] is None else str(rest["bert"])
    return TrainConfig(alignment=alignment, **rest, **more)


class _Progress:
    """What a run prints: one progress bar for each epoch, and a line when it is done.

    Attributes:
        best: rsum of the best epoch so far.
        before: rsum of the checkpoint that is trained further.
    """

    def __init__(self) -> None:
        self._bar: AbstractContextManager[Progress] | None = None
        self._show: Progress | None = None
        self.best = -1.0
        self.before = -1.0
        self._explained = self._warned = False

    def start(self, added: int, found: Metrics) -> None:
        """The recalls of a checkpoint that is trained further, and how many words were added to its vocabulary."""
        if added:
            echo(f"{counted(added, 'word')} of the captions added to the vocabulary")
        self._explain()
        self.before = found.rsum
        echo(f"at the start               {_recalls(found)}")

    def epoch(self, log: EpochLog) -> None:
        """The line of an epoch, and once a warning where the model has collapsed."""
        self.close()
        self._explain()
        self.best = max(self.best, log.rsum)
        echo(_line(log))
        if log.collapsed and not self._warned:
            self._warned = True
            echo(_COLLAPSED, err=True)

    def _explain(self) -> None:
        """Say once what the numbers of each line are."""
        if not self._explained:
            echo("three numbers are R@1, R@5 and R@10 on the validation images in %, rsum the sum of all six")
        self._explained = True

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        if self._bar is None or self._show is None:
            self._bar = progress_bar(f"Epoch {epoch}", steps)
            self._show = self._bar.__enter__()
        self._show(step + 1, steps, f"loss {loss:.4f}" + (f", best rsum {self.best:.1f}" if self.best >= 0 else ""))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def _line(log: EpochLog) -> str:
    return f"epoch {log.epoch:3d}  loss {log.loss:8.4f}  {_recalls(log)}{'  best' if log.best else ''}"


def _recalls(found: EpochLog | Metrics) -> str:
    i2t, t2i = found.i2t, found.t2i
    return (
        f"image-to-text {i2t.r1:5.1f} {i2t.r5:5.1f} {i2t.r10:5.1f}  "
        f"text-to-image {t2i.r1:5.1f} {t2i.r5:5.1f} {t2i.r10:5.1f}  rsum {found.rsum:6.1f}"
    )


def _flags(names: Iterable[str]) -> str:
    return ", ".join("--" + name.replace("_", "-") for name in names)
