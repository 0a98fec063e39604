"""`chan train`: train a checkpoint on region features and captions."""

from __future__ import annotations

import sys
from typing import Any

import click
from click.core import ParameterSource

# Options that may differ between a run and its --resume; the run keeps all others.
_FREE_ON_RESUME = {"data", "run", "resume", "epochs", "device"}


@click.command()
@click.argument("data", type=click.Path(exists=True, file_okay=False))
@click.option(
    "-o", "--out", "run", required=True, type=click.Path(file_okay=False), help="Folder of the run to create or resume."
)
@click.option("--resume", is_flag=True, help="Continue the run after its last finished epoch.")
@click.option(
    "--epochs", type=click.IntRange(min=1), default=25, show_default=True, help="Number of passes over all pairs."
)
@click.option(
    "--batch-size", type=click.IntRange(min=2), help="Number of pairs per step. Default: 384 for bigru, 128 for bert."
)
@click.option("--learning-rate", type=float, default=5e-4, show_default=True, help="Learning rate of AdamW.")
@click.option(
    "--drop-epoch",
    type=click.IntRange(min=0),
    default=15,
    show_default=True,
    help="Epoch (counted from 0) from which the learning rate is a tenth.",
)
@click.option(
    "--embed-dim", type=click.IntRange(min=1), default=1024, show_default=True, help="Width of the embeddings."
)
@click.option(
    "--word-dim",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Width of the word embedding (bigru).",
)
@click.option(
    "--region-encoder",
    type=click.Choice(["basic", "selfattention"]),
    default="selfattention",
    show_default=True,
    help="basic is one linear layer; selfattention adds attention over the regions.",
)
@click.option(
    "--text-encoder",
    type=click.Choice(["bigru", "bert"]),
    default="bigru",
    show_default=True,
    help="Encoder of the captions; bert needs --bert.",
)
@click.option(
    "--bert",
    type=click.Path(exists=True, file_okay=False),
    help="Folder of pretrained weights: config.json, model.safetensors or pytorch_model.bin, vocab.txt.",
)
@click.option(
    "--bert-learning-rate", type=float, default=5e-5, show_default=True, help="Learning rate of the weights of BERT."
)
@click.option(
    "--bert-weight-decay", type=float, default=1e-4, show_default=True, help="Weight decay of the weights of BERT."
)
@click.option(
    "--coding",
    type=click.Choice(["VHA", "THA", "VSA"]),
    default="VHA",
    show_default=True,
    help="VHA: each word takes its best region. THA: each region takes its best word. VSA: regions attend over words.",
)
@click.option(
    "--pooling",
    type=click.Choice(["Max", "Mean", "Sum", "LSE", "Softmax"]),
    default="LSE",
    show_default=True,
    help="How these similarities are reduced to a score.",
)
@click.option(
    "--attention-temperature", type=float, default=0.1, show_default=True, help="Temperature of VSA's attention."
)
@click.option(
    "--pooling-temperature", type=float, default=0.1, show_default=True, help="Temperature of LSE and Softmax."
)
@click.option(
    "--loss",
    type=click.Choice(["hinge", "infonce"]),
    default="hinge",
    show_default=True,
    help="Loss; the published models use hinge.",
)
@click.option(
    "--warmup-epochs",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Epochs in which hinge counts every violation; later only the hardest. Use more if recall falls to chance.",
)
@click.option(
    "--min-count", type=int, default=4, show_default=True, help="Words that occur less often become <unk> (bigru)."
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of weights, order and augmentation."
)
@click.option("--device", help="Torch device. Default: cuda if available, else cpu.")
@click.pass_context
def command(
    context: click.Context, /, data: str, run: str, resume: bool, epochs: int, device: str | None, **options: Any
) -> None:
    """Train CHAN with the published schedule on DATA, the folder of precomp/train_* and precomp/dev_* (for validation).

    OUT/best and OUT/last are checkpoints for `chan export`, and OUT/log.jsonl has one line per epoch. Ctrl-C keeps the
    last finished epoch; --resume continues from there.
    """
    from ..chan_ref import train as training
    from ..chan_ref.train_config import EpochLog, TrainConfig
    from ..runtime.contract import AlignmentConfig
    from ..runtime.errors import InputError

    given = {name for name in context.params if context.get_parameter_source(name) == ParameterSource.COMMANDLINE}
    if resume and (fixed := sorted(given - _FREE_ON_RESUME)):
        flags = ", ".join("--" + name.replace("_", "-") for name in fixed)
        raise InputError(f"--resume uses the options of the run: leave out {flags}")
    progress = _Progress()

    def on_epoch(log: EpochLog) -> None:
        progress.close()
        click.echo(_line(log))

    watch: dict[str, Any] = {"device": device, "on_step": progress.step, "on_epoch": on_epoch}
    try:
        if resume:
            best = training.resume(data, run, epochs=epochs if "epochs" in given else None, **watch)
        else:
            names = ("coding", "pooling", "attention_temperature", "pooling_temperature")
            alignment = AlignmentConfig(**{name: options.pop(name) for name in names})
            options["batch_size"] = options["batch_size"] or 0
            best = training.train(data, run, TrainConfig(epochs=epochs, alignment=alignment, **options), **watch)
    except KeyboardInterrupt:
        progress.close()
        kept = training.last_epoch(run)
        if kept is None:
            click.echo("Stopped before the first epoch was finished; nothing was saved.", err=True)
        else:
            again = f"chan train {data} -o {run} --resume"
            click.echo(f"Stopped: epoch {kept} is kept in {run}/last. Continue with: {again}", err=True)
        context.exit(130)
    click.echo(f"Best epoch {best.epoch}, rsum {best.rsum:.1f}: {run}/best")


class _Progress:
    """One progress bar per epoch."""

    def __init__(self) -> None:
        self._bar: Any = None

    def step(self, epoch: int, step: int, steps: int, loss: float) -> None:
        if self._bar is None:
            label = f"Epoch {epoch}"
            self._bar = click.progressbar(length=steps, label=label, file=sys.stderr, item_show_func=_shown)
            self._bar.__enter__()
        self._bar.update(1, f"loss {loss:.4f}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
            self._bar = None


def _shown(item: Any) -> str | None:
    return item


def _line(log: Any) -> str:
    i2t, t2i = log.i2t, log.t2i
    return (
        f"epoch {log.epoch:3d}  loss {log.loss:8.4f}  image-to-text {i2t.r1:5.1f} {i2t.r5:5.1f} {i2t.r10:5.1f}  "
        f"text-to-image {t2i.r1:5.1f} {t2i.r5:5.1f} {t2i.r10:5.1f}  rsum {log.rsum:6.1f}{'  best' if log.best else ''}"
    )
