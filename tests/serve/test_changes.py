"""Clients add and delete rows of a server that lets them, and every search sees the newest commit."""

import asyncio
import base64
import io
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from chan_rt.runtime import AlignmentConfig, Embeddings, Gallery, GalleryError, GalleryWriter, open_writer
from chan_rt.serve import Client, Limits, Settings, bodies
from chan_rt.serve.app import create_app
from chan_rt.serve.galleries import Galleries
from chan_rt.serve.problems import Refusal
from chan_rt.serve.rows import Writers
from chan_rt.serve.state import State

CAPTION = "two red apples"


def picture(seed: int) -> bytes:
    cells = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(cells.repeat(16, 0).repeat(20, 1)).save(data, "PNG")
    return data.getvalue()


@pytest.fixture(scope="module")
def copy(gallery: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(gallery, tmp_path_factory.mktemp("writable") / "mine")


@pytest.fixture(scope="module")
def writable(start_server, copy: Path) -> Iterator[httpx.Client]:
    uploads = copy.parent / "uploads"
    with (
        start_server(f"mine={copy}", "--writable", "--uploads", uploads) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def ids(client: httpx.Client, **fields: object) -> list[str]:
    body = {"captions": [CAPTION], "k": 100, **fields}
    (result,) = client.post("/v1/search", json=body).json()["results"]
    return sorted(hit["id"] for hit in result["hits"])


def test_a_row_is_added_shown_replaced_and_deleted(writable: httpx.Client, copy: Path) -> None:
    before = ids(writable)
    data = [base64.b64encode(picture(n)).decode() for n in (1, 2)]
    rows = {"ids": ["new/1", "new/2"], "pictures": data, "metadata": [{"year": 1}, {"year": 2}]}
    answer = writable.put("/v1/galleries/mine/rows", json=rows)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"gallery": "mine", "added": 2, "deleted": 0, "rows": len(before) + 2}
    assert ids(writable) == sorted([*before, "new/1", "new/2"])
    assert ids(writable, where={"year": 2}) == ["new/2"]

    shown = writable.get("/v1/galleries/mine/pictures", params={"id": "new/2", "side": 160})
    with Image.open(io.BytesIO(shown.content)) as image, Image.open(io.BytesIO(picture(2))) as mine:
        assert image.size == mine.size
        assert np.abs(np.asarray(image, int) - np.asarray(mine.convert("RGB"), int)).mean() < 8
    kept = sorted((copy.parent / "uploads").iterdir())
    assert sorted(file.read_bytes() for file in kept) == sorted([picture(1), picture(2)])

    again = writable.put("/v1/galleries/mine/rows", json=rows)
    assert (again.status_code, again.json()["error"]) == (422, "InputError")
    again = writable.put("/v1/galleries/mine/rows", json={**rows, "overwrite": True})
    assert again.json() == {"gallery": "mine", "added": 2, "deleted": 2, "rows": len(before) + 2}

    gone = writable.request("DELETE", "/v1/galleries/mine/rows", json={"ids": ["new/1", "new/2"]})
    assert gone.json() == {"gallery": "mine", "added": 0, "deleted": 2, "rows": len(before)}
    assert ids(writable) == before
    gone = writable.request("DELETE", "/v1/galleries/mine/rows", json={"ids": ["new/1"]})
    assert (gone.status_code, gone.json()["error"]) == (422, "InputError")


def test_a_change_that_fails_keeps_no_picture(gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, uploads = shutil.copytree(gallery, tmp_path / "mine"), tmp_path / "uploads"
    galleries = Galleries(Settings({"mine": path}, threads=1))
    galleries.reopen()

    def full(*_: object, **__: object) -> None:
        assert len(list(uploads.iterdir())) == 2
        raise GalleryError("the disk is full: nothing of this change was kept")

    def put(*numbers: int) -> None:
        body = bodies.PutRows([f"new/{n}" for n in numbers], pictures=[picture(n) for n in numbers])
        with galleries.using("mine") as opened:
            row = opened.gallery.embeddings([opened.gallery.rows()[0].id])
            Writers(uploads, 1 << 16, 0).add(opened, body, Embeddings.concatenate([row] * len(numbers)))

    try:
        put(1)
        with monkeypatch.context() as patch:
            patch.setattr(GalleryWriter, "add", full)
            with pytest.raises(GalleryError, match="disk is full"):
                put(1, 2)
        assert [file.read_bytes() for file in uploads.iterdir()] == [picture(1)]  # which another row has
        put(2)
        assert len(list(uploads.iterdir())) == 2
    finally:
        galleries.close()


def test_a_picture_is_put_as_a_file(writable: httpx.Client) -> None:
    query = {"id": "as a file/ü.png", "metadata": '{"year": 7}', "overwrite": "true"}
    headers = {"content-type": "image/png"}
    answer = writable.put("/v1/galleries/mine/pictures", params=query, content=picture(7), headers=headers)
    assert answer.status_code == 200, answer.text
    assert ids(writable, where={"year": 7}) == ["as a file/ü.png"]
    query["metadata"] = '{"year": "\\ud800"}'
    answer = writable.put("/v1/galleries/mine/pictures", params=query, content=picture(7), headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:chan-rt:problem:query")
    writable.request("DELETE", "/v1/galleries/mine/rows", json={"ids": ["as a file/ü.png"]})


@pytest.mark.parametrize("key", ["path", "source"])
def test_no_client_names_a_file_of_the_server(writable: httpx.Client, key: str) -> None:
    data = base64.b64encode(picture(1)).decode()
    rows = {"ids": ["x"], "pictures": [data], "metadata": [{key: "/etc/passwd"}]}
    answer = writable.put("/v1/galleries/mine/rows", json=rows)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:chan-rt:problem:metadata")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({"ids": ["x"], "captions": ["a cloud"]}, "must be of this gallery's images, got captions"),
        (
            {"ids": ["x", "y"], "pictures": [base64.b64encode(picture(1)).decode()]},
            "must be of one number, got 2, 1, 2",
        ),
        ({"ids": ["x"]}, "exactly one of"),
        ({"ids": ["x" * 70_000], "pictures": [base64.b64encode(picture(1)).decode()]}, "row 0 must have at most 65536"),
        (
            {
                "ids": ["x"],
                "pictures": [base64.b64encode(picture(1)).decode()],
                "metadata": [{"text": "y" * 70_000}],
            },
            "row 0 must have at most 65536 bytes, got 700",
        ),
        ({"ids": ["x"] * 65, "pictures": []}, "ids must hold 1 to 64 items, got 65"),
    ],
)
def test_rows_that_do_not_fit(writable: httpx.Client, rows: dict, words: str) -> None:
    answer = writable.put("/v1/galleries/mine/rows", json=rows)
    assert answer.status_code == 422
    assert words in answer.json()["detail"]


def test_a_search_sees_what_another_writer_commits(writable: httpx.Client, copy: Path, make_small_model) -> None:
    before = ids(writable)
    with Gallery.open(copy) as gallery:
        row = gallery.embeddings([before[0]])
    with GalleryWriter.open(copy) as writer:
        writer.add(["from outside"], row, [{"year": 9}])
        assert ids(writable) == sorted([*before, "from outside"])
        locked = writable.request("DELETE", "/v1/galleries/mine/rows", json={"ids": ["from outside"]})
        assert (locked.status_code, locked.json()["error"]) == (409, "GalleryLocked")
        assert str(copy) not in locked.text
        writer.delete(["from outside"])
    assert ids(writable) == before


def test_a_gallery_that_was_replaced_is_opened_again(start_server, gallery: Path, tmp_path: Path) -> None:
    path = shutil.copytree(gallery, tmp_path / "mine")
    with start_server(path, "--writable") as server, httpx.Client(base_url=server.url, timeout=60) as client:
        before = ids(client)
        for way in ("endpoint", "signal"):
            with Gallery.open(path) as old:
                row, settings = old.embeddings([before[0]]), old.settings
            shutil.rmtree(path)
            with open_writer(path, settings) as writer:
                writer.add([way], row)
            refused = client.post("/v1/search", json={"captions": [CAPTION]})
            assert (refused.status_code, refused.json()["error"]) == (503, "GalleryMissing")
            assert str(path) not in refused.text
            if way == "endpoint":
                assert client.post("/v1/reopen").json()["galleries"][0]["rows"] == 1
            else:
                server.process.send_signal(signal.SIGHUP)
                server.wait_for(lambda log: log.count("opened mine (1 row)") == 2)
            before = ids(client)
            assert before == [way]
        shutil.rmtree(path)
        failed = client.post("/v1/reopen")
        assert (failed.status_code, failed.json()["error"]) == (503, "GalleryMissing")
        assert client.get("/readyz").status_code == 200


def test_a_gallery_that_was_moved_away_fails_alone(start_server, gallery: Path, tmp_path: Path) -> None:
    away = shutil.copytree(gallery, tmp_path / "away")
    served = (f"away={away}", f"here={gallery}", "--writable")
    with start_server(*served) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        away.rename(tmp_path / "moved")
        for path, body in (("/v1/search", {"captions": [CAPTION], "gallery": "away"}), ("/v1/reopen", None)):
            refused = client.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]) == (503, "GalleryMissing")
            assert refused.headers["retry-after"] == "1"
            assert "the gallery away is not a gallery" in refused.json()["detail"]
            assert str(tmp_path) not in refused.text
        assert ids(client, gallery="here")
        listed = {one["name"]: (one["rows"], one["problem"]) for one in client.get("/v1/galleries").json()["galleries"]}
        assert listed == {"away": (0, "GalleryMissing"), "here": (8, None)}
        metrics = client.get("/metrics").text
        assert 'chan_gallery_rows{gallery="away"} NaN' in metrics
        assert 'chan_gallery_rows{gallery="here"} 8.0' in metrics
        (tmp_path / "moved").rename(away)
        assert len(ids(client, gallery="away")) == 8


