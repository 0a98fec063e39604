"""`python -m chan_rt.bench.embeddings DOCUMENTS QUERIES`: exact MaxSim beside other libraries, on the same vectors.

DOCUMENTS and QUERIES are files of embeddings (runtime/data/vectors.py lists the forms). Candidates take turns query by
query, on one thread each, and every hit is held to scores in float64. What is not installed is left out and named.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..commands import values
from ..runtime.contract import AlignmentConfig
from ..runtime.embeddings import Embeddings
from ..runtime.gallery import Gallery, GalleryWriter
from ..runtime.indexing.embedding_source import read_embeddings
from .measure import Latency, machine

K = 10
Rows = Sequence[NDArray[np.float32]]
Search = Callable[[NDArray[np.float32]], Sequence[int]]
_PACKAGES = ("numpy", "torch", "pylate", "fast-plaid", "colbandit", "lancedb", "qdrant-client")


@dataclass(frozen=True)
class Index:
    """Documents as one candidate holds them.

    Attributes:
        search: the numbers of the best K documents of a query [W, D].
        bytes: of the index: on the disk where it is kept there, otherwise in memory.
    """

    search: Search
    bytes: int


@dataclass(frozen=True)
class Measured:
    """What a candidate did.

    Attributes:
        build_s: CPU seconds that making the index took.
        bytes: of the index.
        latency: of one query.
        recall: mean share of the best K by float64 scores that were among its K; of equal scores any counts.
        wrong: queries whose K were not all among the best.
    """

    build_s: float
    bytes: int
    latency: Latency
    recall: float
    wrong: int


def chan(documents: Rows, folder: Path, fit: Rows) -> Index:
    """This library: a gallery with a float32 copy, prepared with queries that are not measured."""
    with GalleryWriter.create(folder / "g", dim=documents[0].shape[1], alignment=AlignmentConfig.maxsim()) as writer:
        for first in range(0, len(documents), 256):
            part = documents[first : first + 256]
            writer.add(range(first, first + len(part)), Embeddings.padded(part))
        writer.compact()
        writer.prepare(Embeddings.padded(fit))
    gallery = Gallery.open(folder / "g", threads=1)

    def search(query: NDArray[np.float32]) -> list[int]:
        (result,) = gallery.search(Embeddings.padded([query]), K)
        assert result.certified
        return [int(hit.id) for hit in result.hits]

    return Index(search, gallery.info()["bytes"])


def pylate(documents: Rows, folder: Path, fit: Rows) -> Index:
    """PyLate's MaxSim of padded tensors in torch, in blocks of 512 documents."""
    import torch
    from pylate.scores import colbert_scores

    torch.set_num_threads(1)
    longest = max(map(len, documents))
    padded = torch.zeros((len(documents), longest, documents[0].shape[1]))
    mask = torch.zeros((len(documents), longest))
    for row, vectors in enumerate(documents):
        padded[row, : len(vectors)], mask[row, : len(vectors)] = torch.from_numpy(vectors), 1
    blocks = [slice(first, first + 512) for first in range(0, len(documents), 512)]

    def search(query: NDArray[np.float32]) -> list[int]:
        asked = torch.from_numpy(query)[None]
        with torch.inference_mode():
            scores = torch.cat([colbert_scores(asked, padded[b], documents_mask=mask[b])[0] for b in blocks])
        found: list[int] = scores.topk(K).indices.tolist()
        return found

    return Index(search, padded.nbytes)


def torch_packed(documents: Rows, folder: Path, fit: Rows) -> Index:
    """One product of all vectors without padding in torch float32, and the largest of each document."""
    import torch

    torch.set_num_threads(1)
    flat = torch.from_numpy(np.concatenate(documents))
    starts = np.cumsum([0, *map(len, documents)])[:-1]

    def search(query: NDArray[np.float32]) -> list[int]:
        with torch.inference_mode():
            products = (torch.from_numpy(query) @ flat.T).numpy()
        scores = np.maximum.reduceat(products, starts, axis=1).sum(axis=0)
        best = np.argpartition(-scores, K)[:K]
        return [int(row) for row in best]

    return Index(search, flat.nbytes)


