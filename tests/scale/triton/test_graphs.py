"""The models of graphs in NVIDIA's server, which lacks their backend: one in Python runs the same ONNX files.

So the server itself reads their configurations, checks requests against them, puts requests together, reshapes lengths
and warms the models up. Only what runs the graph is not the backend that they name.
"""

from __future__ import annotations

import re
import shutil
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime import Gallery, Matcher
from chan_rt.runtime.text import pad_rows

pytest.importorskip("tritonclient", reason="tritonclient is not installed: make test-triton")

CAPTIONS = [f"{'red ' * (row % 5)}apple on the table" for row in range(32)]
STAND_IN = """
import json
import os
import time
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        self.batched = json.loads(args["model_config"])["max_batch_size"] > 0
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.hold = os.path.join(os.path.dirname(args["model_repository"]), "hold")
        file = f"{args['model_repository']}/{args['model_version']}/model.onnx"
        self.session = onnxruntime.InferenceSession(file, options)

    def execute(self, requests):
        while os.path.exists(self.hold):
            open(self.hold + ".reached", "w").close()
            time.sleep(0.005)
        names = [tensor.name for tensor in self.session.get_inputs()]
        given = [[pb.get_input_tensor_by_name(one, name).as_numpy() for name in names] for one in requests]
        if not self.batched:
            return [self.respond(self.session.run(None, dict(zip(names, arrays)))) for arrays in given]
        joined = [np.concatenate(arrays) for arrays in zip(*given)]
        ends = np.cumsum([len(arrays[0]) for arrays in given])[:-1]
        outputs = [np.split(array, ends) for array in self.session.run(None, dict(zip(names, joined)))]
        return [self.respond(arrays) for arrays in zip(*outputs)]

    def respond(self, arrays):
        tensors = zip(self.session.get_outputs(), arrays)
        return pb.InferenceResponse([pb.Tensor(tensor.name, array) for tensor, array in tensors])
"""


@pytest.fixture(scope="module")
def served(start_triton: Callable[..., Any], repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server of every model of the repository."""
    copy = Path(shutil.copytree(repository, tmp_path_factory.mktemp("stand-in") / "repository"))
    for folder in copy.iterdir():
        config = folder / "config.pbtxt"
        if folder.is_dir() and 'backend: "onnxruntime"' in config.read_text():
            config.write_text(config.read_text().replace('backend: "onnxruntime"', 'backend: "python"'))
            (folder / "1" / "model.py").write_text(STAND_IN)
    return start_triton(copy, "--disable-auto-complete-config")  # nothing that a configuration lacks is guessed


def ask(server: Any, model: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    import tritonclient.http as module
    from tritonclient.utils import np_to_triton_dtype

    given = []
    for name, value in inputs.items():
        given.append(module.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype)))
        given[-1].set_data_from_numpy(value)
    answer = server.client().infer(f"chan_{model}", given)
    return {one["name"]: answer.as_numpy(one["name"]) for one in answer.get_response()["outputs"]}


def test_all_models_are_ready_and_were_warmed_up(served: Any) -> None:
    client = served.client()
    index = client.get_model_repository_index()
    assert {one["name"]: one.get("state") for one in index} == dict.fromkeys((one["name"] for one in index), "READY")
    assert len(index) == 6
    log = served.log.read_text()
    assert "failed to run warmup" not in log


def test_captions_of_one_width_are_put_together(served: Any, bundle: Path) -> None:
    with Matcher.open(bundle) as matcher:
        wanted = matcher.encode_texts(CAPTIONS)
        batch = pad_rows(matcher.tokenizer.rows(CAPTIONS))
    width = 16  # to which this client pads
    ids = np.pad(batch.ids, ((0, 0), (0, width - batch.ids.shape[1])))

    def encode(row: int) -> np.ndarray:
        found = ask(
            served, "text_encoder", token_ids=ids[row : row + 1], token_lengths=batch.lengths[row : row + 1, None]
        )
        return found["word_embeddings"]

    with ThreadPoolExecutor(31) as threads:
        with served.holding(lambda: encode(0), "chan_text_encoder") as held:
            asked = [threads.submit(encode, row) for row in range(1, 32)]
            served.wait_until(lambda: pending(served) == 31)
        found = [held.result(), *(one.result() for one in asked)]
    assert served.executions(32, "chan_text_encoder") == 2
    for row, length in enumerate(batch.lengths):
        assert found[row].shape == (1, width, 16)
        np.testing.assert_allclose(found[row][0, :length], wanted.vectors[row, :length], atol=1e-6)
        assert not found[row][0, length:].any()


def pending(server: Any) -> float:
    """Requests of the text encoder that wait."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.started.metrics}/metrics") as answer:
        text = answer.read().decode()
    (found,) = re.findall(
        r'^nv_inference_pending_request_count\{.*?"chan_text_encoder".*?\} (\S+)$', text, re.MULTILINE
    )
    return float(found)


