"""`chan import`: convert a published checkpoint to a native one."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command("import", short_help="Read a published model_best.pth safely and strictly.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The checkpoint directory to write.")
@click.option("--vocab", type=click.Path(path_type=Path), help="SCAN vocabulary JSON, for a GRU model.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="Folder with tokenizer.json or vocab.txt, for a BERT model."
)
@click.option("--force", is_flag=True, help="Replace a checkpoint at OUT.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(model: Path, out: Path, vocab: Path | None, tokenizer: Path | None, force: bool, as_json: bool) -> None:
    """Convert the published checkpoint MODEL to a checkpoint directory.

    Every choice is read from the options in the file. Nothing in the file is executed, and nothing is written unless
    its tensors are exactly those that its options describe.
    """
    from ..chan_ref.published import import_published

    found = import_published(model, out, vocab, tokenizer, force)
    if as_json:
        click.echo(json.dumps(found, indent=2, sort_keys=True))
        return
    config = found["model"]
    alignment, bert = config["alignment"], config["bert"]
    text = f"words {config['word_dim']} -> GRU"
    if bert is not None:
        text = f"{bert['layers']} layers, {bert['hidden']} wide, {bert['heads']} heads, {bert['positions']} positions"
    rows = {
        "epoch": f"{found['epoch']}, best rsum {found['best_rsum']:.1f}",
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
        click.echo(f"{name:<12}{value}")