def fast_plaid(documents: Rows, folder: Path, fit: Rows, **options: Any) -> Index:
    """fast-plaid with 4 bits for a number, its default."""
    import torch
    from fast_plaid import search as plaid

    torch.set_num_threads(1)
    index = plaid.FastPlaid(str(folder / "plaid"), device="cpu")
    index.create([torch.from_numpy(vectors) for vectors in documents])

    def search(query: NDArray[np.float32]) -> list[int]:
        asked = torch.from_numpy(query)[None]
        (found,) = index.search(asked, top_k=K, show_progress=False, n_processes=1, **options)
        return [row for row, _ in found]

    return Index(search, _size(folder / "plaid"))


def fast_plaid_widest(documents: Rows, folder: Path, fit: Rows) -> Index:
    """fast-plaid that scores every document in full."""
    return fast_plaid(documents, folder, fit, n_full_scores=len(documents), n_ivf_probe=256)


def colbandit(documents: Rows, folder: Path, fit: Rows, alpha: float = 0.2) -> Index:
    """colbandit with its default alpha_ef."""
    from colbandit import ColBandit

    index = ColBandit(alpha_ef=alpha, n_threads=1)
    index.index(list(documents))
    index.save(str(folder / "colbandit"))

    def search(query: NDArray[np.float32]) -> list[int]:
        return [int(row) for row in index.search(query, k=K)[0]]

    return Index(search, sum(_size(path) for path in folder.iterdir()))


def colbandit_safest(documents: Rows, folder: Path, fit: Rows) -> Index:
    """colbandit with alpha_ef = 1, its conservative corner."""
    return colbandit(documents, folder, fit, 1.0)


def lancedb(documents: Rows, folder: Path, fit: Rows) -> Index:
    """lancedb's flat search of a multivector column, by cosine, the only metric it has for these."""
    import lancedb as lance
    import pyarrow

    dim = documents[0].shape[1]
    flat = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.concatenate(documents).reshape(-1)), dim)
    starts = np.cumsum([0, *map(len, documents)], dtype=np.int32)
    columns = {"row": np.arange(len(documents)), "v": pyarrow.ListArray.from_arrays(starts, flat)}
    table = lance.connect(str(folder)).create_table("t", data=pyarrow.table(columns))

    def search(query: NDArray[np.float32]) -> list[int]:
        return [
            hit["row"] for hit in table.search(query).metric("cosine").limit(K).select(["row", "_distance"]).to_list()
        ]

    return Index(search, _size(folder))


def qdrant(documents: Rows, folder: Path, fit: Rows) -> Index:
    """qdrant-client's local mode in memory, multivectors by MAX_SIM of inner products."""
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")
    compare = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    dim = documents[0].shape[1]
    vectors_config = models.VectorParams(size=dim, distance=models.Distance.DOT, multivector_config=compare)
    client.create_collection("d", vectors_config=vectors_config)
    client.upload_collection("d", vectors=documents, ids=range(len(documents)))

    def search(query: NDArray[np.float32]) -> list[int]:
        return [int(point.id) for point in client.query_points("d", query=query.tolist(), limit=K).points]

    return Index(search, sum(vectors.nbytes for vectors in documents))


# Candidate -> the module that it needs, and what builds its index.
PEERS: dict[str, tuple[str, Callable[[Rows, Path, Rows], Index]]] = {
    "chan, exact and certified": ("numpy", chan),
    "PyLate (torch float32, padded)": ("pylate.scores", pylate),
    "torch float32, packed": ("torch", torch_packed),
    "fast-plaid": ("fast_plaid.search", fast_plaid),
    "fast-plaid, all scored": ("fast_plaid.search", fast_plaid_widest),
    "colbandit": ("colbandit", colbandit),
    "colbandit, alpha_ef = 1": ("colbandit", colbandit_safest),
    "lancedb, flat": ("lancedb", lancedb),
    "qdrant, local mode": ("qdrant_client", qdrant),
}