def test_pictures_and_alignment(served: Any, bundle: Path) -> None:
    pixels = np.random.default_rng(0).standard_normal((3, 3, 24, 24)).astype(np.float32)
    regions = ask(served, "backbone", pixels=pixels)["regions"]
    lengths = np.full((3, 1), regions.shape[1], np.int32)
    images = ask(served, "region_encoder", regions=regions, region_lengths=lengths)["region_embeddings"]
    with Matcher.open(bundle) as matcher:
        encoded = matcher.encode_images(regions)
        texts = matcher.encode_texts(CAPTIONS[:5])
        scores, (word_scores, word_regions) = matcher.score(encoded, texts), matcher.align(encoded, texts)
    np.testing.assert_allclose(images, encoded.vectors, atol=1e-6)
    pair = {
        "region_embeddings": encoded.vectors,
        "region_lengths": encoded.lengths,
        "word_embeddings": texts.vectors,
        "word_lengths": texts.lengths,
    }
    np.testing.assert_allclose(ask(served, "hard_alignment", **pair)["scores"], scores, atol=1e-5)
    aligned = ask(served, "alignment_map", **pair)
    np.testing.assert_allclose(aligned["word_scores"], word_scores, atol=1e-5)
    np.testing.assert_array_equal(aligned["word_regions"], word_regions)


def test_what_the_encoder_returns_is_searched_with(served: Any, bundle: Path, gallery: Path) -> None:
    with Matcher.open(bundle) as matcher, Gallery.open(gallery) as opened:
        batch = pad_rows(matcher.tokenizer.rows(CAPTIONS[:3]))
        wanted = opened.search(matcher.encode_texts(CAPTIONS[:3]), 10)
    lengths = batch.lengths[:, None]
    words = ask(served, "text_encoder", token_ids=batch.ids, token_lengths=lengths)["word_embeddings"]
    found = ask(served, "search", embedding=words, length=lengths)
    assert [[id.decode() for id in row] for row in found["ids"]] == [[hit.id for hit in one.hits] for one in wanted]


def lengths(count: int) -> dict[str, np.ndarray]:
    return {"token_lengths": np.ones((count, 1), np.int32)}


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        ("text_encoder", {"token_ids": np.ones((1, 4), np.int64), **lengths(1)}, "data-type is 'INT64'"),
        ("text_encoder", {"token_ids": np.ones((1, 4), np.int32)}, "expected 2 inputs but got 1"),
        ("text_encoder", {"token_ids": np.ones((257, 4), np.int32), **lengths(257)}, "batch-size must be <= 256"),
        ("backbone", {"pixels": np.ones((1, 3, 24, 25), np.float32)}, r"Expected \[-1,3,24,24\]"),
    ],
)
def test_requests_that_break_a_configuration_are_refused(
    served: Any, model: str, inputs: dict[str, np.ndarray], message: str
) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=message):
        ask(served, model, **inputs)
