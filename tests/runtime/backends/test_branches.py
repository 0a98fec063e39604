"""The two directions of an int8 GRU run on a thread each, and give what one thread gives, to the bit."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from chan_rt.calibration.ranges import TensorRange
from chan_rt.calibration.recurrence import find_grus, quantize_gru
from chan_rt.chan_ref.config import ModelConfig
from chan_rt.chan_ref.encoders import BiGRUTextEncoder
from chan_rt.export.bundle import describe
from chan_rt.export.graphs import bigru_text_encoder
from chan_rt.runtime import onnx_session
from chan_rt.runtime.backends import open_backend
from chan_rt.runtime.backends.base import Feeds
from chan_rt.runtime.backends.branches import ROWS, BranchedSession
from chan_rt.runtime.contract import GraphSpec, Range
from chan_rt.runtime.errors import BackendError
from chan_rt.runtime.onnx_session import products_are_exact

WORDS, VOCABULARY = 9, 40
Graph = tuple[Path, GraphSpec]


def _save(model: onnx.ModelProto, folder: Path) -> Graph:
    onnx.save(model, folder / "text.onnx")
    return folder / "text.onnx", describe(model, folder, "text.onnx", {"B": Range(1, 1, 64), "W": Range(1, 8, 40)})


def _encoder() -> onnx.ModelProto:
    torch.manual_seed(0)
    return bigru_text_encoder(BiGRUTextEncoder(ModelConfig(8, 32, vocab_size=VOCABULARY, word_dim=12)))


@pytest.fixture(scope="module")
def quantized() -> onnx.ModelProto:
    model = _encoder()
    for node in find_grus(model):
        quantize_gru(model, node.name, {node.output[0]: TensorRange(-1, 1, -1, 1, 1, 0.0)})
    return model


@pytest.fixture
def graph(quantized: onnx.ModelProto, tmp_path: Path) -> Graph:
    return _save(quantized, tmp_path)


def _captions(rows: int) -> Feeds:
    rng = np.random.default_rng(rows)
    ids, lengths = rng.integers(0, VOCABULARY, (rows, WORDS)), rng.integers(1, WORDS + 1, rows)
    return {"token_ids": ids.astype(np.int32), "token_lengths": lengths.astype(np.int32)}


@pytest.mark.parametrize("threads", [2, 3, 5])
@pytest.mark.parametrize("rows", [1, 2, ROWS, 2 * ROWS - 1, 2 * ROWS, 5 * ROWS + 3, 64])
def test_every_number_of_threads_gives_the_same_bits(graph: Graph, threads: int, rows: int) -> None:
    feeds = _captions(rows)
    with (
        open_backend("onnxruntime", *graph, threads=1) as one,
        open_backend("onnxruntime", *graph, threads=threads) as some,
    ):
        assert isinstance(one._session, onnxruntime.InferenceSession)
        assert isinstance(some._session, BranchedSession)
        expected, found = one.run(feeds)["word_embeddings"], some.run(feeds)["word_embeddings"]
    np.testing.assert_array_equal(found, expected)
    assert found.flags.writeable


def test_every_piece_runs_on_one_thread(graph: Graph) -> None:
    with open_backend("onnxruntime", *graph, threads=4) as backend:
        session = backend._session
        pieces = [*session._branches, session._rest]
        assert len(pieces) == 3
        assert {piece.get_session_options().intra_op_num_threads for piece in pieces} == {1}


def test_a_graph_without_branches_is_one_session(tmp_path: Path) -> None:
    with open_backend("onnxruntime", *_save(_encoder(), tmp_path), threads=2) as backend:
        assert isinstance(backend._session, onnxruntime.InferenceSession)
        assert backend._session.get_session_options().intra_op_num_threads == 2


@pytest.mark.skipif(not products_are_exact(onnxruntime)[1], reason="on this CPU such a bundle is refused")
def test_bundles_with_the_weights_around_the_scans_are_run_alike(
    quantized: onnx.ModelProto, graph: Graph, tmp_path: Path
) -> None:
    older = onnx.ModelProto()
    older.CopyFrom(quantized)
    for body in (item.g for node in older.graph.node for item in node.attribute if item.name == "body"):
        older.graph.initializer.extend(body.initializer)
        del body.initializer[:]
    (tmp_path / "older").mkdir()
    with (
        open_backend("onnxruntime", *graph, threads=1) as now,
        open_backend("onnxruntime", *_save(older, tmp_path / "older"), threads=2) as before,
    ):
        assert isinstance(before._session, BranchedSession)
        np.testing.assert_array_equal(*(item.run(_captions(20))["word_embeddings"] for item in (now, before)))


def test_many_threads_share_it(graph: Graph) -> None:
    with open_backend("onnxruntime", *graph, threads=2) as backend, ThreadPoolExecutor(8) as pool:
        expected = {rows: backend.run(_captions(rows))["word_embeddings"] for rows in range(1, 30)}
        found = list(pool.map(lambda rows: (rows, backend.run(_captions(rows))), [*expected] * 6))
    for rows, outputs in found:
        np.testing.assert_array_equal(outputs["word_embeddings"], expected[rows])


def test_a_caller_waits_for_no_thread_that_is_busy(graph: Graph) -> None:
    feeds = _captions(40)
    with open_backend("onnxruntime", *graph, threads=2) as backend:
        expected = backend.run(feeds)["word_embeddings"]
        release = threading.Event()
        busy = backend._session._pool.submit(release.wait, 60)
        found = backend.run(feeds)["word_embeddings"]
        assert not busy.done()
        release.set()
    np.testing.assert_array_equal(found, expected)


def test_an_error_of_a_piece_is_the_backends(graph: Graph) -> None:
    feeds = _captions(3)
    feeds["token_ids"][:] = VOCABULARY
    with (
        open_backend("onnxruntime", *graph, threads=2) as backend,
        pytest.raises(BackendError, match=r"onnxruntime failed in text\.onnx: "),
    ):
        backend.run(feeds)


def test_a_graph_that_would_saturate_is_refused_by_name(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_session, "products_are_exact", lambda ort: (False, False))
    with pytest.raises(BackendError, match=r"text\.onnx: its int8 products saturate on this CPU"):
        open_backend("onnxruntime", *graph, threads=2)


def test_a_run_ends_though_the_backend_is_closed_meanwhile(graph: Graph) -> None:
    feeds = _captions(64)
    backend = open_backend("onnxruntime", *graph, threads=3)
    expected = backend.run(feeds)["word_embeddings"]
    session = backend._session
    backend.close()
    np.testing.assert_array_equal(session.run(["word_embeddings"], feeds)[0], expected)
    with pytest.raises(BackendError, match="was closed"):
        backend.run(feeds)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12: that it may do what is tested
def test_it_runs_in_a_forked_child(graph: Graph) -> None:
    feeds = _captions(40)
    with open_backend("onnxruntime", *graph, threads=2) as backend:
        expected = backend.run(feeds)["word_embeddings"]  # its threads are started
        child = os.fork()
        if not child:
            try:
                signal.alarm(20)
                os._exit(0 if np.array_equal(backend.run(feeds)["word_embeddings"], expected) else 1)
            finally:
                os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
