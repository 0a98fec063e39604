"""`chan_search` in NVIDIA's server: the library's answers to the bit, batches, and clear errors that it survives."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chan_rt.runtime import Embeddings, Gallery, GalleryWriter, Matcher
from chan_rt.scale import push_gallery
from chan_rt.scale.triton import Served, write_repository

pytest.importorskip("tritonclient", reason="tritonclient is not installed: make test-triton")

PROTOCOLS = ("http", "grpc")
CAPTIONS = (
    "a red strawberry",
    "the green apple lie on a blue table under two white clouds",
    "clouds",
    "an unknown thing on a table",
)


def texts(*values: str | bytes) -> np.ndarray:
    """A tensor [B, 1] of text or bytes."""
    return np.array([[one.encode() if isinstance(one, str) else one] for one in values], object)


def picture(seed: int, format: str = "PNG", size: tuple[int, int] = (30, 40)) -> bytes:
    Image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format)
    return out.getvalue()


def wide() -> bytes:
    """A small file of 64 million pixels."""
    Image = pytest.importorskip("PIL.Image")
    out = io.BytesIO()
    Image.new("1", (8000, 8000)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def matcher(bundle: Path) -> Iterator[Matcher]:
    with Matcher.open(bundle) as opened:
        yield opened


def check(found: dict[str, Any], gallery: Path, queries: Embeddings, k: int = 10, **how: Any) -> None:
    """The outputs are those of `Gallery.search`, to the bit, and padded where a query has less."""
    with Gallery.open(gallery) as opened:
        wanted = opened.search(queries, k, same_kind=True, **how)
    assert found["hits"].tolist() == [[len(one.hits)] for one in wanted]
    assert found["certified"].tolist() == [[one.certified] for one in wanted]
    assert [row[0].decode() for row in found["reason"]] == [one.reason for one in wanted]
    for row, result in enumerate(wanted):
        count = len(result.hits)
        assert [id.decode() for id in found["ids"][row]] == [hit.id for hit in result.hits] + [""] * (
            found["ids"].shape[1] - count
        )
        assert found["scores"][row, :count].tolist() == [hit.score for hit in result.hits]
        assert not found["scores"][row, count:].any()
        for column, hit in enumerate(result.hits):
            words = len(hit.word_regions)
            assert found["regions"][row, column, :words].tolist() == hit.word_regions.tolist()
            assert (found["regions"][row, column, words:] == -1).all()
            assert found["similarities"][row, column, :words].tobytes() == hit.word_scores.tobytes()
            shown = {key: value for key, value in hit.metadata.items() if key != "path"}
            assert json.loads(found["metadata"][row, column]) == shown


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_captions_find_what_the_library_finds(triton: Any, gallery: Path, matcher: Matcher, protocol: str) -> None:
    found = triton.infer(protocol, caption=texts(*CAPTIONS), k=7)
    check(found, gallery, matcher.encode_texts(CAPTIONS), 7)
    assert found["certified"].all()
    for row, caption in enumerate(CAPTIONS):
        words = matcher.tokenizer.tokens(caption)
        assert [word.decode() for word in found["words"][row]][: len(words)] == words
    alone = triton.infer(protocol, caption=texts(CAPTIONS[0]))
    check(alone, gallery, matcher.encode_texts(CAPTIONS[:1]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_pictures_find_what_the_library_finds(
    triton: Any, gallery: Path, matcher: Matcher, protocol: str, tmp_path: Path
) -> None:
    files = [picture(0), picture(1, "JPEG")]
    paths = [tmp_path / "0.png", tmp_path / "1.jpg"]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    found = triton.infer(protocol, picture=texts(*files))
    check(found, gallery, matcher.encode_pictures(paths))
    assert found["words"].shape == (2, 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_embeddings_find_what_the_library_finds(triton: Any, gallery: Path, matcher: Matcher, protocol: str) -> None:
    queries = matcher.encode_texts(CAPTIONS)
    vectors = queries.vectors.copy()
    for row, length in enumerate(queries.lengths):
        vectors[row, length:] = np.nan  # padding may hold anything
    found = triton.infer(protocol, embedding=vectors, length=queries.lengths[:, None], k=3)
    check(found, gallery, queries, 3)
    whole = triton.infer(protocol, embedding=queries.vectors[:1, : queries.lengths[0]].copy())
    check(whole, gallery, queries[:1].trimmed())


def test_a_request_larger_than_the_shared_memory_at_the_start(
    triton: Any, gallery: Path, matcher: Matcher, tmp_path: Path
) -> None:
    data = picture(7, size=(2000, 2400))
    assert len(data) > 8 << 20
    (tmp_path / "picture.png").write_bytes(data)
    check(triton.infer(picture=texts(data)), gallery, matcher.encode_pictures([tmp_path / "picture.png"]))


def test_a_filter_and_only_some_outputs(triton: Any, gallery: Path, matcher: Matcher) -> None:
    queries = matcher.encode_texts(CAPTIONS)
    found = triton.infer(caption=texts(*CAPTIONS), where='{"n": {"$lt": 4}}')
    check(found, gallery, queries, where={"n": {"$lt": 4}})
    assert found["ids"].shape == (4, 4)
    none = triton.infer(caption=texts(*CAPTIONS), where='{"n": {"$lt": 0}}')
    check(none, gallery, queries, where={"n": {"$lt": 0}})
    assert none["ids"].shape == (4, 0)
    assert triton.infer(outputs=("ids", "certified"), caption=texts("clouds")).keys() == {"ids", "certified"}


def test_plain_json_over_http(triton: Any, gallery: Path, matcher: Matcher) -> None:
    """What docs/triton.md sends with curl."""
    body = {
        "inputs": [{"name": "caption", "shape": [1, 1], "datatype": "BYTES", "data": [CAPTIONS[1]]}],
        "parameters": {"k": 5},
    }
    url = f"http://127.0.0.1:{triton.started.http}/v2/models/chan_search/infer"
    with urllib.request.urlopen(url, json.dumps(body).encode()) as answer:
        outputs = {one["name"]: one["data"] for one in json.load(answer)["outputs"]}
    with Gallery.open(gallery) as opened:
        (wanted,) = opened.search(matcher.encode_texts([CAPTIONS[1]]), 5)
    assert outputs["ids"] == [hit.id for hit in wanted.hits]
    assert outputs["scores"] == [hit.score for hit in wanted.hits]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_many_requests_become_few_executions_and_the_same_bits(triton: Any, protocol: str) -> None:
    captions = [f"{CAPTIONS[i % 4]} {'apple ' * (i % 9)}" for i in range(48)]
    alone = [triton.infer(protocol, caption=texts(caption)) for caption in captions]
    with ThreadPoolExecutor(47) as threads:
        with triton.holding(lambda: triton.infer(protocol, caption=texts(captions[0]))) as held:
            asked = [threads.submit(triton.infer, protocol, caption=texts(one)) for one in captions[1:]]
            triton.wait_until(lambda: metrics(triton)["pending"] == 47)
        together = [held.result(), *(one.result() for one in asked)]
    assert triton.executions(48) == 2
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        assert all(one[name].tolist() == other[name].tolist() for name in one)


VECTORS = np.random.default_rng(1).standard_normal((2, 3, 16)).astype(np.float32)
NAN = np.where(np.arange(16) == 4, np.float32(np.nan), VECTORS)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no input": ({}, "request has 0 inputs"),
    "two inputs": (
        {"caption": texts("a"), "picture": texts("a")},
        "a request must have one of caption, picture, embedding, got caption and picture",
    ),
    "length of a caption": ({"caption": texts("a"), "length": np.ones((1, 1), np.int32)}, "length is the number of"),
    "another name": ({"captions": texts("a")}, "unexpected inference input 'captions'"),
    "no axis of queries": ({"caption": texts("a")[0]}, r"Expected \[-1,1\], got \[1\]"),
    "another shape": ({"caption": texts("a").repeat(2, axis=1)}, r"Expected \[-1,1\], got \[1,2\]"),
    "no query": ({"caption": texts("a")[:0]}, "expected 1 string elements"),
    "too many queries": ({"caption": texts("a").repeat(65, axis=0)}, "batch-size must be <= 64"),
    "another type": ({"caption": np.ones((1, 1), np.int32)}, "data-type is 'INT32'.* expects 'BYTES'"),
    "empty": ({"caption": texts("a", "")}, r"captions\[1\] must hold at least one word, got ''"),
    "no word": ({"caption": texts(" \t")}, r"captions\[0\] must hold at least one word"),
    "too many words": ({"caption": texts("apple " * 200)}, r"at most 128 words, start and end included.*, got 202"),
    "too many characters": ({"caption": texts("apple" * 9000)}, "must have at most 10000 characters, got 45000"),
    "no text": ({"caption": texts("a", b"\xff\xfe")}, r"captions\[1\] must be UTF-8 text, got other bytes at 0"),
    "no picture": ({"picture": texts("a")}, r"pictures\[0\] must be a JPEG, PNG, .* got other bytes"),
    "half a picture": ({"picture": texts(picture(0)[:300])}, r"pictures\[0\] cannot be read: image file is truncated"),
    "too many pixels": ({"picture": texts(wide())}, "must have at most 50000000 pixels, got 8000 x 8000"),
    "no bytes": ({"picture": texts("")}, r"pictures\[0\] must be a JPEG"),
    "not finite": ({"embedding": NAN}, r"embedding\[0, 0, 4\]: must be finite, got nan"),
    "another width": ({"embedding": VECTORS[:, :, :8].copy()}, "D must be this gallery's 16, got 8"),
    "too long": (
        {"embedding": VECTORS, "length": np.array([[3], [4]], np.int32)},
        r"length\[1\]: must be between 1 and 3, got 4",
    ),
    "too few lengths": ({"embedding": VECTORS, "length": np.ones((1, 1), np.int32)}, "batch size does not match"),
    "k": ({"caption": texts("a"), "k": 0}, "k must be positive, got 0"),
    "large k": ({"caption": texts("a"), "k": 1001}, "k must be at most 1000, got 1001"),
    "k as text": ({"caption": texts("a"), "k": "3"}, "k must be a positive integer, got '3'"),
    "filter": ({"caption": texts("a"), "where": '{"n"'}, "where: it must be valid JSON"),
    "private key": ({"caption": texts("a"), "where": '{"path": "/private/1.png"}'}, "no row has the key 'path'"),
    "parameter": ({"caption": texts("a"), "other": 1}, "must be among k and where, got 'other'"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_refused_and_the_server_goes_on(triton: Any, protocol: str, name: str) -> None:
    from tritonclient.utils import InferenceServerException

    inputs, message = BAD[name]
    with pytest.raises(InferenceServerException, match=message) as caught:
        triton.infer(protocol, **inputs)
    assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
    assert triton.infer(protocol, caption=texts("clouds"))["certified"].all()


def test_bad_requests_fail_alone(triton: Any, gallery: Path, matcher: Matcher) -> None:
    """Those that are executed together with sound ones."""
    from tritonclient.utils import InferenceServerException

    def ask(number: int) -> str | None:
        try:
            found = triton.infer(caption=texts(("clouds", "apple " * 200, "")[number % 3]))
        except InferenceServerException as error:
            return str(error.status())
        check(found, gallery, clouds)
        return None

    clouds = matcher.encode_texts(["clouds"])
    with ThreadPoolExecutor(30) as threads:
        with triton.holding(lambda: ask(0)):
            asked = [threads.submit(ask, number) for number in range(30)]
            triton.wait_until(lambda: metrics(triton)["pending"] == 30)
        assert [one.result() for one in asked] == [None, "400", "400"] * 10
    assert triton.executions(31) == 2  # the one that was held, and all others together


def metrics(triton: Any) -> dict[str, float]:
    """The server's metrics about `chan_search` by name; `pending` are the requests that wait."""
    with urllib.request.urlopen(f"http://127.0.0.1:{triton.started.metrics}/metrics") as answer:
        text = answer.read().decode()
    found = re.findall(r'^nv_inference_(\w+)\{.*?model="chan_search".*?\} (\S+)$', text, re.MULTILINE)
    return {name.removesuffix("_request_count"): float(value) for name, value in found}


