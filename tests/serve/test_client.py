"""The clients return what the library returns, raise its errors, and try again where that helps."""

import asyncio
import inspect
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from chan_rt.runtime import Embeddings, Gallery, InputError, Matcher, TensorError
from chan_rt.serve import AsyncClient, Client, RequestRefused, calls

CAPTION = "two red apples lie on the blue table"


class Sync:
    """An AsyncClient that is called as a Client."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(*args, **kwargs)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: self._loop.run_until_complete(getattr(self._client, name)(*args, **kwargs))

    def close(self) -> None:
        self.aclose()
        self._loop.close()


@pytest.fixture(params=[Client, Sync])
def client(request: pytest.FixtureRequest, server) -> Iterator[Client]:
    client = request.param(server.url)
    yield client
    client.close()


def test_the_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, tuple[inspect.Signature, str | None]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: (inspect.signature(method), method.__doc__) for name, method in found if name[0] != "_"}

    ours, other = methods(Client), methods(AsyncClient)
    assert other.pop("aclose") == ours.pop("close")
    assert ours == other
    assert (
        str(ours["delete"][0])
        == "(self, /, ids: 'Sequence[str]', *, gallery: 'str | None' = None) -> 'bodies.RowsResponse'"
    )
    assert all(documentation for _, documentation in ours.values())
    assert ours.keys() >= {
        "search",
        "score",
        "encode_texts",
        "encode_pictures",
        "explain",
        "rows",
        "add",
        "relabel",
        "delete",
    }


def test_answers_are_those_of_the_library(client: Client, library: tuple[Gallery, Matcher], pictures: Path) -> None:
    opened, matcher = library
    files = sorted(pictures.iterdir())[:2]
    texts, images = matcher.encode_texts([CAPTION, "a"]), matcher.encode_pictures(files)
    encoded = client.encode_texts([CAPTION, "a"])
    assert encoded.kind == "captions"
    np.testing.assert_array_equal(encoded.lengths, texts.lengths)
    np.testing.assert_allclose(encoded.vectors, texts.vectors, atol=1e-6)
    np.testing.assert_allclose(client.encode_pictures(files).vectors, images.vectors, atol=1e-6)
    np.testing.assert_allclose(
        client.encode_pictures([file.read_bytes() for file in files]).vectors, images.vectors, atol=1e-6
    )
    np.testing.assert_allclose(client.score([CAPTION, "a"], files), matcher.score(images, texts), atol=1e-4)
    ids = [f"photos/{file.name}" for file in files]
    np.testing.assert_allclose(client.score([CAPTION, "a"], ids=ids), matcher.score(images, texts), atol=1e-4)

    for found in (client.search([CAPTION, "a"], k=3), client.search(embeddings=texts, k=3)):
        for mine, theirs in zip(found, opened.search(texts, 3), strict=True):
            assert (mine.certified, mine.reason, mine.rows) == (True, theirs.reason, 8)
            assert [hit.id for hit in mine.hits] == [hit.id for hit in theirs.hits]
    assert [hit.id for hit in client.search([CAPTION], ids=ids[:1])[0].hits] == ids[:1]
    assert len(client.search([CAPTION], where={"year": {"$exists": False}}, k=1, off=[1])[0].hits) == 1

    explained = client.explain(CAPTION, id=ids[0])
    assert explained.score == pytest.approx(matcher.explain(images[0], CAPTION).score, abs=1e-4)
    assert client.explain(CAPTION, picture=files[0]).words == explained.words
    assert [one.name for one in client.galleries()] == ["gallery"]
    with Image.open(io.BytesIO(client.picture(ids[0], 160))) as image:
        assert image.format == "JPEG"


def test_errors_are_those_of_the_library(client: Client, tmp_path: Path) -> None:
    with pytest.raises(TensorError, match="words") as caught:
        client.search(["a " * 200])
    assert (caught.value.tensor, caught.value.value) == ("token_ids[0]", "202")
    with pytest.raises(InputError, match="not in the gallery: nine"):
        client.search(["a"], ids=["nine"])
    with pytest.raises(RequestRefused, match="one of gallery, got 'other'") as refused:
        client.search(["a"], gallery="other")
    assert (refused.value.status, refused.value.reason) == (404, "gallery")
    assert refused.value.request_id
    for change in (
        lambda: client.add(["x"], captions=["a"]),
        lambda: client.delete(["x"]),
        lambda: client.relabel(["x"], [{}]),
    ):
        with pytest.raises(RequestRefused, match="read-only") as refused:
            change()
        assert refused.value.status == 403
    with pytest.raises(InputError, match=r"write \['a'\]"):
        client.search("a")
    with pytest.raises(InputError, match="must be a list of files"):
        client.encode_pictures("a.png")
    with pytest.raises(InputError, match=r"no\.png cannot be read: No such file"):
        client.encode_pictures([tmp_path / "no.png"])
    vectors = np.ones((1, 3, 16), np.float32)
    with pytest.raises(InputError, match="give these as embeddings="):
        client.search(Embeddings.from_rows(vectors))
    with pytest.raises(TensorError, match=r"embeddings: must be Embeddings.*from_rows makes them"):
        client.search(embeddings=vectors)


def test_rows_are_added_and_deleted(start_server, gallery: Path, pictures: Path, tmp_path: Path) -> None:
    path = shutil.copytree(gallery, tmp_path / "mine")
    file = next(pictures.iterdir())
    with start_server(path, "--writable") as server, Client(server.url, gallery="mine") as client:
        assert client.add(["x"], pictures=[file], metadata=[{"n": 1}]).rows == 9
        rows = client.encode_pictures([file])
        assert client.add(["x", "y"], rows.concatenate([rows, rows]), overwrite=True).deleted == 1
        assert (client.relabel(["y", "x"], [{"n": 2}, {}]).changed, client.search(like="x", k=9)[0].rows) == (2, 10)
        listed = [row.metadata for row in client.rows(["x", "y"])]
        assert listed == [{}, {"n": 2}]
        with pytest.raises(InputError, match="must be of one number, got 1, 2"):
            client.relabel(["x"], [{}, {}])
        assert client.delete(["x", "y"]).rows == 8


def answers(statuses: list[int | None], seen: list[float], retry_after: str | None) -> Callable:
    """A transport's handler: the statuses one after the other; None refuses the connection."""
    turn = iter(statuses)

    def handle(request: httpx.Request) -> httpx.Response:
        status = next(turn)
        if status is None:
            raise httpx.ConnectError("refused")
        headers = {} if retry_after is None else {"retry-after": retry_after}
        content = b'{"galleries":[],"limits":{}}' if status == 200 else b"no problem"
        return httpx.Response(status, headers=headers, content=content)

    return handle