def true_scores(documents: Rows, query: NDArray[np.float32]) -> NDArray[np.float64]:
    """MaxSim in float64 of a query with every document: [N]."""
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    exact = query.astype(np.float64)
    products = np.concatenate([exact @ vectors.astype(np.float64).T for vectors in documents], axis=1)
    return np.asarray(np.maximum.reduceat(products, starts, axis=1).sum(axis=0))


def right(found: Sequence[int], scores: NDArray[np.float64]) -> int:
    """How many of the documents that were found are among the best K; of equal scores any counts."""
    least = np.partition(scores, len(scores) - K)[len(scores) - K]
    return sum(bool(scores[row] >= least) for row in set(found))


def measure(
    documents: Rows, queries: Rows, fit: Rows, names: Sequence[str]
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Build every candidate, then ask each every query in turn; and why the others could not be measured."""
    built, missing, seconds = {}, {}, {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, name in enumerate(names):
            folder = Path(scratch, str(number))
            folder.mkdir()
            module, build = PEERS[name]
            try:
                importlib.import_module(module)
                before = time.process_time()
                built[name] = build(documents, folder, fit)
                seconds[name] = time.process_time() - before
                built[name].search(queries[0])
            except Exception as error:  # a peer may fail in any way; which did is part of the result
                missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                built.pop(name, None)
                click.echo(f"{name}: not measured: {missing[name]}", err=True)
            else:
                click.echo(f"built {name} in {seconds[name]:.1f} s", err=True)
        times: dict[str, list[float]] = {name: [] for name in built}
        counts: dict[str, list[int]] = {name: [] for name in built}
        for query in queries:
            scores = true_scores(documents, query)
            for name, index in built.items():
                before = time.perf_counter()
                found = index.search(query)
                times[name].append(time.perf_counter() - before)
                counts[name].append(right(found, scores))
    return {
        name: Measured(
            seconds[name], index.bytes, Latency.of(times[name]), float(np.mean(counts[name])) / K,
            sum(count < K for count in counts[name]),
        )
        for name, index in built.items()
    }, missing  # fmt: skip


def _size(path: Path) -> int:
    return (
        path.stat().st_size
        if path.is_file()
        else sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    )


@click.command()
@click.argument("documents", type=values.EXISTING)
@click.argument("queries", type=values.EXISTING)
@click.option("--peer", "names", multiple=True, type=click.Choice(list(PEERS)), help="Candidate; may be repeated.")
@click.option("--most", default=200, show_default=True, help="Number of queries that are measured.")
@click.option("-o", "--out", type=values.NEW_FILE, help="Write the record to this file.")
def main(documents: Path, queries: Path, names: tuple[str, ...], most: int, out: Path | None) -> None:
    """Find the top 10 of QUERIES among DOCUMENTS with every library that is installed.

    Every third query fits this library's search; the others are measured.
    """
    rows = read_embeddings([documents])[1].rows()
    asked = read_embeddings([queries], rows[0].shape[1])[1].rows()
    fit = asked[::3][:200]
    measured = [query for number, query in enumerate(asked) if number % 3][:most]
    found, missing = measure(rows, measured, fit, names or list(PEERS))
    vectors = sum(map(len, rows))
    click.echo(f"{len(rows)} documents, {vectors} vectors x {rows[0].shape[1]}, {len(measured)} queries")
    click.echo(f"{'':<34}{'median ms':>10}{'best':>9}{'recall@10':>11}{'wrong':>7}{'MB':>9}{'build s':>9}")
    for name, one in found.items():
        click.echo(
            f"{name:<34}{one.latency.p50:>10.2f}{one.latency.best:>9.2f}{one.recall:>11.4f}{one.wrong:>7}"
            f"{one.bytes / 1e6:>9.1f}{one.build_s:>9.1f}"
        )
    if out is not None:
        record = {
            "machine": machine(_PACKAGES),
            "documents": {"rows": len(rows), "vectors": vectors, "dim": rows[0].shape[1], "queries": len(measured)},
            "measured": {name: asdict(one) for name, one in found.items()},
            "not_measured": missing,
        }
        out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