def test_metrics_count_requests_and_executions(triton: Any) -> None:
    with triton.holding(lambda: triton.infer(caption=texts("clouds", "a table"))):
        before = metrics(triton)
    triton.executions(2)
    after = metrics(triton)
    assert after["request_success"] - before["request_success"] == 1
    assert after["count"] - before["count"] == 2  # queries
    assert after["exec_count"] - before["exec_count"] == 1
    assert after["request_duration_us"] > before["request_duration_us"]


def test_metadata_says_what_the_model_takes(triton: Any) -> None:
    client = triton.client()
    described = client.get_model_metadata("chan_search")
    assert {one["name"]: (one["datatype"], one["shape"]) for one in described["inputs"]} == {
        "caption": ("BYTES", [-1, 1]),
        "picture": ("BYTES", [-1, 1]),
        "embedding": ("FP32", [-1, -1, -1]),
        "length": ("INT32", [-1, 1]),
    }
    parameters = client.get_model_config("chan_search")["parameters"]
    assert parameters["chan_kind"]["string_value"] == "images"
    assert parameters["chan_grid"]["string_value"] == "2"


def test_a_commit_is_found_at_once(
    start_triton: Callable[..., Any], bundle: Path, new_gallery: Callable[..., Path], matcher: Matcher, tmp_path: Path
) -> None:
    gallery = new_gallery(tmp_path / "gallery", bundle, rows=20)
    write_repository(bundle, tmp_path / "repository", gallery=gallery)
    server = start_triton(tmp_path / "repository", "--model-control-mode=explicit", "--load-model=chan_search")
    queries = matcher.encode_texts(["a red strawberry"])
    check(server.infer(caption=texts("a red strawberry")), gallery, queries)
    with GalleryWriter.open(gallery) as writer:
        vectors = queries.vectors[:, :4].copy()
        writer.add(["new"], Embeddings(vectors, np.array([4], np.int32)), [{"n": 99}])
        writer.delete(["row-3"])
    found = server.infer(caption=texts("a red strawberry"), k=20)
    check(found, gallery, queries, 20)
    assert found["ids"][0, 0] == b"new"
    assert b"row-3" not in found["ids"]
    assert server.stop() == 0