@pytest.mark.parametrize("kind", [Client, Sync])
@pytest.mark.parametrize(
    ("statuses", "retry_after", "waits", "status"),
    [
        ([200], None, [], None),
        ([429, 503, None, 200], "2", [2, 2, 0], None),
        ([503, 200], "soon", [0], None),
        ([500], "1", [], 500),
        ([429] * 5, "1", [1] * 4, 429),
        ([None] * 5, None, [0] * 4, 0),
    ],
)
def test_what_may_pass_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
    kind: type,
    statuses: list,
    retry_after: str | None,
    waits: list,
    status: int | None,
) -> None:
    seen: list[float] = []
    http = httpx.Client if kind is Client else httpx.AsyncClient

    async def pause(seconds: float) -> None:
        seen.append(seconds)

    # in this module alone: threads of other tests may sleep, too
    monkeypatch.setattr("chan_rt.serve.client.time", SimpleNamespace(sleep=seen.append))
    monkeypatch.setattr("chan_rt.serve.client.asyncio", SimpleNamespace(sleep=pause))
    client = kind("http://x", http=http(transport=httpx.MockTransport(answers(statuses, seen, retry_after))))
    if status is None:
        assert client.galleries() == []
    else:
        with pytest.raises(RequestRefused) as caught:
            client.galleries()
        assert caught.value.status == status
    assert len(seen) == len(waits)
    for attempt, (waited, asked) in enumerate(zip(seen, waits, strict=True)):
        assert asked <= waited <= asked + 0.1 * 2**attempt
    client.close()


@pytest.mark.parametrize("kind", [Client, Sync])
@pytest.mark.parametrize(
    ("fails", "words"),
    [
        (httpx.ReadTimeout("timed out"), "http://x did not answer: timed out"),
        (httpx.ReadError(""), "http://x did not answer: ReadError"),
        ("<html>", "http://x is no chan serve: JSON is malformed"),
    ],
)
def test_what_is_no_answer_is_a_refusal_and_not_sent_again(kind: type, fails: Any, words: str) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if isinstance(fails, Exception):
            raise fails
        return httpx.Response(200, text=fails)

    http = httpx.Client if kind is Client else httpx.AsyncClient
    client = kind("http://x", http=http(transport=httpx.MockTransport(answer)))
    with pytest.raises(RequestRefused, match=words):
        client.galleries()
    assert len(asked) == 1
    client.close()


def test_clients_do_not_come_back_together() -> None:
    waits = [calls.pause(3, "1") for _ in range(50)]
    assert len(set(waits)) == 50
    assert max(waits) - min(waits) > 0.2
    assert all(calls.pause(attempt, "9999999") <= 65 for attempt in range(0, 2000, 100))
