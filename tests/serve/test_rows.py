"""Rows are listed page by page, each page from one commit, and without the files' places on the server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from chan_rt.runtime import AlignmentConfig, Embeddings, Gallery, GalleryWriter, InputError
from chan_rt.runtime.gallery import split_gallery
from chan_rt.serve import AsyncClient, Client, RequestRefused
from chan_rt.serve.routes import _listed

PATH = "/v1/galleries/pages/rows"
ODD = ["a/b%2Fc", "ü 日本\n", "null", "a&limit=1", "+ 100%", "..", "none"]
IDS = [f"{n}" for n in range(20)] + ODD


def rows_of(ids: list[str]) -> Embeddings:
    rng = np.random.default_rng(3)
    return Embeddings.from_rows([rng.standard_normal((1 + n % 3, 8)).astype(np.float32) for n in range(len(ids))])


def make(path: Path) -> Path:
    """A gallery of several segments with a row deleted, and metadata that are about files."""
    with GalleryWriter.create(path, dim=8, alignment=AlignmentConfig.maxsim()) as writer:
        metadata = [{"n": n, "path": "/secret/x.png", "source": "/secret"} for n in range(20)]
        writer.add(["gone"], rows_of(["gone"]))
        writer.add(IDS[:20], rows_of(IDS)[:20], metadata)
        writer.add(ODD, rows_of(IDS)[20:], [{"odd": True, "boxes": [[0, 0, 1, 1]]}] * len(ODD))
        writer.delete(["gone"])
    return path


@pytest.fixture(scope="module", params=[1, 3], ids=["one folder", "shards"])
def pages(request: pytest.FixtureRequest, start_server, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """A server that is read-only, and its gallery."""
    folder = tmp_path_factory.mktemp("rows")
    path = make(folder / "pages")
    if request.param > 1:
        path.rename(folder / "whole")
        split_gallery(folder / "whole", path, request.param)
    with start_server(path) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        yield SimpleNamespace(url=server.url, http=http, path=path)


def walk(http: httpx.Client, **query: object) -> list[dict]:
    """All pages of a listing."""
    found = [http.get(PATH, params=query).json()]
    while found[-1]["next"] is not None:
        answer = http.get(PATH, params={**query, "after": found[-1]["next"]})
        assert answer.status_code == 200, answer.text
        found.append(answer.json())
    return found


def test_pages_have_each_row_once_in_order(pages) -> None:
    (whole,) = walk(pages.http)
    with Gallery.open(pages.path) as gallery:
        assert [row.id for row in gallery.rows()] == IDS == [row["id"] for row in whole["rows"]]
        assert [row["vectors"] for row in whole["rows"]] == gallery.lengths(IDS).tolist()
    assert (whole["gallery"], whole["total"], whole["next"]) == ("pages", len(IDS), None)
    for limit in (1, 7, len(IDS) - 1, len(IDS), 1000):
        found = walk(pages.http, limit=limit)
        assert [row for page in found for row in page["rows"]] == whole["rows"]
        assert {page["total"] for page in found} == {len(IDS)}
        assert [len(page["rows"]) for page in found[:-1]] == [limit] * (len(found) - 1)
        assert found[-1]["rows"]


def test_a_row_tells_nothing_about_files_of_the_server(pages) -> None:
    answer = pages.http.get(PATH, params={"id": ["0", "null"]})
    assert "secret" not in answer.text
    first, second = answer.json()["rows"]
    assert (first["metadata"], first["picture"]) == ({"n": 0}, "/v1/galleries/pages/pictures?id=0")
    assert (second["metadata"], second["picture"]) == ({"odd": True}, None)
    for key in ("path", "source"):
        answer = pages.http.get(PATH, params={"where": f'{{"{key}": "/secret"}}'})
        assert (answer.status_code, answer.json()["error"]) == (422, "InputError")


def test_a_filter_makes_pages_of_the_rows_that_pass(pages) -> None:
    where = '{"n": {"$gte": 5, "$lt": 12}}'
    found = walk(pages.http, where=where, limit=3)
    assert [[row["id"] for row in page["rows"]] for page in found] == [["5", "6", "7"], ["8", "9", "10"], ["11"]]
    assert {page["total"] for page in found} == {7}
    answer = pages.http.get(PATH, params={"where": where, "after": "2", "limit": 2}).json()  # itself need not pass
    assert [row["id"] for row in answer["rows"]] == ["5", "6"]
    nothing = pages.http.get(PATH, params={"where": '{"n": -1}'}).json()
    assert (nothing["rows"], nothing["total"], nothing["next"]) == ([], 0, None)
    assert pages.http.get(PATH, params={"where": "{}"}).json()["total"] == len(IDS)
    last = pages.http.get(PATH, params={"after": IDS[-1]}).json()
    assert (last["rows"], last["total"], last["next"]) == ([], len(IDS), None)


def test_ids_give_their_rows_in_their_order(pages) -> None:
    wanted = [*reversed(ODD), "3", "3"]
    answer = pages.http.get(PATH, params={"id": wanted}).json()
    assert [row["id"] for row in answer["rows"]] == wanted
    assert (answer["total"], answer["next"]) == (len(wanted), None)
    raw = pages.http.get(f"{PATH}?id=a%2Fb%252Fc").json()
    assert [row["id"] for row in raw["rows"]] == ["a/b%2Fc"]


@pytest.mark.parametrize(
    ("query", "status", "reason", "words"),
    [
        *[(f"limit={limit}", 422, "query", "limit") for limit in ("", "0", "-1", "1001", "9" * 400, "NaN", "1.5", "x")],
        ("limit=1e999", 422, "query", "limit"),
        ("limit=1&limit=2", 422, "query", "must have limit once"),
        ("after=nine", 422, "InputError", "after: not in the gallery: nine"),
        ("after=", 422, "InputError", "after: not in the gallery: "),
        ("after=gone", 422, "InputError", "after: not in the gallery: gone"),
        ("after=%00", 422, "InputError", "after: not in the gallery"),
        ("id=nine&id=0", 422, "InputError", "ids: not in the gallery: nine"),
        ("id=", 422, "InputError", "ids: not in the gallery"),
        ("id=0&after=1", 422, "query", "id must not be given together with after"),
        ("id=0&where={}", 422, "query", "id must not be given together with where"),
        ("id=0&limit=100", 422, "query", "id must not be given together with limit"),
        ("&".join(["id=0"] * 65), 422, "texts", "id must hold 1 to 64 items, got 65"),
        ("where=", 422, "query", "where must be JSON"),
        ("where=[]", 422, "query", "where"),
        ('where={"n":1,"n":2}', 422, "query", "stands twice"),
        ('where={"n":{"$what":1}}', 422, "InputError", "$what"),
        ('where={"m":1}', 422, "InputError", "no row has the key 'm'"),
        (f'where={{"n":{{"$in":{[0] * 101}}}}}', 422, "where", "at most 100 values"),
        ("offset=3", 422, "query", "unknown field `offset`"),
    ],
)
def test_a_listing_that_breaks_a_rule(pages, query: str, status: int, reason: str, words: str) -> None:
    answer = pages.http.get(f"{PATH}?{query}")
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status, reason), answer.text
    assert words in answer.json()["detail"]


def test_no_other_gallery_is_listed(pages) -> None:
    for name in ("other", "..%2Fpages", "pages%00"):
        answer = pages.http.get(f"/v1/galleries/{name}/rows")
        assert answer.status_code == 404


def test_metrics_know_the_listing_by_its_route(pages) -> None:
    pages.http.get(PATH, params={"id": "nine"})
    counted = 'chan_requests_total{route="/v1/galleries/{name}/rows",status="422"}'
    assert counted in pages.http.get("/metrics").text


def test_a_listing_needs_the_key(start_server, pages, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    with start_server(pages.path, "--api-key-file", key) as server:
        assert httpx.get(f"{server.url}{PATH}").status_code == 401
        with Client(server.url, api_key="secret") as client:
            assert len(list(client.rows())) == len(IDS)


def test_clients_page_by_themselves(pages) -> None:
    async def collect(**options: object) -> list[str]:
        async with AsyncClient(pages.url) as client:
            return [row.id async for row in client.rows(**options)]

    with Client(pages.url) as client:
        for options, expected in (
            ({}, IDS),
            ({"page": 1}, IDS),
            ({"page": 4, "after": "17"}, IDS[18:]),
            ({"page": 2, "where": {"odd": True}}, ODD),
            ({"ids": ["5", *ODD]}, ["5", *ODD]),
        ):
            assert [row.id for row in client.rows(**options)] == expected == asyncio.run(collect(**options))
        with pytest.raises(InputError, match="not in the gallery: nine"):
            list(client.rows(["nine"]))
        with pytest.raises(RequestRefused, match="limit"):
            list(client.rows(page=0))
        for wrong, words in (({"ids": []}, "at least one id"), ({"ids": ["1"], "where": {}}, "together with where")):
            with pytest.raises(InputError, match=words):
                client.rows(**wrong)
        with pytest.raises(InputError, match="lists of text"):
            client.rows("5")


def test_rows_that_change_between_pages(start_server, tmp_path: Path) -> None:
    """A page is of the newest commit, and goes on from where its id is there."""
    path = make(tmp_path / "pages")
    with start_server(path) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        first = http.get(PATH, params={"limit": 5}).json()
        with GalleryWriter.open(path) as writer:
            writer.delete(["2", "6"])
            second = http.get(PATH, params={"limit": 3, "after": first["next"]}).json()
            assert [row["id"] for row in second["rows"]] == ["5", "7", "8"]
            assert second["total"] == len(IDS) - 2
            writer.delete([second["next"]])
            lost = http.get(PATH, params={"after": second["next"]})
            assert (lost.status_code, lost.json()["error"]) == (422, "InputError")
            writer.delete([id for id in IDS if id not in ("2", "6", "8")])
        empty = http.get(PATH).json()
        assert (empty["rows"], empty["total"], empty["next"]) == ([], 0, None)


def test_a_page_reads_the_metadata_of_its_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from chan_rt.runtime.gallery.store.rows import MappedRows

    with Gallery.open(make(tmp_path / "pages")) as gallery:
        read: list[int] = []
        row = MappedRows.row
        monkeypatch.setattr(MappedRows, "rows", lambda *_: pytest.fail("all rows were read"))
        monkeypatch.setattr(MappedRows, "row", lambda self, at: (read.append(at), row(self, at))[1])
        page = gallery.page(3, after="4")
        assert ([one.id for one in page.rows], page.next, page.total) == (["5", "6", "7"], "7", len(IDS))
        assert len(read) == 3
        with pytest.raises(InputError, match="limit"):
            gallery.page(0)


def test_shards_on_ray_are_not_listed() -> None:
    from chan_rt.serve.bodies import ListRows
    from chan_rt.serve.problems import Refusal

    with pytest.raises(Refusal, match="where shards are searched on Ray") as refused:
        _listed(SimpleNamespace(gallery=object(), name="pages"), ListRows(), None)
    assert (refused.value.status, refused.value.reason) == (501, "ray")