def test_a_gallery_in_object_storage_is_opened_again_by_loading(
    start_triton: Callable[..., Any],
    bundle: Path,
    new_gallery: Callable[..., Path],
    matcher: Matcher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed")
    monkeypatch.setenv("CHAN_CACHE", str(tmp_path / "cache"))
    gallery, url = new_gallery(tmp_path / "gallery", bundle, rows=20), f"file://{tmp_path}/stored"
    push_gallery(gallery, url)
    write_repository(bundle, tmp_path / "repository", gallery=gallery, gallery_place=url)
    server = start_triton(tmp_path / "repository", "--model-control-mode=explicit", "--load-model=chan_search")
    with GalleryWriter.open(gallery) as writer:
        writer.delete([f"row-{row}" for row in range(15)])
    push_gallery(gallery, url)
    assert server.infer(caption=texts("clouds"), k=20)["hits"].tolist() == [[20]]
    server.client().load_model("chan_search")
    check(server.infer(caption=texts("clouds"), k=20), gallery, matcher.encode_texts(["clouds"]), 20)
    assert server.stop() == 0


def test_captions_are_found_with_a_picture(
    start_triton: Callable[..., Any], bundle: Path, new_gallery: Callable[..., Path], matcher: Matcher, tmp_path: Path
) -> None:
    gallery = new_gallery(tmp_path / "gallery", bundle, "captions")
    write_repository(bundle, tmp_path / "repository", gallery=gallery, served=Served(instances=2))
    server = start_triton(tmp_path / "repository", "--model-control-mode=explicit", "--load-model=chan_search")
    (tmp_path / "picture.png").write_bytes(picture(5))
    found = server.infer(picture=texts(picture(5)), k=4)
    check(found, gallery, matcher.encode_pictures([tmp_path / "picture.png"]), 4)
    assert found["regions"].shape == (1, 4, 4)
    assert server.stop() == 0


NOTING = """
import triton_python_backend_utils as pb

from chan_rt.scale.triton import search_model


class TritonPythonModel(search_model.TritonPythonModel):
    def execute(self, requests):
        with open({file!r}, "ab") as file:
            for request in requests:
                file.write(pb.get_input_tensor_by_name(request, "caption").as_numpy()[0, 0] + b"\\n")
        return super().execute(requests)
"""


def test_a_model_is_loaded_again_and_a_broken_one_is_not(
    start_triton: Callable[..., Any], repository: Path, tmp_path: Path
) -> None:
    from tritonclient.utils import InferenceServerException

    copy = Path(shutil.copytree(repository, tmp_path / "repository"))
    server = start_triton(copy, "--model-control-mode=explicit", "--load-model=chan_search")
    config = copy / "chan_search" / "config.pbtxt"
    sound = config.read_text()

    def load(text: str) -> None:
        config.write_text(text)
        server.client().load_model("chan_search")

    load(sound.replace('"1000"', '"5"'))
    with pytest.raises(InferenceServerException, match="k must be at most 5, got 6"):
        server.infer(caption=texts("clouds"), k=6)
    place = re.findall(r'"(/[^"]*/images)"', sound)[0]
    with pytest.raises(InferenceServerException, match="is not a gallery"):
        load(sound.replace(place, "/nowhere"))
    assert server.infer(caption=texts("clouds"), k=5)["hits"].tolist() == [[5]]
    server.client().unload_model("chan_search")
    server.wait_until(lambda: not server.client().is_model_ready("chan_search"))
    with pytest.raises(InferenceServerException, match="no available versions"):
        server.infer(caption=texts("clouds"))
    executed = tmp_path / "executed"
    (copy / "chan_search" / "1" / "model.py").write_text(NOTING.format(file=str(executed)))
    load(sound)
    assert executed.read_bytes() == b"a\n"  # by the request that warms it up
    assert server.infer(caption=texts("clouds"), k=400)["hits"].tolist() == [[400]]
    # It is not stopped: this version counts models that failed to load as alive, and waits 30 s for them.


def test_a_process_that_was_killed_is_replaced_by_loading(
    start_triton: Callable[..., Any], bundle: Path, gallery: Path, matcher: Matcher, tmp_path: Path
) -> None:
    """As docs/triton.md warns: this version of the server does not notice, and calls the model ready."""
    from tritonclient.utils import InferenceServerException

    out = tmp_path / "repository"
    write_repository(bundle, out, gallery=gallery)
    server = start_triton(out, "--model-control-mode=explicit", "--load-model=chan_search")
    os.kill(server.stub(), signal.SIGKILL)
    with pytest.raises(InferenceServerException, match="is not healthy"):
        server.infer(caption=texts("clouds"))
    assert server.client().is_model_ready("chan_search")
    write_repository(bundle, out, gallery=gallery, served=Served(queue=3), force=True)  # replaced while it is served
    server.client().load_model("chan_search")
    check(server.infer(caption=texts("clouds")), gallery, matcher.encode_texts(["clouds"]))
    batcher = server.client().get_model_config("chan_search")["dynamic_batching"]
    assert batcher["default_queue_policy"]["max_queue_size"] == 3
    # It is not stopped: it would wait for the process that is gone.
    assert server.started.shared_files()
    server.started.kill()
    assert not server.started.shared_files()


def test_a_full_queue_refuses_what_comes(
    start_triton: Callable[..., Any],
    bundle: Path,
    gallery: Path,
    holding_repository: Callable[[Path], Path],
    tmp_path: Path,
) -> None:
    from tritonclient.utils import InferenceServerException

    write_repository(bundle, tmp_path / "repository", gallery=gallery, served=Served(queue=2))
    repository = holding_repository(tmp_path / "repository")
    server = start_triton(repository, "--model-control-mode=explicit", "--load-model=chan_search")

    def ask() -> str | None:
        try:
            assert server.infer(caption=texts("clouds"))["certified"].all()
        except InferenceServerException as error:
            return f"{error.status()} {error.message()}"
        return None

    with ThreadPoolExecutor(16) as threads:
        with server.holding(ask) as held:
            asked = [threads.submit(ask) for _ in range(16)]
            server.wait_until(lambda: sum(one.done() for one in asked) >= 12)
        answers = [one.result() for one in asked]
    assert held.result() is None
    refused = [one for one in answers if one is not None]
    assert 12 <= len(refused) <= 14  # two wait in the queue; the server may have taken two more out of it
    assert all(re.match(r"503 .*[Ee]xceeds maximum queue size", one) for one in refused)
    assert server.infer(caption=texts("clouds"))["certified"].all()
    assert server.stop() == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_request_waits_only_as_long_as_it_may(triton: Any, protocol: str) -> None:
    from tritonclient.utils import InferenceServerException

    def ask(**how: Any) -> bool:
        return bool(triton.infer(protocol, caption=texts("clouds"), **how)["certified"].all())

    with ThreadPoolExecutor(8) as threads:
        with triton.holding(ask) as held:
            patient = [threads.submit(ask) for _ in range(4)]
            triton.wait_until(lambda: metrics(triton)["pending"] == 4)
            hurried = [threads.submit(ask, timeout=100_000) for _ in range(4)]
            triton.wait_until(lambda: metrics(triton)["pending"] == 8)
            time.sleep(0.2)
        assert held.result()
        assert all(one.result() for one in patient)
        for one in hurried:
            with pytest.raises(InferenceServerException, match="Request timeout expired"):
                one.result()


def test_sigterm_ends_the_server_after_the_requests_at_work(
    start_triton: Callable[..., Any], repository: Path, holding_repository: Callable[[Path], Path], tmp_path: Path
) -> None:
    copy = holding_repository(Path(shutil.copytree(repository, tmp_path / "repository")))
    server = start_triton(copy, "--model-control-mode=explicit", "--load-model=chan_search")

    def ask() -> bool:
        return bool(server.infer(caption=texts("clouds"))["certified"].all())

    with ThreadPoolExecutor(8) as threads:
        with server.holding(ask) as held:
            asked = [threads.submit(ask) for _ in range(8)]
            server.wait_until(lambda: metrics(server)["pending"] == 8)
            server.process.send_signal(signal.SIGTERM)
            server.wait_until(lambda: b"HTTP service connections" in server.log.read_bytes())
        assert held.result()
        assert all(one.result() for one in asked)
    assert server.started.shared_files()
    assert server.stop() == 0  # with the connections of clients, which it waits for, too
    assert not server.started.shared_files()
