"""Size, error and CPU speed of every precision on full-size models with random weights: python -m chan_rt.bench.int8

Random weights say nothing about recalls (the table of the demo does). Sizes, speed and rounding errors are those of a
trained model of this shape. Errors are differences from onnxruntime at fp32; `chan parity` compares that with torch.

Each candidate is called several times in a row, because threads of the one before may still spin: right after torch,
onnxruntime's text encoder took half as long again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import torch

from ..calibration.calibrate import calibrate
from ..calibration.feeds import Samples
from ..chan_ref import checkpoint
from ..chan_ref.config import BertConfig, ModelConfig
from ..chan_ref.model import ChanModel
from ..commands import values
from ..export.bundle import export_bundle
from ..export.int8 import add_int8
from ..runtime.backends import open_graph
from ..runtime.contract import AlignmentConfig, Manifest
from ..runtime.text import BERT_SPECIALS, SCAN_SPECIALS, TokenBatch, bert_tokenizer_json, scan_vocabulary
from .measure import Latency, machine, take_turns

VOCABULARY = 8481  # words of Flickr30K in the published models
GRAPHS = ("region_encoder", "text_encoder")
REGIONS, WORDS, CALIBRATION_IMAGES, IMAGES, CAPTIONS = 36, 12, 64, 64, 256
PRECISIONS = ("fp32", "fp16", "int8", "int8_x86")
PACKAGES = ("torch", "onnxruntime", "numpy")
MODELS = {
    "gru": ModelConfig(vocab_size=VOCABULARY),
    "bert": ModelConfig(
        region_encoder="basic", text_encoder="bert", bert=BertConfig(), alignment=AlignmentConfig(pooling="Mean")
    ),
}


@click.command()
@click.option(
    "--model",
    "names",
    type=click.Choice(list(MODELS)),
    multiple=True,
    default=tuple(MODELS),
    help="Model to measure; repeatable.",
)
@click.option(
    "--graph",
    "graphs",
    type=click.Choice(GRAPHS),
    multiple=True,
    default=GRAPHS,
    help="Encoder to measure; repeatable. The changes of scores are measured only with both.",
)
@click.option("--seconds", type=values.NUMBER, default=6.0, show_default=True, help="Seconds for each comparison.")
@click.option("--threads", type=int, help="CPU threads; the default is one per core.")
@click.option("--json", "json_file", type=values.NEW_FILE, help="Also write the figures to this file.")
def main(
    names: tuple[str, ...], graphs: tuple[str, ...], seconds: float, threads: int | None, json_file: Path | None
) -> None:
    """Compare the precisions of full-size models on this CPU, all in one run."""
    if threads is not None:
        torch.set_num_threads(threads)
    record: dict[str, Any] = {"machine": machine(PACKAGES), "models": {}}
    click.echo(", ".join(f"{name} {value}" for name, value in record["machine"].items()))
    for name in names:
        with TemporaryDirectory(prefix="chan-bench-") as folder:
            record["models"][name] = measure(name, Path(folder), graphs, seconds, threads)
    if json_file is not None:
        json_file.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def measure(name: str, folder: Path, graphs: tuple[str, ...], seconds: float, threads: int | None) -> dict[str, Any]:
    """Export, calibrate, quantize and time one model; prints its table and returns the figures."""
    config = MODELS[name]
    rng = np.random.default_rng(0)
    model, bundle = make_bundle(config, folder, rng)
    held_out = _samples(config, rng, IMAGES)
    click.echo(f"\n{name}: {REGIONS} x {config.region_dim} -> {config.embed_dim}, {config.text_encoder}")
    record: dict[str, Any] = {
        graph: _graph(bundle, graph, model, held_out, (1, 64), seconds, threads) for graph in GRAPHS if graph in graphs
    }
    if len(record) == len(GRAPHS):
        record["scores"] = _score_errors(bundle, held_out, threads)
    return record


def make_bundle(config: ModelConfig, folder: Path, rng: np.random.Generator) -> tuple[ChanModel, Path]:
    """As `make_float_bundle`, at every precision."""
    model, bundle = make_float_bundle(config, folder)
    calibrate(bundle, _samples(config, rng, CALIBRATION_IMAGES), "minmax")
    add_int8(bundle, prove=lambda precisions: [])
    return model, bundle


def make_float_bundle(config: ModelConfig, folder: Path) -> tuple[ChanModel, Path]:
    """A model with random weights, FOLDER/checkpoint, and its bundle FOLDER/bundle at fp32 and fp16.

    Its tokenizer has an id for each row of the word embedding; `a` is one of its words.
    """
    torch.manual_seed(0)
    model = ChanModel(config).eval()
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save(folder / "checkpoint", model, _tokenizer(config, folder), {})
    bundle = folder / "bundle"
    export_bundle(folder / "checkpoint", bundle)
    return model, bundle


def _tokenizer(config: ModelConfig, folder: Path) -> dict[str, bytes]:
    if config.bert is not None:
        pieces = [*BERT_SPECIALS, "a", *(f"w{row}" for row in range(config.bert.vocab_size))]
        (folder / "vocab.txt").write_text("\n".join(pieces[: config.bert.vocab_size]), encoding="utf-8")
        return {"tokenizer.json": bert_tokenizer_json(folder / "vocab.txt").encode()}
    words = [*SCAN_SPECIALS, "a", *(f"w{row}" for row in range(config.vocab_size))]
    known = {word: row for row, word in enumerate(words[: config.vocab_size - 1])}  # the last row is of `<mask>`
    return {"vocab.json": json.dumps(scan_vocabulary(known)).encode()}


def _samples(config: ModelConfig, rng: np.random.Generator, images: int) -> Samples:
    """Features as detectors give them (not negative, heavy-tailed), captions of random words."""
    features = rng.gamma(0.5, 1.0, (images, REGIONS, config.region_dim)).astype(np.float32)
    counts = np.full(images, REGIONS, np.int32)
    vocabulary = config.vocab_size if config.bert is None else config.bert.vocab_size
    ids = rng.integers(1, vocabulary, (CAPTIONS, WORDS), dtype=np.int32)
    return Samples(
        lambda part: (features[part], counts[part]), images, TokenBatch(ids, np.full(CAPTIONS, WORDS, np.int32))
    )


def _feeds(graph: str, samples: Samples, batch: int) -> dict[str, np.ndarray]:
    if graph == "region_encoder":
        regions, lengths = samples.regions(np.arange(batch))
        return {"regions": regions, "region_lengths": lengths}
    return dict(samples.captions(np.arange(batch)))


def _graph(
    bundle: Path,
    graph: str,
    model: ChanModel,
    samples: Samples,
    batches: tuple[int, ...],
    seconds: float,
    threads: int | None,
) -> dict[str, Any]:
    manifest = Manifest.load(bundle)
    encode = model.encode_regions if graph == "region_encoder" else model.encode_words
    opened = {
        precision: open_graph(
            "onnxruntime", bundle, manifest, graph, manifest.resolve(graph, precision), threads=threads
        )
        for precision in PRECISIONS
        if manifest.resolve(graph, precision) == precision
    }
    latencies: dict[int, dict[str, Latency]] = {}
    for batch in batches:
        feeds = _feeds(graph, samples, batch)
        calls: dict[str, Callable[[], object]] = {"torch fp32": _torch_call(encode, feeds)}
        calls |= {name: partial(backend.run, feeds) for name, backend in opened.items()}
        latencies[batch] = take_turns(calls, seconds, in_a_row=3)
    outputs = {name: next(iter(backend.run(_feeds(graph, samples, 64)).values())) for name, backend in opened.items()}
    expected = outputs["fp32"]
    record = {}
    head = "".join(f"{f'batch {batch}, ms':>14}{'ratio':>8}" for batch in batches)
    click.echo(f"  {graph:<16}{'MB':>8}{'least cosine':>14}{head}")
    for name in ("torch fp32", *opened):
        size = None if name not in opened else (bundle / manifest.graph(graph, name).file).stat().st_size
        cosine = None if name not in opened else float((outputs[name].astype(np.float32) * expected).sum(-1).min())
        row = f"{'' if size is None else f'{size / 1e6:.1f}':>8}{'' if cosine is None else f'{cosine:.6f}':>14}"
        for batch in batches:
            ratio = latencies[batch]["torch fp32"].p50 / latencies[batch][name].p50
            row += f"{latencies[batch][name].p50:14.2f}{ratio:7.2f}x"
        click.echo(f"    {name:<14}{row}")
        by_batch = {str(batch): asdict(latencies[batch][name]) for batch in batches}
        record[name] = {"bytes": size, "least_cosine": cosine, "latency": by_batch}
    for backend in opened.values():
        backend.close()
    return record


def _torch_call(encode: Callable[..., torch.Tensor], feeds: dict[str, np.ndarray]) -> Callable[[], object]:
    tensors = [torch.from_numpy(array) for array in feeds.values()]

    def call() -> object:
        with torch.inference_mode():
            return encode(*tensors)

    return call


def _score_errors(bundle: Path, samples: Samples, threads: int | None) -> dict[str, dict[str, float]]:
    """Largest and mean change of 64 x 64 scores against fp32, all graphs at the precision."""
    manifest = Manifest.load(bundle)
    scores = {}
    for precision in PRECISIONS:
        feeds: dict[str, np.ndarray] = {}
        for graph, output, lengths in (
            ("region_encoder", "region_embeddings", "region_lengths"),
            ("text_encoder", "word_embeddings", "word_lengths"),
        ):
            with open_graph(
                "onnxruntime", bundle, manifest, graph, manifest.resolve(graph, precision), threads=threads
            ) as backend:
                inputs = _feeds(graph, samples, 64)
                feeds[output] = backend.run(inputs)[output]
                feeds[lengths] = list(inputs.values())[1]
        resolved = manifest.resolve("hard_alignment", precision)
        with open_graph("onnxruntime", bundle, manifest, "hard_alignment", resolved, threads=threads) as backend:
            dtypes = {tensor.name: tensor.dtype for tensor in backend.spec.inputs}
            scores[precision] = backend.run({name: value.astype(dtypes[name]) for name, value in feeds.items()})[
                "scores"
            ]
    click.echo(f"  {'scores':<16}{'largest change':>16}{'mean change':>14}{'spread (std)':>14}")
    found = {}
    for precision in PRECISIONS[1:]:
        change = np.abs(scores[precision] - scores["fp32"])
        found[precision] = {"largest": float(change.max()), "mean": float(change.mean())}
        row = f"{change.max():16.5f}{change.mean():14.5f}{scores['fp32'].std():14.5f}"
        click.echo(f"    {precision:<14}{row}")
    return found


if __name__ == "__main__":
    main()
