"""`chan import`: turn a published checkpoint into a native one."""

from __future__ import annotations

from pathlib import Path

import click

from ..runtime.counts import counted
from ..runtime.errors import quoted
from . import options, values
from .terminal import echo, print_json, say_next


@click.command("import", short_help="Read a published model_best.pth safely and strictly.")
@click.argument("model", type=values.FILE)
@options.out_option(values.NEW_FOLDER, "Folder of the new checkpoint.")
@click.option("--vocab", type=values.FILE, help="Vocabulary of a GRU model, a JSON file in SCAN's form.")
@click.option("--tokenizer", type=values.FOLDER, help="Folder with the tokenizer.json or vocab.txt of a BERT model.")
@click.option(
    "--heads",
    type=click.IntRange(min=1),
    help="Number of attention heads of a BERT model, if the folder of --tokenizer has no config.json.",
)
@options.force_option("Replace a checkpoint at OUT.")
@options.json_option
def command(
    model: Path,
    out: Path,
    vocab: Path | None,
    tokenizer: Path | None,
    heads: int | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn the published checkpoint MODEL (a .pth file) into a checkpoint folder.

    Every choice is read from the options in the file. Nothing in the file is executed, and nothing is written unless
    its tensors are exactly those that its options ask for.
    """
    from ..chan_ref.checkpoint_config import check_place

    check_place(out, force)
    from ..chan_ref.published import import_published  # torch is loaded here

    found = import_published(model, out, vocab, tokenizer, force, heads)
    for warning in found["warnings"]:
        echo(f"Warning: {warning}", err=True)
    if as_json:
        print_json(found)
        return
    config = found["model"]
    alignment, bert = config["alignment"], config["bert"]
    text = f"words {config['word_dim']} -> GRU"
    if bert is not None:
        layers, width = counted(bert["layers"], "layer"), f"{bert['hidden']} wide, {counted(bert['heads'], 'head')}"
        text = f"{layers}, {width}, {bert['positions']} positions"
    rows = {
        "epoch": f"{_shown(found['epoch'], 'd')}, best rsum {_shown(found['best_rsum'], '.1f')}",
        "regions": f"{config['region_encoder']}, {config['region_dim']} -> {config['embed_dim']}",
        "text": f"{config['text_encoder']}, {text} -> {config['embed_dim']}",
        "vocabulary": f"{found['vocabulary']:,}",
        "coding": alignment["coding"],
        "pooling": f"{alignment['pooling']}, temperature {alignment['pooling_temperature']:g}",
        "parameters": f"{found['parameters']:,}",
        "left out": f"{', '.join(found['unused'])} (stored, never used)" if found["unused"] else "nothing",
        "checkpoint": found["checkpoint"],
    }
    for name, value in rows.items():
        echo(f"{name:<12}{value}")
    for repair in found["repairs"]:
        echo(f"{'repaired':<12}{repair}")
    say_next(out, f"chan export {quoted(out)} -o bundle")


def _shown(value: float | None, kind: str) -> str:
    return "unknown" if value is None else format(value, kind)