def test_an_answer_that_a_change_took_too_long_means_that_nothing_changed(
    gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has begun is finished and acknowledged; one that waits behind it is neither begun nor made later."""
    path = shutil.copytree(gallery, tmp_path / "mine")
    state = State(Settings({"mine": path}, threads=1, writable=True, limits=Limits(seconds=1)))
    begun, go_on = threading.Event(), threading.Event()

    def slow(self: GalleryWriter, ids: list[str]) -> None:
        begun.set()
        assert go_on.wait(30)
        delete(self, ids)

    delete = GalleryWriter.delete
    monkeypatch.setattr(GalleryWriter, "delete", slow)

    async def scenario() -> tuple[httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(create_app(state))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:

            def gone(id: str) -> asyncio.Task[httpx.Response]:
                return asyncio.create_task(client.request("DELETE", "/v1/galleries/mine/rows", json={"ids": [id]}))

            first = gone("photos/1 & co.png")
            await asyncio.to_thread(begun.wait, 30)
            second = await gone("photos/2 & co.png")
            assert not first.done()
            go_on.set()
            return await first, second

    state.galleries.reopen()
    state.ready = True
    try:
        first, second = asyncio.run(scenario())
    finally:
        state.close()
    assert (first.status_code, first.json()["deleted"]) == (200, 1)
    assert (second.status_code, second.json()["type"]) == (503, "urn:chan-rt:problem:timeout")
    with Gallery.open(path) as opened:
        assert {row.id for row in opened.rows()} == {f"photos/{n} & co.png" for n in (0, 2, 3, 4, 5, 6, 7)}


def test_a_change_that_has_begun_is_acknowledged_however_often_it_is_cut(gallery: Path) -> None:
    """Its time may be over first, and then the grace of the server."""
    state = State(Settings({"mine": gallery}))
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        assert go_on.wait(30)
        return "made"

    async def scenario() -> str:
        change = asyncio.create_task(state.change(slow))
        await asyncio.to_thread(begun.wait, 30)
        for _ in range(3):
            change.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        go_on.set()
        return await change

    try:
        assert asyncio.run(scenario()) == "made"
    finally:
        go_on.set()
        state.close()


def test_changes_in_several_workers_wait_for_each_other(start_server, gallery: Path, tmp_path: Path) -> None:
    path = shutil.copytree(gallery, tmp_path / "mine")
    with start_server(path, "--workers", "2", "--writable") as server:

        def put(n: int) -> int:  # over a connection of its own, so that both workers get some
            with Client(server.url) as client:  # which sends again what a worker that is still loading refused
                return client.add([f"new/{n}"], pictures=[picture(1)]).added

        with ThreadPoolExecutor(8) as threads:
            assert list(threads.map(put, range(40))) == [1] * 40
    with Gallery.open(path) as opened:
        assert len(opened) == 48


def test_metadata_alone_is_replaced(writable: httpx.Client) -> None:
    """Vectors, places and pictures stay; what is about files of the server is neither shown nor lost."""
    rows, id = "/v1/galleries/mine/rows", "metadata/ü%2F"
    new = {"ids": [id], "pictures": [base64.b64encode(picture(5)).decode()], "metadata": [{"year": 1, "tag": "a"}]}
    assert writable.put(rows, json=new).status_code == 200
    before = writable.get(rows).json()
    answer = writable.patch(rows, json={"rows": [{"id": id, "metadata": {"year": 2}}]})
    assert answer.json() == {"gallery": "mine", "changed": 1, "rows": before["total"]}, answer.text
    (shown,) = writable.get(rows, params={"id": id}).json()["rows"]
    assert shown == {**before["rows"][-1], "metadata": {"year": 2}}
    assert [row["id"] for row in writable.get(rows).json()["rows"]] == [row["id"] for row in before["rows"]]
    assert writable.get(shown["picture"]).status_code == 200
    assert ids(writable, where={"year": 2}) == [id]
    writable.request("DELETE", rows, json={"ids": [id]})


@pytest.mark.parametrize(
    ("body", "status", "reason", "words"),
    [
        ({"rows": []}, 422, "body", "length >= 1"),
        ({"rows": [{"id": "nine", "metadata": {}}]}, 422, "InputError", "not in the gallery: nine"),
        ({"rows": [{"id": "nine"}]}, 422, "body", "missing required field `metadata`"),
        ({"rows": [{"id": "nine", "metadata": None}]}, 422, "body", "Expected `object`"),
        ({"rows": [{"id": "nine", "metadata": {}, "new_id": "x"}]}, 422, "body", "unknown field `new_id`"),
        ({"rows": [{"id": "nine", "metadata": {"path": "/etc/passwd"}}]}, 422, "metadata", "must not have the key"),
        ({"rows": [{"id": "nine", "metadata": {"t": "y" * 70_000}}]}, 422, "metadata", "row 0 must have at most 65536"),
        ({"rows": [{"id": "nine", "metadata": {}}] * 65}, 422, "texts", "rows must hold 1 to 64 items, got 65"),
        ({"rows": [{"id": "photos/1 & co.png", "metadata": {}}] * 2}, 422, "InputError", "photos/1 & co.png"),
    ],
)
def test_metadata_that_do_not_fit(writable: httpx.Client, body: dict, status: int, reason: str, words: str) -> None:
    before = writable.get("/v1/galleries/mine/rows").json()
    answer = writable.patch("/v1/galleries/mine/rows", json=body)
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status, reason), answer.text
    assert words in answer.json()["detail"]
    assert writable.get("/v1/galleries/mine/rows").json() == before


def test_a_caption_and_boxes_stay_with_their_vectors(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    with GalleryWriter.create(path, dim=4, kind="captions", alignment=AlignmentConfig.maxsim()) as writer:
        old = {"caption": "a cloud", "boxes": [[0, 0, 1, 1]], "path": "/x", "n": 1}
        writer.add(["a"], Embeddings.from_rows([np.ones((2, 4))], "captions"), [old])
    galleries = Galleries(Settings({"mine": path}, threads=1))
    galleries.reopen()
    writers = Writers(None, 1000, 0)
    try:
        with galleries.using("mine") as opened:
            writers.patch(opened, [bodies.NewMetadata("a", {"n": 2})])
            assert opened.gallery.find(["a"])[0].metadata == {**old, "n": 2}
            with pytest.raises(Refusal, match="row 0 must keep its caption"):
                writers.patch(opened, [bodies.NewMetadata("a", {"caption": "a tree"})])
            writers.patch(opened, [bodies.NewMetadata("a", {"caption": "a cloud"})])
            assert opened.gallery.find(["a"])[0].metadata == {key: old[key] for key in ("caption", "boxes", "path")}
    finally:
        galleries.close()
